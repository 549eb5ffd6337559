# SPDX-License-Identifier: Apache-2.0
"""Windows of stereo frames to train a student of one camera on."""

import dataclasses
from collections.abc import Sequence

from training.datasets.stereo_pairs import StereoPairDataset
from training.datasets.stereo_windows import StereoWindows, WindowPlace
from training.labels.stereo_label_store import StereoLabelStore
from training.learning.mono_train_config import MonoTrainConfig
from training.learning.pair_sources import supervision
from zeroflow_ros.errors import DataError


@dataclasses.dataclass(frozen=True)
class WindowSource:
    """Windows by number. about: entries of the student's provenance, `data` and `supervision`."""

    windows: StereoWindows
    places: tuple[WindowPlace, ...]
    about: dict[str, str]

    def __len__(self) -> int:
        return len(self.places)


def window_source(datasets: Sequence[StereoPairDataset], config: MonoTrainConfig) -> WindowSource:
    """Return the windows of some datasets, or stores of labels, that are not held out.

    Raises: DataError when there is none, or none with labels where the training needs them.
    """
    windows = StereoWindows(datasets, config.num_frames, config.excluded_frames)
    places, held_out = windows.split(config.held_out)
    if config.strategy == 'mono_from_lidar' and not any(_has_truth(windows, place) for place in places[:1]):
        raise DataError(
            f'{datasets[0].name} has no labels to learn. Label the drive with: python3 -m training.label --teacher '
            'lidar, and give them with --labels.'
        )
    names = dict.fromkeys(dataset.name for dataset in windows.datasets)
    data = (
        f'{len(places)} windows of {config.num_frames} stereo frames of {", ".join(names)}, the first at frame '
        f'{places[0].first} of {places[0].drive[1] or places[0].drive[0]}, {len(held_out)} held out'
    )
    if config.excluded_frames:
        data += f', without frames {", ".join(f"{number:g}" for number in config.excluded_frames)}'
    stores = [dataset for dataset in windows.datasets if isinstance(dataset, StereoLabelStore)]
    labels = [supervision(store) for store in stores] or ['ground truth of a data set']
    return WindowSource(windows, tuple(places), {'data': data, 'supervision': '; '.join(labels)})


def _has_truth(windows: StereoWindows, place: WindowPlace) -> bool:
    return windows.pair(place.pairs[1]).truth is not None
