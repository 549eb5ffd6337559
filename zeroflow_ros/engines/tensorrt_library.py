# SPDX-License-Identifier: Apache-2.0
"""The API shared by TensorRT 10, TensorRT 11 and TensorRT-RTX; uses whichever is installed."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from zeroflow_ros.errors import ModelError

_MODULES = ('tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings')
_REMEDY = "Install it ('pip install tensorrt', or the image runtime-tensorrt), or set engine to onnxruntime."
_PROGRESS_S = 5.0
NUM_POINTS = 1, 120_000, 400_000  # points of a cloud for a gather network: minimum, typical, maximum


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
    Raises: ModelError when no TensorRT can be imported.
    """

    def __init__(self):
        self._trt = trt = _import()
        self.name = trt.__name__.removesuffix('_bindings')
        self.version = trt.__version__
        self._errors = errors = TensorRtErrors()

        class Log(trt.ILogger):
            def log(self, severity, text):
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    errors.lines.append(text.strip())

        self._log = Log()

    def __str__(self):
        return f'{self.name} {self.version}'

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

    def build(self, onnx_bytes: bytes, name: str, progress: Callable[[str], None]) -> bytes:
        """Return the serialised engine of an ONNX file; progress is called with a message every few seconds.

        Raises: ModelError.
        """
        trt = self._trt
        builder, network = self.parse(onnx_bytes, name)
        config = builder.create_builder_config()
        if hasattr(trt.BuilderFlag, 'TF32'):
            config.clear_flag(trt.BuilderFlag.TF32)  # keep float32 exact; use float16 for speed
        profile = builder.create_optimization_profile()
        for given in map(network.get_input, range(network.num_inputs)):
            profile.set_shape(given.name, *(
                tuple(points if size < 0 else size for size in given.shape) for points in NUM_POINTS
            ))  # fmt: skip
        config.add_optimization_profile(profile)
        config.progress_monitor = monitor = _monitor(trt, progress)
        plan = builder.build_serialized_network(network, config)
        del monitor  # it must outlive the build
        if plan is None:
            raise ModelError(f'{self} cannot build an engine of {name}: {self._errors.take()}.')
        return bytes(plan)

    def load(self, plan: bytes):
        """Return the execution context of an engine; it keeps the engine alive.

        Raises: ModelError.
        """
        engine = self._trt.Runtime(self._log).deserialize_cuda_engine(plan)
        context = engine and engine.create_execution_context()
        if context is None:
            raise ModelError(f'{self} cannot load the engine: {self._errors.take()}.')
        return context

    def take_errors(self) -> str:
        """Return the errors logged since the last call, and clear them."""
        return self._errors.take()


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
