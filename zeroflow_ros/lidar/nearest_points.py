# SPDX-License-Identifier: Apache-2.0
"""Find the nearest point of a cloud around a few places, in less time than building a k-d tree of the cloud takes."""

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.lidar.numba_support import numba_kernels

CELL = 0.5  # m: side of a cell seen from above, and the largest distance of a neighbour
CELLS = 256  # along each side of the square that is searched: 128 m, and no grid of a model is larger
NONE = -1


def cell_of(points: np.ndarray) -> np.ndarray:
    """Return the cell of points (N, 3) [m] seen from above, (N,) int64; NONE outside the square and in NaN rows."""
    with np.errstate(invalid='ignore'):
        place = np.floor(points[:, :2] / CELL) + CELLS // 2
        inside = ((place >= 1) & (place < CELLS - 1)).all(axis=1)  # so that all neighbours exist
    place = np.where(inside[:, None], place, 0).astype(np.int64)
    return np.where(inside, place[:, 0] * CELLS + place[:, 1], NONE)


def cells_around(cells: np.ndarray, steps: int) -> np.ndarray:
    """Return which cells are at most `steps` cells from one of cells (K,) along both axes, (cells,) bool."""
    wanted = np.zeros((CELLS, CELLS), bool)
    wanted.reshape(-1)[cells[cells != NONE]] = True
    for axis in (0, 1):
        for _ in range(steps):
            wanted = wanted | np.roll(wanted, 1, axis) | np.roll(wanted, -1, axis)
    return wanted.reshape(-1)


class NearestPoints:
    """Points of a cloud, for nearest-neighbour queries.

    points: (N, 3) float32 [m]; NaN rows are ignored. wanted: (cells,) bool, cells whose points are used.
    query_T_points: (4, 4), maps them into the frame of the queries.
    Attributes: points (M, 3) float32 of them, sorted by cell; starts (cells + 1,) int32, the first point of each cell.
    """

    def __init__(self, points: np.ndarray, wanted: np.ndarray, query_T_points: np.ndarray):
        self.starts = np.zeros(CELLS * CELLS + 1, np.int32)
        if numba_kernels is not None:
            matrix = query_T_points[:3].astype(np.float32)
            mapped, kept = np.empty_like(points), np.empty((len(points), 2), np.int32)
            count = numba_kernels.sort_into_cells(
                points, matrix, wanted, np.float32(1 / CELL), CELLS, kept, self.starts, mapped
            )
            self.points = mapped[:count]
            return
        with np.errstate(invalid='ignore'):
            mapped = transforms.apply(query_T_points, points)
        cells = cell_of(mapped)
        inside = np.flatnonzero((cells != NONE) & wanted[cells])
        self.points = mapped[inside[np.argsort(cells[inside], kind='stable')]]
        np.cumsum(np.bincount(cells[inside], minlength=CELLS * CELLS), out=self.starts[1:])

    def query(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (rows, distances) of the nearest points, (Q,) int32 and (Q,) float32 [m], of places (Q, 3) float32.

        NONE and CELL where no point is nearer than CELL.
        """
        rows, distances = np.full(len(places), NONE, np.int32), np.full(len(places), CELL, np.float32)
        cells = cell_of(places)
        for query in np.flatnonzero(cells != NONE):
            for step in (-CELLS, 0, CELLS):  # three neighbouring cells are one range of points
                first, last = self.starts[cells[query] + step - 1], self.starts[cells[query] + step + 2]
                if first == last:
                    continue
                offset = self.points[first:last] - places[query]
                squared = (offset[:, 0] * offset[:, 0] + offset[:, 1] * offset[:, 1]) + offset[:, 2] * offset[:, 2]
                best = squared.argmin()
                if squared[best] < distances[query] * distances[query]:
                    rows[query], distances[query] = first + best, np.sqrt(squared[best])
        return rows, distances
