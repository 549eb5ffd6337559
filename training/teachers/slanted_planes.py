# SPDX-License-Identifier: Apache-2.0
"""A plane of disparity for each superpixel, so that every pixel has a disparity, also where none was matched.

Each superpixel takes, in turn, the plane of lowest cost among its own, those of its neighbours, and the road. The cost
is the distance to matched disparities, the steps towards its neighbours, and, for pixels without a match, whether the
right image contradicts: nothing can stand in front of what the right camera sees.
"""

from dataclasses import dataclass, field

import numba
import numpy as np

from training.teachers.superpixels import SuperpixelConfig, Superpixels

_MIN_SHARE = 0.15  # of the pixels of a superpixel must be matched, or it has no plane of its own at first
_CANDIDATES = 40
_ROAD_MARGIN = 1.0  # px: nothing is farther below the road


@dataclass(frozen=True)
class SlantedPlaneConfig:
    """Settings of the planes.

    max_distance: cost of a pixel that is so far from its plane or farther [px]. max_step: the same for a step between
    neighbours [px]; step_weight: its weight, which falls with the difference in colour, to 1/e at colour_scale. hidden:
    cost of a pixel that the right image shows something in front of; in_front: of one in front of what it shows, or
    below the road.
    stiffness: pulls planes towards a constant disparity, as so many [px^2] of matched pixels would. rounds: of choosing
    planes and moving borders. keep: matched disparities that are farther from their plane stay as they are [px].
    """

    superpixels: SuperpixelConfig = field(default_factory=SuperpixelConfig)
    max_distance: float = 3.0
    max_step: float = 4.0
    step_weight: float = 1.0
    colour_scale: float = 40.0
    hidden: float = 0.5
    in_front: float = 3.0
    stiffness: float = 30.0
    rounds: int = 4
    keep: float = 1.5


