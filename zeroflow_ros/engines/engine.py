# SPDX-License-Identifier: Apache-2.0
"""The protocol of an engine: what runs a model file."""

from typing import Protocol

import numpy as np

from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.stopwatch import Stopwatch

IDENTITY = np.eye(4)


class Engine(Protocol):
    """Flow of one cloud towards another, in the frame of the model: z from the origin that its card says."""

    card: ModelCard
    runs_on: str  # for a person to read: the library, its version, the processor

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
