# SPDX-License-Identifier: Apache-2.0
"""Planar rigid motions, compiled: (cosine of the yaw, sine of the yaw, x [m], y [m]). The yaw is about the origin.

Points (N, 4) are x, y, z [m] and the measurement time, scaled to a length [m]. A motion leaves z and the time as they
are: roads are level over the distance travelled in 0.1 s.
"""

import math

import numba
from numba.extending import register_jitable

_MAX_YAW = 0.15  # rad over a pair: 86 degrees per second at 10 Hz
_LEAST_SHARE, _MOST_SHARE = 0.3, 1.7  # of the time between the stamps: time between two matched points

STILL = (1.0, 0.0, 0.0, 0.0)
compiled = numba.njit(cache=True, nogil=True, error_model='numpy')


@register_jitable
def apply(motion, x, y):
    """Return x and y [m], numbers or arrays, after the motion."""
    cosine, sine, shift_x, shift_y = motion
    return cosine * x - sine * y + shift_x, sine * x + cosine * y + shift_y


@compiled
def undo(motion, x, y):
    """Return x and y [m] before the motion: the inverse of `apply`."""
    cosine, sine, shift_x, shift_y = motion
    return cosine * (x - shift_x) + sine * (y - shift_y), cosine * (y - shift_y) - sine * (x - shift_x)


@compiled
def geman_mcclure_weight(squared, kernel):
    """Return the weight of a correspondence at a squared distance [m^2]: 1 at 0, a quarter at `kernel` [m]."""
    ratio = 1 + squared / (kernel * kernel)
    return 1 / (ratio * ratio)


@compiled
def fit_motion(source, target, weight, count, lag, may_rotate):
    """Return the motion from source (N, 4) to target (N, 4) by weighted (N,) least squares over the first count rows.

    lag: time between the stamps of the two sweeps, in the unit of the fourth column; negative backward in time.
    """
    total = sx = sy = tx = ty = 0.0
    for i in range(count):
        total += weight[i]
        sx += weight[i] * source[i, 0]
        sy += weight[i] * source[i, 1]
        tx += weight[i] * target[i, 0]
        ty += weight[i] * target[i, 1]
    sx, sy, tx, ty = sx / total, sy / total, tx / total, ty / total
    cosine, sine = 1.0, 0.0
    if may_rotate:
        cross = dot = 0.0
        for i in range(count):
            ax, ay, bx, by = source[i, 0] - sx, source[i, 1] - sy, target[i, 0] - tx, target[i, 1] - ty
            cross += weight[i] * (ax * by - ay * bx)
            dot += weight[i] * (ax * bx + ay * by)
        yaw = math.atan2(cross, dot)
        if abs(yaw) <= _MAX_YAW:
            cosine, sine = math.cos(yaw), math.sin(yaw)
    way_x = way_y = squares = 0.0
    for i in range(count):
        ax, ay = source[i, 0] - sx, source[i, 1] - sy
        # A correspondence shows the motion over the time between its two points, not over that between the stamps.
        share = min(max(1 + (target[i, 3] - source[i, 3]) / lag, _LEAST_SHARE), _MOST_SHARE)
        way_x += weight[i] * share * (target[i, 0] - (cosine * ax - sine * ay + sx))
        way_y += weight[i] * share * (target[i, 1] - (sine * ax + cosine * ay + sy))
        squares += weight[i] * share * share
    way_x, way_y = way_x / squares, way_y / squares
    return cosine, sine, sx - (cosine * sx - sine * sy) + way_x, sy - (sine * sx + cosine * sy) + way_y
