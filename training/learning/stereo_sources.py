# SPDX-License-Identifier: Apache-2.0
"""Sources of stereo pairs with scene flow to learn: ground truth of a dataset, or labels of a teacher."""

import dataclasses
import json
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from training.datasets.stereo_pairs import StereoDatasetPair, StereoPairDataset
from zeroflow_ros.camera.stereo import StereoEstimator
from zeroflow_ros.errors import DataError
from zeroflow_ros.views.report import write_json

_DISPARITY_STEPS, _FLOW_STEPS = 256, 64  # per pixel, of stored labels, as in the files of KITTI
_UNKNOWN_FLOW = -(2**15)  # of int16
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class StereoExample:
    """A stereo pair and the scene flow to learn. target: (H, W, 4) float32 [px], disparity, disparity in the other
    frame, flow u, v; NaN where not known.
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
        """Return an example. Raises: DataError when it cannot be read."""


@dataclass(frozen=True)
class TruthSource:
    """The ground truth of a dataset. indices: of its pairs."""

    dataset: StereoPairDataset
    indices: range

    @property
    def about(self) -> dict[str, str]:
        """See StereoSource."""
        return {'data': _data(self.dataset, self.indices), 'supervision': 'ground truth of the data set'}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> StereoExample:
        pair = self.dataset[self.indices[index]]
        if pair.truth is None:
            raise DataError(
                f'{pair.key} of {self.dataset.name} has no ground truth. Give a folder for labels with --labels.'
            )
        truth = pair.truth
        values = np.concatenate([truth.disparity[..., None], truth.other_disparity[..., None], truth.flow], axis=2)
        return StereoExample(pair, values)


@dataclass(frozen=True)
class ProxySource:
    """Labels of a teacher, made when first needed and kept in a folder, one file a pair; only measured pixels count.

    teacher: a StereoEstimator with a frozen dataclass `config`.
    Raises: DataError when the folder holds labels of another teacher, or of other settings.
    """

    dataset: StereoPairDataset
    indices: range
    teacher: StereoEstimator
    folder: Path

    def __post_init__(self):
        about = {
            'teacher': self.teacher.name,
            'config': json.loads(json.dumps(dataclasses.asdict(self.teacher.config))),
        }
        path = self.folder / 'about.json'
        if path.is_file():
            found = json.loads(path.read_text())
            if found != about:
                raise DataError(
                    f'{self.folder} holds labels of the teacher {found.get("teacher")} with other settings than those '
                    f'of {about["teacher"]} now. Choose another --labels.'
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, about)

    @property
    def about(self) -> dict[str, str]:
        """See StereoSource."""
        supervision = f'pseudo-labels of the teacher {self.teacher.name}, no human labels'
        return {'data': _data(self.dataset, self.indices), 'supervision': supervision}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> StereoExample:
        pair = self.dataset[self.indices[index]]
        path = self.folder / f'{pair.key}.npz'
        if path.is_file():
            try:
                return StereoExample(pair, _read_label(path, pair.reference.left.shape[:2]))
            except _DAMAGED:
                path.unlink(missing_ok=True)
        flow = self.teacher.estimate(pair.reference, pair.other, pair.other_T_reference)
        values = [flow.disparity[..., None], flow.other_disparity[..., None], flow.flow]
        values = np.where(flow.is_measured[..., None], np.concatenate(values, axis=2), np.nan)
        _write_label(path, values)
        return StereoExample(pair, _read_label(path, values.shape[:2]))


def split_source(source: TruthSource | ProxySource, held_out: float) -> tuple:
    """Return the source's first pairs, to train on, and its last ones, a share `held_out` of all.

    Raises: DataError when none is left to train on.
    """
    count = len(source.indices) - math.ceil(held_out * len(source.indices))
    if not count:
        raise DataError(
            f'{source.dataset.name} has {len(source.indices)} pairs and {held_out:.0%} are held out: none is left to '
            'train on.'
        )
    return tuple(dataclasses.replace(source, indices=part) for part in (source.indices[:count], source.indices[count:]))


def _data(dataset: StereoPairDataset, indices: range) -> str:
    first = dataset.key(indices[0]) if len(indices) else None
    return f'{len(indices)} stereo pairs of {len(dataset)} of {dataset.name}, the first {first}'


def _write_label(path: Path, values: np.ndarray) -> None:
    """Write values (H, W, 4) [px], NaN where not known, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    disparity = np.round(np.nan_to_num(values[..., :2]) * _DISPARITY_STEPS).clip(0, 2**16 - 1).astype(np.uint16)
    known = ~np.isnan(values[..., 2:]).any(axis=2, keepdims=True)
    flow = np.round(np.nan_to_num(values[..., 2:]) * _FLOW_STEPS).clip(1 - 2**15, 2**15 - 1)
    flow = np.where(known, flow, _UNKNOWN_FLOW).astype(np.int16)
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.npz')
    np.savez_compressed(temporary, disparity=disparity, flow=flow)
    os.replace(temporary, path)


def _read_label(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return values (H, W, 4) float32 [px] of a file. Raises: ValueError for another size."""
    with np.load(path) as file:
        disparity, flow = file['disparity'], file['flow']
    if disparity.shape != (*size, 2) or flow.shape != (*size, 2):
        raise ValueError(f'{path} is of images of {disparity.shape[:2]}, expected {size}')
    values = np.concatenate([disparity / _DISPARITY_STEPS, flow / _FLOW_STEPS], axis=2).astype(np.float32)
    values[np.concatenate([disparity == 0, flow == _UNKNOWN_FLOW], axis=2)] = np.nan
    return values
