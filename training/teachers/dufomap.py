# SPDX-License-Identifier: Apache-2.0
"""Dynamic points from a whole drive: space that a ray crossed is free, so a point in it has moved there."""

import os
from dataclasses import dataclass

import numpy as np

from training.datasets.pairs import DatasetPair, PairDataset
from training.teachers.dynamic_labels import NOT_LABELLED, UNCLUSTERED, from_motion
from training.teachers.pseudo_label import PseudoLabel
from training.teachers.teacher_input import TeacherInput
from zeroflow_ros import transforms
from zeroflow_ros.errors import ConfigError, ModelError, ZeroFlowError


@dataclass(frozen=True)
class DufomapConfig:
    """Settings of DUFOMap.

    resolution: side of a voxel [m]. inflate_hits: position error of a hit [m]. inflate_unknown: free space is at least
    this many voxels from unknown space. nearest, farthest: range of the points that are used [m].
    sensor: x, y, z of the LiDAR in the frame of the sweeps, the origin of its rays [m]; Argoverse 2: 1.35, 0, 1.64.
    pairs_of_a_map: most consecutive pairs in one map.
    Source: SeFlow's label pass, which makes one map per drive of some 150 sweeps.
    """

    resolution: float = 0.15
    inflate_hits: float = 0.2
    inflate_unknown: int = 1
    nearest: float = 2.0
    farthest: float = 50.0
    sensor: tuple[float, ...] = (0.0, 0.0, 0.0)
    pairs_of_a_map: int = 150

    def __post_init__(self):
        if not (self.resolution > 0 and 0 <= self.nearest < self.farthest and self.pairs_of_a_map > 0):
            raise ConfigError(f'dufomap needs resolution > 0, 0 <= nearest < farthest, pairs_of_a_map > 0, got {self}.')
        if min(self.inflate_hits, self.inflate_unknown) < 0 or len(self.sensor) != 3:
            raise ConfigError(f'dufomap needs inflate_hits, inflate_unknown >= 0 and sensor: [x, y, z], got {self}.')


class Dufomap:
    """A DriveTeacher; see training/teachers/teacher.py. It labels points as dynamic or static, without flow.

    Nearby dynamic points form a cluster. SeFlow clusters by HDBSCAN, which is no better and takes 30 times as long.
    Source: DUFOMap (Duberg et al. 2024), by its package on PyPI; SeFlow for its use in labelling.
    """

    name = 'dufomap'

    def __init__(self, config: DufomapConfig | None = None):
        self.config = config or DufomapConfig()
        self._new_map = _import_dufomap()
        self._part: tuple[PairDataset, int] | None = None
        self._maps: dict[int, tuple[object, np.ndarray]] = {}

    def label(self, points0, points1, dt, *, times=None):
        """Raise ConfigError: DUFOMap needs a whole drive and yields no flow."""
        raise ConfigError(
            'DUFOMap labels the dynamic points of a drive, without flow. Label drives with it (python3 -m '
            'training.label ... --teacher dufomap) and train with strategy: seflow; for flow take another teacher.'
        )

    def label_in_drive(self, drive: PairDataset, index: int, item: DatasetPair, seen: TeacherInput) -> PseudoLabel:
        """Return the label of a pair; flow is 0 for static points and NaN for dynamic ones."""
        occupancy_map, map_T_ego0 = self._map_of(drive, index)
        flows, labels = [], []
        for points, in_label, rows, is_ground, map_T_ego in (
            (item.pair.points0, seen.points0, seen.rows0, seen.is_ground0, map_T_ego0),
            (item.pair.points1, seen.points1, seen.rows1, seen.is_ground1, map_T_ego0 @ item.pair.ego0_T_ego1),
        ):
            inside, pose = self._from_sensor(points), self._sensor_pose(map_T_ego)
            near = np.flatnonzero(inside[1])
            moves = np.zeros(len(points), bool)
            moves[near] = occupancy_map.segment(inside[0][near], pose, True) > 0
            asked = np.zeros(len(points), bool)
            asked[np.intersect1d(rows, near)] = True
            moves &= asked
            dynamic = from_motion(in_label, moves, is_ground)
            dynamic[~asked & ~is_ground] = NOT_LABELLED
            flow = np.full((len(points), 3), np.nan, np.float32)
            flow[(asked | is_ground) & (dynamic < UNCLUSTERED)] = 0
            flows.append(flow)
            labels.append(dynamic)
        return PseudoLabel(
            seen.key, seen.points0, seen.points1, *flows, seen.is_ground0, seen.is_ground1, seen.dt,
            seen.input_sha256, *labels,
        )  # fmt: skip

    def _map_of(self, drive: PairDataset, index: int) -> tuple[object, np.ndarray]:
        """Return the map of a pair, and map_T_ego0; maps do not depend on the order of the calls."""
        part = index // self.config.pairs_of_a_map
        if self._part is None or self._part[0] is not drive or self._part[1] != part:
            self._maps.clear()
            first = part * self.config.pairs_of_a_map
            for run in self._runs(drive, range(first, min(first + self.config.pairs_of_a_map, len(drive)))):
                self._maps.update(run)
            self._part = drive, part
        return self._maps[index]

    def _runs(self, drive: PairDataset, indices: range):
        """Yield (map, map_T_ego0) by pair for each run of pairs without a gap; each run has its own map."""
        places, last, end, occupancy_map = {}, None, np.eye(4), None
        for index in indices:
            try:
                pair = drive[index].pair
            except ZeroFlowError:  # the label job reports it when it labels this pair
                last = None
                continue
            if last is None or not np.array_equal(last, pair.points0, equal_nan=True):
                if places:
                    yield _finished(occupancy_map, places)
                places, end, occupancy_map = {}, np.eye(4), self._map()
                self._add(occupancy_map, pair.points0, end)
            places[index] = occupancy_map, end
            last, end = pair.points1, end @ pair.ego0_T_ego1
            self._add(occupancy_map, last, end)
        if places:
            yield _finished(occupancy_map, places)

    def _map(self):
        config = self.config
        # Two threads save a sixth of the time, but the result is not reproducible.
        made = self._new_map(config.resolution, config.inflate_hits, config.inflate_unknown, num_threads=1)
        made.setCluster(0, 20, 0.2)
        return made

    def _add(self, occupancy_map, points: np.ndarray, map_T_ego: np.ndarray) -> None:
        points, near = self._from_sensor(points)
        if near.any():
            occupancy_map.run(points[near], self._sensor_pose(map_T_ego), True)

    def _from_sensor(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return points (N, 3) as seen from the LiDAR, and which of them are in range; NaN is not."""
        points = points - np.float32(self.config.sensor)
        distance = np.linalg.norm(points, axis=1)
        return points, (distance > self.config.nearest) & (distance < self.config.farthest)

    def _sensor_pose(self, map_T_ego: np.ndarray) -> np.ndarray:
        return map_T_ego @ transforms.yaw_translation(0.0, *self.config.sensor)


def _import_dufomap():
    os.environ.setdefault('GLOG_minloglevel', '2')  # it is read when the package is imported
    try:
        from dufomap import dufomap
    except ImportError as error:
        raise ModelError(
            "The teacher dufomap needs the package dufomap, which is not installed. Run 'pip install dufomap', which "
            'has wheels for Python 3.8 to 3.12, or use another teacher, such as rigid.'
        ) from error
    return dufomap


def _finished(occupancy_map, places: dict) -> dict:
    occupancy_map.oncePropagateCluster(if_propagate=True, if_cluster=True)
    return places
