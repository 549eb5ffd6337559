# SPDX-License-Identifier: Apache-2.0
"""Planar rigid motions: yaw and a horizontal translation.

Points (N, 4) are x, y, z [m] and the measurement time, scaled to a length [m].
"""

import numpy as np

from zeroflow_ros.transforms import rotation_matrix

_MAX_YAW = 0.15  # rad over a pair: 86 degrees per second at 10 Hz
_SHARES = 0.3, 1.7  # least and most time between two matched points, as a share of the time between the stamps


def apply_motion(points: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Return points (N, 4) after the motion; their times stay."""
    return np.column_stack([points[:, :3] @ rotation.T + translation, points[:, 3]])


def undo_motion(points: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Return points (N, 4) before the motion: the inverse of `apply_motion`."""
    return np.column_stack([(points[:, :3] - translation) @ rotation, points[:, 3]])


def geman_mcclure_weight(distance: np.ndarray, kernel: float) -> np.ndarray:
    """Return the weight (N,) of correspondences at distances (N,) [m]: 1 at 0, a quarter at `kernel` [m]."""
    return 1 / (1 + (distance / kernel) ** 2) ** 2


def fit_motion(source: np.ndarray, target: np.ndarray, weight: np.ndarray, lag: float, may_rotate: bool):
    """Return the planar (rotation, translation) from source (N, 4) to target (N, 4), by weighted (N,) least squares.

    lag: time between the stamps of the two sweeps, in the unit of the fourth column; negative backward in time.
    """
    weight = weight / weight.sum()
    yaw = _yaw_between(source[:, :3], target[:, :3], weight) if may_rotate else 0.0
    if abs(yaw) > _MAX_YAW:
        yaw = 0.0
    rotation = rotation_matrix([0, 0, yaw])
    # A correspondence shows the motion over the time between its two points, not over that between the stamps.
    share = np.clip(1 + (target[:, 3] - source[:, 3]) / lag, *_SHARES)
    centre = weight @ source[:, :3]
    rotated = (source[:, :3] - centre) @ rotation.T + centre
    motion = (weight * share) @ (target[:, :3] - rotated) / (weight @ share**2)
    motion[2] = 0  # roads are level over the distance travelled in 0.1 s
    return rotation, centre - rotation @ centre + motion


def _yaw_between(source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """Return the least-squares yaw [rad] from source (N, 3) to target (N, 3); weights (N,) add up to 1."""
    a, b = source - weight @ source, target - weight @ target
    return float(np.arctan2(
        weight @ (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]), weight @ (a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1])
    ))  # fmt: skip
