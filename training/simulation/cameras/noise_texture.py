# SPDX-License-Identifier: Apache-2.0
"""Repeatable noise over a plane, filtered by the size of what a pixel sees, and lattices of lines and cells."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from zeroflow_ros.camera.opencv import load_opencv

_SIZE = 512  # texels along one side of the finest level
_LEVELS = 10
_ROW = 4096  # samples per row of a look-up; cv2.remap takes at most 32767


@dataclass(frozen=True)
class NoiseTexture:
    """A square tile of random values that repeats without seams, with all its halved sizes (a mipmap).

    atlas: (H, W, 3) float32, all levels side by side, each with a border of one texel; every channel has mean 0 and,
    at the finest level, standard deviation 1. Channel 0 is smooth with detail at all scales (amplitude 1/f), channel 1
    is grainy, channel 2 is blotchy.
    left: (levels,) column of each level in the atlas.
    """

    atlas: np.ndarray
    left: np.ndarray

    def sample(self, u: np.ndarray, v: np.ndarray, footprint: np.ndarray, period: float) -> np.ndarray:
        """Return the values at (u, v) [m], (N, 3) float32, averaged over a square of side `footprint` (N,) [m].

        period: side of the tile [m].
        """
        if not len(u):  # OpenCV refuses to look up nothing
            return np.zeros((0, 3), np.float32)
        level = np.clip(np.log2(np.maximum(footprint, 1e-6) * np.float32(_SIZE / period)), 0, _LEVELS - 1.001)
        finer = level.astype(np.int32)
        u, v = u / np.float32(period), v / np.float32(period)
        u, v = u - np.floor(u), v - np.floor(v)
        weight = (level - finer)[:, None].astype(np.float32)
        return self._level(u, v, finer) * (1 - weight) + self._level(u, v, finer + 1) * weight

    def _level(self, u, v, level) -> np.ndarray:
        cv2 = load_opencv()
        side = (_SIZE >> level).astype(np.float32)
        x, y = u * side + np.float32(0.5) + self.left[level], v * side + np.float32(0.5)
        num = len(x)
        rows = -(-num // _ROW)
        maps = np.zeros((2, rows * _ROW), np.float32)
        maps[0, :num], maps[1, :num] = x, y
        maps = maps.reshape(2, rows, _ROW)
        return cv2.remap(self.atlas, maps[0], maps[1], cv2.INTER_LINEAR).reshape(-1, 3)[:num]


@cache
def noise_texture() -> NoiseTexture:
    """Return the tile that all surfaces share; it is the same in every process.

    Raises: ConfigError without OpenCV.
    """
    load_opencv()  # the look-up needs it: fail before any work
    rng = np.random.default_rng(20)
    frequency = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(_SIZE, 1 / _SIZE)]))
    frequency[0, 0] = np.inf
    tile = np.empty((_SIZE, _SIZE, 3), np.float32)
    for channel, exponent in enumerate((1.0, 0.4, 1.7)):
        spectrum = np.fft.fft2(rng.standard_normal((_SIZE, _SIZE))) / frequency**exponent
        values = np.fft.ifft2(spectrum).real
        tile[..., channel] = values / values.std()
    levels = [tile]
    while len(levels) < _LEVELS:
        last = levels[-1]
        levels.append((last[::2, ::2] + last[1::2, ::2] + last[::2, 1::2] + last[1::2, 1::2]) / 4)
    padded = [np.pad(level, ((1, 1), (1, 1), (0, 0)), mode='wrap') for level in levels]
    left = np.append(0, np.cumsum([level.shape[1] for level in padded]))
    atlas = np.zeros((_SIZE + 2, left[-1], 3), np.float32)
    for start, level in zip(left, padded, strict=False):
        atlas[: level.shape[0], start : start + level.shape[1]] = level
    return NoiseTexture(atlas, left[:-1].astype(np.float32))


def hash_cells(*indices: np.ndarray) -> np.ndarray:
    """Return one value in [0, 1) per row of integer cell indices (N,) each; equal indices give equal values."""
    mixed = np.uint32(0x9E3779B9)
    for index, factor in zip(indices, (374761393, 668265263, 2246822519), strict=False):
        mixed = mixed + np.asarray(index).astype(np.int64).astype(np.uint32) * np.uint32(factor)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(2246822519)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(3266489917)
    return ((mixed ^ (mixed >> np.uint32(16))) >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)


def inside(distance: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Return the share of a pixel that is inside an edge, for signed distances [m] (positive: inside), in [0, 1]."""
    return np.clip(distance / footprint + np.float32(0.5), 0, 1)


def lines(x: np.ndarray, spacing: float, width: float, footprint: np.ndarray) -> np.ndarray:
    """Return the share of a pixel covered by lines of `width` [m] at multiples of `spacing` [m], in [0, 1]."""
    offset = np.mod(x, np.float32(spacing))
    distance = np.minimum(offset, np.float32(spacing) - offset)
    half = np.float32(width / 2)
    covered = np.minimum(distance + footprint / 2, half) - np.maximum(distance - footprint / 2, -half)
    sharp = np.maximum(covered, 0) / footprint
    # Lines closer than two pixels melt into their mean.
    blend = np.clip(2 * footprint / np.float32(spacing) - np.float32(0.5), 0, 1)
    return sharp * (1 - blend) + np.float32(width / spacing) * blend