def fill_by_planes(
    disparity: np.ndarray, right_disparity: np.ndarray, image: np.ndarray, road: np.ndarray | None,
    max_disparity: float, config: SlantedPlaneConfig = SlantedPlaneConfig(),
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the disparity of every pixel, and that of its plane, (H, W) float32 [px].

    They differ where a matched disparity is kept. Both are NaN when no superpixel has enough matches.

    disparity: (H, W) float32 [px], NaN where not known. right_disparity: (H, W) float32 [px] of the right image.
    image: (H, W, 3) uint8, CIELAB, left. road: (3,), its disparity is a * column + b * row + c; None: not known.
    """
    superpixels = Superpixels(image, config.superpixels)
    weights = np.array([config.max_distance, config.max_step, config.step_weight, config.hidden, config.in_front])
    road = np.full(3, np.nan) if road is None else np.asarray(road, np.float64)
    starts, places = superpixels.pixels()
    planes = _first_planes(starts, places, disparity, config.stiffness)
    for number in range(config.rounds):
        edge_starts, edges = superpixels.borders()
        mine = np.repeat(np.arange(superpixels.count), np.diff(edge_starts))
        colours = superpixels.colours
        difference = np.abs(colours[mine] - colours[edges[:, 0]]).sum(axis=1)
        edge_weights = np.exp(-difference / config.colour_scale)
        for sweep in range(2):
            _choose_planes(
                starts, places, edge_starts, edges, edge_weights, disparity, right_disparity, planes, road, weights,
                max_disparity, config.stiffness, sweep == 1,
            )  # fmt: skip
        if number < config.rounds - 1:
            for _ in range(2):
                superpixels.move_borders(disparity, planes)
            starts, places = superpixels.pixels()
    height, width = disparity.shape
    a, b, c = (planes[:, k].astype(np.float32)[superpixels.labels] for k in range(3))
    of_plane = a * np.arange(width, dtype=np.float32) + b * np.arange(height, dtype=np.float32)[:, None] + c
    with np.errstate(invalid='ignore'):
        kept = np.isfinite(disparity) & ~(np.abs(of_plane - disparity) <= config.keep)
    return np.where(kept, disparity, of_plane), of_plane


@numba.njit(cache=True, nogil=True)
def _fit(pixels, disparity, plane, stiffness, steps, width):
    """Return the plane (a, b, c) that fits the matched pixels robustly; width: distance [px] of a quarter of weight."""
    count = len(pixels)
    columns = disparity.shape[1]
    x_mean = y_mean = 0.0
    for place in pixels:
        y_mean += place // columns
        x_mean += place % columns
    x_mean, y_mean = x_mean / count, y_mean / count
    a, b = plane[0], plane[1]
    c = plane[2] + a * x_mean + b * y_mean
    for _ in range(steps):
        xx = xy = yy = x1 = y1 = one = xd = yd = d1 = 0.0
        for place in pixels:
            row = place // columns
            column = place - row * columns
            seen = disparity[row, column]
            if np.isnan(seen):
                continue
            x, y = column - x_mean, row - y_mean
            error = (seen - (a * x + b * y + c)) / width
            weight = 1 / (1 + error * error) ** 2
            xx += weight * x * x
            xy += weight * x * y
            yy += weight * y * y
            x1 += weight * x
            y1 += weight * y
            one += weight
            xd += weight * x * seen
            yd += weight * y * seen
            d1 += weight * seen
        if one < 3:
            break
        xx += stiffness
        yy += stiffness
        # Cramer's rule for the symmetric 3 x 3 system
        minor_a, minor_b, minor_c = yy * one - y1 * y1, xy * one - y1 * x1, xy * y1 - yy * x1
        determinant = xx * minor_a - xy * minor_b + x1 * minor_c
        if abs(determinant) < 1e-9:
            break
        a = (xd * minor_a - xy * (yd * one - y1 * d1) + x1 * (yd * y1 - yy * d1)) / determinant
        b = (xx * (yd * one - y1 * d1) - xd * minor_b + x1 * (xy * d1 - yd * x1)) / determinant
        c = (xx * (yy * d1 - yd * y1) - xy * (xy * d1 - yd * x1) + xd * minor_c) / determinant
    return a, b, c - a * x_mean - b * y_mean


@numba.njit(cache=True, nogil=True)
def _first_planes(starts, places, disparity, stiffness):
    """Return a plane fitted to each superpixel, (count, 3); NaN where too few of its pixels are matched."""
    planes = np.full((len(starts) - 1, 3), np.nan)
    columns = disparity.shape[1]
    histogram = np.empty(1024, np.int64)  # of whole disparities, for the median
    for k in range(len(planes)):
        pixels = places[starts[k] : starts[k + 1]]
        histogram[:] = 0
        count = 0
        for place in pixels:
            value = disparity[place // columns, place % columns]
            if not np.isnan(value):
                histogram[min(max(int(value), 0), len(histogram) - 1)] += 1
                count += 1
        if count < max(8.0, _MIN_SHARE * len(pixels)):
            continue
        median, below = 0, histogram[0]
        while 2 * below < count:
            median += 1
            below += histogram[median]
        level = (0.0, 0.0, median + 0.5)
        loose = _fit(pixels, disparity, level, 4 * stiffness, 2, 3.0)
        planes[k] = _fit(pixels, disparity, loose, stiffness, 3, 1.0)
    return planes


@numba.njit(cache=True, nogil=True)
def _cost(
    k, plane, least, starts, places, edge_starts, edges, edge_weights, disparity, right, planes, road, weights, most
):
    """Return the cost of a plane for superpixel k; no less than `least` as soon as it exceeds that."""
    max_distance, max_step, step_weight, hidden, in_front = weights
    a, b, c = plane
    columns = disparity.shape[1]
    cost = 0.0
    for place in places[starts[k] : starts[k + 1]]:
        row = place // columns
        column = place - row * columns
        value = a * column + b * row + c
        seen = disparity[row, column]
        if value < 0 or value > most:
            cost += 3 * max_distance
        elif not np.isnan(seen):
            cost += min(abs(value - seen), max_distance)
        elif value < road[0] * column + road[1] * row + road[2] - _ROAD_MARGIN:  # false for an unknown road, NaN
            cost += in_front
        else:
            at = int(np.floor(column - value + 0.5))
            if at >= 0:
                above = right[row, at] - value
                cost += in_front if above < -2 else (hidden if above > 2 else 0.0)
    if cost >= least:
        return cost
    for n in range(edge_starts[k], edge_starts[k + 1]):
        other = planes[edges[n, 0]]
        if not np.isnan(other[2]):
            row, column = edges[n, 1], edges[n, 2]
            step = abs((a - other[0]) * column + (b - other[1]) * row + c - other[2])
            cost += step_weight * edge_weights[n] * min(step, max_step)
    return cost


@numba.njit(cache=True, nogil=True)
def _choose_planes(
    starts, places, edge_starts, edges, edge_weights, disparity, right, planes, road, weights, most, stiffness, backward
):
    """Give every superpixel, in order, the plane of lowest cost; changes planes (count, 3)."""
    count = len(planes)
    candidates = np.empty((_CANDIDATES + 2, 3))
    for i in range(count):
        k = count - 1 - i if backward else i
        num = 0
        if not np.isnan(planes[k, 2]):
            candidates[0] = planes[k]
            num = 1
        last = -1
        for n in range(edge_starts[k], edge_starts[k + 1]):
            other = edges[n, 0]
            if other != last and not np.isnan(planes[other, 2]) and num < _CANDIDATES:
                candidates[num] = planes[other]
                num += 1
            last = other
        if not np.isnan(road[2]):
            candidates[num] = road
            num += 1
        best, least = -1, np.inf
        for n in range(num + 1):
            if n == num:
                if best < 0:
                    break
                start = (candidates[best, 0], candidates[best, 1], candidates[best, 2])
                pixels = places[starts[k] : starts[k + 1]]
                refined = _fit(pixels, disparity, start, stiffness, 2, 1.0)
                candidates[n] = refined
            plane = (candidates[n, 0], candidates[n, 1], candidates[n, 2])
            cost = _cost(
                k, plane, least, starts, places, edge_starts, edges, edge_weights, disparity, right, planes, road,
                weights, most,
            )  # fmt: skip
            if cost < least:
                best, least = n, cost
        if best >= 0:
            planes[k] = candidates[best]
