# SPDX-License-Identifier: Apache-2.0
"""Streets at random: the kind of place, its ground, what stands in it, who moves, and the ego vehicle's drive."""

from dataclasses import dataclass

import numpy as np

from training.datasets import actor_shapes, street_shapes
from training.datasets.lidar import Category
from training.datasets.mesh import Mesh
from training.datasets.motion import Occupancy, poses_on_path, resample, travelled
from training.datasets.roadside import Frontage, Roadside
from training.datasets.street_kinds import KINDS
from training.datasets.terrain import S_RANGE, T_LIMIT, Block, Terrain
from training.datasets.traffic import Actor, Traffic, along_road, shape_of, turning_path
from zeroflow_ros import transforms


@dataclass(frozen=True)
class Street:
    """One scene over the time of a clip.

    ground, background: static meshes in odom.
    actors: everyone but the ego vehicle.
    ego: the vehicle that carries the LiDAR; its body frame lies on the ground below the LiDAR.
    """

    kind: str
    ground: Mesh
    background: Mesh
    actors: tuple[Actor, ...]
    ego: Actor


def make_street(rng: np.random.Generator, times: np.ndarray, lidar_height: float) -> Street:
    """Return a random street over `times` (S,) [s] for a LiDAR `lidar_height` [m] above the ground."""
    return _Planner(rng, times, lidar_height).build()


