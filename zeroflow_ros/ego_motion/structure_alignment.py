# SPDX-License-Identifier: Apache-2.0
"""Align walls, poles and parked cars of two sweeps in the plane, to a few centimetres, to measure an odometry by.

Cells of half a metre that have points at several heights are one normal distribution each; the newer ones are moved
onto the older ones.
Source: the normal distributions transform of Biber and Strasser (2003) between distributions, in two dimensions, with
weights for outliers.
"""

from dataclasses import dataclass

import numpy as np

_CELL = 0.5  # m
_REACH = 40.0  # m
_SIZE = round(2 * _REACH / _CELL)
_NEAR = 2.5  # m: beyond the vehicle's own returns, which never move
_UPRIGHT = 0.4  # m from the lowest to the highest point of a cell
_MOST_Z = 8.0  # m
_MIN_POINTS = 4  # of a cell
_MAX_POINTS = 24_000  # used; a fifth of a sweep of 64 beams
_NOISE = 0.02  # m, of a point
_MIN_CELLS = 150  # streets give 230 to 570
_FAR = 25.0  # squared distance in standard deviations, beyond which cells are not the same thing
_ITERATIONS = 12
_CONVERGED = 2e-3  # m and rad
_ROW = _SIZE + 2  # one empty cell around the grid
_AROUND = np.array([row * _ROW + column for row in (0, -1, 1) for column in (0, -1, 1)])


@dataclass(frozen=True)
class Alignment:
    """How the newer cells lie on the older ones.

    motion: (3,) x, y [m] and yaw [rad] of the newer sweep in the older one. quality: 0 to 1, mean match of the cells.
    """

    motion: np.ndarray
    quality: float


class UprightCells:
    """The upright cells of one sweep. points: (N, 3) float32 [m], z roughly up; NaN rows are ignored."""

    def __init__(self, points: np.ndarray):
        # An odd step: an even one would take every other ring of a cloud that is stored column by column.
        x, y, z = np.ascontiguousarray(points[:: (1 + len(points) // _MAX_POINTS) | 1].T)
        with np.errstate(invalid='ignore', over='ignore'):
            squared = x * x + y * y
            is_used = (squared > _NEAR**2) & (squared < (_REACH - _CELL) ** 2) & (np.abs(z) < _MOST_Z)
        x, y, z = (values[is_used].astype(np.float64) for values in (x, y, z))
        cell = _place(x, y)
        order = np.argsort(cell)
        cell, x, y, z = cell[order], x[order], y[order], z[order]
        start = np.flatnonzero(np.diff(cell, prepend=-1))
        count = np.diff(np.r_[start, len(cell)])
        sums = [np.add.reduceat(values, start) if len(start) else start for values in (x, y, x * x, x * y, y * y)]
        mean_x, mean_y, xx, xy, yy = (values / count for values in sums)
        is_upright = count >= _MIN_POINTS
        if len(start):
            is_upright &= np.maximum.reduceat(z, start) - np.minimum.reduceat(z, start) > _UPRIGHT
        xy = xy - mean_x * mean_y
        spread = np.stack([xx - mean_x**2 + _NOISE**2, xy, xy, yy - mean_y**2 + _NOISE**2], axis=1)
        self.means = np.stack([mean_x, mean_y], axis=1)[is_upright]  # (n, 2)
        self.covariances = spread.reshape(-1, 2, 2)[is_upright]
        self._row_at = np.full(_ROW * _ROW, -1, np.int32)
        self._row_at[cell[start[is_upright]]] = np.arange(len(self.means))

    @property
    def is_enough(self) -> bool:
        """Whether there are enough cells to align."""
        return len(self.means) >= _MIN_CELLS

    def align(self, newer: 'UprightCells', start: np.ndarray) -> Alignment:
        """Return the motion near a start (3,) that aligns the newer cells best; within some 0.4 m and 3 degrees."""
        motion = np.array(start, np.float64)
        for _ in range(_ITERATIONS):
            apart, arm, information, squared = self._match(newer, motion)
            if len(apart) < _MIN_CELLS // 3:
                break
            weight = 1 / (1 + squared / 2) ** 2
            jacobian = np.zeros((len(apart), 2, 3))
            jacobian[:, 0, 0] = jacobian[:, 1, 1] = 1
            jacobian[:, 0, 2], jacobian[:, 1, 2] = -arm[:, 1], arm[:, 0]
            weighted = np.matmul(jacobian.transpose(0, 2, 1), information * weight[:, None, None])  # (n, 3, 2)
            hessian = np.matmul(weighted, jacobian).sum(axis=0) + 1e-6 * np.eye(3)
            step = np.linalg.solve(hessian, np.matmul(weighted, apart[:, :, None]).sum(axis=0)[:, 0])
            motion -= step
            if np.abs(step).max() < _CONVERGED:
                break
        return Alignment(motion, self.quality(newer, motion))

    def quality(self, newer: 'UprightCells', motion: np.ndarray) -> float:
        """Return how well the newer cells lie on these after a motion (3,): 0 to 1, the mean over the cells."""
        _, _, _, squared = self._match(newer, motion)
        return float((1 / (1 + squared / 2)).sum() / max(1, len(newer.means)))

    def _match(self, newer: 'UprightCells', motion: np.ndarray) -> tuple[np.ndarray, ...]:
        """Match newer cells to the older ones around them.

        Returns distances (n, 2), arms (n, 2) from the sensor, information (n, 2, 2), squared Mahalanobis distances.
        """
        cos, sin = np.cos(motion[2]), np.sin(motion[2])
        turn = np.array([[cos, -sin], [sin, cos]])
        arms = newer.means @ turn.T
        moved = arms + motion[:2]
        inside = np.flatnonzero((np.abs(moved) < _REACH).all(axis=1))
        candidates = self._row_at[_place(*moved[inside].T)[:, None] + _AROUND]  # (n, 9)
        number, place = np.nonzero(candidates >= 0)
        rows, olders = inside[number], candidates[number, place]
        apart = moved[rows] - self.means[olders]
        spread = self.covariances[olders] + (turn @ newer.covariances @ turn.T)[rows]
        xx, xy, yy = spread[:, 0, 0], spread[:, 0, 1], spread[:, 1, 1]
        determinant = xx * yy - xy * xy
        squared = (yy * apart[:, 0] ** 2 - 2 * xy * apart[:, 0] * apart[:, 1] + xx * apart[:, 1] ** 2) / determinant
        order = np.lexsort((squared + np.log(determinant), rows))
        best = order[np.flatnonzero(np.diff(rows[order], prepend=-1))]
        best = best[squared[best] < _FAR]
        inverse = np.stack([yy, -xy, -xy, xx], axis=1)[best].reshape(-1, 2, 2) / determinant[best, None, None]
        return apart[best], arms[rows[best]], inverse, squared[best]


def _place(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the number of the cell of points (n,) on the grid that has one empty cell around it."""
    row = np.floor((x + _REACH) * (1 / _CELL)).astype(np.int32) + 1
    return row * _ROW + np.floor((y + _REACH) * (1 / _CELL)).astype(np.int32) + 1
