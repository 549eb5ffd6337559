# SPDX-License-Identifier: Apache-2.0
"""Argoverse 2 Sensor logs in the official layout, where flow labels lie beside the sweeps.

A log folder holds sensors/lidar/<timestamp_ns>.feather, city_SE3_egovehicle.feather, one height raster of the ground
under map/ with its img_Sim2_city.json, and, where there is truth, flow_labels.feather for its first sweep: total flow
to the second one, ego motion included, with class, dynamic and is_ground_0.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from training.datasets.pairs import DatasetPair, MetaClass, TrueFlow
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError, EgoMotionError
from zeroflow_ros.sweep import SweepPair

# The 30 annotated categories in the order of their numbers, from 1; 0 is the background.
CATEGORIES = (
    'ANIMAL', 'ARTICULATED_BUS', 'BICYCLE', 'BICYCLIST', 'BOLLARD', 'BOX_TRUCK', 'BUS', 'CONSTRUCTION_BARREL',
    'CONSTRUCTION_CONE', 'DOG', 'LARGE_VEHICLE', 'MESSAGE_BOARD_TRAILER', 'MOBILE_PEDESTRIAN_CROSSING_SIGN',
    'MOTORCYCLE', 'MOTORCYCLIST', 'OFFICIAL_SIGNALER', 'PEDESTRIAN', 'RAILED_VEHICLE', 'REGULAR_VEHICLE', 'SCHOOL_BUS',
    'SIGN', 'STOP_SIGN', 'STROLLER', 'TRAFFIC_LIGHT_TRAILER', 'TRUCK', 'TRUCK_CAB', 'VEHICULAR_TRAILER', 'WHEELCHAIR',
    'WHEELED_DEVICE', 'WHEELED_RIDER',
)  # fmt: skip
# What is not named here is ignored. Source: bucketed-scene-flow-eval.
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

# Source: ZeroFlow takes 0.4 m above the map's ground, av2 itself 0.3 m.
_GROUND_MARGIN = 0.4


@dataclass(frozen=True)
class LabelledPair:
    """A sweep pair with the true residual flow of its first sweep.

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


