# SPDX-License-Identifier: Apache-2.0
"""Compare two engines: test clouds, and the largest flow difference in metres."""

from collections.abc import Iterator

import numpy as np

from zeroflow_ros.engines.engine import IDENTITY, Engine
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.lidar.pillars import PillarGrid

SIZES = ((0, 0), (0, 333), (1, 1), (333, 0), (333, 334), (90_000, 90_000))


def parity_clouds(grid: PillarGrid, num_sweeps: int = 2) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield (name, clouds), (N, 3) float32 [m] each: random ones, points on cell borders, and LiDAR-like ones.

    Two clouds, and with a larger num_sweeps also that many. The largest pair exists because some scatter kernels were
    wrong only above 20,000 points, the LiDAR-like one because a random cloud has at most some 5 points in a pillar.
    """
    rng = np.random.default_rng(0)
    reach = np.array([grid.half_extent, grid.half_extent, grid.z_max]) * 1.05  # some fall outside
    pairs = []
    for sizes in SIZES:
        pair = [(rng.uniform(-1, 1, (n, 3)) * reach).astype(np.float32) for n in sizes]
        pairs.append((f'random {sizes[0]} + {sizes[1]}', pair))
    lines = (np.arange(grid.cells + 1) - grid.cells / 2) * grid.cell
    border = np.stack([lines, rng.permutation(lines), np.zeros_like(lines)], axis=1).astype(np.float32)
    pairs.append(('cell borders', [border, border[::-1].copy()]))
    pairs.append(('LiDAR-like', [lidar_like_cloud(grid, rng) for _ in range(2)]))
    for name, pair in pairs:
        yield name, pair
        if num_sweeps > 2:
            yield (
                f'{name}, {num_sweeps} sweeps',
                [*pair, *(pair[k % 2] + np.float32(0.1 * k) for k in range(2, num_sweeps))],
            )


def lidar_like_cloud(grid: PillarGrid, rng: np.random.Generator, num_points: int = 20_000) -> np.ndarray:
    """Return a cloud that is dense near the vehicle, with 500 points in one pillar far away, (N + 500, 3) float32 [m].

    The order is random, as the order in which a GPU adds the points of a pillar is.
    """
    angle, radius = rng.uniform(-np.pi, np.pi, num_points), grid.half_extent * rng.beta(1, 3, num_points) + 1
    height = np.clip(rng.normal(grid.z_min + 1, 0.5, num_points), grid.z_min, None)
    around = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)
    far = grid.centres[int(0.1 * grid.cells) * (grid.cells + 1)]  # row and column at a tenth of the grid
    thickness = 0.49 * np.array([grid.cell, grid.cell, grid.z_max - grid.z_min])
    post = far + rng.uniform(-1, 1, (500, 3)) * thickness
    return rng.permutation(np.concatenate([around, post])).astype(np.float32)


def flow_of_clouds(engine: Engine, clouds: list[np.ndarray]) -> np.ndarray:
    """Return the flow (N, 3) [m] of the first cloud towards the second; the others lie beyond, all in one frame."""
    source, target, *older = clouds
    return engine.infer(source, target, Stopwatch(), older=[(points, IDENTITY) for points in older])


def largest_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest difference of two flows (N, 3) [m]; infinite when they are NaN at different points."""
    if not np.array_equal(np.isnan(first), np.isnan(second)):
        return float('inf')
    return float(np.nanmax(np.abs(first - second), initial=0.0)) if len(first) else 0.0
