# SPDX-License-Identifier: Apache-2.0
"""Ground-truth flow of Argoverse 2: from flow_labels.feather, or from the tracked boxes of annotations.feather."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from training.datasets.argoverse2_log import Argoverse2Log, read_columns
from training.datasets.box_flow import BOX_MARGIN, MovingBox, box_flow
from training.datasets.pairs import GroundTruthFlow, MetaClass
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import SweepPair

# The 30 annotated categories; their numbers start at 1, 0 is the background.
CATEGORIES = (
    'ANIMAL', 'ARTICULATED_BUS', 'BICYCLE', 'BICYCLIST', 'BOLLARD', 'BOX_TRUCK', 'BUS', 'CONSTRUCTION_BARREL',
    'CONSTRUCTION_CONE', 'DOG', 'LARGE_VEHICLE', 'MESSAGE_BOARD_TRAILER', 'MOBILE_PEDESTRIAN_CROSSING_SIGN',
    'MOTORCYCLE', 'MOTORCYCLIST', 'OFFICIAL_SIGNALER', 'PEDESTRIAN', 'RAILED_VEHICLE', 'REGULAR_VEHICLE', 'SCHOOL_BUS',
    'SIGN', 'STOP_SIGN', 'STROLLER', 'TRAFFIC_LIGHT_TRAILER', 'TRUCK', 'TRUCK_CAB', 'VEHICULAR_TRAILER', 'WHEELCHAIR',
    'WHEELED_DEVICE', 'WHEELED_RIDER',
)  # fmt: skip
# Categories not listed here are ignored. Source: bucketed-scene-flow-eval.
_MEMBERS = {
    MetaClass.CAR: 'REGULAR_VEHICLE',
    MetaClass.OTHER_VEHICLES: 'BOX_TRUCK LARGE_VEHICLE RAILED_VEHICLE TRUCK TRUCK_CAB VEHICULAR_TRAILER '
    'ARTICULATED_BUS BUS SCHOOL_BUS',
    MetaClass.PEDESTRIAN: 'PEDESTRIAN STROLLER WHEELCHAIR OFFICIAL_SIGNALER',
    MetaClass.WHEELED_VRU: 'BICYCLE BICYCLIST MOTORCYCLE MOTORCYCLIST WHEELED_DEVICE WHEELED_RIDER',
}
_META_CLASS_OF = {category: meta for meta, names in _MEMBERS.items() for category in names.split()}
META_CLASS = np.array(
    [MetaClass.BACKGROUND, *(_META_CLASS_OF.get(category, MetaClass.IGNORED) for category in CATEGORIES)], np.uint8
)

_BOX_COLUMNS = 'timestamp_ns track_uuid category length_m width_m height_m qw qx qy qz tx_m ty_m tz_m'


@dataclass(frozen=True)
class LabelledPair:
    """A sweep pair with the ground-truth residual flow of its first sweep.

    pair: in the vehicle frame of Argoverse, origin at the rear axle.
    flow: (N, 3) float32 [m], residual, in ego0. is_foreground, is_dynamic, is_ground: (N,) bool.
    classes: (N,) uint8, 0 for the background, else 1 + the index in CATEGORIES.
    """

    pair: SweepPair
    flow: np.ndarray
    is_foreground: np.ndarray
    is_dynamic: np.ndarray
    is_ground: np.ndarray
    classes: np.ndarray


def has_labels(log: Argoverse2Log, index: int) -> bool:
    """Return whether flow_labels.feather covers the pair."""
    return index == 0 and (log.path / 'flow_labels.feather').is_file()


def labelled_pair(log: Argoverse2Log) -> LabelledPair:
    """Return the first pair of a log with its labels.

    Raises: DataError when they are missing or do not match the sweep.
    """
    pair = log.pair(0)
    labels = read_columns(log.path, 'flow_labels.feather', 'flow_tx_m flow_ty_m flow_tz_m classes dynamic is_ground_0')
    if len(labels['classes']) != len(pair.points0):
        raise DataError(
            f'{log.path}: flow_labels.feather has {len(labels["classes"])} rows, the sweep {len(pair.points0)}.'
        )
    if labels['classes'].max(initial=0) > len(CATEGORIES):
        raise DataError(f'{log.path}: flow_labels.feather has class {labels["classes"].max()}, expected 0 to 30.')
    total = np.stack([labels[f'flow_t{axis}_m'] for axis in 'xyz'], axis=1).astype(np.float32)
    residual = transforms.apply(pair.ego0_T_ego1, pair.points0 + total) - pair.points0
    classes = labels['classes'].astype(np.uint8)
    return LabelledPair(pair, residual, classes > 0, labels['dynamic'], labels['is_ground_0'], classes)


def ground_truth_flow(labelled: LabelledPair) -> GroundTruthFlow:
    """Return the labels of a pair as ground truth."""
    return GroundTruthFlow(labelled.flow, META_CLASS[labelled.classes], np.isfinite(labelled.flow).all(1))


def annotated_flow(log: Argoverse2Log, index: int, pair: SweepPair) -> GroundTruthFlow | None:
    """Return the flow from the boxes of sweeps `index` and the next; None where either has no boxes.

    Points outside all boxes are static; points in a box that the next sweep lacks are not valid.
    Raises: DataError for a category other than the 30.
    """
    before, after = _boxes(log.path, int(log.files[index].stem)), _boxes(log.path, int(log.files[index + 1].stem))
    if not before or not after:
        return None
    boxes = (
        MovingBox(pose, pair.ego0_T_ego1 @ after[track][0] if track in after else None, half_size, META_CLASS[number])
        for track, (pose, half_size, number) in before.items()
    )
    return box_flow(pair.points0, boxes)


def _boxes(path: Path, stamp_ns: int) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Return ego_T_box (4, 4), half the size (3,) [m] and class number of each track annotated at a stamp."""
    columns, boxes = _annotations(path), {}
    for row in np.flatnonzero(columns['timestamp_ns'] == stamp_ns):
        box = {name: column[row] for name, column in columns.items()}
        if box['category'] not in CATEGORIES:
            raise DataError(
                f'{path}: annotations.feather has the category {box["category"]!r}, unknown to Argoverse 2.'
            )
        ego_T_box = transforms.from_quaternion(
            [box['tx_m'], box['ty_m'], box['tz_m']], [box['qx'], box['qy'], box['qz'], box['qw']]
        )
        size = np.array([box['length_m'] + BOX_MARGIN, box['width_m'] + BOX_MARGIN, box['height_m']])
        boxes[box['track_uuid']] = ego_T_box, size / 2, 1 + CATEGORIES.index(box['category'])
    return boxes


@lru_cache(maxsize=2)
def _annotations(path: Path) -> dict[str, np.ndarray]:
    """Return the annotations of a log; no rows if it has none."""
    if not (path / 'annotations.feather').is_file():
        return {'timestamp_ns': np.empty(0, np.int64)}
    return read_columns(path, 'annotations.feather', _BOX_COLUMNS)
