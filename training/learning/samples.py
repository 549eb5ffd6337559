# SPDX-License-Identifier: Apache-2.0
"""Training samples: augmented crops of sweep pairs with the flow of both clouds."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from training.datasets.training_pair import TrainingPair
from training.learning.batch import Sample, faster
from training.learning.pair_sources import PairSource
from training.learning.strategies import build_strategy
from training.learning.train_config import Phase, TrainConfig
from training.teachers.dynamic_labels import STATIC
from zeroflow_ros.errors import ConfigError, DataError
from zeroflow_ros.lidar.pillars import PillarGrid

_FEWEST_POINTS, _TRIES = 50, 50
_CROPS_OF_A_PAIR = 2  # reading a pair costs more than cropping it


class PairSamples:
    """Sample (step, i) is a function of the seed, the step and i alone, so a resumed training sees the same ones."""

    def __init__(self, config: TrainConfig, source: PairSource, grid: PillarGrid):
        self.config = config
        self.source = source
        self.grid = grid
        self.strategy = build_strategy(config)
        self._cache: dict[int, TrainingPair] = {}

    def batches(self, start: int, *, rank: int = 0, world: int = 1) -> Iterator[list[tuple[int, int]]]:
        """Yield the sample numbers of one process: config.accumulate parts of each step from `start` on, endlessly.

        Raises: ConfigError when a batch cannot be shared out evenly.
        """
        num_parts = world * self.config.accumulate
        for phase in self.config.phases:
            if phase.steps and phase.batch % num_parts:
                raise ConfigError(
                    f'A batch of {phase.batch} does not divide among {world} processes x accumulate '
                    f'{self.config.accumulate}; set batch to a multiple of {num_parts}.'
                )
        return self._batches(start, rank, num_parts)

    def _batches(self, step: int, rank: int, num_parts: int) -> Iterator[list[tuple[int, int]]]:
        while True:
            size = self.config.phase(step).batch // num_parts
            for part in range(rank * self.config.accumulate, (rank + 1) * self.config.accumulate):
                yield [(step, i) for i in range(part * size, (part + 1) * size)]
            step += 1

    def __getitem__(self, number: tuple[int, int]) -> Sample:
        """Return one sample; a crop with hardly a point in it, or without a known flow, is drawn again.

        Raises: DataError when there is none to be had, as in clips without a street.
        """
        rng = np.random.default_rng((self.config.seed, *number))
        for attempt in range(_TRIES):
            sample = self._draw(*number, attempt, rng)
            if min(map(len, sample.clouds)) >= _FEWEST_POINTS and any(map(len, sample.rows)):
                return sample
        raise DataError(
            f'{_TRIES} crops of {self.source.about["data"]} had fewer than {_FEWEST_POINTS} points, or no known flow.'
        )

    def _draw(self, step: int, i: int, attempt: int, rng: np.random.Generator) -> Sample:
        config = self.config
        phase = config.phase(step)
        grid = phase.grid(self.grid)
        is_crop = grid.cells < self.grid.cells
        pair = self._pair(step, i // _CROPS_OF_A_PAIR if is_crop else i, attempt)
        clouds, flows = (pair.points0, pair.points1), (pair.flow0, pair.flow1)
        dynamic = None if pair.dynamic0 is None else (pair.dynamic0, pair.dynamic1)
        if is_crop and len(pair.points0):
            moves = faster(pair.flow0, config.mover_speed * pair.dt) if dynamic is None else dynamic[0] > STATIC
            clouds, flows, kept = crop(clouds, flows, grid, phase, moves, rng)
            dynamic = dynamic and _taken(dynamic, kept)
        clouds, flows, kept = config.augmentation(clouds, flows, rng)
        dynamic = dynamic and _taken(dynamic, kept)
        inside = [grid.assign(points) >= 0 for points in clouds]
        clouds, flows = _taken(clouds, inside), _taken(flows, inside)
        rows = tuple(self.strategy.scored(flow, pair.dt, rng) for flow in flows)
        dynamic = dynamic and _taken(_taken(dynamic, inside), rows)
        return Sample(clouds, rows, _taken(flows, rows), pair.dt, dynamic)

    @lru_cache(maxsize=1)  # noqa: B019 - lives as long as the training
    def _pair(self, step: int, number: int, attempt: int) -> TrainingPair:
        """Return the pair of some samples of a step: each pair once in a pass over the source, in random order."""
        in_use, total = self.source.in_use(step), len(self.source)
        if in_use < total or attempt:
            rng = np.random.default_rng((self.config.seed, step, number, attempt, 1))
            return self._read(int(rng.integers(in_use)))
        epoch, place = divmod(self._pairs_before(step) + number, total)
        return self._read(int(self._order(epoch)[place]))

    def _read(self, index: int) -> TrainingPair:
        """Return a pair of the source, from memory if it is there; what came first goes first."""
        if index in self._cache:
            return self._cache[index]
        pair = self.strategy.prepare(self.source[index])
        if len(self._cache) >= self.config.cached_pairs > 0:
            del self._cache[next(iter(self._cache))]
        if self.config.cached_pairs:
            self._cache[index] = pair
        return pair

    @lru_cache(maxsize=1)  # noqa: B019
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.config.seed, epoch, 2)).permutation(len(self.source))

    def _pairs_before(self, step: int) -> int:
        """Return how many pairs the steps before this one draw."""
        pairs = 0
        for phase in self.config.phases[:2]:
            steps = min(step, phase.steps)
            pairs += steps * self._pairs_of_a_step(phase)
            step -= steps
        return pairs + step * self._pairs_of_a_step(self.config.full)

    def _pairs_of_a_step(self, phase: Phase) -> int:
        return -(-phase.batch // _CROPS_OF_A_PAIR) if phase.cells < self.grid.cells else phase.batch


def crop(clouds, flows, grid: PillarGrid, phase: Phase, moves: np.ndarray, rng: np.random.Generator):
    """Return the parts of both clouds and flows around a point that becomes the origin (its height stays).

    And the rows of each that they are.
    Kept are 1.5 times the grid's extent, so that the corners are filled after a turn.
    moves: (N,) bool, which points of the first cloud move.
    """
    moving = np.flatnonzero(moves)
    any_row = int(rng.integers(len(clouds[0])))
    centre_row = rng.choice(moving) if len(moving) and rng.random() < phase.near_mover else any_row
    centre = np.append(clouds[0][centre_row, :2] + rng.uniform(-0.4, 0.4, 2) * grid.half_extent, 0).astype(np.float32)
    cropped_clouds, cropped_flows, rows = [], [], []
    for points, flow in zip(clouds, flows, strict=True):
        reach = np.float32(1.5 * grid.half_extent)
        near = (np.abs(points[:, 0] - centre[0]) < reach) & (np.abs(points[:, 1] - centre[1]) < reach)
        near = np.flatnonzero(near & (points[:, 2] >= phase.min_height))
        cropped_clouds.append(np.take(points, near, axis=0) - centre)
        cropped_flows.append(np.take(flow, near, axis=0))
        rows.append(near)
    return cropped_clouds, cropped_flows, rows


def _taken(arrays, rows) -> tuple[np.ndarray, np.ndarray]:
    """Return the chosen rows, or a mask of them, of both clouds' arrays."""
    return tuple(np.ascontiguousarray(array[chosen]) for array, chosen in zip(arrays, rows, strict=True))
