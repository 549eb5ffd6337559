# SPDX-License-Identifier: Apache-2.0
"""Static objects beside a street: buildings, gardens, trees, posts, furniture, and a backdrop behind them."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from training.simulation.shapes import buildings, fences, plants, posts, street_furniture
from training.simulation.shapes.cycles import bicycle, motorcycle
from training.simulation.shapes.mesh import Mesh, join
from training.simulation.streets.actor_motion import Occupancy
from training.simulation.streets.terrain import T_LIMIT, Block, Terrain

_NUM_VARIANTS = 100  # of each plant and each piece of furniture


@dataclass(frozen=True)
class Frontage:
    """The appearance of one side of a street.

    building: 'town_house', 'detached_house', 'warehouse' or 'none'.
    built: share of plots with a building; the others are gardens, yards or lawns, some with a building far behind.
    setback: from the back of the pavement to the fronts [m].
    boundary: share of plots with a hedge, wall or fence at the back of the pavement.
    greenery, furniture: relative amounts; 1 is usual.
    tree_gap: mean distance between street trees [m].
    post_gap: mean distance between posts (lamps, signs) [m].
    """

    building: str
    built: float
    setback: float
    boundary: float
    greenery: float
    furniture: float
    tree_gap: float
    post_gap: float


@cache
def _variant(make, index: int) -> Mesh:
    """Return mesh number `index` of the shape function `make`; a mesh takes milliseconds, a street needs hundreds."""
    return make(np.random.default_rng(index))


class Roadside:
    """Collects static meshes in odom; solid ones reserve their ground, so that no actor is placed there.

    detail: (from, to) along the road [m]; gardens are planted only there, because others are too far to be seen.
    """

    def __init__(self, rng: np.random.Generator, terrain: Terrain, occupancy: Occupancy, detail: tuple[float, float]):
        self.rng, self.terrain, self.occupancy, self.detail = rng, terrain, occupancy, detail
        self._meshes: list[Mesh] = []
        # Species per street; their plants differ in rotation and scale.
        self._species = {
            make: rng.integers(_NUM_VARIANTS, size=count)
            for make, count in ((plants.tree, 6), (plants.conifer, 3), (plants.bush, 8))
        }

    def mesh(self) -> Mesh:
        """Return all objects as one mesh."""
        return join(self._meshes)

    def pieces(self) -> np.ndarray:
        """Return the number of the object that each triangle of `mesh` is part of, (T,) int32."""
        return np.repeat(np.arange(len(self._meshes), dtype=np.int32), [len(mesh) for mesh in self._meshes])

    def put(self, mesh: Mesh, s: float, t: float, yaw: float = 0.0, *, scale: float = 1.0, solid: float = 0.0) -> bool:
        """Put a mesh at road coordinates, rotated by `yaw` [rad] from the road, and return whether the ground is free.

        solid: radius of ground to reserve [m]; with 0 the mesh is always put.
        """
        xy = self.terrain.to_odom(s, t)
        if solid and not self.occupancy.reserve_if_free(xy[None, None], solid):
            return False
        z = float(self.terrain.height(s, t)) - 0.03
        self._meshes.append(mesh.placed(*xy, z, float(self.terrain.heading(s)) + yaw, scale))
        return True

    def random_variant(self, make) -> Mesh:
        """Return a random mesh of the shape function `make`."""
        return _variant(make, int(self.rng.integers(_NUM_VARIANTS)))

    def plant(self, make, s: float, t: float, *, solid: float = 0.0) -> None:
        """Put a plant; make: the shape function tree, conifer or bush."""
        mesh = _variant(make, int(self.rng.choice(self._species[make])))
        self.put(mesh, s, t, self.rng.uniform(0, 2 * np.pi), scale=self.rng.uniform(0.7, 1.25), solid=solid)

    def put_building(self, house: Mesh, length: float, s: float, t: float, yaw: float) -> None:
        """Put a building whose front, `length` [m] wide, is centred on (s, t), and reserve the ground of its front."""
        self.put(house, s, t, yaw)
        self._reserve_line(self.terrain.to_odom(s, t), float(self.terrain.heading(s)) + yaw, -length / 2, length / 2)

    def _reserve_line(self, start: np.ndarray, heading: float, first: float, last: float) -> None:
        along = np.arange(first, last + 0.8, 0.8)[:, None]
        self.occupancy.reserve((start + along * [np.cos(heading), np.sin(heading)])[None], 0.3)

    def put_line(self, make, s0: float, s1: float, t: float, *, piece: float = 6.0) -> None:
        """Put a fence or hedge along the road from s0 to s1, in pieces made by make(length) that follow a bend."""
        count = max(1, int(np.ceil((s1 - s0) / piece)))
        edges = np.linspace(s0, s1, count + 1)
        for a, b in pairwise(edges):
            start, end = self.terrain.to_odom(a, t), self.terrain.to_odom(b, t)
            heading, length = float(np.arctan2(*(end - start)[::-1])), float(np.linalg.norm(end - start))
            self.put(make(length), a, t, heading - float(self.terrain.heading(a)))
            self._reserve_line(start, heading, 0.0, length)

    def put_cross_line(self, make, s: float, t0: float, t1: float) -> None:
        """Put a fence or hedge across the plots, from t0 to t1 at constant s."""
        self.put(make(abs(t1 - t0)), s, t0, np.pi / 2 if t1 > t0 else -np.pi / 2)

    def add_frontage(self, block: Block, pavement: float, frontage: Frontage) -> None:
        """Fill a block along the main road: plots, each with a building or a gap, a boundary and a garden."""
        rng, side = self.rng, 1.0 if block.t0 > 0 else -1.0
        near = min(abs(block.t0), abs(block.t1)) + pavement
        s, end = max(block.s0, -100.0) + pavement, min(block.s1, 140.0) - pavement
        while s < end - 3:
            plot = rng.uniform(10, 26) if frontage.building != 'warehouse' else rng.uniform(18, 45)
            plot = min(plot, end - s)
            line = near + frontage.setback * rng.uniform(0.6, 1.4)
            has_building = frontage.building != 'none' and plot > 6 and rng.random() < frontage.built
            if has_building:
                gap = 0.0 if frontage.building == 'town_house' and rng.random() < 0.75 else rng.uniform(1.5, 5.0)
                width = max(plot - gap, 4.0)
                house = getattr(buildings, frontage.building)(rng, width)
                self.put_building(house, width, s + plot / 2, side * line, 0.0 if side > 0 else np.pi)
            if rng.random() < frontage.boundary and frontage.setback > 0.6:
                self.put_line(self._boundary_maker(), s, s + plot * rng.uniform(0.6, 0.95), side * near)
                if rng.random() < 0.5:
                    self.put_cross_line(self._boundary_maker(), s, side * near, side * line)
            elif not has_building and rng.random() < 0.3:
                self.put_line(self._boundary_maker(), s, s + plot, side * (near + rng.uniform(3, 12)))
            depth = line - near if has_building else rng.uniform(8, 25)
            if not has_building and rng.random() < 0.5:
                back = buildings.detached_house if rng.random() < 0.6 else buildings.town_house
                width = rng.uniform(8, 16)
                self.put_building(
                    back(rng, width), width, s + plot / 2, side * (near + depth + 1), 0.0 if side > 0 else np.pi
                )
            if depth > 0.8 and s + plot > self.detail[0] and s < self.detail[1]:
                self._plant_garden(s, s + plot, side, near + 0.3, near + depth, frontage.greenery)
            s += plot
        self._put_furniture(block, pavement, frontage)

    def add_side_road_frontage(self, block: Block, pavement: float, frontage: Frontage, at_end: bool) -> None:
        """Put buildings that face the side road at a block's start or end, or a hedge or fence."""
        rng, side = self.rng, 1.0 if block.t0 > 0 else -1.0
        s, inwards = (block.s1 - pavement, -1.0) if at_end else (block.s0 + pavement, 1.0)
        t = min(abs(block.t0), abs(block.t1)) + pavement + frontage.setback + 16
        for post in np.arange(t - 10, T_LIMIT, max(frontage.post_gap, 12.0)):
            lamp = self.random_variant(posts.lamp_post)
            self.put(lamp, s - inwards * (pavement - 0.5), side * post, np.pi / 2, solid=0.12)
        while t < T_LIMIT - 8:
            plot = rng.uniform(10, 20)
            if frontage.building != 'none' and rng.random() < 0.85:
                house = getattr(buildings, frontage.building)(rng, plot - rng.choice([0.0, 3.0]))
                self.put(house, s + inwards * frontage.setback, side * (t + plot / 2), -inwards * np.pi / 2)
            elif rng.random() < 0.5:
                self.put_cross_line(self._boundary_maker(), s, side * t, side * (t + plot))
            else:
                self.plant(plants.tree, s + inwards * rng.uniform(1, 4), side * (t + plot / 2))
            t += plot

    def add_backdrop(self, near: float, amount: float) -> None:
        """Put trees and large buildings far behind the fronts, where they are seen through gaps."""
        rng = self.rng
        for _ in range(int(40 * amount)):
            self.plant(plants.tree, rng.uniform(-90, 130), rng.choice([-1, 1]) * rng.uniform(near, T_LIMIT - 3))
        for _ in range(int(rng.integers(2, 7) * amount)):
            side = rng.choice([-1.0, 1.0])
            house = buildings.town_house(rng, rng.uniform(15, 40))
            self.put(
                house, rng.uniform(-90, 130), side * rng.uniform(max(near, 40), T_LIMIT), 0.0 if side > 0 else np.pi
            )

    def scatter_furniture(self, s_range, t_range, amount: float) -> None:
        """Put street furniture at random places of a rectangle in road coordinates; `amount` per 1000 m2."""
        rng = self.rng
        area = (s_range[1] - s_range[0]) * (t_range[1] - t_range[0])
        for _ in range(rng.poisson(amount * area / 1000)):
            self._put_furniture_piece(rng.uniform(*s_range), rng.uniform(*t_range), rng.uniform(-np.pi, np.pi))

    def _boundary_maker(self):
        rng = self.rng
        kind = rng.choice(['hedge', 'wall', 'railing', 'panel', 'wire'], p=[0.36, 0.24, 0.18, 0.14, 0.08])
        height = rng.uniform(0.6, 2.0)
        return {
            'hedge': lambda length: plants.hedge(rng, length, height),
            'wall': lambda length: fences.wall(rng, length, min(height, 1.6)),
            'railing': lambda length: fences.railing(rng, length, min(height, 1.4)),
            'panel': lambda length: fences.panel_fence(rng, length, max(height, 1.2)),
            'wire': lambda length: fences.mesh_fence(rng, length, max(height, 1.0)),
        }[kind]

    def _plant_garden(self, s0: float, s1: float, side: float, near: float, far: float, greenery: float) -> None:
        rng, area = self.rng, (s1 - s0) * (far - near)

        def anywhere():
            return rng.uniform(s0, s1), side * rng.uniform(near, max(far - 0.4, near + 0.1))

        for _ in range(min(rng.poisson(0.08 * area * greenery), 22)):
            self.plant(plants.bush, *anywhere())
        for make, density in ((plants.tree, 0.012), (plants.conifer, 0.008)):
            for _ in range(min(rng.poisson(density * area * greenery), 6)):
                self.plant(make, *anywhere(), solid=0.2)
        for _ in range(rng.poisson(0.4 * greenery)):
            bed = plants.tufts(rng, 60, rng.uniform(1, 4), min(1.5, far - near), rng.uniform(0.15, 0.5))
            self.put(bed, s0 + rng.uniform(0, 0.6) * (s1 - s0), side * near, 0.0 if side > 0 else -np.pi / 2)
        for _ in range(rng.poisson(0.5)):
            self.put(self.random_variant(street_furniture.waste_bin), *anywhere(), rng.uniform(0, 6), solid=0.4)

    def _put_furniture(self, block: Block, pavement: float, frontage: Frontage) -> None:
        rng, side = self.rng, 1.0 if block.t0 > 0 else -1.0
        curb = min(abs(block.t0), abs(block.t1))
        s0, s1 = max(block.s0, -100.0) + 2, min(block.s1, 140.0) - 2
        if s1 - s0 < 2:
            return
        to_road = np.pi if side > 0 else 0.0  # the front of a shape is at its +y
        s = s0 + rng.uniform(0, frontage.post_gap)
        while s < s1:
            make = posts.lamp_post if rng.random() < 0.45 else posts.traffic_sign
            self.put(self.random_variant(make), s, side * (curb + rng.uniform(0.3, 0.7)), to_road, solid=0.12)
            s += frontage.post_gap * rng.uniform(0.6, 1.5)
        if pavement > 1.7 and frontage.tree_gap < 200:
            s = s0 + rng.uniform(0, frontage.tree_gap)
            while s < s1:
                self.plant(plants.tree, s, side * (curb + rng.uniform(0.6, 1.1)), solid=0.3)
                s += frontage.tree_gap * rng.uniform(0.7, 1.4)
        for corner in (block.s0, block.s1):
            if -100 < corner < 140 and rng.random() < 0.5:
                inside = corner + (0.7 if corner == block.s0 else -0.7)
                self.put(self.random_variant(posts.traffic_light), inside, side * (curb + 0.6), to_road, solid=0.12)
        for _ in range(rng.poisson(0.09 * frontage.furniture * (s1 - s0))):
            at_curb = rng.random() < 0.5 or pavement < 1.5
            t = curb + (rng.uniform(0.3, 0.8) if at_curb else pavement - rng.uniform(0.2, 0.6))
            self._put_furniture_piece(rng.uniform(s0, s1), side * t, to_road)
        if rng.random() < 0.2 * frontage.furniture and s1 - s0 > 12:  # a row of bollards along the curb
            start = rng.uniform(s0, s1 - 10)
            post = self.random_variant(posts.bollard)
            for s in np.arange(start, start + 10, rng.uniform(1.3, 2.2)):
                self.put(post, s, side * (curb + 0.3), solid=0.15)
        if rng.random() < 0.12 * frontage.furniture and pavement > 2.2:
            self.put(
                self.random_variant(street_furniture.bus_shelter),
                rng.uniform(s0, s1),
                side * (curb + 0.7),
                0.0 if side > 0 else np.pi,
                solid=1.3,
            )

    def _put_furniture_piece(self, s: float, t: float, yaw: float) -> None:
        rng = self.rng
        makers = [
            street_furniture.waste_bin,
            posts.bollard,
            street_furniture.cabinet,
            street_furniture.bench,
            posts.traffic_sign,
            street_furniture.advertising_column,
            street_furniture.cafe_table,
            street_furniture.cone,
            plants.bush,
        ]
        kind = rng.choice(len(makers) + 1, p=[0.23, 0.13, 0.13, 0.07, 0.09, 0.03, 0.07, 0.05, 0.05, 0.15])
        if kind == len(makers):  # parked bicycles, alone or in a rack
            for k in range(rng.integers(1, 6)):
                mesh = self.random_variant(bicycle if rng.random() < 0.8 else motorcycle)
                self.put(mesh, s + 0.5 * k, t, np.pi / 2 + rng.normal(0, 0.2), solid=0.25)
            return
        self.put(self.random_variant(makers[kind]), s, t, yaw + rng.normal(0, 0.1), solid=0.3)
