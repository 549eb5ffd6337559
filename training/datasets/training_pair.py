# SPDX-License-Identifier: Apache-2.0
"""A pair to train on: two clouds in one frame with the flow of each."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TrainingPair:
    """Two clouds in one frame, each with its residual flow towards the time of the other.

    points0 (N, 3), points1 (M, 3): float32 [m], z = 0 on the ground below the vehicle, in the frame of sweep 1.
    flow0 (N, 3), flow1 (M, 3): float32 [m], to the time of the other sweep. dt: seconds between the sweeps.
    is_ground0 (N,), is_ground1 (M,): bool, or None if unknown. dynamic0 (N,), dynamic1 (M,): int32, see
    training/teachers/dynamic_labels.py, or None if they follow from the flow.
    """

    points0: np.ndarray
    points1: np.ndarray
    flow0: np.ndarray
    flow1: np.ndarray
    dt: float
    is_ground0: np.ndarray | None = None
    is_ground1: np.ndarray | None = None
    dynamic0: np.ndarray | None = None
    dynamic1: np.ndarray | None = None
