# SPDX-License-Identifier: Apache-2.0
"""Where training pairs come from: simulated clips with their exact flow, or a store of pseudo-labels."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from training.datasets.clip_store import ClipStore
from training.datasets.training_pair import TrainingPair
from zeroflow_ros.errors import DataError


class PairSource(Protocol):
    """Training pairs by number; reading one twice gives the same one.

    about: what ends up in the provenance of the student: at least `data` and `supervision`.
    """

    about: dict[str, str]

    def __len__(self) -> int:
        """Return the number of pairs."""

    def in_use(self, step: int) -> int:
        """Return how many of them, from the first on, a training step may draw from."""

    def __getitem__(self, index: int) -> TrainingPair:
        """Return a pair; rows of its flows are NaN where the flow is unknown. Raises: DataError."""


@dataclass(frozen=True)
class ClipSource:
    """Pairs of neighbouring sweeps of simulated clips, with exact flow.

    clips: where they lie. num_clips: how many, of seeds first_seed and up. clips_at_first: that the first step may draw
    from; the others are simulated meanwhile.
    """

    clips: ClipStore
    num_clips: int
    first_seed: int = 0
    clips_at_first: int = 48

    @property
    def about(self) -> dict[str, str]:
        """See PairSource."""
        sweeps = self.clips.num_sweeps
        return {
            'data': f'simulation, {self.num_clips} clips of {sweeps} sweeps, seeds from {self.first_seed}',
            'supervision': 'exact flow of the simulation',
        }

    def __len__(self) -> int:
        return self.num_clips * (self.clips.num_sweeps - 1)

    def in_use(self, step: int) -> int:
        """Return the pairs of some clips at first, and of one more every third step."""
        return min(self.num_clips, self.clips_at_first + step // 3) * (self.clips.num_sweeps - 1)

    def __getitem__(self, index: int) -> TrainingPair:
        clip, first = divmod(index, self.clips.num_sweeps - 1)
        return self.clips.pair(self.first_seed + clip, first, first + 1)


@dataclass(frozen=True)
class LabelSource:
    """Pairs of a store of pseudo-labels.

    store: training.labels.label_store.LabelStore. keys: of the pairs.
    """

    store: object
    keys: tuple[str, ...]
    about: dict[str, str]

    def __len__(self) -> int:
        return len(self.keys)

    def in_use(self, step: int) -> int:
        """Return the number of pairs: all are there from the start."""
        return len(self.keys)

    def __getitem__(self, index: int) -> TrainingPair:
        return self.store.training_pair(self.keys[index])


def split_labels(store, held_out: float) -> tuple[LabelSource, LabelSource]:
    """Return the pairs to train on and the others, which are the last ones: neighbours in time are nearly the same.

    held_out: share of the others.
    Raises: DataError when nothing is left to train on.
    """
    keys = sorted(store.keys())
    num_train = len(keys) - math.ceil(held_out * len(keys))
    if not num_train:
        raise DataError(
            f'{store.folder} has {len(keys)} pseudo-labelled pairs and {held_out:.0%} are held out: none is left to '
            'train on. Label some with: python3 -m training.label'
        )
    parts = {'to train on': keys[:num_train], 'held out': keys[num_train:]}
    name = ', '.join(store.about.get('datasets', [Path(store.folder).name]))
    return tuple(
        LabelSource(store, tuple(part), {
            'data': f'{len(part)} pairs {what}, of {len(keys)} of {name}, the first {part[0] if part else None}',
            'supervision': supervision(store),
        })
        for what, part in parts.items()
    )  # fmt: skip


def supervision(store) -> str:
    """Return what students of a store of pseudo-labels learn from, for their provenance."""
    return f'pseudo-labels of the teacher {store.about.get("teacher", "unknown")}, no human labels'
