# SPDX-License-Identifier: Apache-2.0
"""The parts of TensorRT and TensorRT-RTX that we use, on a `SimulatedGpu`; a network runs in ONNX Runtime."""

from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime


def tensorrt(gpu) -> ModuleType:
    """Return the parts of module `tensorrt` or `tensorrt_rtx` that we use.

    A plan is a line of text (version, GPU, most points, whether it can be recorded) and the ONNX file.
    """
    trt = ModuleType('tensorrt_rtx' if gpu.rtx else 'tensorrt')
    trt.__version__ = gpu.version
    made_here = f'{gpu.version} {gpu.capability} '.encode()

    class Logger:
        ERROR, INTERNAL_ERROR, INFO = range(3)

    class Builder:
        def __init__(self, log):
            self.log = log

        def create_network(self, flags):
            assert flags == 1 << 4
            return SimpleNamespace(onnx=None)

        def create_builder_config(self):
            flags, profiles = set(), []
            return SimpleNamespace(
                flags=flags, set_flag=flags.add, clear_flag=flags.discard, profiles=profiles,
                add_optimization_profile=profiles.append, progress_monitor=None,
                set_memory_pool_limit=lambda pool, size: gpu.log.append(f'{pool} {size}'),
            )  # fmt: skip

        def create_optimization_profile(self):
            shapes = {}
            return SimpleNamespace(shapes=shapes, set_shape=lambda name, *sizes: shapes.update({name: sizes}))

        def build_serialized_network(self, network, config):
            gpu.log.append('built')
            config.progress_monitor.phase_start('Building', None, 2)
            assert config.progress_monitor.step_complete('Building', 1)
            config.progress_monitor.phase_finish('Building')
            [profile] = config.profiles
            assert set(profile.shapes) == {given.name for given in network.inputs}
            most = max((sizes[2][0] for sizes in profile.shapes.values()), default=0)
            can_record = gpu.captures and (not gpu.rtx or 'REQUIRE_USER_ALLOCATION' in config.flags)
            return made_here + f'{most} {int(can_record)}\n'.encode() + network.onnx

    class OnnxParser:
        def __init__(self, network, log):
            self._network, self._log, self.num_errors = network, log, 0

        def parse(self, onnx_bytes):
            network = self._network
            network.onnx = onnx_bytes
            if b'DequantizeLinear' in onnx_bytes:
                self._log.log(Logger.ERROR, 'In node 1 (DequantizeLinear): INVALID_NODE')
                return False
            network.inputs = [
                SimpleNamespace(name=given.name, shape=[n if isinstance(n, int) else -1 for n in given.shape])
                for given in open_onnx(onnx_bytes).get_inputs()
            ]
            network.num_inputs, network.get_input = len(network.inputs), network.inputs.__getitem__
            return True

    class Engine:
        def __init__(self, about, onnx_bytes):
            self._most, self._can_record = map(int, about.split())
            self._onnx = onnx_bytes

        def create_execution_context(self, config=None):
            if config is not None:
                assert config.cache is not None
                config.cache.kernels = b'kernels of ' + str(gpu.capability).encode()
            return Context(gpu, self._onnx, self._most, bool(self._can_record))

    class RtxEngine(Engine):
        def create_runtime_config(self):
            config = SimpleNamespace(cache=None)
            config.create_runtime_cache = RuntimeCache
            config.set_runtime_cache = lambda cache: setattr(config, 'cache', cache)
            return config

    class RuntimeCache:
        kernels = b''

        def deserialize(self, kernels):
            is_ours = kernels == b'kernels of ' + str(gpu.capability).encode()
            gpu.log.append('kernels taken' if is_ours else 'kernels refused')
            return is_ours

        def serialize(self):
            return self.kernels

    class Runtime:
        def __init__(self, log):
            self.log = log

        def deserialize_cuda_engine(self, plan):
            gpu.check_context()
            if not plan.startswith(made_here):
                self.log.log(Logger.ERROR, 'The engine plan file is not compatible with this version of TensorRT')
                return None
            gpu.log.append('loaded')
            return (RtxEngine if gpu.rtx else Engine)(*plan.removeprefix(made_here).split(b'\n', 1))

    trt.ILogger, trt.Builder, trt.OnnxParser, trt.Runtime = Logger, Builder, OnnxParser, Runtime
    trt.IProgressMonitor = type('IProgressMonitor', (), {})
    trt.BuilderFlag = SimpleNamespace(TF32='TF32')
    trt.MemoryPoolType = SimpleNamespace(WORKSPACE='workspace')
    trt.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=4)
    if gpu.rtx:
        trt.BuilderFlag.REQUIRE_USER_ALLOCATION = 'REQUIRE_USER_ALLOCATION'
        trt.ComputeCapability = SimpleNamespace(SM75=1, SM80=2, SM86=3, SM89=4, SM120=5, SM121=6, CURRENT=7, NONE=0)
        Context.is_stream_capturable = Context.can_record
    elif hasattr(Context, 'is_stream_capturable'):
        del Context.is_stream_capturable
    return trt


def open_onnx(onnx_bytes: bytes) -> onnxruntime.InferenceSession:
    """Return a session that computes what the graph says, on two threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(onnx_bytes, options, providers=['CPUExecutionProvider'])


class Context:
    """tensorrt.IExecutionContext of one engine."""

    def __init__(self, gpu, onnx_bytes, most_points, can_record):
        gpu.take('network')
        self._session = open_onnx(onnx_bytes)
        self._gpu, self._places, self._most, self._can_record = gpu, {}, most_points, can_record
        self._shapes = {given.name: given.shape for given in self._session.get_inputs()}

    def __del__(self):
        if hasattr(self, '_gpu'):
            self._gpu.free('network')

    def can_record(self, handle):
        return self._can_record

    def set_tensor_address(self, name, place):
        self._places[name] = place
        return name in {tensor.name for tensor in (*self._session.get_inputs(), *self._session.get_outputs())}

    def set_input_shape(self, name, shape):
        self._shapes[name] = shape
        return 1 <= shape[0] <= self._most

    def execute_async_v3(self, handle):
        stream = self._gpu.streams[handle]
        if stream.recorded is not None and not self._can_record:
            stream.recorded = 'invalid'
            return False
        stream.put(self._run)
        return True

    def _run(self):
        inputs = {}
        for name, shape in self._shapes.items():
            given = self._gpu.bytes_at(self._places[name], 4 * int(np.prod(shape)))
            inputs[name] = given.view(np.int32 if name == 'cell_index' else np.float32).reshape(shape)
        [output] = self._session.get_outputs()
        result = self._session.run(None, inputs)[0] + np.float32(self._gpu.error_m)
        self._gpu.bytes_at(self._places[output.name], result.nbytes)[:] = result.reshape(-1).view(np.uint8)
