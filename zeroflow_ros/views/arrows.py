# SPDX-License-Identifier: Apache-2.0
"""Select the points that get an arrow; compute its ends and colours."""

import numpy as np

_MAX_SPEED = 15.0  # m/s: the end of the colour scale, town traffic; faster points have the same red
_NUM_COLORS = 32  # few enough that each becomes one message object
_TAIL_BRIGHTNESS, _TAIL_ALPHA = 0.4, 0.2  # a LINE_LIST has no arrow heads: each line brightens towards its head
# Slow to fast: blue, cyan, green, yellow, red. All are readable on RViz's dark grey and on white.
_SCALE = np.array([[0.20, 0.45, 1.0], [0.0, 0.80, 0.85], [0.20, 0.85, 0.30], [1.0, 0.80, 0.0], [1.0, 0.20, 0.15]])

_CELL_BITS, _DISTANCE_BITS, _INDEX_BITS = 12, 15, 24  # 12 each for x and y, 15 and 24: 63 bits of one int64


def pick_arrows(
    points: np.ndarray,
    velocity: np.ndarray,
    *,
    max_arrows: int = 2000,
    min_speed: float = 0.5,
    seconds: float = 0.5,
    cell: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose moving points evenly over the ground plane, and return their arrows.

    points: (N, 3) float32 [m]. velocity: (N, 3) float32 [m/s], NaN where there is none.
    min_speed: slower points get no arrow [m/s]. seconds: length of an arrow as a time at its speed.
    cell: side of the grid squares [m]. Each square gets one arrow, that of the moving point nearest to its centre. The
    same input gives the same arrows, and a little motion moves few of them. Squares grow until there are at most
    max_arrows. Points beyond 2048 cells get none.

    Returns segments (A, 2, 3) float32 [m], tail and head, and their colours by speed (A, 2, 4) float32, rgba in
    [0, 1], fading from head to tail.
    """
    if not cell > 0:
        raise ValueError(f'cell must be a positive side in metres, got {cell}')
    with np.errstate(over='ignore', invalid='ignore'):  # comparisons with NaN are False, which leaves them out
        speed_squared = velocity[:, 0] ** 2 + velocity[:, 1] ** 2 + velocity[:, 2] ** 2
        limit = np.float32(2 ** (_CELL_BITS - 1) * cell)
        wanted = (speed_squared >= max(min_speed, 0.0) ** 2) & (speed_squared < np.inf)
        wanted &= (np.abs(points[:, 0]) < limit) & (np.abs(points[:, 1]) < limit) & np.isfinite(points[:, 2])
    moving = np.flatnonzero(wanted)[: 2**_INDEX_BITS] if max_arrows > 0 else np.empty(0, np.int64)
    chosen = moving[_one_per_cell(np.take(points, moving, axis=0), cell)]
    while len(chosen) > max_arrows:
        cell *= 1.25
        chosen = chosen[_one_per_cell(points[chosen], cell)]
    tails = points[chosen]
    segments = np.stack([tails, tails + velocity[chosen] * np.float32(seconds)], axis=1)  # (A, 2, 3)
    return segments, _arrow_colors(np.sqrt(speed_squared[chosen]))


def _one_per_cell(points: np.ndarray, cell: float) -> np.ndarray:
    """Return the index of the point nearest to the centre of each occupied cell; ties go to the first point.

    One sort of one int64 per point, (cell, distance, index) from the highest bit down: 2 ms for 120k points.
    """
    inv_cell, half = np.float32(1 / cell), np.float32(0.5)
    key = np.zeros(len(points), np.int64)
    distance = np.zeros(len(points), np.float32)  # from the centre along the axis where it is larger, in cells
    for axis in (0, 1):
        place = points[:, axis] * inv_cell
        corner = np.floor(place)
        key <<= _CELL_BITS
        key |= np.clip(corner.astype(np.int64) + 2 ** (_CELL_BITS - 1), 0, 2**_CELL_BITS - 1)
        np.maximum(distance, np.abs(place - corner - half), out=distance)
    key <<= _DISTANCE_BITS
    key |= (distance * np.float32(2**_DISTANCE_BITS - 1)).astype(np.int64)
    key <<= _INDEX_BITS
    key |= np.arange(len(points))
    key.sort()
    cells = key >> (_DISTANCE_BITS + _INDEX_BITS)
    return key[np.flatnonzero(np.diff(cells, prepend=-1))] & (2**_INDEX_BITS - 1)


def speed_colors(speed: np.ndarray) -> np.ndarray:
    """Return the colours, (N, 3) float32 in [0, 1], of speeds (N,) [m/s]: blue is slow, red 15 m/s and more."""
    level = np.round(np.clip(speed / _MAX_SPEED, 0, 1) * (_NUM_COLORS - 1)) / (_NUM_COLORS - 1)  # (N,)
    stops = np.linspace(0, 1, len(_SCALE))
    return np.stack([np.interp(level, stops, _SCALE[:, channel]) for channel in range(3)], axis=1).astype(np.float32)


def _arrow_colors(speed: np.ndarray) -> np.ndarray:
    """Return (A, 2, 4) rgba of tail and head by speed (A,) [m/s]."""
    colors = np.ones((len(speed), 2, 4), np.float32)
    colors[:, 1, :3] = speed_colors(speed)
    colors[:, 0, :3] = colors[:, 1, :3] * np.float32(_TAIL_BRIGHTNESS)
    colors[:, 0, 3] = _TAIL_ALPHA
    return colors
