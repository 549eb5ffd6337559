# SPDX-License-Identifier: Apache-2.0
"""The API shared by TensorRT 10, TensorRT 11 and TensorRT-RTX; uses whichever is installed."""

import importlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from zeroflow_ros.errors import ModelError

_MODULES = ('tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings')
_REMEDY = "Install it ('pip install tensorrt', or the image runtime-tensorrt), or set engine to onnxruntime."
_PROGRESS_S = 5.0
_TYPICAL_POINTS = 120_000  # points of a cloud for which a gather network is tuned


@dataclass
class TensorRtErrors:
    """Errors that TensorRT logged since the last `take`; its calls return only None or False on failure."""

    lines: list[str] = field(default_factory=list)

    def take(self) -> str:
        """Return the errors as one line and clear them."""
        text = '; '.join(self.lines[:3])[:600] or 'no reason given'
        self.lines.clear()
        return text


class TensorRt:
    """Builds engines from ONNX files and loads them.

    name: Python module of the library, without '_bindings'. version: version of the library.
    is_rtx: whether it is TensorRT-RTX, which supports fewer GPUs and compiles kernels when it loads an engine.
    Raises: ModelError when no TensorRT can be imported.
    """

    def __init__(self):
        self._trt = trt = _import()
        self.name = trt.__name__.removesuffix('_bindings')
        self.version = trt.__version__
        self.is_rtx = self.name == 'tensorrt_rtx'
        self._log, self._errors = _log(trt)

    def __str__(self):
        return f'{self.name} {self.version}'

    def check_gpu(self, name: str, compute_capability: str) -> None:
        """Check that this library supports a GPU; only TensorRT-RTX can tell without building an engine.

        name: of the GPU. compute_capability: such as '9.0'. Raises: ModelError.
        """
        known = [sm[2:] for sm in dir(getattr(self._trt, 'ComputeCapability', None)) if re.fullmatch(r'SM\d+', sm)]
        if self.is_rtx and known and compute_capability.replace('.', '') not in known:
            known = ', '.join(f'{major}.{minor}' for major, minor in sorted((int(sm[:-1]), sm[-1]) for sm in known))
            raise ModelError(
                f'{self} does not support {name} (compute capability {compute_capability}), only GPUs of {known}. Use '
                "TensorRT ('pip install tensorrt'; on a Jetson that of JetPack), or set engine to onnxruntime."
            )

    def parse(self, onnx_bytes: bytes, name: str):
        """Return (builder, network) of an ONNX file; name appears in error messages.

        Raises: ModelError when TensorRT cannot build here or does not support the graph.
        """
        trt = self._trt
        try:
            builder = trt.Builder(self._log)
        except TypeError as error:  # the constructor returned null
            raise ModelError(f'{self} cannot build here: {self._errors.take()}. Is there an NVIDIA GPU?') from error
        # TensorRT 11 has only strongly typed networks: the file defines the precision of each layer.
        strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED', None)
        network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse(onnx_bytes):
            reasons = '; '.join(str(parser.get_error(k)) for k in range(parser.num_errors))
            raise ModelError(
                f'{self} does not take {name}: {(reasons or self._errors.take())[:600]}. Give it a dense float32 '
                "or float16 file of 'python3 -m export.to_onnx', or an 8-bit one of 'export.quantize --symmetric'."
            )
        self._errors.lines.clear()
        return builder, network

    def build(self, onnx_bytes: bytes, name: str, progress: Callable[[str], None], *, max_points: int = 500_000,
              workspace: int | None = None) -> bytes:  # fmt: skip
        """Return the serialised engine of an ONNX file; progress is called with a message every few seconds.

        max_points: the most points of a cloud that a gather network takes. workspace: the most GPU memory that the
        engine may use beside its tensors [bytes]; None for all.
        Raises: ModelError.
        """
        trt = self._trt
        builder, network = self.parse(onnx_bytes, name)
        config = builder.create_builder_config()
        if hasattr(trt.BuilderFlag, 'TF32'):
            config.clear_flag(trt.BuilderFlag.TF32)  # keep float32 exact; use float16 for speed
        if workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        profile, inputs = builder.create_optimization_profile(), [*map(network.get_input, range(network.num_inputs))]
        sizes = 1, min(_TYPICAL_POINTS, max_points), max_points
        for given in inputs:
            shapes = (tuple(points if size < 0 else size for size in given.shape) for points in sizes)
            profile.set_shape(given.name, *shapes)
        config.add_optimization_profile(profile)
        takes_points = any(size < 0 for given in inputs for size in given.shape)
        if hasattr(trt.BuilderFlag, 'REQUIRE_USER_ALLOCATION') and not takes_points:
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # TensorRT-RTX allows a CUDA graph only with it
        config.progress_monitor = monitor = _monitor(trt, progress)
        plan = builder.build_serialized_network(network, config)
        del monitor  # it must outlive the build
        if plan is None:
            raise ModelError(f'{self} cannot build an engine of {name}: {self._errors.take()}.')
        return bytes(plan)

    def load(self, plan: bytes, compiled: bytes = b'') -> 'Network':
        """Load an engine. The GPU must be current.

        compiled: `Network.compiled` of an earlier start, which saves TensorRT-RTX the compilation; ignored when it
        does not fit. Raises: ModelError.
        """
        runtime = self._trt.Runtime(self._log)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ModelError(f'{self} cannot load the engine: {self._errors.take()}{self._validity(runtime, plan)}.')
        if self.is_rtx and hasattr(engine, 'create_runtime_config'):
            config = engine.create_runtime_config()
            kernels = config.create_runtime_cache()
            if compiled:
                kernels.deserialize(compiled)
            config.set_runtime_cache(kernels)
            context = engine.create_execution_context(config)
        else:
            context, kernels = engine.create_execution_context(), None
        if context is None:
            raise ModelError(f'{self} cannot run the engine: {self._errors.take()}.')
        return Network(context, kernels, self._errors)

    def _validity(self, runtime, plan: bytes) -> str:
        """Return the reasons of TensorRT-RTX not to load a plan, such as ' (UNSUPPORTED_CC)'; '' if it gives none."""
        reasons = getattr(self._trt, 'EngineInvalidityDiagnostics', None)
        if reasons is None or not hasattr(runtime, 'get_engine_validity'):
            return ''
        found = int(runtime.get_engine_validity(plan)[1])
        names = [name for name, reason in reasons.__members__.items() if found & int(reason)]
        return f' ({", ".join(names)})' if names else ''


