# SPDX-License-Identifier: Apache-2.0
"""Find the ground plane below the sensor, and ground points."""

import os
import sys
import threading
from contextlib import contextmanager

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.errors import ModelError

_NEAR, _FAR = 2.5, 25.0  # m: beyond the vehicle's own returns, and near enough to fit one plane
_MAX_POINTS = 6_000  # used; 12 in each of the 500 cells
_CELL = 2.0  # m
MAX_HEIGHT = 100.0  # m
_REACH = 128.0  # m, to each side: a LiDAR sees no ground beyond
_KERNELS = (0.5, 0.2, 0.1, 0.1)  # m: a kerb is 0.1 to 0.15
_SLOPE = 0.03  # usual slope of the ground relative to the frame
_PATCHWORK_HEIGHT = 1.723  # m, the default of Patchwork++
_STDOUT = threading.Lock()  # two threads that redirect it at once would lose it
_MIN_CELLS, _MIN_SHARE = 20, 0.25  # ground cells needed: 80 m^2, and a quarter of all occupied cells


def ground_height(points: np.ndarray) -> float:
    """Return the height z [m] of the ground under the sensor, NaN where too little ground is visible.

    points: (N, 3) [m], z up; NaN rows are ignored. The lowest point of each 2 m cell is used. A plane is fitted to
    these points by iteratively reweighted least squares with the Geman-McClure kernel and a prior on flatness; it
    starts at the most frequent height (0.3 m window). Its height at the origin is returned. Error against RANSAC on
    every point within 10 m, 24 real sweeps: 2 cm, at most 6 cm.
    """
    with np.errstate(over='ignore'):
        radius_squared = points[:, 0] ** 2 + points[:, 1] ** 2
    near = np.flatnonzero((radius_squared > _NEAR**2) & (radius_squared < _FAR**2))
    xyz = np.take(points, near[:: 1 + len(near) // _MAX_POINTS], axis=0)
    plane = fit_ground_plane(xyz[np.abs(xyz[:, 2]) < MAX_HEIGHT])  # and not NaN
    return float('nan') if plane is None else float(plane[2])


def fit_ground_plane(xyz: np.ndarray) -> np.ndarray | None:
    """Return the ground z = plane @ (x, y, 1), (3,) float64, or None; see `ground_height`.

    xyz: (N, 3) [m], z up, at most 65,536 finite points within 25 m of the origin and 100 m up and down.
    """
    votes = lowest_per_cell(xyz).astype(np.float64)  # (C, 3)
    if len(votes) < _MIN_CELLS:
        return None
    histogram = np.bincount(((votes[:, 2] + MAX_HEIGHT) * 10).astype(np.int64))  # 0.1 m
    fullest = np.convolve(histogram, [1, 1, 1], 'same').argmax()
    plane = np.array([0.0, 0.0, (fullest + 0.5) / 10 - MAX_HEIGHT])  # z = plane @ (x, y, 1)
    places = np.column_stack([votes[:, :2], np.ones(len(votes))])
    for kernel in _KERNELS:
        residual = votes[:, 2] - places @ plane
        weight = (kernel**2 / (kernel**2 + residual**2)) ** 2
        normal_matrix = (places * weight[:, None]).T @ places
        normal_matrix[[0, 1], [0, 1]] += (kernel / _SLOPE) ** 2
        plane = np.linalg.solve(normal_matrix, (places * weight[:, None]).T @ votes[:, 2])
    agree = np.count_nonzero(np.abs(votes[:, 2] - places @ plane) < 2 * _KERNELS[-1])
    if agree < max(_MIN_CELLS, _MIN_SHARE * len(votes)):
        return None
    # The lowest point of a cell is too low by the sensor noise; the median of all points near the plane is not.
    above = xyz[:, 2] - (plane[0] * xyz[:, 0] + plane[1] * xyz[:, 1] + plane[2])
    close = above[np.abs(above) < _KERNELS[-1]]
    plane[2] += np.median(close) if len(close) else 0.0
    return plane


def lowest_per_cell(xyz: np.ndarray) -> np.ndarray:
    """Return the lowest point of each occupied 2 m cell, (C, 3), by one sort of (cell, height, index) in an int64.

    xyz: as for `fit_ground_plane`.
    """
    half = int(_FAR / _CELL) + 1
    column, row = (np.floor(xyz[:, axis] / _CELL).astype(np.int64) + half for axis in (0, 1))
    millimetres = ((xyz[:, 2] + MAX_HEIGHT) * 1000).astype(np.int64)  # 18 bits
    key = np.sort(((column * 2 * half + row) << 34) | (millimetres << 16) | np.arange(len(xyz)))
    cells = key >> 34
    return xyz[key[np.flatnonzero(np.diff(cells, prepend=-1))] & 0xFFFF]


def above_ground(points: np.ndarray, clearance: float) -> np.ndarray:
    """Return which points (N, 3) [m] lie at least `clearance` [m] above the lowest point around them, (N,) bool.

    The neighbourhood is 1 to 2 m: slopes and kerbs are ground, the underside of a lorry is not. Points farther than
    128 m along x or y and NaN rows are False. Simpler than Patchwork++, 4 ms instead of 12: it also removes the lowest
    `clearance` of every object, which does not matter for a bounding box.
    """
    above = np.zeros(len(points), bool)
    with np.errstate(invalid='ignore'):
        rows = np.flatnonzero((np.abs(points[:, :2]) < _REACH).all(axis=1) & (np.abs(points[:, 2]) < MAX_HEIGHT))
    xyz = points[rows]
    side = 2 * int(_REACH) + 2  # cells of 1 m, plus an empty border
    cell = (np.floor(xyz[:, 0]).astype(np.int64) + side // 2) * side + np.floor(xyz[:, 1]).astype(np.int64) + side // 2
    # One sort of (cell, height) in an int64: half the time of numpy's minimum.at.
    key = np.sort(cell << 18 | ((xyz[:, 2] + np.float32(MAX_HEIGHT)) * 1000).astype(np.int64))  # mm
    first = np.flatnonzero(np.diff(key >> 18, prepend=-1))
    lowest = np.full(side * side, np.inf, np.float32)
    lowest[key[first] >> 18] = (key[first] & 0x3FFFF) * 1e-3 - MAX_HEIGHT
    lowest = lowest.reshape(side, side)
    for axis in (0, 1):  # of the cell and its eight neighbours
        lowest = np.minimum(lowest, np.minimum(np.roll(lowest, 1, axis), np.roll(lowest, -1, axis)))
    above[rows] = xyz[:, 2] >= lowest.reshape(-1)[cell] + np.float32(clearance)
    return above


def is_ground(points: np.ndarray, level_T_points: np.ndarray) -> np.ndarray:
    """Return which points (N, 3) [m] are ground, (N,) bool, by Patchwork++.

    level_T_points: (4, 4), to a frame with z up and z = 0 on the ground; see `Level`. Patchwork++ gets the points as a
    level sensor at the height of its default sees them: with z = 0 on the road it leaves ten times as many road points.
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
    parameters.sensor_height = _PATCHWORK_HEIGHT
    parameters.verbose = False
    parameters.enable_RNR = False  # reflected-noise removal needs intensity; without it, Patchwork++ only warns
    with _silent_stdout():  # the library prints a banner for each sweep
        remover = pypatchworkpp.patchworkpp(parameters)  # new each time: its thresholds adapt to earlier sweeps
    finite = np.flatnonzero(np.isfinite(points).all(1))
    sensor_T_points = level_T_points.copy()
    sensor_T_points[2, 3] -= _PATCHWORK_HEIGHT
    remover.estimateGround(transforms.apply(sensor_T_points, points[finite]))
    ground = np.zeros(len(points), bool)
    ground[finite[remover.getGroundIndices()]] = True
    return ground


@contextmanager
def _silent_stdout():
    """Discard what C++ code writes to standard output inside the `with` block."""
    with _STDOUT, open(os.devnull, 'wb') as nowhere:
        sys.stdout.flush()
        stdout = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
