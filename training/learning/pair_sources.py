# SPDX-License-Identifier: Apache-2.0
"""Sources of training pairs: simulated clips with ground-truth flow, or a store of pseudo-labels."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from training.datasets.clip_store import ClipStore
from training.datasets.training_pair import TrainingPair
from training.labels.label_windows import LabelChain
from training.learning.strategies import sweeps_per_sample
from training.learning.train_config import TrainConfig
from zeroflow_ros.errors import ConfigError, DataError


class PairSource(Protocol):
    """Training pairs by index; reading an index twice returns the same pair.

    about: entries of the student's provenance: at least `data` and `supervision`.
    """

    about: dict[str, str]

    def __len__(self) -> int:
        """Return the number of pairs."""

    def in_use(self, step: int) -> int:
        """Return how many pairs, counted from the first, a training step may sample from."""

    def __getitem__(self, index: int) -> TrainingPair:
        """Return a pair; its flow is NaN where unknown. Raises: DataError when it cannot be read."""


@dataclass(frozen=True)
class ClipSource:
    """Windows of consecutive sweeps of simulated clips, with ground-truth flow.

    clips: the store. num_clips: number of clips, with seeds from first_seed. clips_at_first: number of clips that the
    first step may sample from; the others are simulated during training. window: sweeps of a sample, as many as the
    student takes. alongside_every: N: every N-th clip has a large vehicle beside the ego vehicle; 0: none.
    """

    clips: ClipStore
    num_clips: int
    first_seed: int = 0
    clips_at_first: int = 48
    window: int = 2
    alongside_every: int = 0

    def __post_init__(self):
        if self.clips.num_sweeps < self.window:
            raise ConfigError(
                f'The student takes {self.window} sweeps and the clips have {self.clips.num_sweeps}; set num_sweeps to '
                f'{self.window} or more.'
            )

    @property
    def _windows(self) -> int:
        """Windows of a clip."""
        return self.clips.num_sweeps - self.window + 1

    @property
    def about(self) -> dict[str, str]:
        """See PairSource."""
        sweeps = self.clips.num_sweeps
        alongside = f', every {self.alongside_every}th with a large vehicle alongside' if self.alongside_every else ''
        return {
            'data': f'simulation, {self.num_clips} clips of {sweeps} sweeps, seeds from {self.first_seed}{alongside}',
            'supervision': 'exact flow of the simulation',
        }

    def __len__(self) -> int:
        return self.num_clips * self._windows

    def in_use(self, step: int) -> int:
        """Return the number of windows in clips_at_first clips, plus one more clip every third step."""
        return min(self.num_clips, self.clips_at_first + step // 3) * self._windows

    def __getitem__(self, index: int) -> TrainingPair:
        clip, first = divmod(index, self._windows)
        alongside = bool(self.alongside_every) and clip % self.alongside_every == 0
        clips = dataclasses.replace(self.clips, alongside=alongside)
        return clips.window(self.first_seed + clip, first, self.window)


def clip_source(folder: Path, config: TrainConfig) -> ClipSource:
    """Return the clips of a training, kept in a folder, in windows of as many sweeps as its student takes."""
    return ClipSource(
        ClipStore(folder, config.num_sweeps), config.num_clips, config.first_seed,
        window=sweeps_per_sample(config), alongside_every=config.alongside_every,
    )  # fmt: skip


@dataclass(frozen=True)
class LabelSource:
    """Pairs of a store of pseudo-labels, or windows that end with a labelled pair.

    store: training.labels.label_store.LabelStore. keys: keys of the pairs to use. window: most sweeps of a sample.
    chain: of these keys; None: pairs only.
    """

    store: object
    keys: tuple[str, ...]
    about: dict[str, str]
    window: int = 2
    chain: LabelChain | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def in_use(self, step: int) -> int:
        """Return the number of pairs: all are available from the first step."""
        return len(self.keys)

    def __getitem__(self, index: int) -> TrainingPair:
        if self.chain is None:
            return self.store.training_pair(self.keys[index])
        return self.chain.training_pair(self.keys[index], self.window)


@dataclass(frozen=True)
class RehearsalSource:
    """Labelled pairs, and simulated clips among them, so that a start model does not forget what it knew.

    labels: of the drives. clips: with ground-truth flow, repeated as often as needed. share: of the samples that are
    of clips, from 0 to below 1.
    """

    labels: LabelSource
    clips: ClipSource
    share: float

    @property
    def about(self) -> dict[str, str]:
        """See PairSource."""
        labels, clips = self.labels.about, self.clips.about
        return {
            'data': f'{labels["data"]}; {self.share:.0%} of the samples: {clips["data"]}',
            'supervision': f'{labels["supervision"]}; {clips["supervision"]}',
        }

    def __len__(self) -> int:
        return len(self.labels) + round(len(self.labels) * self.share / (1 - self.share))

    def in_use(self, step: int) -> int:
        """Return the number of pairs: all are available from the first step."""
        return len(self)

    def __getitem__(self, index: int) -> TrainingPair:
        if index < len(self.labels):
            return self.labels[index]
        return self.clips[(index - len(self.labels)) % len(self.clips)]


def split_labels(store, held_out: float, window: int = 2) -> tuple[LabelSource, LabelSource]:
    """Return the training pairs and the held-out pairs, or windows that end with them.

    The last pairs are held out, not random ones, because pairs close in time are nearly identical. No window of one
    part reaches into the other.
    held_out: share of the pairs to hold out. window: most sweeps of a sample; windows are shorter where labels do not
    continue each other.
    Raises: DataError when no pair is left to train on.
    """
    keys = sorted(store.keys())
    num_train = len(keys) - math.ceil(held_out * len(keys))
    if not num_train:
        raise DataError(
            f'{store.folder} has {len(keys)} pseudo-labelled pairs and {held_out:.0%} are held out: none is left to '
            'train on. Label some with: python3 -m training.label'
        )
    parts = {'to train on': keys[:num_train], 'held out': keys[num_train:]}
    return tuple(_label_source(store, tuple(part), what, len(keys), window) for what, part in parts.items())


def _label_source(store, part: tuple[str, ...], what: str, total: int, window: int) -> LabelSource:
    name = ', '.join(store.about.get('datasets', [Path(store.folder).name]))
    data = f'{len(part)} pairs {what}, of {total} of {name}, the first {part[0] if part else None}'
    chain = None
    if window > 2:
        chain = LabelChain(store, part)
        full = sum(len(chain.window(key, window)) == window - 1 for key in part)
        data += f'; {full} with {window - 2} sweeps before them, {len(part) - full} with fewer'
    return LabelSource(store, part, {'data': data, 'supervision': supervision(store)}, window, chain)


def supervision(store) -> str:
    """Return the `supervision` entry of the provenance of students that learn from a label store."""
    return f'pseudo-labels of the teacher {store.about.get("teacher", "unknown")}, no human labels'