class Network:
    """A network that is ready to run: the calls of TensorRT's execution context that an engine needs.

    context: trt.IExecutionContext; it keeps its engine alive. kernels: trt.IRuntimeCache of TensorRT-RTX, or None.
    Free it while the GPU is current.
    """

    def __init__(self, context, kernels, errors: TensorRtErrors):
        self._context, self._kernels, self._errors = context, kernels, errors

    def set_tensor_address(self, name: str, address: int) -> None:
        """Set the GPU memory of an input or output. Raises: ModelError when the network has no such tensor."""
        if not self._context.set_tensor_address(name, address):
            raise ModelError(f'The engine has no tensor {name!r}: {self._errors.take()}.')

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Set the shape of an input whose size varies; return whether the engine takes it."""
        return self._context.set_input_shape(name, shape)

    def enqueue(self, stream_handle: int) -> None:
        """Enqueue the network in a stream. Raises: ModelError."""
        if not self._context.execute_async_v3(stream_handle):
            raise ModelError(f'The engine does not run: {self._errors.take()}.')

    def can_be_recorded(self, stream_handle: int) -> bool:
        """Return False when TensorRT knows that a CUDA graph cannot hold this network; only TensorRT-RTX says."""
        ask = getattr(self._context, 'is_stream_capturable', None)
        return ask is None or bool(ask(stream_handle))

    @property
    def compiled(self) -> bytes:
        """The kernels that TensorRT-RTX compiled for this GPU so far; b'' for TensorRT, whose engines hold them."""
        return bytes(self._kernels.serialize()) if self._kernels is not None else b''


@cache
def _log(trt) -> tuple[object, TensorRtErrors]:
    """Return (trt.ILogger, its errors), one for the process: TensorRT keeps the first one while any object lives."""
    errors = TensorRtErrors()

    class Log(trt.ILogger):
        def log(self, severity, text):
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.lines.append(text.strip())

    return Log(), errors


def _import():
    reasons = []
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
            module.Builder, module.Runtime  # noqa: B018 - a stub without the library has neither
            return module
        except (ImportError, OSError, AttributeError) as error:
            reasons.append(f'{name}: {error}')
    raise ModelError(f'TensorRT cannot be imported ({"; ".join(reasons)[:400]}). {_REMEDY}')


def _monitor(trt, progress: Callable[[str], None]):
    """Return a trt.IProgressMonitor that reports the build phase every few seconds."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            super().__init__()
            self.started = self.said = time.monotonic()
            self.steps = {}

        def phase_start(self, phase_name, parent_phase, num_steps):
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name, step):
            now = time.monotonic()
            if now - self.said > _PROGRESS_S:
                self.said = now
                progress(f'{phase_name} {step} of {self.steps.get(phase_name, "?")}, {now - self.started:.0f} s so far')
            return True  # continue the build

        def phase_finish(self, phase_name):
            self.steps.pop(phase_name, None)

    return Monitor()
