# SPDX-License-Identifier: Apache-2.0
"""Cells occupied in the last second: a moving object enters cells that were free, a static one does not."""

from collections import deque

import numpy as np

from zeroflow_ros import transforms

CELL, _LAYER = 0.3, 0.5  # m, along x and y, and up: branches above a road do not occupy the road
_SIDE, _LAYERS = 400, 16  # 60 m to each side, 4 m up and down


class OccupancyMemory:
    """Occupied cells of the last sweeps, each sweep in its own frame.

    seconds: how long a sweep is kept.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._sweeps: deque[tuple[float, np.ndarray, np.ndarray]] = deque()  # time, sweep_T_world, cells as bits
        self._scratch = np.zeros(_SIDE * _SIDE * _LAYERS, bool)

    def reset(self) -> None:
        """Forget everything."""
        self._sweeps.clear()

    def add(self, time: float, world_T_sweep: np.ndarray, points: np.ndarray) -> None:
        """Store the cells of points (K, 3) [m] of a sweep at a time [s]; leave out the ground, which is everywhere."""
        cells, inside = _cells(points)
        self._scratch[:] = False
        self._scratch[cells[inside]] = True
        self._sweeps.append((time, transforms.invert(world_T_sweep), np.packbits(self._scratch)))  # 320 kB
        while self._sweeps[0][0] < time - self._seconds - 1e-6:
            self._sweeps.popleft()

    def occupied_fraction(self, points: np.ndarray, time: float) -> tuple[float, float]:
        """Return (share of the points in a cell that was occupied, time of that sweep [s]); (0, inf) without a sweep.

        points: (K, 3) [m] in the world. time: [s]; the stored sweep nearest to it is used.
        """
        if not self._sweeps:
            return 0.0, np.inf
        sweep_time, sweep_T_world, bits = min(self._sweeps, key=lambda sweep: abs(sweep[0] - time))
        cells, inside = _cells(transforms.apply(sweep_T_world, points))
        cells = cells[inside]
        occupied = bits[cells >> 3] >> (7 - (cells & 7)).astype(np.uint8) & 1
        return float(np.count_nonzero(occupied)) / max(len(points), 1), sweep_time


def _cells(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (cell index, whether the point lies inside the grid) of points (K, 3), each (K,)."""
    column, row = (np.floor(points[:, axis] / CELL).astype(np.int64) + _SIDE // 2 for axis in (0, 1))
    layer = np.floor(points[:, 2] / _LAYER).astype(np.int64) + _LAYERS // 2
    inside = (column >= 0) & (column < _SIDE) & (row >= 0) & (row < _SIDE) & (layer >= 0) & (layer < _LAYERS)
    return (column * _SIDE + row) * _LAYERS + layer, inside
