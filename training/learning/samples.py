# SPDX-License-Identifier: Apache-2.0
"""Training samples: augmented crops of sweep pairs or longer windows, with the flow of the first and last sweep."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from training.datasets.training_pair import TrainingPair
from training.learning.batch import Sample, any_component_above
from training.learning.disturbances import Disturbances
from training.learning.pair_sources import PairSource
from training.learning.strategies import build_strategy
from training.learning.train_config import TrainConfig, TrainPhase
from training.teachers.dynamic_labels import STATIC
from zeroflow_ros.errors import ConfigError, DataError
from zeroflow_ros.lidar.pillars import PillarGrid

_FEWEST_POINTS, _TRIES = 50, 50
_CROPS_OF_A_PAIR = 2  # reading a pair costs more than cropping it


class PairSamples:
    """Sample (step, i) depends only on the seed, step and i, so a resumed training sees the same samples."""

    def __init__(self, config: TrainConfig, source: PairSource, grid: PillarGrid):
        self.config = config
        self.source = source
        self.grid = grid
        self.strategy = build_strategy(config)
        self._cache: dict[int, TrainingPair] = {}

    def batches(self, start: int, *, rank: int = 0, world: int = 1) -> Iterator[list[tuple[int, int]]]:
        """Yield the sample numbers of one process endlessly: config.accumulate batches per step, starting at `start`.

        Raises: ConfigError when the processes cannot share a batch evenly.
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
        """Return one sample; crops with too few points or without known flow are drawn again.

        Raises: DataError when no crop is usable, for example in clips without a street.
        """
        rng = np.random.default_rng((self.config.seed, *number))
        for attempt in range(_TRIES):
            sample = self._make_sample(*number, attempt, rng)
            if min(map(len, sample.clouds)) >= _FEWEST_POINTS and any(map(len, sample.rows)):
                return sample
        raise DataError(
            f'{_TRIES} crops of {self.source.about["data"]} had fewer than {_FEWEST_POINTS} points, or no known flow.'
        )

    def _make_sample(self, step: int, i: int, attempt: int, rng: np.random.Generator) -> Sample:
        config = self.config
        phase = config.phase(step)
        grid = phase.grid(self.grid)
        is_crop = grid.cells < self.grid.cells
        pair = self._pair(step, i // _CROPS_OF_A_PAIR if is_crop else i, attempt)
        clouds, flows = pair.clouds, (pair.flow0, pair.flow1)
        dynamic = None if pair.dynamic0 is None else (pair.dynamic0, pair.dynamic1)
        if config.disturbances != Disturbances():
            clouds, kept = config.disturbances(clouds, rng)
            still = np.zeros((1, 3), np.float32)  # a stray return has no row (-1): its flow is 0
            flows = _select_rows([np.concatenate([flow, still]) for flow in flows], _ends(kept))
            dynamic = dynamic and _select_rows([np.append(labels, STATIC) for labels in dynamic], _ends(kept))
        if is_crop and len(clouds[0]):
            moves = (
                any_component_above(flows[0], config.mover_speed * pair.dt) if dynamic is None else dynamic[0] > STATIC
            )
            clouds, flows, kept = crop(clouds, flows, grid, phase, moves, rng)
            dynamic = dynamic and _select_rows(dynamic, _ends(kept))
        clouds, flows, kept = config.augmentation(clouds, flows, rng)
        dynamic = dynamic and _select_rows(dynamic, _ends(kept))
        inside = [grid.assign(points) >= 0 for points in clouds]
        clouds, flows = _select_rows(clouds, inside), _select_rows(flows, _ends(inside))
        rows = tuple(
            self.strategy.loss_rows(points, flow, pair.dt, rng)
            for points, flow in zip(_ends(clouds), flows, strict=True)
        )
        dynamic = dynamic and _select_rows(_select_rows(dynamic, _ends(inside)), rows)
        used = len(clouds)
        if used > 2 and rng.random() < config.short_history:
            used = int(rng.integers(2, used))
        return Sample(clouds, rows, _select_rows(flows, rows), pair.dt, dynamic, used)

    @lru_cache(maxsize=1)  # noqa: B019 - lives as long as the training
    def _pair(self, step: int, number: int, attempt: int) -> TrainingPair:
        """Return the pair number `number` of a step: every pair once per pass over the source, in random order."""
        in_use, total = self.source.in_use(step), len(self.source)
        if in_use < total or attempt:
            rng = np.random.default_rng((self.config.seed, step, number, attempt, 1))
            return self._read(int(rng.integers(in_use)))
        epoch, place = divmod(self._pairs_before(step) + number, total)
        return self._read(int(self._epoch_order(epoch)[place]))

    def _read(self, index: int) -> TrainingPair:
        """Return a pair of the source, from the cache if present; the cache drops the oldest entry first."""
        if index in self._cache:
            return self._cache[index]
        pair = self.strategy.prepare(self.source[index])
        if len(self._cache) >= self.config.cached_pairs > 0:
            del self._cache[next(iter(self._cache))]
        if self.config.cached_pairs:
            self._cache[index] = pair
        return pair

    @lru_cache(maxsize=1)  # noqa: B019
    def _epoch_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.config.seed, epoch, 2)).permutation(len(self.source))

    def _pairs_before(self, step: int) -> int:
        """Return the number of pairs drawn before this step."""
        pairs = 0
        for phase in self.config.phases[:2]:
            steps = min(step, phase.steps)
            pairs += steps * self._pairs_per_step(phase)
            step -= steps
        return pairs + step * self._pairs_per_step(self.config.full)

    def _pairs_per_step(self, phase: TrainPhase) -> int:
        return -(-phase.batch // _CROPS_OF_A_PAIR) if phase.cells < self.grid.cells else phase.batch


def crop(clouds, flows, grid: PillarGrid, phase: TrainPhase, moves: np.ndarray, rng: np.random.Generator):
    """Return all clouds, and the flows of the first and the last, cropped around a point, and the rows that are kept.

    The point becomes the origin in x and y. The crop is 1.5 times the grid's extent, so that a rotated crop still
    fills the corners.
    moves: (N,) bool, which points of the first cloud move.
    """
    moving = np.flatnonzero(moves)
    any_row = int(rng.integers(len(clouds[0])))
    centre_row = rng.choice(moving) if len(moving) and rng.random() < phase.near_mover else any_row
    centre = np.append(clouds[0][centre_row, :2] + rng.uniform(-0.4, 0.4, 2) * grid.half_extent, 0).astype(np.float32)
    cropped_clouds, cropped_flows, rows = [], [], []
    for number, points in enumerate(clouds):
        reach = np.float32(1.5 * grid.half_extent)
        near = (np.abs(points[:, 0] - centre[0]) < reach) & (np.abs(points[:, 1] - centre[1]) < reach)
        near = np.flatnonzero(near & (points[:, 2] >= phase.min_height))
        cropped_clouds.append(np.take(points, near, axis=0) - centre)
        if number in (0, len(clouds) - 1):
            cropped_flows.append(np.take(flows[0 if number == 0 else -1], near, axis=0))
        rows.append(near)
    return cropped_clouds, cropped_flows, rows


def _ends(per_cloud):
    """Return the entries of the first and the last cloud."""
    return per_cloud[0], per_cloud[-1]


def _select_rows(arrays, rows) -> tuple[np.ndarray, ...]:
    """Return the selected rows (indices or masks) of the arrays."""
    return tuple(np.ascontiguousarray(array[chosen]) for array, chosen in zip(arrays, rows, strict=True))
