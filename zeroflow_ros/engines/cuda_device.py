# SPDX-License-Identifier: Apache-2.0
"""The GPU through pycuda: memory, streams, kernels; and CUDA graphs through the driver library."""

import atexit
import contextlib
import ctypes
import hashlib
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from zeroflow_ros.errors import ModelError

KERNELS = Path(__file__).with_name('pillars.cu')
COMPILED = KERNELS.with_suffix('.fatbin')  # built with the image or the package, for machines without nvcc
DRIVER_LIBRARY = 'libcuda.so.1'
_THREADS = 256  # per block
_BLOCKS_PER_PROCESSOR = 8  # the most that a multiprocessor can hold at 256 threads


class CudaCallError(RuntimeError):
    """A call of the driver library returned an error."""


class CudaDevice:
    """The first visible GPU; select another one with CUDA_VISIBLE_DEVICES.

    name: name of the GPU. compute_capability: such as '9.0'. num_processors: its number of multiprocessors.
    is_integrated: whether it shares its memory with the CPU.
    driver: the module pycuda.driver. errors: exceptions that it raises.
    Raises: ModelError when pycuda, the driver or a GPU is missing.
    """

    def __init__(self):
        try:
            import pycuda.driver as driver
        except (ImportError, OSError) as error:
            raise ModelError(
                f"The GPU is used through pycuda, which cannot be imported ({error}). Run 'pip install pycuda', which "
                "needs NVIDIA's driver and CUDA toolkit, or set engine to onnxruntime."
            ) from error
        self.driver, self.errors = driver, (driver.Error, CudaCallError)
        try:
            driver.init()
            device = driver.Device(0)
            self.name, self.compute_capability = device.name(), '{}.{}'.format(*device.compute_capability())
            self.is_integrated = bool(device.get_attribute(driver.device_attribute.INTEGRATED))
            self.num_processors = device.get_attribute(driver.device_attribute.MULTIPROCESSOR_COUNT)
            self._primary = _primary_context(driver)
            self._library = _DriverLibrary()
        except (driver.Error, OSError) as error:
            raise ModelError(
                f'No NVIDIA GPU can be used: {error}. Look at nvidia-smi, or set engine to onnxruntime.'
            ) from error
        self.grid, self.block = (_BLOCKS_PER_PROCESSOR * self.num_processors, 1), (_THREADS, 1, 1)

    @contextmanager
    def current(self):
        """Make this GPU current for the calling thread.

        Whatever holds GPU memory must also be freed inside: pycuda frees nothing in a thread without the context.
        """
        self._primary.context.push()
        try:
            yield
        finally:
            self._primary.context.pop()

    def close_at_exit(self, user) -> None:
        """Call user.close() when the process ends, before the context is released; keeps no reference to user."""
        self._primary.users.add(user)

    def works(self) -> bool:
        """Return whether the GPU still takes calls of this process.

        After an illegal address, a failed launch or a memory error, every later call of the process fails.
        """
        try:
            with self.current():
                self.driver.Context.synchronize()
        except self.errors:
            return False
        return True

    def free_bytes(self) -> int:
        """Return the free memory of the GPU. The device must be current."""
        return self.driver.mem_get_info()[0]

    def upload(self, values: np.ndarray):
        """Copy values to new device memory and return it."""
        return self.driver.to_device(np.ascontiguousarray(values))

    def copy_in(self, address: int, values: np.ndarray, stream) -> None:
        """Enqueue a copy of page-locked values to the GPU. Keeps Python's lock; see `_DriverLibrary`."""
        self._library.call(
            'cuMemcpyHtoDAsync_v2', ctypes.c_uint64(address), ctypes.c_void_p(values.ctypes.data),
            ctypes.c_size_t(values.nbytes), ctypes.c_void_p(stream.handle),
        )  # fmt: skip

    def copy_out(self, values: np.ndarray, address: int, stream) -> None:
        """Enqueue a copy from the GPU to page-locked values."""
        self._library.call(
            'cuMemcpyDtoHAsync_v2', ctypes.c_void_p(values.ctypes.data), ctypes.c_uint64(address),
            ctypes.c_size_t(values.nbytes), ctypes.c_void_p(stream.handle),
        )  # fmt: skip

    def record(self, stream, launches: Callable[[], None]) -> tuple[Callable[[], None], str]:
        """Record everything that `launches` enqueues as a CUDA graph; return (function that launches the graph, '').

        If recording fails, return (`launches`, reason).
        launches: must have run once before, so that it allocates nothing.
        """
        try:
            return _Graph(self._library, stream, launches).launch, ''
        except (AttributeError, ModelError, *self.errors) as error:
            stream.synchronize()
            return launches, f'no CUDA graph: {error}'


