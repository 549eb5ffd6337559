# SPDX-License-Identifier: Apache-2.0
"""The order of training samples: which ones a process reads in which step, the same after a restart."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from zeroflow_ros.errors import ConfigError


class ShuffledSamples:
    """Sample (step, i) depends only on the seed, step and i, so a resumed training sees the same samples.

    config: with seed, batch and accumulate. source: with a length; each pass over it has an order of its own.
    """

    def __init__(self, config, source):
        self.config, self.source = config, source

    def batches(self, start: int, *, rank: int = 0, world: int = 1) -> Iterator[list[tuple[int, int]]]:
        """Yield the sample numbers of one process endlessly: config.accumulate batches per step, starting at `start`.

        Raises: ConfigError when the processes cannot share a batch evenly.
        """
        accumulate, batch = self.config.accumulate, self.config.batch
        if batch % (world * accumulate):
            raise ConfigError(
                f'A batch of {batch} does not divide among {world} processes x accumulate {accumulate}; set batch to a '
                f'multiple of {world * accumulate}.'
            )
        return self._batches(start, rank, batch // (world * accumulate))

    def _batches(self, step: int, rank: int, size: int) -> Iterator[list[tuple[int, int]]]:
        while True:
            for part in range(rank * self.config.accumulate, (rank + 1) * self.config.accumulate):
                yield [(step, i) for i in range(part * size, (part + 1) * size)]
            step += 1

    def draw(self, number: tuple[int, int]) -> tuple[int, np.random.Generator]:
        """Return the index of a sample's source, and its random generator."""
        step, i = number
        epoch, place = divmod(step * self.config.batch + i, len(self.source))
        return int(self._order(epoch)[place]), np.random.default_rng((self.config.seed, *number))

    @lru_cache(maxsize=2)  # noqa: B019 - lives as long as the training
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.config.seed, epoch, 2)).permutation(len(self.source))
