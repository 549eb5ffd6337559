# SPDX-License-Identifier: Apache-2.0
"""What a student trains on: a pair of sweeps, or a longer window, in one frame, with the flow of both ends."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TrainingPair:
    """A window of consecutive sweeps in one frame, with the residual flow of the first and of the last.

    points0 (N, 3), points1 (M, 3): float32 [m], the first and the last sweep, z = 0 on the ground below the vehicle, in
    the frame of sweep 1. flow0 (N, 3): float32 [m], to the time of the second sweep. flow1 (M, 3): to the time of the
    last sweep but one. dt: seconds between neighbours.
    is_ground0 (N,), is_ground1 (M,): bool, or None if unknown. dynamic0 (N,), dynamic1 (M,): int32, see
    training/teachers/dynamic_labels.py, or None if they follow from the flow. between: (K, 3) float32 [m] each, the
    sweeps between the first and the last in order of time; empty for a pair.
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
    between: tuple[np.ndarray, ...] = ()

    @property
    def clouds(self) -> tuple[np.ndarray, ...]:
        """All sweeps in order of time."""
        return self.points0, *self.between, self.points1
