# SPDX-License-Identifier: Apache-2.0
"""The input of a teacher from a sweep pair, and the pseudo-label of all rows from its flow."""

import hashlib
from dataclasses import dataclass

import numpy as np

from training.datasets.pairs import DatasetPair, Times
from training.teachers.pseudo_label import PseudoLabel
from zeroflow_ros import transforms
from zeroflow_ros.errors import ConfigError, DataError
from zeroflow_ros.lidar.level import SensorLevel

_NEAR = 25.0  # m: ground points this near give the ground height if no plane can be fitted


@dataclass(frozen=True)
class Crop:
    """The box that a teacher sees: |x|, |y| < half_extent and z_min <= z < z_max [m], z = 0 on the vehicle's ground.

    Source: ZeroFlow labels 51.2 m and 3 m up and down of the vehicle frame of Argoverse, which is 0.3 m over ground.
    """

    half_extent: float = 51.2
    z_min: float = -3.0
    z_max: float = 3.0

    def __post_init__(self):
        if not (self.half_extent > 0 and self.z_min < self.z_max):
            raise ConfigError(f'A crop needs a positive half extent and z_min < z_max, got {self}.')

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Return which of points (N, 3) [m] are inside, (N,) bool; NaN is not."""
        x, y, z = points.T
        inside = (x >= -self.half_extent) & (x < self.half_extent) & (y >= -self.half_extent) & (y < self.half_extent)
        return inside & (z >= self.z_min) & (z < self.z_max)


@dataclass(frozen=True)
class TeacherInput:
    """A pair in the frame of its label, and the rows that the teacher labels.

    points0 (N, 3), points1 (M, 3): float32 [m] in ego0, z = 0 on the ground below the vehicle.
    is_ground0 (N,), is_ground1 (M,): bool. rows0, rows1: numbers of the rows to label. dt: seconds. times: of all
    points, see `DatasetPair`. input_sha256: checksum of the pair.
    """

    key: str
    points0: np.ndarray
    points1: np.ndarray
    is_ground0: np.ndarray
    is_ground1: np.ndarray
    rows0: np.ndarray
    rows1: np.ndarray
    dt: float
    times: Times | None
    input_sha256: str

    @property
    def clouds(self) -> tuple[np.ndarray, np.ndarray]:
        """The two clouds for the teacher: finite, without ground, inside the crop."""
        return self.points0[self.rows0], self.points1[self.rows1]

    def to_pseudo_label(self, flow0: np.ndarray, flow1: np.ndarray) -> PseudoLabel:
        """Return the label with the teacher's flow [m] of both clouds put back into full rows.

        Raises: DataError when the flow does not fit the clouds or is not finite.
        """
        full = []
        for flow, rows, is_ground in ((flow0, self.rows0, self.is_ground0), (flow1, self.rows1, self.is_ground1)):
            if flow.shape != (len(rows), 3) or not np.isfinite(flow).all():
                raise DataError(
                    f'{self.key}: the teacher should return finite flow of shape ({len(rows)}, 3), got {flow.shape} '
                    f'with {np.count_nonzero(~np.isfinite(flow))} values that are not finite.'
                )
            rows_of_all = np.full((len(is_ground), 3), np.nan, np.float32)
            rows_of_all[rows] = flow
            rows_of_all[is_ground] = 0.0
            full.append(rows_of_all)
        return PseudoLabel(
            self.key, self.points0, self.points1, *full, self.is_ground0, self.is_ground1, self.dt, self.input_sha256
        )


def teacher_input(item: DatasetPair, crop: Crop) -> TeacherInput:
    """Return both sweeps in ego0, shifted onto the ground, with the rows that a teacher labels.

    The crop is level, also where ego0 is not.

    Raises: DataError when there are points but the ground height cannot be estimated.
    """
    pair = item.pair
    clouds = [pair.points0.copy(), transforms.apply(pair.ego0_T_ego1, pair.points1)]
    finite = [np.isfinite(points).all(axis=1) for points in clouds]
    grounds = [flags & known for flags, known in zip((item.is_ground0, item.is_ground1), finite, strict=True)]
    ground_z, level_R_ego0 = _ground(np.concatenate(clouds), np.concatenate(grounds), item.key)
    rows = []
    for points, known, is_ground in zip(clouds, finite, grounds, strict=True):
        points[:, 2] -= np.float32(ground_z)
        points[~known] = np.nan
        rows.append(np.flatnonzero(crop.contains(transforms.apply(level_R_ego0, points)) & ~is_ground))
    return TeacherInput(item.key, *clouds, *grounds, *rows, pair.dt, item.times, checksum(item))


def checksum(item: DatasetPair) -> str:
    """Return the sha256 of all values of a pair; pairs with equal checksums get equal labels."""
    digest, pair = hashlib.sha256(), item.pair
    ego0_T_ego1 = np.asarray(pair.ego0_T_ego1, np.float64)
    for array in (pair.points0, pair.points1, ego0_T_ego1, np.float64(pair.dt), *(item.times or ())):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _ground(points: np.ndarray, is_ground: np.ndarray, key: str) -> tuple[float, np.ndarray]:
    """Return z [m] of the ground below the vehicle, by a plane, else the median of the ground points near it.

    The second item turns points (4, 4) so that the ground is level; identity for a tilt of slopes and springs.
    """
    level, level_R_points = SensorLevel().update(points), np.eye(4)
    if np.isfinite(level.height):
        level_R_points[:3, :3] = level.level_T_sensor[:3, :3]
        return -level.height / level.up[2], level_R_points  # along z of the points, down to the plane
    if np.isfinite(level.lowest):  # a filter removed the ground
        return -level.lowest, level_R_points
    near = is_ground & (np.hypot(points[:, 0], points[:, 1]) < _NEAR)
    if near.any():
        return float(np.median(points[near, 2])), level_R_points
    if np.isfinite(points).all(axis=1).any():
        raise DataError(
            f'{key}: the ground height below the vehicle cannot be estimated: {level.reason}, and no ground point '
            f'within {_NEAR:g} m. Check the sweep: z must point up, and the ground must be visible.'
        )
    return 0.0, level_R_points