class Argoverse2Log:
    """One log: its sweeps in order of time, and the pose of the vehicle at each of them.

    Raises: DataError that names the missing file, or the sweep without a pose.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        files = (self.path / 'sensors' / 'lidar').glob('*.feather')
        self.files = sorted((file for file in files if file.stem.isdigit()), key=lambda file: int(file.stem))
        if len(self.files) < 2:
            raise DataError(
                f'{self.path} needs two sweeps in sensors/lidar/<timestamp_ns>.feather, found {len(self.files)}.'
            )
        poses = self._table('city_SE3_egovehicle.feather', 'timestamp_ns qw qx qy qz tx_m ty_m tz_m')
        row_of, self.city_T_ego = {int(stamp): k for k, stamp in enumerate(poses['timestamp_ns'])}, []
        for file in self.files:
            if int(file.stem) not in row_of:
                raise DataError(
                    f'{self.path}: city_SE3_egovehicle.feather has no pose at the sweep {file.stem}; it needs one at '
                    'exactly that time.'
                )
            pose = {name: column[row_of[int(file.stem)]] for name, column in poses.items()}
            try:
                city_T_ego = transforms.from_quaternion(
                    [pose['tx_m'], pose['ty_m'], pose['tz_m']], [pose['qx'], pose['qy'], pose['qz'], pose['qw']]
                )
            except EgoMotionError as error:
                raise DataError(f'{self.path}: city_SE3_egovehicle.feather at {file.stem}: {error}') from error
            self.city_T_ego.append(city_T_ego)

    def pair(self, index: int) -> SweepPair:
        """Return sweeps `index` and the next."""
        ego0_T_ego1 = transforms.invert(self.city_T_ego[index]) @ self.city_T_ego[index + 1]
        dt = (int(self.files[index + 1].stem) - int(self.files[index].stem)) * 1e-9
        return SweepPair(self._points(index), self._points(index + 1), ego0_T_ego1, dt)

    def labelled_pair(self) -> LabelledPair:
        """Return the first pair with its labels."""
        pair = self.pair(0)
        labels = self._table('flow_labels.feather', 'flow_tx_m flow_ty_m flow_tz_m classes dynamic is_ground_0')
        if len(labels['classes']) != len(pair.points0):
            raise DataError(
                f'{self.path}: flow_labels.feather has {len(labels["classes"])} rows, the sweep {len(pair.points0)}.'
            )
        if labels['classes'].max(initial=0) > len(CATEGORIES):
            raise DataError(f'{self.path}: flow_labels.feather has class {labels["classes"].max()}, expected 0 to 30.')
        total = np.stack([labels[f'flow_t{axis}_m'] for axis in 'xyz'], axis=1).astype(np.float32)
        residual = transforms.apply(pair.ego0_T_ego1, pair.points0 + total) - pair.points0
        classes = labels['classes'].astype(np.uint8)
        return LabelledPair(pair, residual, classes > 0, labels['dynamic'], labels['is_ground_0'], classes)

    @property
    def has_labels(self) -> bool:
        return (self.path / 'flow_labels.feather').is_file()

    def _points(self, index: int) -> np.ndarray:
        sweep = self._table(self.files[index].relative_to(self.path), 'x y z')
        return np.stack([sweep[axis] for axis in 'xyz'], axis=1).astype(np.float32)

    def _table(self, name: str | Path, columns: str) -> dict[str, np.ndarray]:
        """Return the named columns of a file of the log."""
        from pyarrow import ArrowInvalid, feather

        if not (self.path / name).is_file():
            raise DataError(f'{self.path} lacks {name}.')
        try:
            table = feather.read_table(self.path / name, columns=columns.split())
        except (ArrowInvalid, OSError) as error:
            raise DataError(f'{self.path / name} should be a feather file with columns {columns}: {error}') from error
        return {column: table[column].to_numpy() for column in table.column_names}


class GroundMap:
    """Height of the ground of a city as a raster.

    Raises: DataError when there is not exactly one raster and one placement under map/ of a log.
    """

    def __init__(self, log: Path):
        raster = _only(log, '*_ground_height_surface____*.npy')
        placement = _only(log, '*img_Sim2_city.json')
        try:
            self._heights = np.load(raster).astype(np.float64)  # (rows, columns) [m], NaN where unknown
            sim2 = json.loads(placement.read_text())
            self._rotation, self._shift = np.reshape(sim2['R'], (2, 2)), np.array(sim2['t'], np.float64)
            self._scale = float(sim2['s'])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f'{raster} and {placement} should be a raster and its R, t, s: {error!r}') from error

    def is_ground(self, points: np.ndarray) -> np.ndarray:
        """Return which of points (N, 3) [m] in the city frame are at most 0.4 m above the ground or below it.

        Where the map does not know the ground, no point is.
        """
        pixels = (points[:, :2] @ self._rotation.T + self._shift) * self._scale
        rows, columns = self._heights.shape
        with np.errstate(invalid='ignore'):  # a point that is NaN is outside
            column, row = np.round(pixels).astype(np.int64).T
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        height = np.full(len(points), np.nan)
        height[inside] = self._heights[row[inside], column[inside]]
        return points[:, 2] <= height + _GROUND_MARGIN  # NaN compares as False


class Argoverse2Pairs:
    """All consecutive pairs of one log or of a folder of logs, in the vehicle frame; truth where there are labels.

    Raises: DataError that names what a log lacks.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        paths = [folder] if _is_log(folder) else _logs(folder)
        if not paths:
            raise DataError(f'{folder} is no Argoverse 2 log and holds none: expected <log>/sensors/lidar/*.feather.')
        self.name = folder.resolve().name
        self._logs = [Argoverse2Log(path) for path in paths]
        for log in self._logs:  # now, and not after hours of labelling
            _only(log.path, '*_ground_height_surface____*.npy')
            _only(log.path, '*img_Sim2_city.json')
        self._pairs = [(log, k) for log in self._logs for k in range(len(log.files) - 1)]

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """Return log/timestamp of the older sweep."""
        log, k = self._pairs[index]
        return f'{log.path.resolve().name}/{log.files[k].stem}'

    def __getitem__(self, index: int) -> DatasetPair:
        log, k = self._pairs[index]
        ground_map, truth = _ground_map(log.path), None
        if k == 0 and log.has_labels:
            labelled = log.labelled_pair()
            pair = labelled.pair
            truth = TrueFlow(labelled.flow, META_CLASS[labelled.classes], np.isfinite(labelled.flow).all(1))
        else:
            pair = log.pair(k)
        is_ground0, is_ground1 = (
            ground_map.is_ground(transforms.apply(city_T_ego, points.astype(np.float64)))
            for points, city_T_ego in zip((pair.points0, pair.points1), log.city_T_ego[k : k + 2], strict=True)
        )
        return DatasetPair(self.key(index), pair, is_ground0, is_ground1, truth)


def read_labelled_pair(log: Path) -> LabelledPair:
    """Read the first two sweeps of a log and the labels of the first.

    Raises: DataError that names the missing file.
    """
    return Argoverse2Log(log).labelled_pair()


def open_pairs(text: str) -> Argoverse2Pairs:
    """Open a log, or a folder of logs."""
    return Argoverse2Pairs(text)


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


def _only(log: Path, pattern: str) -> Path:
    """Return the one file under map/ that fits a pattern."""
    found = sorted((log / 'map').glob(pattern))
    if len(found) != 1:
        names = ', '.join(file.name for file in found) or 'none'
        raise DataError(f'{log} needs exactly one map/{pattern}, found {names}.')
    return found[0]
