# SPDX-License-Identifier: Apache-2.0
"""The GPU through pycuda: memory, streams, kernels and CUDA graphs."""

import ctypes
import hashlib
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from zeroflow_ros.errors import ModelError

KERNELS = Path(__file__).with_name('pillars.cu')
COMPILED = KERNELS.with_suffix('.fatbin')  # built with the image or the package, for machines without nvcc
_THREADS = 256  # per block
_BLOCKS_PER_PROCESSOR = 8  # the most that a multiprocessor can hold at 256 threads


class CudaDevice:
    """The first visible GPU; select another one with CUDA_VISIBLE_DEVICES.

    name: name of the GPU. compute_capability: such as '9.0'. driver: the module pycuda.driver. errors: exceptions that
    it raises.
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
        self.driver, self.errors = driver, (driver.Error,)
        try:
            driver.init()
            device = driver.Device(0)
            self.name, self.compute_capability = device.name(), '{}.{}'.format(*device.compute_capability())
            processors = device.get_attribute(driver.device_attribute.MULTIPROCESSOR_COUNT)
            # TensorRT uses the primary context too.
            self._context = device.retain_primary_context()
        except driver.Error as error:
            raise ModelError(
                f'No NVIDIA GPU can be used: {error}. Look at nvidia-smi, or set engine to onnxruntime.'
            ) from error
        self.grid, self.block = (_BLOCKS_PER_PROCESSOR * processors, 1), (_THREADS, 1, 1)

    @contextmanager
    def current(self):
        """Make this GPU current for the calling thread."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def upload(self, values: np.ndarray):
        """Copy values to new device memory and return it."""
        return self.driver.to_device(np.ascontiguousarray(values))

    def record(self, stream, launches: Callable[[], None]) -> tuple[Callable[[], None], str]:
        """Record everything that `launches` enqueues as a CUDA graph; return (function that launches the graph, '').

        If recording fails, return (`launches`, reason).
        launches: must have run once before, so that it allocates nothing.
        """
        try:
            return _Graph(stream, launches).launch, ''
        except (OSError, AttributeError, RuntimeError, *self.errors) as error:
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


class _Graph:
    """A CUDA graph through the driver API, which pycuda does not wrap.

    Raises: RuntimeError when recording fails, OSError when the driver is missing.
    """

    def __init__(self, stream, launches: Callable[[], None]):
        self._cuda = ctypes.CDLL('libcuda.so.1')
        self._stream = ctypes.c_void_p(stream.handle)
        graph, self._exec = ctypes.c_void_p(), ctypes.c_void_p()
        this_thread_only = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call('cuStreamBeginCapture_v2', self._stream, this_thread_only)
        try:
            launches()
        finally:
            self._call('cuStreamEndCapture', self._stream, ctypes.byref(graph))
        self._call('cuGraphInstantiateWithFlags', ctypes.byref(self._exec), graph, ctypes.c_ulonglong(0))
        self._call('cuGraphDestroy', graph)

    def launch(self) -> None:
        """Launch the graph."""
        self._call('cuGraphLaunch', self._exec, self._stream)

    def __del__(self):
        if getattr(self, '_exec', None):
            self._cuda.cuGraphExecDestroy(self._exec)

    def _call(self, name: str, *arguments) -> None:
        if code := getattr(self._cuda, name)(*arguments):
            raise RuntimeError(f'{name} failed with CUDA error {code}')
