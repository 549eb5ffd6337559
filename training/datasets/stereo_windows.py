# SPDX-License-Identifier: Apache-2.0
"""Windows of consecutive stereo frames, put together from the pairs of stereo datasets and stores of labels."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from training.datasets.pairs import LATEST
from training.datasets.stereo_pairs import StereoDatasetPair, StereoPairDataset
from zeroflow_ros.errors import DataError

# The drive, the number of the older frame, and its stamp where the dataset has one.
_KEY = re.compile(rf'(?P<drive>.*?)(?P<number>\d+)(_(?P<stamp>\d{{15,}}))?(?P<latest>{LATEST})?')
_MOST_UNEVEN = 1.5  # largest ratio of the times between the frames of a window


@dataclass(frozen=True)
class PairPlace:
    """Where a pair is: number of the dataset, and of the pair in it."""

    dataset: int
    index: int


@dataclass(frozen=True)
class WindowPlace:
    """Where the pairs of a window are.

    drive: which one. first: number of the first frame. pairs: of frames k and k + 1, k is the reference.
    latest: of the same frames, k + 1 is the reference; None where no dataset has it.
    """

    drive: tuple[str, str]
    first: int
    pairs: tuple[PairPlace, ...]
    latest: tuple[PairPlace | None, ...]


class StereoWindows:
    """All windows of `num_frames` consecutive frames of some stereo datasets, in the order of drives and frames.

    Datasets of the same name hold the same drives: with a dataset and the same one with `?latest=true`, a window has
    the labels of both directions. The frames of a simulated drive are datasets with `at=0`, `at=1` and so on. Frames
    are consecutive when their numbers are, which the keys of the pairs hold: nothing is read.
    excluded_frames: numbers of frames, in all drives, that are in no window.
    Raises: DataError when there is no window.
    """

    def __init__(self, datasets: Sequence[StereoPairDataset], num_frames: int, excluded_frames: Sequence[float] = ()):
        self.datasets, self.num_frames = tuple(datasets), num_frames
        forward, latest = {}, {}
        for k, dataset in enumerate(self.datasets):
            for index in range(len(dataset)):
                key = dataset.key(index)
                found = _KEY.fullmatch(key)
                if found is None:
                    raise DataError(f'{key!r} of {dataset.name} should end in the number of a frame.')
                place = (dataset.name, found['drive']), int(found['number'])
                (latest if found['latest'] else forward).setdefault(place, PairPlace(k, index))
        self.places: list[WindowPlace] = []
        for drive, first in sorted(forward):
            frames = [(drive, first + k) for k in range(num_frames - 1)]
            is_excluded = any(first <= number < first + num_frames for number in excluded_frames)
            if all(frame in forward for frame in frames) and not is_excluded:
                pairs, others = (tuple(map(known.get, frames)) for known in (forward, latest))
                self.places.append(WindowPlace(drive, first, pairs, others))
        if not self.places:
            names = ', '.join(dataset.name for dataset in self.datasets) or 'no dataset'
            raise DataError(
                f'{names}: {len(forward)} pairs of an older and a newer frame hold no {num_frames} consecutive frames. '
                'Give drives, or lower num_frames.'
            )

    def __len__(self) -> int:
        return len(self.places)

    def pair(self, place: PairPlace) -> StereoDatasetPair:
        """Return a pair. Raises: DataError when it cannot be read."""
        return self.datasets[place.dataset][place.index]

    def split(self, held_out: float) -> tuple[list[WindowPlace], list[WindowPlace]]:
        """Return the windows to train on, and the last ones, a share `held_out`; both have no frame in common.

        Raises: DataError when none is left to train on.
        """
        count = len(self.places) - math.ceil(held_out * len(self.places))
        first, last = self.places[:count], self.places[count:]
        frames = {frame for place in last for frame in self._frames(place)}
        first = [place for place in first if frames.isdisjoint(self._frames(place))]
        if not first:
            raise DataError(
                f'{len(self.places)} windows of {self.num_frames} frames, {held_out:.0%} of them held out: none is '
                'left to train on.'
            )
        return first, last

    def _frames(self, place: WindowPlace) -> list[tuple]:
        return [(place.drive, place.first + k) for k in range(self.num_frames)]


def check_consecutive(pairs: Sequence[StereoDatasetPair]) -> None:
    """Raise DataError unless each pair begins with the frame that the one before ends with, after about the same time.

    pairs: of a window, in order.
    """
    for before, after in itertools.pairwise(pairs):
        if before.other.stamp_ns != after.reference.stamp_ns or before.reference.camera != after.reference.camera:
            raise DataError(f'{before.key} and {after.key} do not follow each other with one camera.')
    times = [pair.dt for pair in pairs]
    if min(times) <= 0 or max(times) > _MOST_UNEVEN * min(times):
        raise DataError(f'{pairs[0].key}: frames of a window should be evenly spaced, found {times} s between them.')
