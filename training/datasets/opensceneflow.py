# SPDX-License-Identifier: Apache-2.0
"""Scenes of OpenSceneFlow (*.h5) as sweep pairs: Argoverse 2, Waymo, nuScenes, TruckScenes, ZOD, and those of to_h5.

Argoverse 2 scenes hold points in the frame of the upper LiDAR but poses of the vehicle, without the LiDAR's mounting
pose. Used as they are, as OpenSceneFlow's tools do, static points move by up to a few centimetres over a pair when the
vehicle turns or is fast. `calibration` transforms the points into the vehicle frame, which removes this error.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from training.datasets import split_options
from training.datasets.argoverse2_log import read_columns
from training.datasets.argoverse2_truth import META_CLASS
from training.datasets.pairs import HISTORY, DatasetPair, GroundTruthFlow
from training.datasets.scene_file import SOURCE, SceneSweep, ego_motion_between, open_scene, read_points, read_sweep
from training.datasets.scene_index import IndexedSweep, read_index
from training.datasets.total_flow import residual_to_total, total_to_residual
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import DropReason, PosedSweep, SweepPair

_MIN_DT = 0.04  # s
# (smallest stamp, seconds per unit), for stamps since 1970 or the GPS epoch: Argoverse 2 has ns, ZOD's scripts 0.1 us,
# Waymo, nuScenes and TruckScenes us. Smaller stamps come from a clock that started at 0, in ns.
_TICKS = ((10**17, 1e-9), (10**16, 1e-7), (10**14, 1e-6), (0, 1e-9))
_NO_MASK = 'no_eval_mask'
_OFF = 1e-3  # m: if the pose flow is nearer than this to the stored flow of the background, the frames agree


@dataclass(frozen=True)
class OpenSceneFlowOptions:
    """Options.

    calibration: folder of the Argoverse 2 logs of the scenes. Only LOG/calibration/egovehicle_SE3_sensor.feather is
    read, to transform points from the upper LiDAR into the vehicle frame. eval_mask: use only pairs whose older sweep
    has a mask, and ground-truth flow only inside it. max_dt: longest time between the sweeps of a pair [s]; flow is to
    the next sweep, so no sweep may be missing. tick: seconds per unit of the stamps; 0: derived from their size.
    """

    calibration: str = ''
    eval_mask: bool = False
    max_dt: float = 0.16
    tick: float = 0.0


class OpenSceneFlowPairs:
    """Consecutive sweeps of all scenes of a folder, or of one scene.

    skipped: number of consecutive sweeps without a pair, by reason. in_vehicle_frame: whether `calibration` is used.
    Raises: DataError with the reason when a scene is damaged or there is no pair.
    """

    def __init__(self, path: str | Path, options: OpenSceneFlowOptions = OpenSceneFlowOptions()):
        path = Path(path)
        self.folder = path.parent if path.suffix == '.h5' else path
        self.name = path.stem
        self.in_vehicle_frame = bool(options.calibration)
        self.skipped: Counter[str] = Counter()
        self._options = options
        self._pairs: list[tuple[str, str, str, float]] = []
        self._before: dict[tuple[str, str], str] = {}  # (scene, stamp) -> stamp of the sweep that makes a pair with it
        self._after: dict[tuple[str, str], str] = {}
        index, reason = read_index(self.folder), ''
        if path.suffix == '.h5' and path.stem not in index:
            raise DataError(f'There is no scene {path}.')
        scenes = [path.stem] if path.suffix == '.h5' else list(index)
        for scene in scenes:
            for sweep0, sweep1 in pairwise(index[scene]):
                dt = (int(sweep1.stamp) - int(sweep0.stamp)) * (options.tick or tick_of(int(sweep0.stamp)))
                name, why = _no_pair(sweep0, sweep1, dt, options)
                if name in ('', _NO_MASK):
                    self._before[scene, sweep1.stamp] = sweep0.stamp
                    self._after[scene, sweep0.stamp] = sweep1.stamp
                if not name:
                    self._pairs.append((scene, sweep0.stamp, sweep1.stamp, dt))
                    continue
                self.skipped[name] += 1
                reason = why or reason
        if not self._pairs:
            counts = ', '.join(f'{count} {name}' for name, count in self.skipped.items()) or 'fewer than two sweeps'
            raise DataError(f'{path} holds no sweep pair in {len(scenes)} scenes ({counts}). {reason}'.rstrip())
        if options.calibration:
            for scene in dict.fromkeys(pair[0] for pair in self._pairs):  # fail now, not after hours
                _ego_T_lidar(Path(options.calibration) / scene)

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """Return scene/stamp of the older sweep; the stamp is as in the file."""
        return '/'.join(self._pairs[index][:2])

    def scene_path(self, index: int) -> Path:
        """Return the file of a pair."""
        return self.folder / f'{self._pairs[index][0]}.h5'

    def __getitem__(self, index: int) -> DatasetPair:
        scene, stamp0, stamp1, dt = self._pairs[index]
        with open_scene(self.scene_path(index)) as file:  # opened anew: processes must not share an open file
            sweep0, sweep1 = read_sweep(file, stamp0), read_sweep(file, stamp1, with_truth=False)
            ego0_T_ego1 = ego_motion_between(file, stamp0, stamp1)
            one_frame = self.in_vehicle_frame or SOURCE in file.attrs
            history, future = self._beside(file, scene, stamp0, stamp1, ego0_T_ego1)
        points0, points1 = (self._in_ego_frame(scene, sweep.points) for sweep in (sweep0, sweep1))
        truth = (
            None
            if sweep0.flow is None
            else _ground_truth_flow(self.key(index), points0, sweep0, ego0_T_ego1, one_frame)
        )
        if truth is not None and self._options.eval_mask:
            truth = GroundTruthFlow(truth.flow, truth.meta_class, truth.is_valid & sweep0.eval_mask)
        times = None if sweep0.times is None or sweep1.times is None else (sweep0.times, sweep1.times)
        pair = SweepPair(points0, points1, ego0_T_ego1, dt, history, future)
        return DatasetPair(self.key(index), pair, sweep0.is_ground, sweep1.is_ground, truth, times)

    def _in_ego_frame(self, scene: str, points: np.ndarray) -> np.ndarray:
        """Return points (N, 3) of a scene in the vehicle frame if `calibration` is used, else as they are."""
        if not self._options.calibration:
            return points
        ego_T_lidar = _ego_T_lidar(Path(self._options.calibration) / scene)
        return transforms.apply(ego_T_lidar, points.astype(np.float64)).astype(np.float32)

    def _beside(self, file, scene: str, stamp0: str, stamp1: str, ego0_T_ego1: np.ndarray):
        """Return the sweeps before and after a pair, as far as each makes a pair with the next."""
        history, ego0_T_ego, stamp = [], np.eye(4), stamp0
        while len(history) < HISTORY and (older := self._before.get((scene, stamp))):
            ego0_T_ego = ego0_T_ego @ transforms.invert(ego_motion_between(file, older, stamp))
            history.append(PosedSweep(self._in_ego_frame(scene, read_points(file, older)), ego0_T_ego))
            stamp = older
        future, ego0_T_ego, stamp = [], ego0_T_ego1, stamp1
        while len(future) < HISTORY and (newer := self._after.get((scene, stamp))):
            ego0_T_ego = ego0_T_ego @ ego_motion_between(file, stamp, newer)
            future.append(PosedSweep(self._in_ego_frame(scene, read_points(file, newer)), ego0_T_ego))
            stamp = newer
        return tuple(history), tuple(future)


def open_pairs(text: str) -> OpenSceneFlowPairs:
    """Open a folder of scenes, or one of them, with the options of `OpenSceneFlowOptions` behind a question mark."""
    return OpenSceneFlowPairs(*split_options(text, OpenSceneFlowOptions))


def recognises(text: str) -> bool:
    """Return whether a path is a scene or a folder of scenes."""
    path = Path(text.partition('?')[0])
    return any(path.glob('*.h5')) if path.is_dir() else path.is_file() and path.suffix == '.h5'


def _no_pair(sweep0: IndexedSweep, sweep1: IndexedSweep, dt: float, options: OpenSceneFlowOptions) -> tuple[str, str]:
    """Return (reason to count, sentence) if two consecutive sweeps make no pair, else ('', '')."""
    if problem := sweep0.problem or sweep1.problem:
        return DropReason.MALFORMED.value, problem
    if not _MIN_DT <= dt <= options.max_dt:
        unit = options.tick or tick_of(int(sweep0.stamp))
        return (DropReason.GAP if dt > options.max_dt else DropReason.TOO_CLOSE).value, (
            f'{sweep0.stamp} and {sweep1.stamp} are {dt:.3f} s apart if a unit is {unit:g} s; if it is not, set '
            '?tick=SECONDS.'
        )
    if sweep0.motion_problem:
        return DropReason.EGO_MOTION.value, sweep0.motion_problem
    if options.eval_mask and not sweep0.has_mask:
        return _NO_MASK, ''
    return '', ''


def tick_of(stamp: int) -> float:
    """Return the seconds per unit of a stamp, by its size."""
    return next(tick for smallest, tick in _TICKS if stamp >= smallest)


def _ground_truth_flow(
    key: str, points: np.ndarray, sweep: SceneSweep, ego0_T_ego1: np.ndarray, one_frame: bool
) -> GroundTruthFlow:
    """Return the residual flow: the stored flow without the pose flow.

    If points and poses are in different frames, the pose flow of the points is still an affine function of position. It
    is fitted to the background, which is static in every label. one_frame: points and poses share a frame; no fit.
    Raises: DataError when poses and background flow contradict each other.
    """
    known = sweep.is_valid & np.isfinite(points).all(1) & np.isfinite(sweep.flow).all(1)
    total = np.where(known[:, None], sweep.flow, 0)
    surplus = total - residual_to_total(np.zeros_like(points), points, ego0_T_ego1)
    stands = known & (sweep.classes == 0)
    if not one_frame and stands.sum() >= 100:
        middle = np.median(surplus[stands], axis=0)
        if np.linalg.norm(middle) > 0.5:
            raise DataError(
                f'{key}: the background flows by {np.round(middle, 3).tolist()} m more than the poses say, expected '
                'a few centimetres at most. Poses, ego_motion and flow are not of one frame and one pair.'
            )
        near = stands & (np.linalg.norm(surplus - middle, axis=1) < 0.2)  # m; some labels count unlabelled points as
        if np.median(np.linalg.norm(surplus[near], axis=1)) > _OFF:
            affine, *_ = np.linalg.lstsq(_with_one(points[near]), surplus[near].astype(np.float64), rcond=1e-6)
            total = total - np.where(known[:, None], _with_one(points) @ affine, 0)
    residual = np.where(known[:, None], total_to_residual(total, points, ego0_T_ego1), 0).astype(np.float32)
    return GroundTruthFlow(residual, META_CLASS[sweep.classes], known)


def _with_one(points: np.ndarray) -> np.ndarray:
    return np.column_stack((points.astype(np.float64), np.ones(len(points))))


@lru_cache(maxsize=1024)
def _ego_T_lidar(log: Path) -> np.ndarray:
    """Return the pose of the upper LiDAR of an Argoverse 2 log in the vehicle's frame, (4, 4)."""
    columns = read_columns(log, 'calibration/egovehicle_SE3_sensor.feather', 'sensor_name qw qx qy qz tx_m ty_m tz_m')
    rows = np.flatnonzero(columns['sensor_name'] == 'up_lidar')
    if len(rows) != 1:
        raise DataError(f'{log}: calibration/egovehicle_SE3_sensor.feather should have one up_lidar, has {len(rows)}.')
    pose = {name: column[rows[0]] for name, column in columns.items()}
    return transforms.from_quaternion(
        [pose['tx_m'], pose['ty_m'], pose['tz_m']], [pose['qx'], pose['qy'], pose['qz'], pose['qw']]
    )
