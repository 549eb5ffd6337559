# SPDX-License-Identifier: Apache-2.0
"""The interface of an engine, which runs a model file."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.stopwatch import Stopwatch

IDENTITY = np.eye(4)


class Engine(Protocol):
    """Estimates the flow from one cloud to another, in the frame of the model (its card defines the origin of z).

    A model that takes more than two sweeps also sees those beyond the target in time, as many as there are.
    """

    card: ModelCard
    runs_on: str  # for logs: library, version and processor

    def infer(
        self,
        source: np.ndarray,
        target: np.ndarray,
        watch: Stopwatch,
        *,
        network_T_source: np.ndarray = IDENTITY,
        network_T_target: np.ndarray = IDENTITY,
        older: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    ) -> np.ndarray:
        """Return the residual flow of each source point [m], (N, 3) float32; NaN rows outside the model's grid.

        source: (N, 3) float32 [m]. target: (M, 3) float32 [m]. Either may be empty or hold NaN rows.
        watch: records the times of 'pillars' and 'inference'.
        network_T_source, network_T_target: (4, 4), map each cloud to the frame of the network. The flow is in that
        frame.
        older: (points (K, 3) float32 [m], network_T_points (4, 4)) of the sweeps beyond the target, the nearest first;
        those that the model does not take are ignored.
        """
