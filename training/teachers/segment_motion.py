# SPDX-License-Identifier: Apache-2.0
"""Compiled loops of the rigid teacher: fits of one segment, and its mean distances to the other sweep.

Motions and points (N, 4): see training/teachers/planar_motion.py. Grids: `arrays` of a PointGrid.
"""

import math

import numpy as np

from training.teachers.planar_motion import STILL, apply, compiled, fit_motion, geman_mcclure_weight, undo
from training.teachers.point_grid import ALL, nearest

_FEWEST = 5  # correspondences of a fit


@compiled
def refine_starts(grid, body, starts, reaches, kernel, lag, may_rotate, cut, motions, distances, ways):
    """Refine the motion of a segment from each start by robust planar ICP.

    grid: of the target. body: (N, 4), points of the segment. starts: (S, 2) [m]. reaches: (steps,) [m], the largest
    distance of a correspondence in each step. kernel, lag: see `fit_motion` and `geman_mcclure_weight` in
    training/teachers/planar_motion.py. cut: distances are truncated at this [m].
    Outputs: motions (S, 4); distances (S,), mean truncated distance [m]; ways (S,), length of the mean motion [m].
    Return the mean truncated distance [m] at rest.
    """
    near, weight = np.empty((len(body), 4)), np.empty(len(body))
    mine, guess = np.empty((len(body), 4)), np.empty(len(body), np.int64)
    for s in range(len(starts)):
        motion = 1.0, 0.0, starts[s, 0], starts[s, 1]
        guess[:] = -1
        for reach in reaches:
            count = _match(grid, body, motion, reach, kernel, guess, mine, near, weight)
            if count < _FEWEST:
                break
            motion = fit_motion(mine, near, weight, count, lag, may_rotate)
        motions[s, 0], motions[s, 1], motions[s, 2], motions[s, 3] = motion
        distances[s] = _mean_distance(grid, body, motion, cut, guess)
        way_x = way_y = 0.0
        for i in range(len(body)):
            x, y = apply(motion, body[i, 0], body[i, 1])
            way_x += x - body[i, 0]
            way_y += y - body[i, 1]
        ways[s] = math.sqrt(way_x * way_x + way_y * way_y) / len(body)
    guess[:] = -1
    return _mean_distance(grid, body, STILL, cut, guess)


@compiled
def reverse_distance(grid, labels, wanted, around, motion, cut):
    """Return the mean truncated distance [m] of target points (M, 4) to a segment after its motion.

    grid: of the source. labels: (N,) of its points; those with the label wanted are the segment.
    """
    total = 0.0
    for i in range(len(around)):
        x, y = undo(motion, around[i, 0], around[i, 1])
        total += math.sqrt(nearest(grid, x, y, around[i, 2], around[i, 3], cut, -1, labels, wanted)[1])
    return total / len(around)


@compiled
def polish_step(grid, source_grid, labels, wanted, body, around, motion, reach, kernel, lag, may_rotate):
    """Return whether there are enough correspondences in both directions, and the motion after an ICP step with them.

    grid: of the target. source_grid, labels, wanted: see `reverse_distance`. body: (N, 4), points of the segment.
    around: (M, 4), points of the target around the moved segment. The others: see `refine_starts`.
    """
    most = len(body) + len(around)
    mine, near, weight = np.empty((most, 4)), np.empty((most, 4)), np.empty(most)
    count = _match(grid, body, motion, reach, kernel, np.full(len(body), -1), mine, near, weight)
    for i in range(count):
        weight[i] /= count
    if count < _FEWEST:
        return False, motion
    total = count
    for i in range(len(around)):
        x, y = undo(motion, around[i, 0], around[i, 1])
        row, squared = nearest(source_grid, x, y, around[i, 2], around[i, 3], reach, -1, labels, wanted)
        if row >= 0:
            mine[total], near[total] = source_grid[0][row], around[i]
            weight[total] = geman_mcclure_weight(squared, kernel)
            total += 1
    if total - count < _FEWEST:
        return False, motion
    for i in range(count, total):
        weight[i] /= total - count
    return True, fit_motion(mine, near, weight, total, lag, may_rotate)


@compiled
def moved_box(points, motion, border):
    """Return the lowest and highest x, y, z (3,) [m] of points (N, 4) after the motion, widened by border [m]."""
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for i in range(len(points)):
        x, y = apply(motion, points[i, 0], points[i, 1])
        moved = x, y, points[i, 2]
        for axis in range(3):
            low[axis], high[axis] = min(low[axis], moved[axis]), max(high[axis], moved[axis])
    return low - border, high + border


@compiled
def _match(grid, body, motion, reach, kernel, guess, mine, near, weight):
    """Write the correspondences of the moved points (N, 4) and their weights, and their rows into guess (N,).

    Return how many there are.
    """
    labels, count = np.empty(0, np.int64), 0
    for i in range(len(body)):
        x, y = apply(motion, body[i, 0], body[i, 1])
        row, squared = nearest(grid, x, y, body[i, 2], body[i, 3], reach, guess[i], labels, ALL)
        guess[i] = row
        if row >= 0:
            for axis in range(4):
                mine[count, axis], near[count, axis] = body[i, axis], grid[0][row, axis]
            weight[count] = geman_mcclure_weight(squared, kernel)
            count += 1
    return count


@compiled
def _mean_distance(grid, body, motion, cut, guess):
    labels, total = np.empty(0, np.int64), 0.0
    for i in range(len(body)):
        x, y = apply(motion, body[i, 0], body[i, 1])
        total += math.sqrt(nearest(grid, x, y, body[i, 2], body[i, 3], cut, guess[i], labels, ALL)[1])
    return total / len(body)
