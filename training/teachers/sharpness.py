# SPDX-License-Identifier: Apache-2.0
"""Refine the motion of a segment so that its points of both sweeps, each at its own time, lie on one thin surface.

Rings stay with the sensor while a car passes through them, so nearest neighbours lie on the same ring and underestimate
its motion. A surface does not depend on which points were hit.
"""

from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

from zeroflow_ros.transforms import rotation_matrix

_RADIUS = 0.5  # m: more than the gap between two rings on a car
_FEW, _FEW_THICKNESS = 5, 0.11  # fewer neighbours are no surface and count as this thickness [m]
_POINTS, _EVERY = 200, 2  # most points of each sweep; the thickness is measured at every second one
_ALONG = (-0.45, -0.3, -0.15, 0.15, 0.3, 0.45)  # m along the motion: first search
_STEPS, _ROUNDS = np.array([0.075, 0.05, 0.02]), 3  # along [m], across [m], yaw [rad]; each round halves them
_TIE = 0.005  # thickness added per metre of correction: the side of a bus fits wherever it slides
_GAIN = 0.95  # a correction must lower the thickness to this share


def refine_by_sharpness(
    source: np.ndarray, target: np.ndarray, rotation: np.ndarray, translation: np.ndarray, lag: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return a better planar (rotation (3, 3), translation (3,)) of a segment, or the given one.

    source: (N, 4) of the segment, target: (M, 4) of the other sweep around the moved segment: x, y, z [m] and the time
    after the stamp of the sweep. lag: time between the stamps, in the same unit; negative backward in time.
    """
    if len(target) < _FEW:
        return rotation, translation
    mine, theirs = (points if len(points) <= _POINTS else points[rng.choice(len(points), _POINTS, replace=False)]
                    for points in (source, target))  # fmt: skip
    moved = mine[:, :3] @ rotation.T + translation
    centre = source[:, :3].mean(0) @ rotation.T + translation
    motion = (centre - source[:, :3].mean(0))[:2]
    ahead = motion / max(np.linalg.norm(motion), 1e-9)
    axes = np.array([ahead, [-ahead[1], ahead[0]]])  # along and across
    late0, late1 = mine[:, 3:] / lag, theirs[:, 3:] / lag
    z = np.concatenate([mine[:, 2], theirs[:, 2]])

    def thickness_after(correction: np.ndarray) -> float:
        extra = correction[:2] @ axes
        xy0 = (moved[:, :2] - centre[:2]) @ rotation_matrix([0, 0, correction[2]])[:2, :2].T + centre[:2] + extra
        total = motion + extra
        # All points at the time of the target's stamp.
        xy = np.concatenate([xy0 - total * late0, theirs[:, :2] - total * late1])
        return surface_thickness(np.column_stack([xy, z])) + _TIE * np.hypot(*correction[:2])

    correction, before, after = _search(thickness_after)
    if after > _GAIN * before:
        return rotation, translation
    yaw_rotation, extra = rotation_matrix([0, 0, correction[2]]), np.append(correction[:2] @ axes, 0)
    return yaw_rotation @ rotation, yaw_rotation @ (translation - centre) + centre + extra


def surface_thickness(points: np.ndarray) -> float:
    """Return the mean thickness [m] of the surface through points (N, 3) [m], measured at every second point."""
    queries = points[::_EVERY]
    found = cKDTree(points).query_ball_point(queries, _RADIUS)
    count = np.array([len(rows) for rows in found])
    number = np.repeat(np.arange(len(count)), count)
    near = points[np.concatenate(found).astype(int)] - queries[number]
    mean = [np.bincount(number, near[:, i]) / count for i in range(3)]
    covariance = np.empty((len(count), 3, 3))
    for i in range(3):
        for j in range(i, 3):
            both = np.bincount(number, near[:, i] * near[:, j]) / count - mean[i] * mean[j]
            covariance[:, i, j] = covariance[:, j, i] = both
    across = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance)[:, 0], 0))
    return float(np.where(count < _FEW, _FEW_THICKNESS, across).mean())


def _search(cost: Callable[[np.ndarray], float]) -> tuple[np.ndarray, float, float]:
    """Return the best correction (along [m], across [m], yaw [rad]), the cost without it, and the cost with it."""
    best = np.zeros(3)
    before = lowest = cost(best)
    for along in _ALONG:
        value = cost(np.array([along, 0, 0]))
        if value < lowest:
            best, lowest = np.array([along, 0, 0]), value
    for round_ in range(_ROUNDS):
        for step in np.diag(_STEPS / 2**round_):
            for candidate in (best + step, best - step):
                value = cost(candidate)
                if value < lowest:
                    best, lowest = candidate, value
                    break
    return best, before, lowest
