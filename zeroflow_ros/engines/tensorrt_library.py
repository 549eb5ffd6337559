# SPDX-License-Identifier: Apache-2.0
"""TensorRT 10 or 11, or TensorRT-RTX, whichever is installed, by what the three have in common."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from zeroflow_ros.errors import ModelError

_MODULES = ('tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings')
_REMEDY = "Install it ('pip install tensorrt', or the image runtime-tensorrt), or set engine to onnxruntime."
_PROGRESS_S = 5.0
NUM_POINTS = 1, 120_000, 400_000  # of a cloud, where the network takes points: least, usual, most


@dataclass
class Complaints:
    """What TensorRT logged as errors since somebody last looked; its calls return only None or False."""

    lines: list[str] = field(default_factory=list)

    def take(self) -> str:
        """Return the complaints as one line, and forget them."""
        text = '; '.join(self.lines[:3])[:600] or 'it does not say why'
        self.lines.clear()
        return text


class TensorRt:
    """The library: from an ONNX file to an engine, and from there to what runs it.

    name: of its Python module, without '_bindings'. version: of the library.
    Raises: ModelError when none is installed or none can be imported.
    """

    def __init__(self):
        self._trt = trt = _import()
        self.name = trt.__name__.removesuffix('_bindings')
        self.version = trt.__version__
        self._complaints = complaints = Complaints()

        class Log(trt.ILogger):
            def log(self, severity, text):
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    complaints.lines.append(text.strip())

        self._log = Log()

    def __str__(self):
        return f'{self.name} {self.version}'

    def parse(self, onnx_bytes: bytes, name: str):
        """Return (builder, network) of an ONNX file; name is what messages call it.

        Raises: ModelError when TensorRT cannot build here, or does not take the graph.
        """
        trt = self._trt
        try:
            builder = trt.Builder(self._log)
        except TypeError as error:  # its constructor returned null
            raise ModelError(f'{self} cannot build here: {self._complaints.take()}. Is there an NVIDIA GPU?') from error
        # TensorRT 11 knows only strongly typed networks; what is computed in which precision is said by the file.
        strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED', None)
        network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse(onnx_bytes):
            reasons = '; '.join(str(parser.get_error(k)) for k in range(parser.num_errors))
            raise ModelError(
                f'{self} does not take {name}: {(reasons or self._complaints.take())[:600]}. Give it a dense float32 '
                "or float16 file of 'python3 -m export.to_onnx', or an 8-bit one of 'export.quantize --symmetric'."
            )
        self._complaints.lines.clear()
        return builder, network

    def build(self, onnx_bytes: bytes, name: str, progress: Callable[[str], None]) -> bytes:
        """Return the engine of an ONNX file; progress gets a sentence every few seconds.

        Raises: ModelError.
        """
        trt = self._trt
        builder, network = self.parse(onnx_bytes, name)
        config = builder.create_builder_config()
        if hasattr(trt.BuilderFlag, 'TF32'):
            config.clear_flag(trt.BuilderFlag.TF32)  # float32 shall be float32; float16 is there for speed
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
            raise ModelError(f'{self} cannot build an engine of {name}: {self._complaints.take()}.')
        return bytes(plan)

    def load(self, plan: bytes):
        """Return the execution context of an engine, which keeps alive what it needs.

        Raises: ModelError.
        """
        engine = self._trt.Runtime(self._log).deserialize_cuda_engine(plan)
        context = engine and engine.create_execution_context()
        if context is None:
            raise ModelError(f'{self} cannot load the engine: {self._complaints.take()}.')
        return context

    def complaints(self) -> str:
        """Return what the library complained of since the last time."""
        return self._complaints.take()


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
    """Return a trt.IProgressMonitor that says every few seconds what is being done."""

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
            return True  # go on

        def phase_finish(self, phase_name):
            self.steps.pop(phase_name, None)

    return Monitor()
