# SPDX-License-Identifier: Apache-2.0
"""Select and open the engine that runs a model file."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zeroflow_ros.engines.engine import Engine
from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import ConfigError, ModelError

MODELS = Path(__file__).parents[1] / 'models'
ENGINES = ('onnxruntime', 'tensorrt')
DEFAULT_MODEL = MODELS / 'fastflow3d_lite_5_int8.onnx'  # twice as fast on a CPU as fastflow3d_lite_5.onnx, its source
# TensorRT does not support the 8-bit format that is fast in ONNX Runtime.
DEFAULT_MODELS = {'onnxruntime': DEFAULT_MODEL, 'tensorrt': MODELS / 'fastflow3d_lite_5.onnx'}


class FallbackEngine:
    """Runs an engine on the GPU, and ONNX Runtime on the CPU once that engine fails; see `Engine`.

    open_first, open_second: open the engines; the second is opened only when needed.
    say: called with a log message when the second engine takes over.
    Raises: ModelError when neither opens.
    """

    def __init__(self, open_first: Callable[[], Engine], open_second: Callable[[], Engine], say: Callable[[str], None]):
        self._open_second, self._say = open_second, say
        self.fell_back = False
        try:
            self._engine = open_first()
        except ModelError as error:
            self._fall_back(error)

    @property
    def card(self) -> ModelCard:
        """The card of the active model."""
        return self._engine.card

    @property
    def runs_on(self) -> str:
        """Library and processor of the active engine."""
        return self._engine.runs_on

    def infer(self, source: np.ndarray, target: np.ndarray, watch: Stopwatch, **poses) -> np.ndarray:
        """Return the residual flow of each source point [m], (N, 3) float32; NaN rows outside the grid."""
        try:
            return self._engine.infer(source, target, watch, **poses)
        except ModelError as error:
            if self.fell_back:
                raise
            self._fall_back(error)
            return self._engine.infer(source, target, watch, **poses)

    def _fall_back(self, error: ModelError) -> None:
        self._say(f'{error} ONNX Runtime takes over on the CPU, because cpu_fallback is set.')
        if hasattr(getattr(self, '_engine', None), 'close'):
            self._engine.close()  # give the memory of the GPU back
        self._engine, self.fell_back = self._open_second(), True


def resolve_model_path(model_path: str | Path = '', *, engine: str = 'onnxruntime') -> Path:
    """Return the path of the model file; an empty path means the bundled model for this engine.

    Raises: ConfigError for an unknown engine; ModelError when there is no such file.
    """
    if engine not in ENGINES:
        raise ConfigError(f'Unknown engine {engine!r}; expected one of {ENGINES}.')
    # os.path, because Path raises on an unknown ~user, a name that is too long, and a NUL character.
    path = Path(os.path.expanduser(model_path)) if str(model_path) else DEFAULT_MODELS[engine]
    if not os.path.isfile(path):
        raise ModelError(
            f'No model file at {str(path)[:300]}. Give model_path an .onnx file, or leave it empty for the '
            'bundled model.'
        )
    return path


def engine_from_spec(spec: str, **options) -> Engine:
    """Open an engine by its spec: MODEL.onnx, or tensorrt:MODEL.onnx for the GPU; no MODEL means the bundled model.

    options: passed to `load_engine`. Raises: as `load_engine`.
    """
    name, _, path = spec.rpartition(':')
    return load_engine(path, name=name, **options) if name in ENGINES else load_engine(spec, **options)


def load_engine(
    model_path: str | Path = '',
    *,
    name: str = 'onnxruntime',
    num_threads: int = 2,
    cache: str | Path = '',
    max_points: int = 500_000,
    progress: Callable[[str], None] = print,
) -> Engine:
    """Open a model file in an engine; an empty path means the bundled model.

    num_threads: for ONNX Runtime. cache, max_points, progress: for TensorRT, see `tensorrt_build.open_engine`.
    Raises: ConfigError for an unknown engine; ModelError when the file is missing, has no card or is damaged, or the
    engine is not available here.
    """
    path = resolve_model_path(model_path, engine=name)
    if name == 'tensorrt':
        from zeroflow_ros.engines.tensorrt_build import open_engine

        return open_engine(path, cache=cache, max_points=max_points, progress=progress)
    from zeroflow_ros.engines.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, num_threads=num_threads)
