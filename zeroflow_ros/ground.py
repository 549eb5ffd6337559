# SPDX-License-Identifier: Apache-2.0
"""Ground: how high the sensor stands above it, and which points belong to it."""

from collections import deque

import numpy as np

from zeroflow_ros.errors import ModelError

_NEAR, _FAR = 2.5, 25.0  # m: past the vehicle's own returns, and near enough that slopes do not smear the mode
_BIN = 0.1  # m


def ground_height(points: np.ndarray) -> float:
    """Return the height z [m] of the ground around the sensor, NaN where there are too few points to say.

    points: (N, 3) [m], z up. The ground near a LiDAR is its densest layer: each 2 m cell votes once, with the
    height of its lowest point, and the fullest 0.3 m of the histogram of votes wins.
    """
    radius_squared = points[:, 0] ** 2 + points[:, 1] ** 2
    near = np.flatnonzero((radius_squared > _NEAR**2) & (radius_squared < _FAR**2))
    if len(near) > 20000:
        near = near[:: len(near) // 10000]
    xyz = points[near]
    if len(xyz) < 50:
        return float('nan')
    cell = np.floor(xyz[:, 0] / 2).astype(np.int64) * 64 + np.floor(xyz[:, 1] / 2).astype(np.int64)
    order = np.lexsort((xyz[:, 2], cell))
    lowest = xyz[order[np.flatnonzero(np.diff(cell[order], prepend=cell[order[0]] - 1))], 2]
    bins = np.floor(lowest / _BIN).astype(np.int64)
    votes = np.bincount(bins - bins.min())
    votes_wide = np.convolve(votes, [1, 1, 1], 'same')
    peak = (votes_wide.argmax() + bins.min() + 0.5) * _BIN
    return float(np.median(lowest[np.abs(lowest - peak) <= 1.5 * _BIN]))


class SensorHeight:
    """Height of the frame's origin above the ground [m]: given, or the median over the last sweeps.

    One bad sweep (a wall of a truck around the vehicle) must not move the ground under the network.
    """

    def __init__(self, fixed: float | None = None, memory: int = 25):
        self.fixed = fixed
        self._heights: deque[float] = deque(maxlen=memory)
        self._sweeps = 0

    def reset(self) -> None:
        """Forget what was seen."""
        self._heights.clear()
        self._sweeps = 0

    def update(self, points: np.ndarray) -> float:
        """Look at one more sweep (N, 3) and return the height; 0 as long as no sweep showed any ground."""
        if self.fixed is not None:
            return self.fixed
        # A sensor does not climb: once the memory is full, one sweep in ten is enough.
        if len(self._heights) < self._heights.maxlen or self._sweeps % 10 == 0:
            seen = ground_height(points)
            if np.isfinite(seen):
                self._heights.append(-seen)
        self._sweeps += 1
        return float(np.median(self._heights)) if self._heights else 0.0


def is_ground(points: np.ndarray, sensor_height: float) -> np.ndarray:
    """Return which of points (N, 3) [m] belong to the ground, (N,) bool, by Patchwork++.

    sensor_height: of the frame's origin above the ground [m].
    Raises: ModelError when pypatchworkpp is not installed.
    """
    try:
        import pypatchworkpp
    except ImportError as error:
        raise ModelError(
            'This model expects clouds without ground, and removing it needs pypatchworkpp, which is not installed. '
            "Run 'pip install pypatchworkpp', or use a model whose card says ground: keep."
        ) from error
    parameters = pypatchworkpp.Parameters()
    parameters.sensor_height = sensor_height
    parameters.verbose = False
    remover = pypatchworkpp.patchworkpp(parameters)
    finite = np.flatnonzero(np.isfinite(points).all(1))
    remover.estimateGround(points[finite])
    ground = np.zeros(len(points), bool)
    ground[finite[remover.getGroundIndices()]] = True
    return ground
