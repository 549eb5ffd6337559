# SPDX-License-Identifier: Apache-2.0
"""What moves, from a whole drive: where a ray has passed is free, and what stands in free space has come there."""

import os
from dataclasses import dataclass

import numpy as np

from training.datasets.pairs import DatasetPair, PairDataset
from training.teachers.dynamic_labels import NOT_ASKED, UNCLUSTERED, from_motion
from training.teachers.pseudo_label import PseudoLabel
from training.teachers.teacher_input import TeacherInput
from zeroflow_ros import transforms
from zeroflow_ros.errors import ConfigError, ModelError, ZeroFlowError


@dataclass(frozen=True)
class DufomapConfig:
    """Settings of DUFOMap.

    resolution: side of a voxel [m]. inflate_hits: a hit may be wrong by so much [m]. inflate_unknown: free space is at
    least so many voxels away from what is unknown. nearest, farthest: points between are looked at [m].
    sensor: x, y, z of the LiDAR in the frame of the sweeps, where its rays begin [m]; Argoverse 2: 1.35, 0, 1.64.
    pairs_of_a_map: one map is made of at most so many consecutive pairs.
    Source: SeFlow's label pass; it makes one map of each drive, of some 150 sweeps.
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
    """A DriveTeacher; see training/teachers/teacher.py. It says which points move, and not how.

    Bodies are moving points near to each other. SeFlow finds them by HDBSCAN, which is no better and takes 30 times as
    long. Source: DUFOMap (Duberg et al. 2024), by its package on PyPI; SeFlow for the use that is made of it.
    """

    name = 'dufomap'

    def __init__(self, config: DufomapConfig | None = None):
        self.config = config or DufomapConfig()
        self._new_map = _package()
        self._part: tuple[PairDataset, int] | None = None
        self._places: dict[int, tuple[object, np.ndarray]] = {}

    def label(self, points0, points1, dt, *, times=None):
        """Raise ConfigError: two clouds are no drive, and there is no flow."""
        raise ConfigError(
            'DUFOMap says which points of a drive move, and not how. Label drives with it (python3 -m training.label '
            '... --teacher dufomap) and train with strategy: seflow; for flow take another teacher.'
        )

    def label_in_drive(self, drive: PairDataset, index: int, item: DatasetPair, seen: TeacherInput) -> PseudoLabel:
        """Return the label of a pair of a drive; flow is 0 where a point stands and NaN where it moves."""
        seen_by, map_T_ego0 = self._place(drive, index)
        flows, labels = [], []
        for points, in_label, rows, is_ground, map_T_ego in (
            (item.pair.points0, seen.points0, seen.rows0, seen.is_ground0, map_T_ego0),
            (item.pair.points1, seen.points1, seen.rows1, seen.is_ground1, map_T_ego0 @ item.pair.ego0_T_ego1),
        ):
            inside, pose = self._from_sensor(points), self._sensor_pose(map_T_ego)
            near = np.flatnonzero(inside[1])
            moves = np.zeros(len(points), bool)
            moves[near] = seen_by.segment(inside[0][near], pose, True) > 0
            asked = np.zeros(len(points), bool)
            asked[np.intersect1d(rows, near)] = True
            moves &= asked
            dynamic = from_motion(in_label, moves, is_ground)
            dynamic[~asked & ~is_ground] = NOT_ASKED
            flow = np.full((len(points), 3), np.nan, np.float32)
            flow[(asked | is_ground) & (dynamic < UNCLUSTERED)] = 0
            flows.append(flow)
            labels.append(dynamic)
        return PseudoLabel(
            seen.key, seen.points0, seen.points1, *flows, seen.is_ground0, seen.is_ground1, seen.dt,
            seen.input_sha256, *labels,
        )  # fmt: skip

    def _place(self, drive: PairDataset, index: int) -> tuple[object, np.ndarray]:
        """Return the map that a pair is part of, and map_T_ego0; maps do not depend on what is asked in which order."""
        part = index // self.config.pairs_of_a_map
        if self._part is None or self._part[0] is not drive or self._part[1] != part:
            self._places.clear()
            first = part * self.config.pairs_of_a_map
            for run in self._runs(drive, range(first, min(first + self.config.pairs_of_a_map, len(drive)))):
                self._places.update(run)
            self._part = drive, part
        return self._places[index]

    def _runs(self, drive: PairDataset, indices: range):
        """Yield the places of pairs that follow each other without a gap, on a map of their own each time."""
        places, last, end, seen_by = {}, None, np.eye(4), None
        for index in indices:
            try:
                pair = drive[index].pair
            except ZeroFlowError:  # the job says so where it labels it
                last = None
                continue
            if last is None or not np.array_equal(last, pair.points0, equal_nan=True):
                if places:
                    yield _finished(seen_by, places)
                places, end, seen_by = {}, np.eye(4), self._map()
                self._add(seen_by, pair.points0, end)
            places[index] = seen_by, end
            last, end = pair.points1, end @ pair.ego0_T_ego1
            self._add(seen_by, last, end)
        if places:
            yield _finished(seen_by, places)

    def _map(self):
        config = self.config
        # With two threads a point now and then comes out otherwise the next time, for a sixth less time.
        made = self._new_map(config.resolution, config.inflate_hits, config.inflate_unknown, num_threads=1)
        made.setCluster(0, 20, 0.2)
        return made

    def _add(self, seen_by, points: np.ndarray, map_T_ego: np.ndarray) -> None:
        points, near = self._from_sensor(points)
        if near.any():
            seen_by.run(points[near], self._sensor_pose(map_T_ego), True)

    def _from_sensor(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return points (N, 3) as seen from the LiDAR, and which of them are looked at; NaN is not."""
        points = points - np.float32(self.config.sensor)
        distance = np.linalg.norm(points, axis=1)
        return points, (distance > self.config.nearest) & (distance < self.config.farthest)

    def _sensor_pose(self, map_T_ego: np.ndarray) -> np.ndarray:
        return map_T_ego @ transforms.yaw_translation(0.0, *self.config.sensor)


def _package():
    os.environ.setdefault('GLOG_minloglevel', '2')  # it is read when the package is imported
    try:
        from dufomap import dufomap
    except ImportError as error:
        raise ModelError(
            "The teacher dufomap needs the package dufomap, which is not installed. Run 'pip install dufomap', which "
            'has wheels for Python 3.8 to 3.12, or take another teacher, as rigid.'
        ) from error
    return dufomap


def _finished(seen_by, places: dict) -> dict:
    seen_by.oncePropagateCluster(if_propagate=True, if_cluster=True)
    return places
