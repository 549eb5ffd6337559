# SPDX-License-Identifier: Apache-2.0
"""Road users of a street: parked and moving vehicles, cyclists, people, placed so that none overlap."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from training.simulation.sensors.lidar import Category
from training.simulation.shapes import vehicles
from training.simulation.shapes.cycles import cyclist
from training.simulation.shapes.mesh import Mesh
from training.simulation.shapes.people import pedestrian
from training.simulation.streets.actor_motion import (
    Occupancy,
    poses_on_path,
    resample,
    rounded_path,
    static_pose,
    travelled_distance,
)
from training.simulation.streets.terrain import Terrain

_NUM_VARIANTS = 300  # of each road user


@dataclass(frozen=True)
class Actor:
    """One road user.

    mesh: in its body frame (x forward, origin on the ground below the middle).
    category: a Category from CAR on.
    odom_T_body: (S, 4, 4), its pose at every sweep; all equal if it is static.
    """

    mesh: Mesh
    category: Category
    odom_T_body: np.ndarray

    @property
    def is_moving(self) -> bool:
        return bool((self.odom_T_body != self.odom_T_body[0]).any())


def random_shape(rng: np.random.Generator, category: Category, heavy: float = 0.0):
    """Return (mesh, size, category) of a random road user; heavy: probability of a van, lorry or bus for a CAR."""
    if category == Category.CAR and rng.random() < heavy:
        make = [vehicles.van, vehicles.truck, vehicles.bus][rng.choice(3, p=[0.55, 0.3, 0.15])]
        category = Category.OTHER_VEHICLE
    else:
        make = {
            Category.CAR: vehicles.car,
            Category.PEDESTRIAN: pedestrian,
            Category.CYCLIST: cyclist,
        }[category]
    return *_variant(make, int(rng.integers(_NUM_VARIANTS))), category


@cache
def _variant(make, index: int):
    """Return shape number `index` of the function `make`; a shape takes milliseconds, a street needs a hundred."""
    return make(np.random.default_rng(index))


class Traffic:
    """Places actors over `times` (S,) [s]. An actor that would collide with a placed object is not added."""

    def __init__(self, rng: np.random.Generator, terrain: Terrain, times: np.ndarray, occupancy: Occupancy):
        self.rng, self.terrain, self.times, self.occupancy = rng, terrain, times, occupancy
        self.actors: list[Actor] = []

    def place_static(self, shape, s: float, t: float, yaw: float, gap: float = 0.25) -> bool:
        """Place a static actor of `shape` (mesh, size, category) at road coordinates; return whether it was added."""
        mesh, size, category = shape
        pose = static_pose(self.terrain, s, t, yaw)
        if category in (Category.CAR, Category.OTHER_VEHICLE):
            pose = poses_on_path(
                self.terrain,
                np.array([[s, t], [s + np.cos(yaw), t + np.sin(yaw)]]),
                np.zeros(1),
                size[0],
                pitching=True,
            )[0]
        if not self.occupancy.reserve_body(pose[None], size, gap=gap):
            return False
        self.actors.append(Actor(mesh, category, np.broadcast_to(pose, (len(self.times), 4, 4)).copy()))
        return True

    def place_moving(
        self, shape, path: np.ndarray, speed: float, acceleration: float = 0.0, *, skip: float = 0.0
    ) -> bool:
        """Place an actor that starts at distance `skip` [m] of a path (P, 2) with `speed` [m/s].

        Returns whether it was added.
        """
        mesh, size, category = shape
        pitching = category in (Category.CAR, Category.OTHER_VEHICLE)
        distance = skip + travelled_distance(self.times, speed, acceleration, max(speed, 25.0))
        poses = poses_on_path(self.terrain, path, distance, size[0] if pitching else 1.0, pitching=pitching)
        if not self.occupancy.reserve_body(poses, size, gap=0.5 if pitching else 0.12):
            return False
        self.actors.append(Actor(mesh, category, poses))
        return True

    def add_vehicle(self, path: np.ndarray, speeds: tuple[float, float], heavy: float, *, skip: float) -> bool:
        """Add a vehicle on a path that cruises, accelerates, brakes, creeps or waits; arguments: see `place_moving`.

        speeds: range of the initial speed [m/s]. heavy: see `random_shape`.
        """
        rng = self.rng
        speed = rng.uniform(*speeds)
        behaviour = rng.choice(['cruise', 'accelerate', 'brake', 'creep', 'wait'], p=[0.46, 0.16, 0.16, 0.14, 0.08])
        acceleration = {'accelerate': rng.uniform(0.5, 2.5), 'brake': -rng.uniform(0.8, 4.0)}.get(behaviour, 0.0)
        speed = {'accelerate': speed * rng.uniform(0.1, 0.8), 'creep': rng.uniform(0.3, 2.0), 'wait': 0.0}.get(
            behaviour, speed
        )
        return self.place_moving(random_shape(rng, Category.CAR, heavy), path, speed, acceleration, skip=skip)

    def add_cyclist(self, path: np.ndarray, *, skip: float) -> bool:
        """Add a cyclist on a path; a few wait with a foot on the ground."""
        rng = self.rng
        speed = rng.choice(
            [0.0, rng.uniform(2.0, 4.0), rng.uniform(3.5, 6.5), rng.uniform(6.0, 8.0)], p=[0.08, 0.26, 0.52, 0.14]
        )
        return self.place_moving(
            random_shape(rng, Category.CYCLIST),
            self._wander(path, 0.15),
            speed,
            rng.choice([0, 0, rng.normal(0, 0.7)]),
            skip=skip,
        )

    def add_pedestrian_group(self, path: np.ndarray, *, skip: float, walking: float = 0.8) -> None:
        """Add one to four people who walk side by side along a path; with probability 1 - `walking` they stand."""
        rng = self.rng
        group = rng.choice([1, 2, 3, 4], p=[0.6, 0.26, 0.09, 0.05])
        speed = float(np.clip(rng.normal(1.3, 0.3), 0.5, 2.0)) if rng.random() < 0.95 else rng.uniform(2.0, 3.5)
        if rng.random() > walking:
            center = path[min(int(skip / 0.25), len(path) - 1)]
            for s, t in center + rng.normal(0, 0.55, (group, 2)):
                self.place_static(random_shape(rng, Category.PEDESTRIAN), s, t, rng.uniform(-np.pi, np.pi), gap=0.0)
            return
        step = path[-1] - path[0]
        aside = np.array([-step[1], step[0]]) / max(np.linalg.norm(step), 1e-9)
        path = self._wander(path, 0.2)
        for k in range(group):
            offset = aside * (0.65 * (k - (group - 1) / 2) + rng.normal(0, 0.05))
            own_speed = float(np.clip(speed + rng.normal(0, 0.04), 0.3, 3.5))
            shape = random_shape(rng, Category.PEDESTRIAN)
            self.place_moving(shape, path + offset, own_speed, skip=max(0.0, skip + rng.normal(0, 0.25)))

    def _wander(self, path: np.ndarray, amplitude: float) -> np.ndarray:
        """Return the path with a lateral sway of about `amplitude` [m] over some metres."""
        length = np.append(0, np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1)))
        along = np.gradient(path, axis=0)
        aside = np.column_stack([-along[:, 1], along[:, 0]]) / np.maximum(np.linalg.norm(along, axis=1), 1e-9)[:, None]
        sway = amplitude * self.rng.normal() * np.sin(length / self.rng.uniform(2, 8) + self.rng.uniform(0, 6))
        return path + aside * sway[:, None]


def along_road(t: float, s_from: float, s_to: float) -> np.ndarray:
    """Return the path (P, 2) along the road at constant t."""
    return resample([[s_from, t], [s_to, t]])


def turning_path(
    s_side: float, main_t: float, side_s: float, t_far: float, *, inwards: bool, s_near: float
) -> np.ndarray:
    """Return the path from the main road into a side road, or out of it (P, 2); all arguments in road coordinates [m].

    s_side, side_s: middle of the side road, and offset of the path from it. main_t: lane of the main road.
    s_near, t_far: ends of the path on the main road and on the side road.
    """
    points = [[s_near, main_t], [s_side + side_s, main_t], [s_side + side_s, t_far]]
    return rounded_path(points if inwards else points[::-1], 7.0)
