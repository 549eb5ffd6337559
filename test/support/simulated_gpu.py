# SPDX-License-Identifier: Apache-2.0
"""A GPU simulated on the CPU, for machines without one: the parts of pycuda and TensorRT that we use.

The kernels are our pillars.cu, compiled as C++; an engine runs its ONNX file in ONNX Runtime. Work in a stream runs at
synchronisation, as late as on a GPU; memory is NaN until it is written; unallocated addresses, calls without a context,
and wrong arguments are errors.
"""

import ctypes
import struct
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime

_C_TYPES = {'P': ctypes.c_void_p, 'i': ctypes.c_int, 'f': ctypes.c_float}


class CudaError(Exception):
    """pycuda.driver.Error."""


class SimulatedGpu:
    """The modules `pycuda.driver`, `pycuda.compiler` and `tensorrt` of a computer with one GPU.

    memory: size [bytes]. fails: number of next launches that fail. log: what was built, loaded, compiled.
    """

    def __init__(self, memory: int = 10**9, compute_capability: tuple[int, int] = (9, 0), version: str = '11.0.0'):
        self.memory, self.capability, self.version = memory, compute_capability, version
        self.fails, self.log, self.allocations, self.streams = 0, [], {}, {}
        self.contexts, self.error_m = 0, 0.0

    def install(self, monkeypatch) -> 'SimulatedGpu':
        """Put the modules where `import` finds them."""
        driver, compiler, package = (ModuleType(f'pycuda{part}') for part in ('.driver', '.compiler', ''))
        for name in ('mem_alloc', 'to_device', 'memset_d32_async', 'memcpy_htod_async', 'memcpy_dtoh_async',
                     'module_from_buffer'):  # fmt: skip
            setattr(driver, name, getattr(self, name))
        driver.Error, driver.init, driver.Stream = CudaError, lambda: None, lambda: Stream(self)
        driver.pagelocked_empty = lambda shape, dtype: np.full(shape, np.nan, dtype)
        driver.device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT='multiprocessors')
        driver.Device = lambda number: self
        compiler.compile = self.compile
        package.driver, package.compiler = driver, compiler
        for module in (driver, compiler, package, tensorrt(self)):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        return self

    # pycuda.driver.Device and its context

    def name(self):
        return 'Simulated GPU'

    def compute_capability(self):
        return self.capability

    def get_attribute(self, _):
        return 2

    def retain_primary_context(self):
        return self

    def push(self):
        self.contexts += 1

    def pop(self):
        self.contexts -= 1

    # pycuda.driver

    def mem_alloc(self, num_bytes):
        self.check_context()
        if num_bytes > self.memory - sum(array.nbytes for array in self.allocations.values()):
            raise CudaError('cuMemAlloc failed: out of memory')
        return Allocation(self, num_bytes)

    def to_device(self, values):
        allocation = self.mem_alloc(values.nbytes)
        self.bytes_at(int(allocation), values.nbytes)[:] = values.reshape(-1).view(np.uint8)
        return allocation

    def memset_d32_async(self, place, word, num_words, stream):
        stream.put(lambda: self.bytes_at(place, 4 * num_words).view(np.uint32).fill(word))

    def memcpy_htod_async(self, place, values, stream):
        assert values.flags.c_contiguous
        stream.put(lambda: np.copyto(self.bytes_at(int(place), values.nbytes), values.reshape(-1).view(np.uint8)))

    def memcpy_dtoh_async(self, values, place, stream):
        assert values.flags.c_contiguous
        stream.put(lambda: np.copyto(values.reshape(-1).view(np.uint8), self.bytes_at(int(place), values.nbytes)))

    def module_from_buffer(self, cubin):
        self.check_context()
        with tempfile.NamedTemporaryFile(suffix='.so') as file:
            file.write(cubin)
            file.flush()
            library = ctypes.CDLL(file.name)
        return SimpleNamespace(get_function=lambda name: Kernel(self, getattr(library, name)))

    def check_context(self):
        if not self.contexts:
            raise CudaError('invalid device context')

    def bytes_at(self, place, num_bytes):
        for start, array in self.allocations.items():
            if start <= place and place + num_bytes <= start + array.nbytes:
                return array[place - start : place - start + num_bytes]
        raise CudaError(f"{num_bytes} bytes at {place:#x} are nobody's")

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
        gpu.allocations[self._place] = array

    def __int__(self):
        return self._place

    def __del__(self):
        self._gpu.allocations.pop(self._place, None)


