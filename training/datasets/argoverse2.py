# SPDX-License-Identifier: Apache-2.0
"""Argoverse 2 Sensor logs in the official layout, as sweep pairs.

A log folder holds sensors/lidar/<timestamp_ns>.feather, city_SE3_egovehicle.feather, and under map/ one ground height
raster with its img_Sim2_city.json. Ground truth comes from annotations.feather, or from flow_labels.feather for the
first sweep: total flow to the second sweep, ego motion included, with class, dynamic and is_ground_0.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from training.datasets import split_options
from training.datasets.argoverse2_log import GROUND_MARGIN, Argoverse2Log, GroundMap, only_map_file
from training.datasets.argoverse2_truth import (
    LabelledPair,
    annotated_flow,
    ground_truth_flow,
    has_labels,
    labelled_pair,
)
from training.datasets.pairs import DatasetPair
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError


@dataclass(frozen=True)
class Argoverse2Options:
    """Options. ground_margin: points lower than this above the ground of the map are ground [m]."""

    ground_margin: float = GROUND_MARGIN


class Argoverse2Pairs:
    """All consecutive pairs of one log or of a folder of logs, in the vehicle frame, with ground truth where labelled.

    Raises: DataError that names what a log lacks.
    """

    def __init__(self, folder: str | Path, options: Argoverse2Options = Argoverse2Options()):
        folder = Path(folder)
        paths = [folder] if _is_log(folder) else _logs(folder)
        if not paths:
            raise DataError(
                f'{folder} is not an Argoverse 2 log and holds none: expected <log>/sensors/lidar/*.feather.'
            )
        self.name = folder.resolve().name
        self._logs = [Argoverse2Log(path) for path in paths]
        for log in self._logs:  # fail now, not after hours of labelling
            only_map_file(log.path, '*_ground_height_surface____*.npy')
            only_map_file(log.path, '*img_Sim2_city.json')
        self._options = options
        self._pairs = [(log, k) for log in self._logs for k in range(len(log.files) - 1)]

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """Return log/timestamp of the older sweep."""
        log, k = self._pairs[index]
        return f'{log.path.resolve().name}/{log.files[k].stem}'

    def __getitem__(self, index: int) -> DatasetPair:
        log, k = self._pairs[index]
        ground_map, labelled = _ground_map(log.path), None
        if has_labels(log, k):
            labelled = labelled_pair(log)
            pair, truth = labelled.pair, ground_truth_flow(labelled)
        else:
            pair = log.pair(k)
            truth = annotated_flow(log, k, pair)
        is_ground0, is_ground1 = (
            ground_map.is_ground(transforms.apply(city_T_ego, points.astype(np.float64)), self._options.ground_margin)
            for points, city_T_ego in zip((pair.points0, pair.points1), log.city_T_ego[k : k + 2], strict=True)
        )
        if labelled:
            is_ground0 = labelled.is_ground  # as official scores do, so that they are comparable
        return DatasetPair(self.key(index), pair, is_ground0, is_ground1, truth, log.times(k))


def read_labelled_pair(log: Path) -> LabelledPair:
    """Read the first two sweeps of a log and the labels of the first.

    Raises: DataError that names the missing file.
    """
    return labelled_pair(Argoverse2Log(log))


def open_pairs(text: str) -> Argoverse2Pairs:
    """Open a log, or a folder of logs: PATH[?ground_margin=0.4]."""
    return Argoverse2Pairs(*split_options(text, Argoverse2Options))


def recognises(text: str) -> bool:
    """Return whether a path is a log or a folder of logs."""
    return _is_log(Path(text)) or bool(_logs(Path(text)))


def _is_log(path: Path) -> bool:
    return (path / 'sensors' / 'lidar').is_dir()


def _logs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_log(path)) if folder.is_dir() else []


@lru_cache(maxsize=4)
def _ground_map(log: Path) -> GroundMap:
    return GroundMap(log)
