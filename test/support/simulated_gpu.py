# SPDX-License-Identifier: Apache-2.0
"""A GPU simulated on the CPU, for machines without one: the parts of pycuda, libcuda and TensorRT that we use.

The kernels are our pillars.cu, compiled as C++; an engine runs its ONNX file in ONNX Runtime. Work in a stream runs at
synchronisation, as late as on a GPU; memory is NaN until it is written; unallocated addresses and wrong arguments are
errors. As in CUDA, each thread has its own stack of contexts. As in pycuda, what is freed in a thread without the
context is leaked, unless that thread made the context. A lost GPU fails every later call of the process.
"""

import ctypes
import gc
import itertools
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
from simulated_tensorrt import tensorrt

from zeroflow_ros.engines import cuda_device

_C_TYPES = {'P': ctypes.c_void_p, 'i': ctypes.c_int, 'f': ctypes.c_float}
_HANDLER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint64))
_CAPTURE_UNSUPPORTED, _CAPTURE_INVALIDATED, _ILLEGAL_ADDRESS = 900, 901, 700  # CUresult


class CudaError(Exception):
    """pycuda.driver.Error."""


class SimulatedGpu:
    """The modules `pycuda.driver`, `pycuda.compiler` and `tensorrt`, and the libcuda, of a computer with one GPU.

    memory: size [bytes]. captures: whether a network can be recorded as a CUDA graph. rtx: whether the TensorRT
    is TensorRT-RTX. fails: number of next synchronisations that find no memory. breaks: whether the next one loses the
    GPU. log: what was built, loaded, compiled. leaks: what was freed where it cannot be. held: numbers of live objects.
    """

    def __init__(self, memory: int = 10**9, compute_capability: tuple[int, int] = (9, 0), version: str = '11.0.0', *,
                 name: str = 'Simulated GPU', processors: int = 2, is_integrated: bool = False, captures: bool = True,
                 rtx: bool = False):  # fmt: skip
        self.memory, self.capability, self.version = memory, compute_capability, version
        self.gpu_name, self.captures, self.rtx = name, captures, rtx
        self.attributes = {'multiprocessors': processors, 'integrated': int(is_integrated)}
        self.fails, self.breaks, self.is_lost, self.error_m = 0, False, False, 0.0
        self.log, self.leaks, self.held, self.allocations = [], [], Counter(), {}
        self.streams = weakref.WeakValueDictionary()
        self.graphs, self._numbers = {}, itertools.count(1)
        self._stacks, self._maker = Counter(), None

    def install(self, monkeypatch) -> 'SimulatedGpu':
        """Put the modules where `import` finds them, and the libcuda where ctypes does."""
        gc.collect()  # engines of another test free what they hold on their own GPU
        driver, compiler, package = (ModuleType(f'pycuda{part}') for part in ('.driver', '.compiler', ''))
        for name in (
            'mem_alloc', 'mem_get_info', 'to_device', 'memset_d32', 'memset_d32_async', 'module_from_buffer',
        ):  # fmt: skip
            setattr(driver, name, getattr(self, name))
        driver.Error, driver.init, driver.Stream = CudaError, lambda: None, lambda: Stream(self)
        driver.pagelocked_empty = lambda shape, dtype: np.asarray(PageLocked(self, shape, dtype))
        driver.device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT='multiprocessors', INTEGRATED='integrated')
        driver.Device = lambda number: self
        driver.Context = SimpleNamespace(synchronize=self.check_context)
        compiler.compile = self.compile
        package.driver, package.compiler = driver, compiler
        library = tensorrt(self)
        for module in (driver, compiler, package, library):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        if self.rtx:
            monkeypatch.setitem(sys.modules, 'tensorrt', None)
        monkeypatch.setattr(cuda_device, 'DRIVER_LIBRARY', libcuda_path())
        self._handler = _HANDLER(self._on_driver_call)
        ctypes.CDLL(libcuda_path()).set_handler(self._handler)
        return self

    # pycuda.driver.Device and its primary context

    def name(self):
        return self.gpu_name

    def compute_capability(self):
        return self.capability

    def get_attribute(self, which):
        return self.attributes[which]

    def retain_primary_context(self):
        self._maker = threading.get_ident()
        return SimpleNamespace(push=self.push, pop=self.pop, detach=lambda: None)

    def push(self):
        self._stacks[threading.get_ident()] += 1

    def pop(self):
        if not self._stacks[threading.get_ident()]:
            raise CudaError('context::pop failed: invalid device context - cannot pop non-current context')
        self._stacks[threading.get_ident()] -= 1

    def check_context(self):
        if not self._stacks[threading.get_ident()]:
            raise CudaError('invalid device context')
        if self.is_lost:
            raise CudaError('an illegal memory access was encountered')

    def take(self, what):
        """Count an object that the GPU holds from now on."""
        self.check_context()
        self.held[what] += 1

    def free(self, what):
        """Free an object where that is possible, else note the leak; return whether it is free."""
        thread = threading.get_ident()
        if self.is_lost or not (self._stacks[thread] or thread == self._maker):
            self.leaks.append(what)
            return False
        self.held[what] -= 1
        return True

    # pycuda.driver

    def mem_alloc(self, num_bytes):
        self.check_context()
        if any(stream.recorded is not None for stream in self.streams.values()):
            raise CudaError('cuMemAlloc failed: operation not permitted when stream is capturing')
        if num_bytes > self.mem_get_info()[0]:
            raise CudaError('cuMemAlloc failed: out of memory')
        return Allocation(self, num_bytes)

    def mem_get_info(self):
        self.check_context()
        return self.memory - sum(array.nbytes for array in self.allocations.values()), self.memory

    def to_device(self, values):
        allocation = self.mem_alloc(values.nbytes)
        self.bytes_at(int(allocation), values.nbytes)[:] = values.reshape(-1).view(np.uint8)
        return allocation

    def memset_d32_async(self, place, word, num_words, stream):
        stream.put(lambda: self.bytes_at(place, 4 * num_words).view(np.uint32).fill(word))

    def memset_d32(self, place, word, num_words):
        self.check_context()
        self.bytes_at(place, 4 * num_words).view(np.uint32).fill(word)

    def module_from_buffer(self, cubin):
        return Module(self, cubin)

    def bytes_at(self, place, num_bytes):
        for start, array in self.allocations.items():
            if start <= place and place + num_bytes <= start + array.nbytes:
                return array[place - start : place - start + num_bytes]
        raise CudaError(f"{num_bytes} bytes at {place:#x} are nobody's")

    # libcuda

    def _on_driver_call(self, name, arguments):
        try:
            self.check_context()
            return getattr(self, name.decode())(arguments) or 0
        except CudaError:
            return _ILLEGAL_ADDRESS

    def cuMemcpyHtoDAsync_v2(self, arguments):
        place, source, size, stream = arguments[:4]
        copy = lambda: np.copyto(self.bytes_at(place, size), host_bytes(source, size))  # noqa: E731
        self.streams[stream].put(copy)

    def cuMemcpyDtoHAsync_v2(self, arguments):
        target, place, size, stream = arguments[:4]
        copy = lambda: np.copyto(host_bytes(target, size), self.bytes_at(place, size))  # noqa: E731
        self.streams[stream].put(copy)

    def cuStreamBeginCapture_v2(self, arguments):
        self.streams[arguments[0]].recorded = []

    def cuStreamEndCapture(self, arguments):
        stream = self.streams[arguments[0]]
        recorded, stream.recorded = stream.recorded, None
        if recorded == 'invalid':
            return _CAPTURE_INVALIDATED
        return self._write_handle(arguments[1], 'graph', recorded)

    def cuGraphInstantiateWithFlags(self, arguments):
        assert arguments[2] == 0
        return self._write_handle(arguments[0], 'executable graph', self.graphs[arguments[1]])

    def _write_handle(self, place, what, recorded):
        handle = next(self._numbers) << 33  # cut off when it is passed as an int
        ctypes.c_uint64.from_address(place).value = handle
        self.graphs[handle] = recorded
        self.take(what)

    def cuGraphDestroy(self, arguments):
        del self.graphs[arguments[0]]
        self.free('graph')

    def cuGraphExecDestroy(self, arguments):
        del self.graphs[arguments[0]]
        self.free('executable graph')

    def cuGraphLaunch(self, arguments):
        for work in self.graphs[arguments[0]]:
            self.streams[arguments[1]].put(work)

    # pycuda.compiler

    def compile(self, source, *, options, arch, no_extern_c, cache_dir):
        assert options == ['-fmad=false'] and no_extern_c and not cache_dir
        self.log.append(f'compiled for {arch}')
        return compile_for_cpu(source)


