# SPDX-License-Identifier: Apache-2.0
"""What runs a model file: one protocol, and the choice of engine by name."""

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from zeroflow_ros.errors import ConfigError, ModelError
from zeroflow_ros.model_card import ModelCard
from zeroflow_ros.stopwatch import Stopwatch

MODELS = Path(__file__).parent / 'models'
DEFAULT_MODEL = MODELS / 'fastflow3d_lite_int8.onnx'  # on a CPU twice as fast as fastflow3d_lite.onnx, its source
ENGINES = ('onnxruntime',)
IDENTITY = np.eye(4)


class Engine(Protocol):
    """Flow of one cloud towards another, in the frame of the model: z from the origin that its card says."""

    card: ModelCard

    def infer(
        self,
        source: np.ndarray,
        target: np.ndarray,
        watch: Stopwatch,
        *,
        network_T_source: np.ndarray = IDENTITY,
        network_T_target: np.ndarray = IDENTITY,
    ) -> np.ndarray:
        """Return the residual flow of each source point [m], (N, 3) float32; NaN rows outside the model's grid.

        source: (N, 3) float32 [m]. target: (M, 3) float32 [m]. Either may be empty or hold NaN rows.
        watch: gets the times of 'pillars' and 'inference'.
        network_T_source, network_T_target: (4, 4), from the frame of each cloud into that of the network, in which
        the flow is.
        """


def load_engine(model_path: str | Path = '', *, name: str = 'onnxruntime', num_threads: int = 2) -> Engine:
    """Open a model file in an engine; an empty path means the model inside the package.

    Raises: ConfigError for an unknown engine; ModelError when the file is missing, foreign or damaged.
    """
    if name not in ENGINES:
        raise ConfigError(f'Unknown engine {name!r}; expected one of {ENGINES}.')
    # os.path, for Path raises on ~somebody unknown, on a name that is too long, and on one with a zero in it.
    path = Path(os.path.expanduser(model_path)) if str(model_path) else DEFAULT_MODEL
    if not os.path.isfile(path):
        raise ModelError(
            f'No model file at {str(path)[:300]}. Give model_path an .onnx file, or leave it empty for the model in '
            'the package.'
        )
    from zeroflow_ros.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, num_threads=num_threads)
