# SPDX-License-Identifier: Apache-2.0
"""The layout of a street: its width, side roads, frontages, amount of traffic, and terrain."""

from dataclasses import dataclass

import numpy as np

from training.simulation.streets.roadside import Frontage
from training.simulation.streets.street_kinds import KINDS, StreetKind
from training.simulation.streets.terrain import S_RANGE, T_LIMIT, Block, Terrain


@dataclass(frozen=True)
class StreetLayout:
    """The choices made before objects are placed; sides are 1 (left, t > 0) and -1 (right).

    name, kind: a key of street_kinds.KINDS and its value.
    half_width: half the width of the road [m]. pavement: width [m] on each side.
    parked: whether vehicles are parked along the road, on each side.
    driving_side: side of the vehicles that drive in the ego vehicle's direction.
    clutter, busyness: relative amounts of objects and of traffic; busyness 0: no actor moves.
    frontages: appearance of each side.
    side_roads: (side, s [m], half width [m]) of each.
    blocks: the ground between the roads.
    terrain: the shape of the ground.
    """

    name: str
    kind: StreetKind
    half_width: float
    pavement: dict[int, float]
    parked: dict[int, bool]
    driving_side: int
    clutter: float
    busyness: float
    frontages: dict[int, Frontage]
    side_roads: list[tuple[int, float, float]]
    blocks: tuple[Block, ...]
    terrain: Terrain

    @staticmethod
    def random(rng: np.random.Generator) -> 'StreetLayout':
        """Return a random layout. Later choices depend on earlier ones."""
        weights = np.array([kind.weight for kind in KINDS.values()])
        name = str(rng.choice(list(KINDS), p=weights / weights.sum()))
        kind = KINDS[name]
        half_width = rng.uniform(*kind.half_width)
        pavement = {side: rng.uniform(*kind.pavement) for side in (-1, 1)}
        parked = {side: rng.random() < kind.parking and half_width > 3.2 for side in (-1, 1)}
        driving_side = -1 if rng.random() < 0.75 else 1  # right-hand traffic keeps to t < 0
        # Domain randomisation: the amount of objects, and whether any actor moves.
        clutter, busyness = rng.uniform(0.5, 1.6), 0.0 if rng.random() < 0.06 else rng.uniform(0.35, 1.4)
        frontages = {side: _frontage(rng, kind, clutter) for side in (-1, 1)}
        count = rng.integers(kind.side_roads[0], kind.side_roads[1] + 1)
        side_roads = [(side, s, rng.uniform(2.8, 5.5)) for side in (-1, 1) for s in _side_road_places(rng, count)]
        blocks = tuple(block for side in (-1, 1) for block in _blocks(side, half_width, side_roads))
        terrain = _terrain(rng, name, blocks, half_width + max(pavement.values()))
        return StreetLayout(
            name, kind, half_width, pavement, parked, driving_side, clutter, busyness, frontages, side_roads, blocks,
            terrain,
        )  # fmt: skip

    def lane_centers(self) -> list[tuple[float, int]]:
        """Return (t, direction) of every lane of the main road."""
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

    def parking_rows(self) -> tuple[list[float], list[float]]:
        """Return t of every row of parked cars on a car park, and of the aisle to the left of each."""
        rows, aisles = [], []
        t = -self.half_width + 2.6
        while t < self.half_width - 2:
            rows.append(t)
            aisles.append(t + 5.5)
            t += 11.0 if len(aisles) % 2 else 5.2
        return rows, aisles


def random_count(rng: np.random.Generator, limits: tuple[int, int], factor: float) -> int:
    """Return a random number of objects: between the limits, times `factor`."""
    return round(rng.uniform(*limits) * factor)


def _frontage(rng: np.random.Generator, kind: StreetKind, clutter: float) -> Frontage:
    return Frontage(
        building=str(rng.choice(kind.buildings)),
        built=rng.uniform(0.45, 0.97),
        setback=rng.uniform(*kind.setback),
        boundary=kind.boundary * rng.uniform(0.6, 1.2),
        greenery=kind.greenery * clutter * rng.uniform(0.6, 1.4),
        furniture=kind.furniture * clutter,
        tree_gap=rng.uniform(*kind.tree_gap),
        post_gap=rng.uniform(*kind.post_gap),
    )


def _side_road_places(rng: np.random.Generator, count: int) -> list[float]:
    places = []
    for s in rng.uniform(-35, 75, count):
        if all(abs(s - other) > 22 for other in places):
            places.append(float(s))
    return places


def _blocks(side: int, half_width: float, side_roads: list[tuple[int, float, float]]) -> list[Block]:
    edges = sorted((s - half, s + half) for at, s, half in side_roads if at == side)
    starts = [S_RANGE[0], *(end for _, end in edges)]
    ends = [*(start for start, _ in edges), S_RANGE[1]]
    t0, t1 = sorted((side * half_width, side * T_LIMIT))
    return [Block(s0, s1, t0, t1) for s0, s1 in zip(starts, ends, strict=True) if s1 - s0 > 1]


def _terrain(rng: np.random.Generator, name: str, blocks: tuple[Block, ...], pavement_end: float) -> Terrain:
    """Return the ground of a street of kind `name`; pavement_end: distance of the wider one from the road's middle."""
    is_straight = name in ('car_park', 'plaza') or rng.random() < 0.4
    bend = 0.0 if is_straight else rng.choice([-1, 1]) / rng.uniform(90, 500)
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
    bank = [rng.choice([0.0, rng.uniform(-0.06, 0.06), rng.uniform(0.05, 0.3)], p=[0.4, 0.4, 0.2]) for _ in range(2)]
    paved_to = T_LIMIT if name in ('urban', 'plaza') and rng.random() < 0.7 else 0.0
    return Terrain(
        curvature=bend,
        slope=rng.normal(0, 0.018, 2),
        waves=waves,
        blocks=blocks,
        curb=rng.choice([0.02, rng.uniform(0.06, 0.18)], p=[0.15, 0.85]),
        bank=tuple(bank),
        bank_start=pavement_end + 0.5,
        camber=rng.uniform(0, 0.025),
        roughness=(rng.uniform(0.002, 0.012), rng.uniform(0.01, 0.05)),
        soft_start=max(paved_to, pavement_end),
    )
