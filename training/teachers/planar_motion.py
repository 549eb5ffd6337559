# SPDX-License-Identifier: Apache-2.0
"""Planar rigid motions: a turn about z and a shift.

Points (N, 4) are x, y, z [m] and when they were measured, as a length.
"""

import numpy as np

from zeroflow_ros.transforms import rotation_matrix

_MAX_TURN = 0.15  # rad over a pair: 86 degrees a second
_SHARES = 0.3, 1.7  # of the time between two stamps, between two points that are taken for each other


def moved_by(points: np.ndarray, rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return points (N, 4) that moved; when they were measured stays as it is."""
    return np.column_stack([points[:, :3] @ rotation.T + shift, points[:, 3]])


def moved_back(points: np.ndarray, rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the points (N, 4) that this motion takes to the given ones."""
    return np.column_stack([(points[:, :3] - shift) @ rotation, points[:, 3]])


def closeness(distance: np.ndarray, kernel: float) -> np.ndarray:
    """Return the weight (N,) of partners at these distances (N,) [m], a quarter at `kernel`."""
    return 1 / (1 + (distance / kernel) ** 2) ** 2


def fitted(source: np.ndarray, target: np.ndarray, weight: np.ndarray, lag: float, may_turn: bool):
    """Return the (rotation, shift) over ground that takes source (N, 4) best onto target (N, 4), weighted (N,).

    lag: time between the stamps of the two sweeps, in the unit of the fourth column; negative backward in time.
    """
    weight = weight / weight.sum()
    turn = _turn(source[:, :3], target[:, :3], weight) if may_turn else 0.0
    if abs(turn) > _MAX_TURN:
        turn = 0.0
    rotation = rotation_matrix([0, 0, turn])
    # Of the motion from stamp to stamp a pair of points shows the share of time that is between the two.
    share = np.clip(1 + (target[:, 3] - source[:, 3]) / lag, *_SHARES)
    centre = weight @ source[:, :3]
    turned = (source[:, :3] - centre) @ rotation.T + centre
    motion = (weight * share) @ (target[:, :3] - turned) / (weight @ share**2)
    motion[2] = 0  # roads are level over the way of a tenth of a second
    return rotation, centre - rotation @ centre + motion


def _turn(source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """Return the turn about z [rad] that takes source (N, 3) best onto target (N, 3); weights (N,) add up to 1."""
    a, b = source - weight @ source, target - weight @ target
    return float(np.arctan2(
        weight @ (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]), weight @ (a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1])
    ))  # fmt: skip
