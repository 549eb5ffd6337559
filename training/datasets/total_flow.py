# SPDX-License-Identifier: Apache-2.0
"""Convert residual flow (ego motion removed, used here) to total flow (ego motion included, stored by others) and back.

A point p of sweep 0, in ego0, is at p + residual in ego0 when sweep 1 is measured, and at p + total in ego1:

    p + total = ego1_T_ego0 (p + residual)

A static point has residual flow 0 and total flow ego1_T_ego0 p - p, its pose flow.
"""

import numpy as np

from zeroflow_ros import transforms


def residual_to_total(residual: np.ndarray, points: np.ndarray, ego0_T_ego1: np.ndarray) -> np.ndarray:
    """Return the total flow (N, 3) float32 [m] of points (N, 3) [m] with a residual flow (N, 3) [m], both in ego0."""
    points = points.astype(np.float64)  # float32 resolves a point at 200 m to 15 um only
    return (transforms.apply(transforms.invert(ego0_T_ego1), points + residual) - points).astype(np.float32)


def total_to_residual(total: np.ndarray, points: np.ndarray, ego0_T_ego1: np.ndarray) -> np.ndarray:
    """Return the residual flow (N, 3) float32 [m] of points (N, 3) [m] in ego0 with a total flow (N, 3) [m]."""
    points = points.astype(np.float64)
    return (transforms.apply(ego0_T_ego1, points + total) - points).astype(np.float32)
