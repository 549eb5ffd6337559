# SPDX-License-Identifier: Apache-2.0
"""Sources of stereo pairs with scene flow to learn: ground truth of data sets, or stores of a teacher's labels."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np

from training.datasets.stereo_pairs import StereoDatasetPair, StereoPairDataset
from training.labels.stereo_label_store import StereoLabelStore
from training.learning.pair_sources import supervision
from zeroflow_ros.errors import DataError


@dataclass(frozen=True)
class StereoExample:
    """A stereo pair and the scene flow to learn.

    target: (H, W, 4) float32 [px], disparity, disparity in the other frame, flow u, v; NaN where not known.
    """

    pair: StereoDatasetPair
    target: np.ndarray


class StereoSource(Protocol):
    """Examples by number; reading a number twice returns the same.

    about: entries of the student's provenance: `data` and `supervision`.
    """

    about: dict[str, str]

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: int) -> StereoExample:
        """Return an example. Raises: DataError when it cannot be read, or has no scene flow to learn."""


@dataclass(frozen=True)
class DatasetSource:
    """Pairs of a dataset, or of a store of labels, which is one, too. indices: of the pairs."""

    dataset: StereoPairDataset
    indices: range

    @property
    def about(self) -> dict[str, str]:
        """See StereoSource."""
        first = self.dataset.key(self.indices[0]) if len(self.indices) else None
        data = f'{len(self.indices)} stereo pairs of {len(self.dataset)} of {self.dataset.name}, the first {first}'
        is_labelled = isinstance(self.dataset, StereoLabelStore)
        return {'data': data, 'supervision': supervision(self.dataset) if is_labelled else 'ground truth of a data set'}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> StereoExample:
        pair = self.dataset[self.indices[index]]
        if pair.truth is None:
            raise DataError(
                f'{pair.key} of {self.dataset.name} has no ground truth to learn. Label the data set with: '
                'python3 -m training.label --teacher stereo'
            )
        truth = pair.truth
        values = np.concatenate([truth.disparity[..., None], truth.other_disparity[..., None], truth.flow], axis=2)
        return StereoExample(pair, values)


@dataclass(frozen=True)
class JoinedSource:
    """Examples of several sources, one after the other."""

    sources: tuple[DatasetSource, ...]

    @property
    def about(self) -> dict[str, str]:
        """See StereoSource."""
        parts = [source.about for source in self.sources]
        return {name: '; '.join(dict.fromkeys(part[name] for part in parts)) for name in ('data', 'supervision')}

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, index: int) -> StereoExample:
        ends = list(accumulate(map(len, self.sources)))
        number = bisect_right(ends, index)
        return self.sources[number][index - (ends[number - 1] if number else 0)]


class HeldOutPairs:
    """The pairs of a dataset that a training with this share `held_out` never sees: a StereoPairDataset."""

    sensor = 'stereo'

    def __init__(self, dataset: StereoPairDataset, held_out: float):
        self.name = f'{dataset.name}, held out'
        [source] = split_datasets([dataset], held_out)[1].sources
        self._dataset, self._indices = dataset, source.indices

    def __len__(self) -> int:
        return len(self._indices)

    def key(self, index: int) -> str:
        """Return the key of a pair."""
        return self._dataset.key(self._indices[index])

    def __getitem__(self, index: int) -> StereoDatasetPair:
        return self._dataset[self._indices[index]]


def split_datasets(datasets: Sequence[StereoPairDataset], held_out: float) -> tuple[JoinedSource, JoinedSource]:
    """Return the pairs to train on, and those that are held out: the last ones of each dataset, a share `held_out`.

    Raises: DataError when a dataset has no pair to train on.
    """
    first, last = [], []
    for dataset in datasets:
        count = len(dataset) - math.ceil(held_out * len(dataset))
        if not count:
            raise DataError(
                f'{dataset.name} has {len(dataset)} pairs and {held_out:.0%} are held out: none is left to train on.'
            )
        first.append(DatasetSource(dataset, range(count)))
        last.append(DatasetSource(dataset, range(count, len(dataset))))
    return JoinedSource(tuple(first)), JoinedSource(tuple(last))