def kernels_checksum() -> str:
    """Return the sha256 of the kernel source."""
    return hashlib.sha256(KERNELS.read_bytes()).hexdigest()


def compile_kernels(compute_capability: str) -> bytes:
    """Return the compiled kernels of pillars.cu for a compute capability: the prebuilt file, else compiled by nvcc.

    Raises: ModelError when there is no prebuilt file and nvcc fails.
    """
    if COMPILED.is_file():
        return COMPILED.read_bytes()
    from pycuda.compiler import compile as nvcc

    architecture = f'sm_{compute_capability.replace(".", "")}'
    try:
        # pillars.cu explains why fmad is off.
        return nvcc(KERNELS.read_text(), options=['-fmad=false'], arch=architecture, no_extern_c=True, cache_dir=False)
    except Exception as error:  # OSError, ExecError or CompileError
        detail = getattr(error, 'stderr', None) or error
        raise ModelError(
            f'The pillar kernels cannot be compiled for {architecture}: {str(detail)[:400]}. Building an '
            "engine needs nvcc on the PATH; a vehicle without it takes the folder that 'export.to_tensorrt' wrote on "
            'one like it.'
        ) from error


class _PrimaryContext:
    """The context of the GPU that TensorRT uses too.

    users: objects to close before the context is released at the end of the process. pycuda would release it as an
    ordinary context, which fails, hence detach.
    """

    def __init__(self, driver):
        self.context = driver.Device(0).retain_primary_context()
        self.users = weakref.WeakSet()
        self._errors = driver.Error
        atexit.register(self._release)

    def _release(self) -> None:
        for user in list(self.users):
            user.close()
        with contextlib.suppress(self._errors):
            self.context.detach()


_primary_context = cache(_PrimaryContext)  # one per process


class _DriverLibrary:
    """Calls of the driver API that pycuda does not have, or in which it gives up Python's lock.

    PyDLL keeps the lock: each release can cost 5 ms until a busy main thread returns it, and these calls only enqueue.
    Raises: OSError when the driver is missing.
    """

    def __init__(self):
        self._library = ctypes.PyDLL(DRIVER_LIBRARY)

    def call(self, name: str, *arguments) -> None:
        """Call a function. Raises: CudaCallError; AttributeError when the driver is too old to have it."""
        if code := getattr(self._library, name)(*arguments):
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            raise CudaCallError(f'{name} failed: {(text.value or b"unknown").decode()} (CUDA error {code})')


class _Graph:
    """A CUDA graph of everything that `launches` enqueues in a stream.

    Raises: CudaCallError when the driver refuses, and what launches raises.
    """

    def __init__(self, library: _DriverLibrary, stream, launches: Callable[[], None]):
        self._library, self._stream = library, ctypes.c_void_p(stream.handle)
        graph, self._exec = ctypes.c_void_p(), ctypes.c_void_p()
        this_thread_only = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        library.call('cuStreamBeginCapture_v2', self._stream, this_thread_only)
        try:
            try:
                launches()
            except BaseException:
                # The capture must end in any case; that it then fails too is no news.
                with contextlib.suppress(CudaCallError):
                    library.call('cuStreamEndCapture', self._stream, ctypes.byref(graph))
                raise
            library.call('cuStreamEndCapture', self._stream, ctypes.byref(graph))
            library.call('cuGraphInstantiateWithFlags', ctypes.byref(self._exec), graph, ctypes.c_ulonglong(0))
        finally:
            if graph:
                library.call('cuGraphDestroy', graph)

    def launch(self) -> None:
        """Launch the graph."""
        self._library.call('cuGraphLaunch', self._exec, self._stream)

    def __del__(self):
        if getattr(self, '_exec', None):
            with contextlib.suppress(CudaCallError):
                self._library.call('cuGraphExecDestroy', self._exec)
