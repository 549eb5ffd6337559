# SPDX-License-Identifier: Apache-2.0
"""Training samples: augmented crops of sweep pairs with the flow of both clouds."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from training.clip_store import ClipStore, TrainingPair
from training.schedule import Phase, TrainConfig
from zeroflow_ros.errors import DataError
from zeroflow_ros.pillars import PillarGrid

_MOVES = 0.03  # m over the pair: fast enough to centre a crop on
_FEWEST_POINTS, _TRIES = 50, 50


@dataclass(frozen=True)
class Sample:
    """Two clouds of a crop in one frame, and what the loss needs of them.

    clouds: two (N, 3) float32 [m], all inside the phase's grid. rows: two (K,) row numbers of the points to score.
    flows: two (K, 3) float32 [m], theirs, to the time of the other cloud. dt: seconds.
    """

    clouds: tuple[np.ndarray, np.ndarray]
    rows: tuple[np.ndarray, np.ndarray]
    flows: tuple[np.ndarray, np.ndarray]
    dt: float


class PairSamples:
    """Sample (step, i) is a function of the seed, the step and i alone, so a resumed training sees the same ones."""

    def __init__(self, config: TrainConfig, clips: ClipStore, grid: PillarGrid):
        self.config = config
        self.clips = clips
        self.grid = grid

    def batches(self, start: int) -> list[list[tuple[int, int]]]:
        """Return the sample numbers of each step from `start` on."""
        steps = range(start, self.config.steps)
        return [[(step, i) for i in range(self.config.phase(step).batch)] for step in steps]

    def __getitem__(self, number: tuple[int, int]) -> Sample:
        """Return one sample; a crop with hardly a point in it is drawn again.

        Raises: DataError when there is none to be had, as in clips without a street.
        """
        rng = np.random.default_rng((self.config.seed, *number))
        for attempt in range(_TRIES):
            sample = self._draw(number[0], (*number, attempt), rng)
            if min(map(len, sample.clouds)) >= _FEWEST_POINTS:
                return sample
        raise DataError(f'{_TRIES} crops of {self.clips.folder} had fewer than {_FEWEST_POINTS} points.')

    def _draw(self, step: int, number: tuple[int, int, int], rng: np.random.Generator) -> Sample:
        config = self.config
        phase = config.phase(step)
        grid = phase.grid(self.grid)
        pair = self._pair(step, number[1] // 2 + config.num_clips * number[2])
        clouds, flows = (pair.points0, pair.points1), (pair.flow0, pair.flow1)
        if grid.cells < self.grid.cells:
            clouds, flows = crop(clouds, flows, grid, phase, rng)
        clouds, flows = config.augmentation(clouds, flows, rng)
        inside = [grid.assign(points) >= 0 for points in clouds]
        clouds = tuple(np.ascontiguousarray(points[keep]) for points, keep in zip(clouds, inside, strict=True))
        flows = [flow[keep] for flow, keep in zip(flows, inside, strict=True)]
        rows = tuple(self._scored(flow, rng) for flow in flows)
        flows = tuple(np.ascontiguousarray(flow[chosen]) for flow, chosen in zip(flows, rows, strict=True))
        return Sample(clouds, rows, flows, pair.dt)

    @lru_cache(maxsize=1)  # noqa: B019 - lives as long as the training
    def _pair(self, step: int, number: int) -> TrainingPair:
        """Return a pair of sweeps; two samples in a row share one, because reading it costs more than using it."""
        rng = np.random.default_rng((self.config.seed, step, number, 1))
        first = int(rng.integers(self.config.num_sweeps - 1))
        seed = self.config.first_seed + int(rng.integers(self.config.clips_in_use(step)))
        return self.clips.pair(seed, first, first + 1)

    def _scored(self, flow: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return row numbers: at most scored_points that move and as many that do not, drawn at random."""
        moves = faster(flow, 0.0)
        groups = (np.flatnonzero(moves), np.flatnonzero(~moves))
        return np.sort(np.concatenate([rng.permutation(group)[: self.config.scored_points] for group in groups]))


def crop(clouds, flows, grid: PillarGrid, phase: Phase, rng: np.random.Generator):
    """Return the parts of both clouds and flows around a point that becomes the origin (its height stays).

    Kept are 1.5 times the grid's extent, so that the corners are filled after a turn.
    """
    moving = np.flatnonzero(faster(flows[0], _MOVES))
    any_row = int(rng.integers(len(clouds[0])))
    centre_row = rng.choice(moving) if len(moving) and rng.random() < phase.near_mover else any_row
    centre = np.append(clouds[0][centre_row, :2] + rng.uniform(-0.4, 0.4, 2) * grid.half_extent, 0).astype(np.float32)
    cropped_clouds, cropped_flows = [], []
    for points, flow in zip(clouds, flows, strict=True):
        reach = np.float32(1.5 * grid.half_extent)
        near = (np.abs(points[:, 0] - centre[0]) < reach) & (np.abs(points[:, 1] - centre[1]) < reach)
        near = np.flatnonzero(near & (points[:, 2] >= phase.min_height))
        cropped_clouds.append(np.take(points, near, axis=0) - centre)
        cropped_flows.append(np.take(flow, near, axis=0))
    return cropped_clouds, cropped_flows


def faster(flow: np.ndarray, limit: float) -> np.ndarray:
    """Return which of flow (N, 3) [m] has a component beyond the limit; by columns: ten times faster than by rows."""
    x, y, z = np.abs(flow).T
    return (x > limit) | (y > limit) | (z > limit)