class Stream:
    """pycuda.driver.Stream: runs its work at synchronisation."""

    def __init__(self, gpu):
        gpu.check_context()
        self._gpu, self._work, self.handle = gpu, [], id(self)
        gpu.streams[self.handle] = self

    def put(self, work):
        self._gpu.check_context()
        self._work.append(work)

    def synchronize(self):
        work, self._work = self._work, []
        if self._gpu.fails and work:
            self._gpu.fails -= 1
            raise CudaError('cuStreamSynchronize failed: an illegal memory access was encountered')
        for each in work:
            each()


class Kernel:
    """pycuda.driver.Function, prepared."""

    def __init__(self, gpu, function):
        self._gpu, self._function = gpu, function

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


def tensorrt(gpu: SimulatedGpu) -> ModuleType:
    """Return the parts of module `tensorrt` that we use; its plan is the ONNX file and the name of the GPU."""
    trt = ModuleType('tensorrt')
    trt.__version__ = gpu.version
    made_here = f'{gpu.version} {gpu.capability} '.encode()

    class Logger:
        ERROR, INTERNAL_ERROR, INFO = range(3)

    class Builder:
        def __init__(self, log):
            self.log = log

        def create_network(self, flags):
            assert flags == 1 << 4
            return SimpleNamespace(onnx=None, num_inputs=0, get_input=None)

        def create_builder_config(self):
            return SimpleNamespace(
                clear_flag=lambda flag: None, add_optimization_profile=lambda profile: None, progress_monitor=None
            )

        def create_optimization_profile(self):
            return None

        def build_serialized_network(self, network, config):
            gpu.log.append('built')
            config.progress_monitor.phase_start('Building', None, 2)
            assert config.progress_monitor.step_complete('Building', 1)
            config.progress_monitor.phase_finish('Building')
            return made_here + network.onnx

    class OnnxParser:
        def __init__(self, network, log):
            self._network, self._log, self.num_errors = network, log, 0

        def parse(self, onnx_bytes):
            self._network.onnx = onnx_bytes
            if b'DequantizeLinear' in onnx_bytes:
                self._log.log(Logger.ERROR, 'In node 1 (DequantizeLinear): INVALID_NODE')
            return b'DequantizeLinear' not in onnx_bytes

    class Runtime:
        def __init__(self, log):
            self.log = log

        def deserialize_cuda_engine(self, plan):
            if not plan.startswith(made_here):
                self.log.log(Logger.ERROR, 'The engine plan file is not compatible with this version of TensorRT')
                return None
            gpu.log.append('loaded')
            return SimpleNamespace(create_execution_context=lambda: Context(gpu, plan.removeprefix(made_here)))

    trt.ILogger, trt.Builder, trt.OnnxParser, trt.Runtime = Logger, Builder, OnnxParser, Runtime
    trt.IProgressMonitor = type('IProgressMonitor', (), {})
    trt.BuilderFlag = SimpleNamespace(TF32=1)
    trt.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=4)
    return trt


class Context:
    """tensorrt.IExecutionContext of one engine."""

    def __init__(self, gpu, onnx_bytes):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self._session = onnxruntime.InferenceSession(onnx_bytes, options, providers=['CPUExecutionProvider'])
        self._gpu, self._places = gpu, {}
        self._shapes = {given.name: given.shape for given in self._session.get_inputs()}

    def set_tensor_address(self, name, place):
        self._places[name] = place
        return name in {tensor.name for tensor in (*self._session.get_inputs(), *self._session.get_outputs())}

    def set_input_shape(self, name, shape):
        self._shapes[name] = shape
        return 1 <= shape[0] <= 400_000

    def execute_async_v3(self, handle):
        self._gpu.streams[handle].put(self._run)
        return True

    def _run(self):
        inputs = {}
        for name, shape in self._shapes.items():
            given = self._gpu.bytes_at(self._places[name], 4 * int(np.prod(shape)))
            inputs[name] = given.view(np.int32 if name == 'cell_index' else np.float32).reshape(shape)
        [output] = self._session.get_outputs()
        result = self._session.run(None, inputs)[0] + np.float32(self._gpu.error_m)
        self._gpu.bytes_at(self._places[output.name], result.nbytes)[:] = result.reshape(-1).view(np.uint8)
