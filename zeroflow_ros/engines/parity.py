# SPDX-License-Identifier: Apache-2.0
"""Compare two engines: test clouds, and the largest flow difference in metres."""

from collections.abc import Iterator

import numpy as np

from zeroflow_ros.lidar.pillars import PillarGrid

SIZES = ((0, 0), (0, 333), (1, 1), (333, 0), (333, 334), (90_000, 90_000))


def parity_clouds(grid: PillarGrid) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (name, source, target), clouds (N, 3) float32 [m]: random ones, and points on cell borders.

    The largest pair exists because some scatter kernels were wrong only above 20,000 points.
    """
    rng = np.random.default_rng(0)
    reach = np.array([grid.half_extent, grid.half_extent, grid.z_max]) * 1.05  # some fall outside
    for num_source, num_target in SIZES:
        pair = [(rng.uniform(-1, 1, (n, 3)) * reach).astype(np.float32) for n in (num_source, num_target)]
        yield f'random {num_source} + {num_target}', *pair
    lines = (np.arange(grid.cells + 1) - grid.cells / 2) * grid.cell
    border = np.stack([lines, rng.permutation(lines), np.zeros_like(lines)], axis=1).astype(np.float32)
    yield 'cell borders', border, border[::-1].copy()


def largest_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest difference of two flows (N, 3) [m]; infinite when they are NaN at different points."""
    if not np.array_equal(np.isnan(first), np.isnan(second)):
        return float('inf')
    return float(np.nanmax(np.abs(first - second), initial=0.0)) if len(first) else 0.0
