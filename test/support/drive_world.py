# SPDX-License-Identifier: Apache-2.0
"""A small world of known geometry, for writers of data sets: a turning vehicle, walls, a car and a pedestrian.

It uses no code of the readers that are tested with it. Times are seconds from the start of the drive.
"""

from dataclasses import dataclass

import numpy as np

GROUND_Z = -0.05  # m: below all boxes
GROUND, WALL, CAR, PEDESTRIAN = range(4)


@dataclass(frozen=True)
class Mover:
    """A box that moves at constant velocity and yaw rate. start: x, y of its centre; size: length, width, height."""

    start: tuple[float, float]
    velocity: tuple[float, float]
    yaw: float
    yaw_rate: float
    size: tuple[float, float, float]

    def pose(self, time: float) -> np.ndarray:
        """Return world_T_box, (4, 4)."""
        x, y = np.array(self.start) + np.array(self.velocity) * time
        return pose(x, y, self.size[2] / 2, self.yaw + self.yaw_rate * time)

    def surface(self, count: int, seed: int) -> np.ndarray:
        """Return points (count, 3) on its sides, in its frame."""
        rng = np.random.default_rng(seed)
        points = rng.uniform(-0.49, 0.49, (count, 3)) * self.size
        side = rng.integers(0, 2, count)
        points[np.arange(count), side] = rng.choice([-0.49, 0.49], count) * np.array(self.size)[side]
        return points


THE_CAR = Mover((12.0, 3.0), (8.0, 0.5), 0.1, 0.3, (4.2, 1.8, 1.5))
THE_PEDESTRIAN = Mover((8.0, -4.0), (0.3, 1.2), 0.5, 0.0, (0.6, 0.6, 1.7))


def pose(x: float, y: float, z: float, yaw: float) -> np.ndarray:
    """Return the (4, 4) pose at x, y, z [m] with a heading [rad]."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0, x], [s, c, 0, y], [0, 0, 1, z], [0, 0, 0, 1.0]])


def moved(dst_T_src: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return points (N, 3) mapped from src to dst, float64."""
    return points @ dst_T_src[:3, :3].T + dst_T_src[:3, 3]


def quaternion_wxyz(yaw: float) -> list[float]:
    """Return the rotation about z by an angle [rad]."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


class DriveWorld:
    """The world; origin: of the drive in world coordinates [m]."""

    def __init__(self, origin: tuple[float, float] = (600.0, 1600.0)):
        rng = np.random.default_rng(0)
        ground = np.c_[rng.uniform(-25, 25, (2500, 2)), GROUND_Z + rng.normal(0, 0.01, 2500)]
        walls = np.c_[rng.uniform(-40, 40, 600), rng.choice([-12.0, 12.0], 600), rng.uniform(0.3, 4, 600)]
        self._static = np.concatenate([ground, walls])
        self._car, self._pedestrian = THE_CAR.surface(300, 1), THE_PEDESTRIAN.surface(80, 2)
        self.kind = np.repeat([GROUND, WALL, CAR, PEDESTRIAN], [2500, 600, 300, 80])
        self._world_T_local = pose(*origin, 0.0, 0.0)

    def ego_yaw(self, time: float) -> float:
        """Return the heading of the vehicle [rad]."""
        return 0.4 + 0.1 * time

    def world_T_ego(self, time: float) -> np.ndarray:
        """Return the pose of the vehicle, (4, 4)."""
        return self._world_T_local @ pose(6.0 * time, 0.2 * time, 0.0, self.ego_yaw(time))

    def box(self, mover: Mover, time: float) -> np.ndarray:
        """Return world_T_box, (4, 4)."""
        return self._world_T_local @ mover.pose(time)

    def points(self, time: float) -> np.ndarray:
        """Return all points at a time in the world, (N, 3) float64; rows are those of `kind`."""
        car, pedestrian = moved(THE_CAR.pose(time), self._car), moved(THE_PEDESTRIAN.pose(time), self._pedestrian)
        return moved(self._world_T_local, np.concatenate([self._static, car, pedestrian]))

    def in_ego(self, time: float) -> np.ndarray:
        """Return all points at a time in the frame of the vehicle, (N, 3) float64."""
        return moved(np.linalg.inv(self.world_T_ego(time)), self.points(time))

    def residual_flow(self, time: float, other: float) -> np.ndarray:
        """Return the motion of the points at `time` until `other`, ego motion removed, in the vehicle's frame."""
        return (self.points(other) - self.points(time)) @ self.world_T_ego(time)[:3, :3]
