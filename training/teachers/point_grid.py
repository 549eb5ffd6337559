# SPDX-License-Identifier: Apache-2.0
"""Points sorted into the cells of a grid, and compiled nearest-neighbour searches in it.

Points (N, 4): see training/teachers/planar_motion.py. Searches of a few dozen points at a time are compiled into the
loops that need them; k-d trees of scipy are called from Python, which costs more than the search.
"""

import math

import numba
import numpy as np
from scipy.spatial import cKDTree

from training.teachers.planar_motion import compiled

_CELL = 0.3  # m
_MOST_CELLS = 2**25  # cells are larger if the cloud is so wide that there would be more
_ROUNDING = 1e-9  # m: cells this little beyond the reach are searched as well
ALL = -1  # as `wanted`: points of any label


class PointGrid:
    """Points (N, 4) sorted by the cell they are in.

    Attributes: `rows` (N,), the given row of each sorted point; `arrays`, what the compiled functions take as `grid`:
    the sorted points, the first point of each cell, the lowest corner [m], the number of cells per axis, the side [m].
    `tree`: k-d tree of x, y, z. `ranks` (N,): the place of each sorted point in the order of the tree's leaves;
    `ranked` (N, 4): the points in that order.
    """

    def __init__(self, points: np.ndarray):
        low, high = points[:, :3].min(0), points[:, :3].max(0)
        cell = _CELL
        while np.prod(np.floor((high - low) / cell) + 1) > _MOST_CELLS:
            cell *= 2
        shape = np.floor((high - low) / cell).astype(np.int64) + 1
        x, y, z = np.minimum(((points[:, :3] - low) / cell).astype(np.int64), shape - 1).T
        cells = (x * shape[1] + y) * shape[2] + z
        self.rows = np.argsort(cells, kind='stable')
        starts = _first_of_each(cells, shape.prod())
        self.arrays = np.ascontiguousarray(points[self.rows]), starts, low, shape, cell
        self.tree = cKDTree(points[:, :3])
        place = np.empty(len(points), np.int64)
        place[self.tree.indices] = np.arange(len(points))
        self.ranks, self.ranked = place[self.rows], points[self.tree.indices]

    def nearest(self, other: 'PointGrid', limit: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (distances [m], rows) of the nearest points to all points (M, 4) of another grid, (M,) each.

        Times are ignored. Where no point is nearer than limit [m], distance and row are limit and N.
        """
        distance, found = np.empty(len(other.rows)), np.empty(len(other.rows), np.int64)
        _nearest_of_all(self.arrays, other.arrays[0], limit, distance, found)
        distances, rows = np.empty_like(distance), np.empty_like(found)
        distances[other.rows] = distance
        rows[other.rows] = np.append(self.rows, len(self.rows))[found]
        return distances, rows


@compiled
def _first_of_each(cells, num_cells):
    """Return the number of entries of cells (N,) below each cell, (num_cells + 1,) int32."""
    starts = np.zeros(num_cells + 1, np.int32)
    for cell in cells:
        starts[cell + 1] += 1
    for cell in range(num_cells):
        starts[cell + 1] += starts[cell]
    return starts


@compiled
def nearest(grid, x, y, z, time, limit, guess, labels, wanted):
    """Return the row of the nearest point and its squared distance; -1 and limit squared if none is nearer.

    grid: `arrays` of a PointGrid. guess: row of a point that may be near, or -1. labels: (N,) int64 of the sorted
    points; only points with the label wanted are found, all if that is ALL.
    """
    points, starts, low, shape, cell = grid
    best, row = limit * limit, -1
    if guess >= 0:
        best, row = _nearest_in_range(points, guess, guess + 1, x, y, z, time, best, row, labels, wanted)
    else:
        i, j = math.floor((x - low[0]) / cell), math.floor((y - low[1]) / cell)
        k = math.floor((z - low[2]) / cell)
        if 0 <= i < shape[0] and 0 <= j < shape[1] and 0 <= k < shape[2]:
            at = (i * shape[1] + j) * shape[2] + k
            best, row = _nearest_in_range(points, starts[at], starts[at + 1], x, y, z, time, best, row, labels, wanted)
    reach = math.sqrt(best) + _ROUNDING
    i_low, i_high = _cells_within(x - low[0], reach, cell, shape[0])
    j_low, j_high = _cells_within(y - low[1], reach, cell, shape[1])
    for i in range(i_low, i_high):
        away_x = max(low[0] + i * cell - x, x - low[0] - (i + 1) * cell, 0.0)
        for j in range(j_low, j_high):
            away_y = max(low[1] + j * cell - y, y - low[1] - (j + 1) * cell, 0.0)
            left = best - away_x * away_x - away_y * away_y
            if left < -_ROUNDING:
                continue
            k_low, k_high = _cells_within(z - low[2], math.sqrt(max(left, 0.0)) + _ROUNDING, cell, shape[2])
            if k_low < k_high:
                column = (i * shape[1] + j) * shape[2]
                best, row = _nearest_in_range(
                    points, starts[column + k_low], starts[column + k_high], x, y, z, time, best, row, labels, wanted
                )
    return row, best


@numba.njit(inline='always')
def _cells_within(place, reach, cell, num_cells):
    """Return the first cell within reach of a place along an axis [m], and the one after the last."""
    return (
        max(0, math.floor((place - reach) / cell)),
        min(num_cells, math.floor((place + reach) / cell) + 1),
    )


@compiled
def _nearest_in_range(points, first, last, x, y, z, time, best, row, labels, wanted):
    """Return (squared distance, row) of the nearest of points first to last - 1 if nearer than best, else as given."""
    for p in range(first, last):
        dx, dy, dz, dt = points[p, 0] - x, points[p, 1] - y, points[p, 2] - z, points[p, 3] - time
        squared = dx * dx + dy * dy + dz * dz + dt * dt
        if squared < best and (wanted == ALL or labels[p] == wanted):
            best, row = squared, p
    return best, row


@compiled
def _nearest_of_all(grid, places, limit, distance, found):
    """Write distance (M,) and sorted row (M,) of the nearest point to places (M, 4); limit and N where none is near."""
    points = grid[0].copy()
    points[:, 3] = 0
    without_times = points, grid[1], grid[2], grid[3], grid[4]
    labels = np.empty(0, np.int64)
    for i in range(len(places)):
        row, squared = nearest(without_times, places[i, 0], places[i, 1], places[i, 2], 0.0, limit, -1, labels, ALL)
        distance[i], found[i] = math.sqrt(squared), row if row >= 0 else len(points)


@compiled
def numbers_in_box(grid, numbers, low, high, labels, wanted):
    """Return the numbers of the points with low < x, y, z < high whose label is below 0 or wanted, in rising order.

    numbers, labels: (N,) int64 of the sorted points. low, high: (3,) [m].
    """
    points, starts, corner, shape, cell = grid
    first, last = np.empty(3, np.int64), np.empty(3, np.int64)
    for axis in range(3):
        middle, half = (low[axis] + high[axis]) / 2 - corner[axis], (high[axis] - low[axis]) / 2 + _ROUNDING
        first[axis], last[axis] = _cells_within(middle, half, cell, shape[axis])
    most = 0
    for step in range(2):
        if step == 1:
            found = np.empty(most, np.int64)
        count = 0
        for i in range(first[0], last[0]):
            for j in range(first[1], last[1]):
                if first[2] >= last[2]:
                    continue
                column = (i * shape[1] + j) * shape[2]
                begin, end = starts[column + first[2]], starts[column + last[2]]
                if step == 0:
                    most += end - begin
                    continue
                for p in range(begin, end):
                    x, y, z = points[p, 0], points[p, 1], points[p, 2]
                    if (
                        low[0] < x < high[0] and low[1] < y < high[1] and low[2] < z < high[2]
                        and (labels[p] < 0 or labels[p] == wanted)
                    ):  # fmt: skip
                        found[count] = numbers[p]
                        count += 1
    found = found[:count]
    found.sort()
    return found
