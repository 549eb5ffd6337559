# SPDX-License-Identifier: Apache-2.0
"""The static scenery of a street: its frontages, and the objects of its kind (guard rails, a median, furniture)."""

import numpy as np

from training.simulation.shapes.fences import guard_rail, wall
from training.simulation.shapes.plants import bush, hedge, tree
from training.simulation.shapes.posts import gantry
from training.simulation.shapes.street_furniture import cone
from training.simulation.streets.roadside import Roadside
from training.simulation.streets.street_layout import StreetLayout, random_count
from training.simulation.streets.terrain import S_RANGE


def add_scenery(rng: np.random.Generator, layout: StreetLayout, road: Roadside) -> None:
    """Put all static objects beside the road and on it."""
    for block in layout.blocks:
        side = 1 if block.t0 > 0 else -1
        pavement, frontage = layout.pavement[side], layout.frontages[side]
        road.add_frontage(block, pavement, frontage)
        if block.s0 > S_RANGE[0]:
            road.add_side_road_frontage(block, pavement, frontage, at_end=False)
        if block.s1 < S_RANGE[1]:
            road.add_side_road_frontage(block, pavement, frontage, at_end=True)
    road.add_backdrop(layout.half_width + 22, layout.clutter)
    if layout.name == 'highway':
        _add_highway_scenery(rng, layout.half_width, road)
    elif layout.name in ('plaza', 'car_park'):
        half = layout.half_width
        road.scatter_furniture((-40, 60), (-half, half), (9 if layout.name == 'plaza' else 3) * layout.clutter)
        for _ in range(random_count(rng, (0, 14), layout.clutter)):
            road.plant(tree, rng.uniform(-40, 60), rng.uniform(-half, half), solid=0.35)
    elif layout.half_width > 8 and rng.random() < 0.5:
        _plant_median(rng, road)
    if rng.random() < 0.25:  # road works: cones and barrier boards beside a lane
        s, t = rng.uniform(5, 40), rng.choice([-1, 1]) * (layout.half_width - 0.8)
        for k in range(rng.integers(4, 12)):
            road.put(road.random_variant(cone), s + 1.8 * k, t + rng.normal(0, 0.15), solid=0.3)


def _add_highway_scenery(rng: np.random.Generator, half_width: float, road: Roadside) -> None:
    """Put guard rails, plants behind them, and in some streets a noise barrier and a gantry."""
    rails = [side * (half_width + 0.5) for side in (-1, 1)] + [0.0]
    for t in rails:
        if rng.random() < 0.85:
            road.put_line(guard_rail, -100, 140, t, piece=12.0)
    if rng.random() < 0.4:
        side, height = rng.choice([-1, 1]), rng.uniform(2.0, 4.5)
        road.put_line(lambda length: wall(rng, length, height), -100, 140, side * (half_width + 4), piece=12.0)
    if rng.random() < 0.5:
        road.put(gantry(rng, half_width + 1.5), rng.uniform(15, 80), 0)
    for side in (-1, 1):
        for s in np.arange(-95, 135, rng.uniform(2.5, 9)):
            make = tree if rng.random() < 0.5 else bush
            road.plant(make, s, side * (half_width + rng.uniform(5, 16)))


def _plant_median(rng: np.random.Generator, road: Roadside) -> None:
    """Plant a row of trees between the two directions, in some streets with a hedge."""
    if rng.random() < 0.5:
        height = rng.uniform(0.5, 1.1)
        road.put_line(lambda length: hedge(rng, length, height), -100, 140, 0.0)
    gap = rng.uniform(8, 20)
    for s in np.arange(-95, 135, gap):
        road.plant(tree, s, rng.normal(0, 0.1), solid=0.3)
