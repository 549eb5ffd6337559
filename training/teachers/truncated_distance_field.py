# SPDX-License-Identifier: Apache-2.0
"""Truncated distance field: the mean distance of points to a cloud under hundreds of translations at once."""

import numpy as np


class TruncatedDistanceField:
    """Truncated distance [m] from any place to the nearest of some points, by lookup in voxels.

    points: (N, 3) [m]. margin: horizontal space around them [m]. cut: largest distance [m]. cell: edge of a voxel [m].
    """

    def __init__(self, points: np.ndarray, margin: float, cut: float, cell: float = 0.2):
        around = np.array([margin, margin, cut + cell])
        self.cell, self.low = cell, points.min(0) - around
        self.shape = np.ceil((points.max(0) + around - self.low) / cell).astype(int) + 1
        x, y, z = ((points - self.low) / cell).astype(int).T
        occupied = np.unique((x * self.shape[1] + y) * self.shape[2] + z)
        self.distance = np.full(self.shape.prod(), cut, np.float32)
        reach = int(cut / cell)
        line = np.arange(-reach, reach + 1)
        offsets = np.stack(np.meshgrid(line, line, line, indexing='ij'), axis=-1).reshape(-1, 3)
        far = np.linalg.norm(offsets, axis=1) * cell
        for k in np.argsort(-far):  # near ones last, so that they overwrite; ten times as fast as scipy
            if far[k] < cut:
                around = occupied + (offsets[k, 0] * self.shape[1] + offsets[k, 1]) * self.shape[2] + offsets[k, 2]
                self.distance[around] = far[k]

    def mean_distance(self, points: np.ndarray, translations: np.ndarray) -> np.ndarray:
        """Return the mean distance (M,) [m] of points (K, 3) under each of the planar translations (M, 2)."""
        x, y = (
            np.clip(((points[:, axis] + translations[:, axis, None] - self.low[axis]) / self.cell).astype(np.int32), 0,
                    self.shape[axis] - 1) for axis in (0, 1)
        )  # fmt: skip
        z = np.clip(((points[:, 2] - self.low[2]) / self.cell).astype(np.int32), 0, self.shape[2] - 1)
        return self.distance[(x * self.shape[1] + y) * self.shape[2] + z].mean(1)


def disc(radius: float, step: float) -> np.ndarray:
    """Return the points (M, 2) [m] of a grid with spacing `step` [m] within a radius [m]."""
    line = np.arange(-round(radius / step), round(radius / step) + 1) * step
    x, y = np.meshgrid(line, line, indexing='ij')
    return np.stack([x, y], axis=-1)[x**2 + y**2 <= radius**2 + 1e-9]
