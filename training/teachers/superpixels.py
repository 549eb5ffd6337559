# SPDX-License-Identifier: Apache-2.0
"""Superpixels: connected pieces of an image of like colour, and, where it is known, of one plane of disparity.

They start as a grid. Pixels at borders then change over to a neighbour that suits them better, if the piece that they
leave stays connected. Source: the moves are those of Yamaguchi et al., "Efficient joint segmentation, occlusion
labeling, stereo and flow estimation", 2014.
"""

from dataclasses import dataclass

import numba
import numpy as np

from zeroflow_ros.errors import ConfigError

_MIN_PIXELS = 12  # smaller superpixels lose no more pixels


@dataclass(frozen=True)
class SuperpixelConfig:
    """Settings of superpixels.

    side: of the grid that they start from [px]. compactness: cost of the squared distance to the centre [1/px^2].
    colour_weight: cost of the squared difference in colour, in 8-bit CIELAB. disparity_weight: cost of a distance to
    the plane of disparity [1/px], up to max_distance [px]. border: cost of each of the eight neighbours in another
    superpixel. sweeps: passes over the image of the first segmentation.
    """

    side: int = 20
    compactness: float = 0.02
    colour_weight: float = 0.01
    disparity_weight: float = 3.0
    max_distance: float = 3.0
    border: float = 1.5
    sweeps: int = 4

    def __post_init__(self):
        if self.side < 4:
            raise ConfigError(f'side of superpixels must be 4 px or more, got {self.side}.')


class Superpixels:
    """The superpixels of an image.

    image: (H, W, 3) uint8, CIELAB. labels: (H, W) int32, number of the superpixel of each pixel. count: their number.
    sums: (count, 6) float64, number of pixels, sums of column, row and colour.
    """

    def __init__(self, image: np.ndarray, config: SuperpixelConfig = SuperpixelConfig()):
        height, width = image.shape[:2]
        down, across = max(1, round(height / config.side)), max(1, round(width / config.side))
        rows, columns = np.arange(height) * down // height, np.arange(width) * across // width
        self.image, self.config, self.count = np.ascontiguousarray(image), config, down * across
        self.labels = (rows[:, None] * across + columns).astype(np.int32)
        flat, (y, x) = self.labels.ravel(), np.mgrid[:height, :width]
        values = (np.ones(flat.size), x.ravel(), y.ravel(), *image.reshape(-1, 3).T)
        self.sums = np.stack([np.bincount(flat, value, self.count) for value in values], axis=1)
        unknown = np.full((1, 1), np.nan, np.float32)
        for _ in range(config.sweeps):
            self._move(unknown, np.zeros((self.count, 3)))

    def move_borders(self, disparity: np.ndarray, planes: np.ndarray) -> None:
        """Move the borders once, also by disparity (H, W) [px], NaN where not known, and planes (count, 3)."""
        self._move(disparity, planes)

    def _move(self, disparity, planes):
        config = self.config
        weights = np.array([
            config.compactness, config.colour_weight, config.disparity_weight, config.max_distance, config.border,
        ])  # fmt: skip
        _move_borders(self.labels, self.sums, self.image, disparity, planes, weights)

    @property
    def colours(self) -> np.ndarray:
        """Mean colour of each superpixel, (count, 3)."""
        return self.sums[:, 3:] / self.sums[:, :1]

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (starts, places): places[starts[k]:starts[k + 1]] are the flat indices of superpixel k's pixels."""
        places = np.argsort(self.labels, axis=None, kind='stable')
        return np.concatenate([[0], np.cumsum(self.sums[:, 0])]).astype(np.int64), places

    def borders(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (starts, edges): edges[starts[k]:starts[k + 1]] are superpixel k's (neighbour, row, column), int32.

        One row for each pair of adjacent pixels in two superpixels, at the pixel of superpixel k.
        """
        found = []
        for down, right in ((0, 1), (1, 0)):
            height, width = self.labels.shape
            here, there = self.labels[: height - down, : width - right], self.labels[down:, right:]
            y, x = np.nonzero(here != there)
            mine, other = here[y, x], there[y, x]
            found += [np.stack([mine, other, y, x], axis=1), np.stack([other, mine, y + down, x + right], axis=1)]
        edges = np.concatenate(found).astype(np.int32)
        edges = edges[np.lexsort((edges[:, 1], edges[:, 0]))]
        return np.searchsorted(edges[:, 0], np.arange(self.count + 1)), np.ascontiguousarray(edges[:, 1:])


@numba.njit(cache=True, nogil=True)
def _stays_connected(labels, y, x):
    """Return whether the neighbours of a pixel in its superpixel are one run around it, so that it can leave."""
    height, width = labels.shape
    changes = 0
    before = y > 0 and x > 0 and labels[y - 1, x - 1] == labels[y, x]
    for dy, dx in ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)):
        row, column = y + dy, x + dx
        same = 0 <= row < height and 0 <= column < width and labels[row, column] == labels[y, x]
        changes += same != before
        before = same
    return changes <= 2


@numba.njit(cache=True, nogil=True)
def _move_borders(labels, sums, image, disparity, planes, weights):
    height, width = labels.shape
    compactness, colour_weight, disparity_weight, max_distance, border = weights
    has_disparity = disparity.size > 1
    around = ((-1, 0), (0, 1), (1, 0), (0, -1))
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            at_border = False
            for dy, dx in around:
                if 0 <= y + dy < height and 0 <= x + dx < width and labels[y + dy, x + dx] != label:
                    at_border = True
            if not at_border or sums[label, 0] < _MIN_PIXELS or not _stays_connected(labels, y, x):
                continue
            best, least = label, np.inf
            for k in range(5):
                candidate = label
                if k > 0:
                    row, column = y + around[k - 1][0], x + around[k - 1][1]
                    if not (0 <= row < height and 0 <= column < width) or labels[row, column] == label:
                        continue
                    candidate = labels[row, column]
                of_candidate = sums[candidate]
                size = of_candidate[0]
                cost = compactness * ((x - of_candidate[1] / size) ** 2 + (y - of_candidate[2] / size) ** 2)
                for channel in range(3):
                    cost += colour_weight * (image[y, x, channel] - of_candidate[3 + channel] / size) ** 2
                if has_disparity and not np.isnan(disparity[y, x]):
                    a, b, c = planes[candidate]
                    cost += disparity_weight * min(abs(disparity[y, x] - (a * x + b * y + c)), max_distance)
                for row in range(max(0, y - 1), min(height, y + 2)):
                    for column in range(max(0, x - 1), min(width, x + 2)):
                        cost += border * (labels[row, column] != candidate)
                if cost < least:
                    best, least = candidate, cost
            if best != label:
                labels[y, x] = best
                for changed, sign in ((label, -1), (best, 1)):
                    of_changed = sums[changed]
                    of_changed[0] += sign
                    of_changed[1] += sign * x
                    of_changed[2] += sign * y
                    for channel in range(3):
                        of_changed[3 + channel] += sign * np.float64(image[y, x, channel])