class _Planner:
    """The choices of one street, in the order in which they depend on each other."""

    def __init__(self, rng: np.random.Generator, times: np.ndarray, lidar_height: float):
        self.rng, self.times, self.lidar_height = rng, times, lidar_height
        weights = np.array([kind.weight for kind in KINDS.values()])
        self.name = str(rng.choice(list(KINDS), p=weights / weights.sum()))
        self.kind = kind = KINDS[self.name]
        self.half_width = rng.uniform(*kind.half_width)
        self.pavement = {side: rng.uniform(*kind.pavement) for side in (-1, 1)}
        self.parked = {side: rng.random() < kind.parking and self.half_width > 3.2 for side in (-1, 1)}
        self.driving_side = -1 if rng.random() < 0.75 else 1  # right-hand traffic keeps to t < 0
        # Domain randomisation: how much of everything there is, and whether anybody moves at all.
        self.clutter, self.traffic = rng.uniform(0.5, 1.6), 0.0 if rng.random() < 0.06 else rng.uniform(0.35, 1.4)
        self.aisles: list[float] = []
        self.frontages = {side: self._frontage() for side in (-1, 1)}
        count = rng.integers(kind.side_roads[0], kind.side_roads[1] + 1)
        self.side_roads = [(side, s, rng.uniform(2.8, 5.5)) for side in (-1, 1) for s in self._side_road_places(count)]
        self.blocks = tuple(block for side in (-1, 1) for block in self._blocks(side))
        self.terrain = self._terrain()
        self.occupancy = Occupancy(len(times))
        self.actors = Traffic(rng, self.terrain, times, self.occupancy)
        driven = 20.0 * (times[-1] - times[0])  # at most, by the ego vehicle
        self.roadside = Roadside(rng, self.terrain, self.occupancy, (-55.0, 55.0 + driven))

    def build(self) -> Street:
        ego = self._ego()
        self._parked_vehicles()
        self._fronts()
        self._drives()
        self._lanes()
        self._side_traffic()
        self._riders()
        self._walkers()
        ground = self.terrain.mesh(self.rng, self.half_width)
        return Street(self.name, ground, self.roadside.mesh(), tuple(self.actors.actors), ego)

    def _frontage(self) -> Frontage:
        rng, kind = self.rng, self.kind
        return Frontage(
            building=str(rng.choice(kind.buildings)),
            built=rng.uniform(0.45, 0.97),
            setback=rng.uniform(*kind.setback),
            boundary=kind.boundary * rng.uniform(0.6, 1.2),
            greenery=kind.greenery * self.clutter * rng.uniform(0.6, 1.4),
            furniture=kind.furniture * self.clutter,
            tree_gap=rng.uniform(*kind.tree_gap),
            post_gap=rng.uniform(*kind.post_gap),
        )

    def _count(self, limits: tuple[int, int], factor: float) -> int:
        return round(self.rng.uniform(*limits) * factor)

    def _side_road_places(self, count: int) -> list[float]:
        places = []
        for s in self.rng.uniform(-35, 75, count):
            if all(abs(s - other) > 22 for other in places):
                places.append(float(s))
        return places

    def _blocks(self, side: int) -> list[Block]:
        edges = sorted((s - half, s + half) for at, s, half in self.side_roads if at == side)
        starts = [S_RANGE[0], *(end for _, end in edges)]
        ends = [*(start for start, _ in edges), S_RANGE[1]]
        t0, t1 = sorted((side * self.half_width, side * T_LIMIT))
        return [Block(s0, s1, t0, t1) for s0, s1 in zip(starts, ends, strict=True) if s1 - s0 > 1]

    def _terrain(self) -> Terrain:
        rng = self.rng
        bend = (
            0.0
            if self.name in ('car_park', 'plaza') or rng.random() < 0.4
            else rng.choice([-1, 1]) / rng.uniform(90, 500)
        )
        angle = rng.uniform(0, 2 * np.pi, 3)
        length = rng.uniform(35, 120, 3)
        waves = np.column_stack(
            [
                rng.uniform(0, 0.004, 3) * length,
                2 * np.pi / length * np.cos(angle),
                2 * np.pi / length * np.sin(angle),
                rng.uniform(0, 6, 3),
            ]
        )
        bank = [
            rng.choice([0.0, rng.uniform(-0.06, 0.06), rng.uniform(0.05, 0.3)], p=[0.4, 0.4, 0.2]) for _ in range(2)
        ]
        paved_to = T_LIMIT if self.name in ('urban', 'plaza') and rng.random() < 0.7 else 0.0
        return Terrain(
            curvature=bend,
            slope=rng.normal(0, 0.018, 2),
            waves=waves,
            blocks=self.blocks,
            curb=rng.choice([0.02, rng.uniform(0.06, 0.18)], p=[0.15, 0.85]),
            bank=tuple(bank),
            bank_start=self.half_width + max(self.pavement.values()) + 0.5,
            camber=rng.uniform(0, 0.025),
            roughness=(rng.uniform(0.002, 0.012), rng.uniform(0.01, 0.05)),
            soft_start=max(paved_to, self.half_width + max(self.pavement.values())),
        )

    def _lane_centers(self) -> list[tuple[float, int]]:
        """Return (t, direction) of every lane."""
        lanes = []
        for side in (-1, 1):
            free = self.half_width - 2.1 * self.parked[side]
            if self.name == 'highway':
                free -= 1.0  # hard shoulder
            count = max(1, int(free / 2.9))
            width = min(free / count, 3.8)
            inner = 0.8 if self.name == 'highway' else 0.0
            lanes += [
                (side * (inner + width * (k + 0.5)), 1 if side == self.driving_side else -1) for k in range(count)
            ]
        return lanes

    def _ego(self) -> Actor:
        rng, kind = self.rng, self.kind
        own = [t for t, direction in self._lane_centers() if direction > 0]
        t = float(rng.choice(own)) + rng.normal(0, 0.2)
        if self.name in ('car_park', 'plaza'):
            t = rng.uniform(-0.4, 0.4) * self.half_width
        path = along_road(t, -60.0, S_RANGE[1])
        skip, speed, acceleration = 60.0, rng.uniform(kind.speed[0], min(kind.speed[1] * 1.05, 20.0)), 0.0
        mood = rng.choice(['cruise', 'stand', 'brake', 'accelerate', 'turn'], p=[0.4, 0.2, 0.14, 0.12, 0.14])
        ahead = [(side, s, half) for side, s, half in self.side_roads if 6 < s < 40]
        if mood == 'turn' and ahead:
            side, s, half = ahead[rng.integers(len(ahead))]
            path = turning_path(s, t, rng.uniform(-0.3, 0.3) * half, side * T_LIMIT, inwards=True, s_near=-60.0)
            skip, speed = 60.0 + s - rng.uniform(4, 10), rng.uniform(2, 7)
        elif mood == 'stand':
            speed = 0.0
        elif mood == 'brake':
            acceleration = -rng.uniform(0.5, 5.0)
        elif mood == 'accelerate':
            speed, acceleration = speed * rng.uniform(0, 0.7), rng.uniform(0.5, 2.5)
        gone = travelled(self.times, speed, acceleration, 22.0)
        poses = poses_on_path(self.terrain, path, skip + gone, 4.5, pitching=True)
        # The body pitches and rolls on its springs: slow, small, and not at all while standing.
        sway = rng.normal(0, 0.0035, (2, 1)) * np.sin(gone / rng.uniform(3, 12, (2, 1)) + rng.uniform(0, 6, (2, 1)))
        nod = np.clip(-acceleration * 0.003, -0.01, 0.01) * (mood in ('brake', 'accelerate'))
        for pose, roll, pitch in zip(poses, *sway, strict=True):
            pose[:3, :3] = pose[:3, :3] @ transforms.rotation_matrix([roll, pitch + nod, 0])
        # Racks lift the LiDAR 0.35 to 0.9 m over the roof; the roof's middle is behind the body's.
        mesh, size = actor_shapes.car(rng, height=min(self.lidar_height - rng.uniform(0.35, 0.9), 1.65))
        mesh = mesh.placed(rng.uniform(0.1, 0.6), 0)
        self.occupancy.take_body(poses, (size[0] + 1.0, size[1] + 0.2))
        return Actor(mesh, Category.EGO, poses)

    def _parked_vehicles(self) -> None:
        rng = self.rng
        if self.name == 'car_park':
            return self._parking_rows()
        for side in (-1, 1):
            if not self.parked[side] and self.name != 'residential':
                continue
            fill = rng.uniform(0.35, 0.95) if self.parked[side] else 0.08
            across = rng.random() < 0.15 and self.pavement[side] > 3  # perpendicular bays beside the road
            onto = rng.choice([0.0, 0.5]) if not across else 0.0
            for block in (b for b in self.blocks if np.sign(b.t0 + b.t1) == side):
                s = max(block.s0, -75.0) + 5
                while s < min(block.s1, 115.0) - 5:
                    shape = shape_of(rng, Category.CAR, 0.1)
                    length, width = shape[1][:2]
                    if rng.random() < fill:
                        inset = length / 2 if across else width / 2 + 0.15 - onto
                        yaw = side * np.pi / 2 if across else rng.choice([0, np.pi], p=[0.85, 0.15])
                        self.actors.stand(
                            shape, s, side * (self.half_width - inset) + rng.normal(0, 0.06), yaw + rng.normal(0, 0.03)
                        )
                    s += (width + rng.uniform(0.6, 1.0)) if across else length + rng.uniform(0.5, 1.8)

    def _drives(self) -> None:
        """Park vehicles in front of houses, off the road, where there is room."""
        rng = self.rng
        for _ in range(self._count((0, 16), self.clutter) if self.name in ('residential', 'arterial', 'plaza') else 0):
            side = rng.choice([-1, 1])
            t = self.half_width + self.pavement[side] + rng.uniform(2.2, 5.0)
            yaw = side * np.pi / 2 + rng.normal(0, 0.1) + rng.choice([0, np.pi])
            self.actors.stand(shape_of(rng, Category.CAR, 0.05), rng.uniform(-50, 80), side * t, yaw)

    def _parking_rows(self) -> None:
        rng, fill = self.rng, self.rng.uniform(0.3, 0.95)
        t = -self.half_width + 2.6
        while t < self.half_width - 2:
            for s in np.arange(-60, 100, rng.uniform(2.5, 2.9)):
                if rng.random() < fill:
                    self.actors.stand(
                        shape_of(rng, Category.CAR, 0.05),
                        s,
                        t + rng.normal(0, 0.2),
                        rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.04),
                        gap=0.05,
                    )
            self.aisles.append(t + 5.5)
            t += 11.0 if len(self.aisles) % 2 else 5.2

    def _lanes(self) -> None:
        rng, kind = self.rng, self.kind
        lanes = self._lane_centers()
        if self.name == 'car_park':
            lanes = [(t, 1) for t in self.aisles] + [(t, -1) for t in self.aisles]
        for _ in range(self._count(kind.vehicles, self.traffic)):
            t, direction = lanes[rng.integers(len(lanes))]
            t = t + rng.normal(0, 0.2)
            path = along_road(t, -100.0 * direction, 140.0 * direction)
            self.actors.drive(path, kind.speed, kind.heavy, skip=rng.uniform(30, 190))

    def _side_traffic(self) -> None:
        rng = self.rng
        lanes = self._lane_centers()
        for side, s, half in self.side_roads:
            keep = -self.driving_side * side * half / 2  # own half of the side road for those who drive into it
            for _ in range(self._count((0, 3), self.traffic)):
                t, direction = lanes[rng.integers(len(lanes))]
                inwards = rng.random() < 0.5
                path = turning_path(
                    s,
                    t,
                    keep if inwards else -keep,
                    side * T_LIMIT,
                    inwards=inwards,
                    s_near=s - (50 if inwards else -50) * direction,
                )
                length = len(path) * 0.25
                self.actors.drive(path, (2, 8), 0.08, skip=rng.uniform(0.1, 0.8) * length)
            for t in np.arange(self.half_width + 8, T_LIMIT - 4, rng.uniform(5.5, 8)):
                if half > 3.5 and rng.random() < 0.45:
                    self.actors.stand(
                        shape_of(rng, Category.CAR, 0.08),
                        s + rng.choice([-1, 1]) * (half - 1.05),
                        side * t,
                        np.pi / 2 * rng.choice([-1, 1]),
                    )

    def _riders(self) -> None:
        rng, half = self.rng, self.half_width
        for _ in range(self._count(self.kind.riders, self.traffic)):
            direction = rng.choice([-1, 1])
            side = self.driving_side * direction
            if self.name in ('plaza', 'car_park'):
                t = rng.uniform(-half, half)
                path = resample([[rng.uniform(-45, 45), t], [rng.uniform(-45, 75), rng.uniform(-half, half)]])
                self.actors.ride(path, skip=rng.uniform(0, 0.5) * len(path) * 0.25)
                continue
            t = (
                side * (half - 0.6 - 2.0 * self.parked[side])
                if rng.random() < 0.7
                else side * (half + 0.6 * self.pavement[side])
            )
            self.actors.ride(along_road(t, -90 * direction, 120 * direction), skip=rng.uniform(30, 170))

    def _fronts(self) -> None:
        rng, road = self.rng, self.roadside
        for block in self.blocks:
            side = 1 if block.t0 > 0 else -1
            frontage = self.frontages[side]
            road.front(block, self.pavement[side], frontage)
            if block.s0 > S_RANGE[0]:
                road.side_front(block, self.pavement[side], frontage, at_end=False)
            if block.s1 < S_RANGE[1]:
                road.side_front(block, self.pavement[side], frontage, at_end=True)
        road.backdrop(self.half_width + 22, self.clutter)
        if self.name == 'highway':
            self._guard_rails()
        elif self.name in ('plaza', 'car_park'):
            half = self.half_width
            road.scatter((-40, 60), (-half, half), (9 if self.name == 'plaza' else 3) * self.clutter)
            for _ in range(self._count((0, 14), self.clutter)):
                road.plant(street_shapes.tree, rng.uniform(-40, 60), rng.uniform(-half, half), solid=0.35)
        elif self.half_width > 8 and rng.random() < 0.5:
            self._median()
        if rng.random() < 0.25:  # road works: cones, boards and a heap beside a lane
            s, t = rng.uniform(5, 40), rng.choice([-1, 1]) * (self.half_width - 0.8)
            for k in range(rng.integers(4, 12)):
                road.put(road.pick(street_shapes.cone), s + 1.8 * k, t + rng.normal(0, 0.15), solid=0.3)

    def _guard_rails(self) -> None:
        rng, road = self.rng, self.roadside
        places = [side * (self.half_width + 0.5) for side in (-1, 1)] + [0.0]
        for t in places:
            if rng.random() < 0.85:
                road.line(street_shapes.guard_rail, -100, 140, t, piece=12.0)
        if rng.random() < 0.4:
            side, height = rng.choice([-1, 1]), rng.uniform(2.0, 4.5)
            road.line(
                lambda length: street_shapes.wall(rng, length, height),
                -100,
                140,
                side * (self.half_width + 4),
                piece=12.0,
            )
        if rng.random() < 0.5:
            road.put(street_shapes.gantry(rng, self.half_width + 1.5), rng.uniform(15, 80), 0)
        for side in (-1, 1):
            for s in np.arange(-95, 135, rng.uniform(2.5, 9)):
                make = street_shapes.tree if rng.random() < 0.5 else street_shapes.bush
                road.plant(make, s, side * (self.half_width + rng.uniform(5, 16)))

    def _median(self) -> None:
        rng, road = self.rng, self.roadside
        if rng.random() < 0.5:
            height = rng.uniform(0.5, 1.1)
            road.line(lambda length: street_shapes.hedge(rng, length, height), -100, 140, 0.0)
        gap = rng.uniform(8, 20)
        for s in np.arange(-95, 135, gap):
            road.plant(street_shapes.tree, s, rng.normal(0, 0.1), solid=0.3)

    def _walkers(self) -> None:
        rng, half = self.rng, self.half_width
        walking = 0.0 if self.traffic == 0 else rng.uniform(0.6, 0.95)
        for _ in range(self._count(self.kind.walkers, max(self.traffic, 0.4))):
            direction, side = rng.choice([-1, 1], 2)
            width = self.pavement[side]
            place = rng.random()
            if self.name in ('plaza', 'car_park') and place < 0.7:
                start = rng.uniform([-30, -half], [45, half])
                end = start + rng.normal(0, 25, 2)
                self.actors.walk(resample([start, end]), skip=0.0, walking=walking)
            elif place < 0.15 and self.side_roads:
                at, s, road_half = self.side_roads[rng.integers(len(self.side_roads))]
                edge = s + direction * (road_half + 0.5 * width)
                path = resample([[edge, at * (half + 1)], [edge, at * T_LIMIT]][:: rng.choice([-1, 1])])
                self.actors.walk(path, skip=rng.uniform(0, 35), walking=walking)
            elif place < 0.33:  # crossing
                s = rng.uniform(-25, 45)
                path = resample([[s, -side * (half + 1.5)], [s + rng.normal(0, 3), side * (half + 1.5)]])
                self.actors.walk(path, skip=rng.uniform(0, 1.8 * half), walking=walking)
            else:
                t = half + rng.uniform(0.5, max(width - 0.35, 0.6))
                s = rng.uniform(-35, 60)
                self.actors.walk(along_road(side * t, s, s + 60 * direction), skip=0.0, walking=walking)
