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
    """Windows by number.

    about: entries of the student's provenance, `data` and `supervision`. unlabelled: for fine-tuning, windows of data
    sets without ground truth, of which one is drawn after each of `places`.
    """

    windows: StereoWindows
    places: tuple[WindowPlace, ...]
    about: dict[str, str]
    unlabelled: tuple[WindowPlace, ...] = ()

    def __len__(self) -> int:
        return len(self.places)


def window_source(datasets: Sequence[StereoPairDataset], config: MonoTrainConfig) -> WindowSource:
    """Return the windows of some datasets, or stores of labels, that are not held out.

    Raises: DataError when there is none, or none with labels where the training needs them.
    """
    windows = StereoWindows(datasets, config.num_frames, config.excluded_frames)
    places, held_out = windows.split(config.held_out)
    unlabelled = []
    if config.has_labels:
        labelled = {number for number in range(len(datasets)) if _has_truth(windows, places, number)}
        unlabelled = [place for place in places if place.pairs[-1].dataset not in labelled]
        places = [place for place in places if place.pairs[-1].dataset in labelled]
        if not places or (unlabelled and config.strategy == 'mono_from_lidar'):
            number = unlabelled[0].pairs[-1].dataset
            raise DataError(
                f'{datasets[number].name} has no labels to learn. Label the drive with: python3 -m training.label '
                '--teacher lidar, and give them with --labels; or choose the strategy mono_self_supervised.'
            )
    names = dict.fromkeys(dataset.name for dataset in windows.datasets)
    total = len(places) + len(unlabelled)
    data = (
        f'{total} windows of {config.num_frames} stereo frames of {", ".join(names)}, the first '
        f'at frame {places[0].first} of {places[0].drive[1] or places[0].drive[0]}, {len(held_out)} held out'
    )
    if config.excluded_frames:
        data += f', without frames {", ".join(f"{number:g}" for number in config.excluded_frames)}'
    stores = [dataset for dataset in windows.datasets if isinstance(dataset, StereoLabelStore)]
    labels = [supervision(store) for store in stores] or ['ground truth of a data set']
    about = {'data': data, 'supervision': '; '.join(labels)}
    return WindowSource(windows, tuple(places), about, tuple(unlabelled))


def _has_truth(windows: StereoWindows, places: Sequence[WindowPlace], dataset: int) -> bool:
    """Return whether the first window whose last pair is of a dataset has labels there."""
    last = (place.pairs[-1] for place in places)
    first = next((pair for pair in last if pair.dataset == dataset), None)
    return first is not None and windows.pair(first).truth is not None
