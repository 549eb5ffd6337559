# SPDX-License-Identifier: Apache-2.0
"""Refine the motion of a segment so that its points of both sweeps, each at its own time, lie on one thin surface.

Rings stay with the sensor while a car passes through them, so nearest neighbours lie on the same ring and underestimate
its motion. A surface does not depend on which points were hit.
"""

import math
from collections.abc import Callable

import numpy as np

from training.teachers.planar_motion import apply, compiled

_RADIUS = 0.5  # m: more than the gap between two rings on a car
_FEW, _FEW_THICKNESS = 5, 0.11  # fewer neighbours are no surface and count as this thickness [m]
_POINTS, _EVERY = 200, 2  # most points of each sweep; the thickness is measured at every second one
_ALONG = (-0.45, -0.3, -0.15, 0.15, 0.3, 0.45)  # m along the motion: first search
_STEPS, _ROUNDS = np.array([0.075, 0.05, 0.02]), 3  # along [m], across [m], yaw [rad]; each round halves them
_TIE = 0.005  # thickness added per metre of correction: the side of a bus fits wherever it slides
_JACOBI_ROUNDS, _JACOBI_SMALL = 20, 1e-15  # most rounds; off the diagonal, as a share of the trace: converged
_GAIN = 0.95  # a correction must lower the thickness to this share


def refine_by_sharpness(
    source: np.ndarray, target: np.ndarray, motion: tuple[float, float, float, float], lag: float, draws: np.ndarray
) -> tuple[float, float, float, float]:  # fmt: skip
    """Return a better motion of a segment, or the given one; see training/teachers/planar_motion.py.

    source: (N, 4) of the segment, target: (M, 4) of the other sweep around the moved segment: x, y, z [m] and the time
    after the stamp of the sweep. lag: time between the stamps, in the same unit; negative backward in time. draws: see
    `spread_rows`.
    """
    if len(target) < _FEW:
        return motion
    mine, theirs = (points[spread_rows(len(points), _POINTS, draws)] for points in (source, target))
    moved = np.stack(apply(motion, mine[:, 0], mine[:, 1]), axis=1)
    start = source[:, :2].mean(0)
    centre = np.array(apply(motion, *start))
    way = centre - start
    ahead = way / max(np.linalg.norm(way), 1e-9)
    axes = np.array([ahead, [-ahead[1], ahead[0]]])  # along and across
    late0, late1 = mine[:, 3:] / lag, theirs[:, 3:] / lag
    points = np.concatenate([mine[:, :3], theirs[:, :3]])

    def thickness_after(correction: np.ndarray) -> float:
        along, across, yaw = correction
        extra = along * axes[0] + across * axes[1]
        total = way + extra
        # All points at the time of the target's stamp.
        turned = np.stack(apply(_turn_about(centre, yaw), moved[:, 0], moved[:, 1]), axis=1)
        points[: len(mine), :2] = turned + extra - total * late0
        points[len(mine) :, :2] = theirs[:, :2] - total * late1
        return surface_thickness(points) + _TIE * math.hypot(along, across)

    correction, before, after = _search(thickness_after)
    if after > _GAIN * before:
        return motion
    cosine, sine, *_ = turn = _turn_about(centre, correction[2])
    x, y = np.array(apply(turn, *motion[2:])) + correction[:2] @ axes
    return cosine * motion[0] - sine * motion[1], sine * motion[0] + cosine * motion[1], x, y


def spread_rows(count: int, most: int, draws: np.ndarray) -> np.ndarray:
    """Return the rows 0 to count, or if there are more than `most`, one row of each of so many equal runs of them.

    Neighbouring rows are near each other, in the order of the scan or of a k-d tree, so the choice covers a segment
    evenly. draws: at least `most` random numbers in [0, 1), the place of each row in its run.
    """
    if count <= most:
        return np.arange(count)
    rows = ((np.arange(most) + draws[:most]) * (count / most)).astype(np.int64)
    return np.minimum(rows, count - 1)  # rounding


def _turn_about(centre: np.ndarray, yaw: float) -> tuple[float, float, float, float]:
    """Return the motion that turns by yaw [rad] about a place (2,) [m]."""
    cosine, sine = math.cos(yaw), math.sin(yaw)
    x, y = centre
    return cosine, sine, x - (cosine * x - sine * y), y - (sine * x + cosine * y)


@compiled
def surface_thickness(points):
    """Return the mean thickness [m] of the surface through points (N, 3) [m], measured at every second point."""
    total, count = 0.0, 0
    for query in range(0, len(points), _EVERY):
        x, y, z = points[query, 0], points[query, 1], points[query, 2]
        n = sx = sy = sz = xx = xy = xz = yy = yz = zz = 0.0
        for i in range(len(points)):
            dx, dy, dz = points[i, 0] - x, points[i, 1] - y, points[i, 2] - z
            if dx * dx + dy * dy + dz * dz <= _RADIUS * _RADIUS:
                n += 1
                sx, sy, sz = sx + dx, sy + dy, sz + dz
                xx, xy, xz = xx + dx * dx, xy + dx * dy, xz + dx * dz
                yy, yz, zz = yy + dy * dy, yz + dy * dz, zz + dz * dz
        if n < _FEW:
            total += _FEW_THICKNESS
        else:
            sx, sy, sz = sx / n, sy / n, sz / n
            lowest = _lowest_eigenvalue(
                xx / n - sx * sx, xy / n - sx * sy, xz / n - sx * sz,
                yy / n - sy * sy, yz / n - sy * sz, zz / n - sz * sz,
            )  # fmt: skip
            total += math.sqrt(max(lowest, 0.0))
        count += 1
    return total / count


@compiled
def _lowest_eigenvalue(xx, xy, xz, yy, yz, zz):
    """Return the lowest eigenvalue of a symmetric matrix, by Jacobi rotations."""
    for _ in range(_JACOBI_ROUNDS):
        xx, yy, xy, xz, yz = _rotated(xx, yy, xy, xz, yz)
        xx, zz, xz, xy, yz = _rotated(xx, zz, xz, xy, yz)
        yy, zz, yz, xy, xz = _rotated(yy, zz, yz, xy, xz)
        if abs(xy) + abs(xz) + abs(yz) <= _JACOBI_SMALL * (abs(xx) + abs(yy) + abs(zz)):
            break
    return min(xx, yy, zz)


@compiled
def _rotated(aa, bb, ab, ac, bc):
    """Return these entries of a symmetric matrix with rows a, b, c after the rotation of a and b that makes ab 0."""
    if ab == 0:
        return aa, bb, ab, ac, bc
    theta = (bb - aa) / (2 * ab)
    tangent = math.copysign(1.0, theta) / (abs(theta) + math.sqrt(theta * theta + 1))
    cosine = 1 / math.sqrt(tangent * tangent + 1)
    sine = tangent * cosine
    return aa - tangent * ab, bb + tangent * ab, 0.0, cosine * ac - sine * bc, sine * ac + cosine * bc


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