class Allocation:
    """pycuda.driver.DeviceAllocation: frees the memory when it is garbage-collected."""

    def __init__(self, gpu, num_bytes):
        array = np.full(-(-num_bytes // 4), np.nan, np.float32).view(np.uint8)
        self._gpu, self._place = gpu, array.ctypes.data
        gpu.take('memory')
        gpu.allocations[self._place] = array

    def __int__(self):
        return self._place

    def __del__(self):
        if self._gpu.free('memory'):
            self._gpu.allocations.pop(self._place)


class PageLocked:
    """The base of an array of pycuda.driver.pagelocked_empty."""

    def __init__(self, gpu, shape, dtype):
        self._gpu, self._array = gpu, np.full(shape, np.nan, dtype)
        self.__array_interface__ = self._array.__array_interface__
        gpu.take('page-locked memory')

    def __del__(self):
        self._gpu.free('page-locked memory')


class Stream:
    """pycuda.driver.Stream: runs its work at synchronisation."""

    def __init__(self, gpu):
        gpu.take('stream')
        self._gpu, self._work, self.handle = gpu, [], next(gpu._numbers) << 33
        self.recorded = None  # work of the capture in progress
        gpu.streams[self.handle] = self

    def __del__(self):
        if hasattr(self, 'handle'):
            self._gpu.free('stream')

    def put(self, work):
        self._gpu.check_context()
        (self._work if self.recorded is None else self.recorded).append(work)

    def synchronize(self):
        self._gpu.check_context()
        if self.recorded is not None:
            self.recorded = 'invalid'
            raise CudaError('cuStreamSynchronize failed: operation not permitted when stream is capturing')
        work, self._work = self._work, []
        if self._gpu.breaks and work:
            self._gpu.is_lost, self._gpu.breaks = True, False
        if self._gpu.fails and work:
            self._gpu.fails -= 1
            raise CudaError('cuLaunchKernel failed: out of memory')
        self._gpu.check_context()
        for each in work:
            each()


class Module:
    """pycuda.driver.Module."""

    def __init__(self, gpu, cubin):
        self._gpu = gpu
        gpu.take('module')
        with tempfile.NamedTemporaryFile(suffix='.so') as file:
            file.write(cubin)
            file.flush()
            self._library = ctypes.CDLL(file.name)

    def get_function(self, name):
        return Kernel(self._gpu, self, getattr(self._library, name))

    def __del__(self):
        self._gpu.free('module')


class Kernel:
    """pycuda.driver.Function, prepared."""

    def __init__(self, gpu, module, function):
        self._gpu, self._module, self._function = gpu, module, function

    def prepare(self, arg_types):
        self._format = ''.join(arg_types)
        self._function.argtypes = [_C_TYPES[kind] for kind in self._format]

    def prepared_async_call(self, grid, block, stream, *arguments):
        assert len(grid) in (2, 3) and len(block) == 3 and len(arguments) == len(self._format)
        struct.pack(self._format, *arguments)  # rejects the arguments that pycuda rejects
        for kind, value in zip(self._format, arguments, strict=True):
            if kind == 'P':
                self._gpu.bytes_at(value, 4)
        stream.put(lambda: self._function(*arguments))


@cache
def compile_for_cpu(source: str) -> bytes:
    """Compile our kernels to a library for this computer."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / 'pillars.so'
        subprocess.run(
            ['g++', '-x', 'c++', '-', '-O2', '-ffp-contract=off', '-Wall', '-Werror', '-shared', '-fPIC',
             '-o', library], input=source.encode(), check=True,
        )  # fmt: skip
        return library.read_bytes()


def host_bytes(place: int, size: int) -> np.ndarray:
    """Return the bytes at an address of this process."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(place))


@cache
def _libcuda() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory()
    source = Path(__file__).with_name('simulated_libcuda.c')
    subprocess.run(
        ['gcc', '-O1', '-Wall', '-Werror', '-shared', '-fPIC', '-o', f'{folder.name}/libcuda.so', source], check=True
    )
    return folder


def libcuda_path() -> str:
    """Return the path of a libcuda that hands calls to Python, compiled at first use."""
    return f'{_libcuda().name}/libcuda.so'
