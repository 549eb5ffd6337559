# SPDX-License-Identifier: Apache-2.0
"""Routes of the traffic: vehicles in lanes and into side roads, cyclists, people; and vehicles parked at side roads.

These functions draw places and paths. Traffic draws the motion along them, and adds no actor that would collide.
"""

import numpy as np

from training.simulation.sensors.lidar import Category
from training.simulation.streets.actor_motion import resample
from training.simulation.streets.street_layout import StreetLayout, random_count
from training.simulation.streets.terrain import T_LIMIT
from training.simulation.streets.traffic import Traffic, along_road, random_shape, turning_path


def add_lane_traffic(rng: np.random.Generator, layout: StreetLayout, traffic: Traffic) -> None:
    """Add vehicles in the lanes of the main road, or in the aisles of a car park."""
    lanes = layout.lane_centers()
    if layout.name == 'car_park':
        _, aisles = layout.parking_rows()
        lanes = [(t, 1) for t in aisles] + [(t, -1) for t in aisles]
    for _ in range(random_count(rng, layout.kind.vehicles, layout.busyness)):
        t, direction = lanes[rng.integers(len(lanes))]
        t = t + rng.normal(0, 0.2)
        path = along_road(t, -100.0 * direction, 140.0 * direction)
        traffic.add_vehicle(path, layout.kind.speed, layout.kind.heavy, skip=rng.uniform(30, 190))


def add_side_road_traffic(rng: np.random.Generator, layout: StreetLayout, traffic: Traffic) -> None:
    """Add vehicles that turn into side roads and out of them, and park others there."""
    lanes = layout.lane_centers()
    for side, s, half in layout.side_roads:
        inward_lane = -layout.driving_side * side * half / 2  # offset from the middle, for vehicles that drive into it
        for _ in range(random_count(rng, (0, 3), layout.busyness)):
            t, direction = lanes[rng.integers(len(lanes))]
            inwards = rng.random() < 0.5
            path = turning_path(
                s,
                t,
                inward_lane if inwards else -inward_lane,
                side * T_LIMIT,
                inwards=inwards,
                s_near=s - (50 if inwards else -50) * direction,
            )
            length = len(path) * 0.25
            traffic.add_vehicle(path, (2, 8), 0.08, skip=rng.uniform(0.1, 0.8) * length)
        for t in np.arange(layout.half_width + 8, T_LIMIT - 4, rng.uniform(5.5, 8)):
            if half > 3.5 and rng.random() < 0.45:
                shape = random_shape(rng, Category.CAR, 0.08)
                at = s + rng.choice([-1, 1]) * (half - 1.05)
                traffic.place_static(shape, at, side * t, np.pi / 2 * rng.choice([-1, 1]))


def add_cyclists(rng: np.random.Generator, layout: StreetLayout, traffic: Traffic) -> None:
    """Add cyclists along the edge of the road or on the pavement, or anywhere on a plaza or car park."""
    half = layout.half_width
    for _ in range(random_count(rng, layout.kind.riders, layout.busyness)):
        direction = rng.choice([-1, 1])
        side = layout.driving_side * direction
        if layout.name in ('plaza', 'car_park'):
            t = rng.uniform(-half, half)
            path = resample([[rng.uniform(-45, 45), t], [rng.uniform(-45, 75), rng.uniform(-half, half)]])
            traffic.add_cyclist(path, skip=rng.uniform(0, 0.5) * len(path) * 0.25)
            continue
        on_road, on_pavement = half - 0.6 - 2.0 * layout.parked[side], half + 0.6 * layout.pavement[side]
        t = side * (on_road if rng.random() < 0.7 else on_pavement)
        traffic.add_cyclist(along_road(t, -90 * direction, 120 * direction), skip=rng.uniform(30, 170))


def add_pedestrians(rng: np.random.Generator, layout: StreetLayout, traffic: Traffic) -> None:
    """Add people on pavements, at side roads and crossing the road, or anywhere on a plaza or car park."""
    half = layout.half_width
    walking = 0.0 if layout.busyness == 0 else rng.uniform(0.6, 0.95)
    for _ in range(random_count(rng, layout.kind.walkers, max(layout.busyness, 0.4))):
        direction, side = rng.choice([-1, 1], 2)
        width = layout.pavement[side]
        route = rng.random()
        if layout.name in ('plaza', 'car_park') and route < 0.7:
            start = rng.uniform([-30, -half], [45, half])
            end = start + rng.normal(0, 25, 2)
            traffic.add_pedestrian_group(resample([start, end]), skip=0.0, walking=walking)
        elif route < 0.15 and layout.side_roads:
            at, s, road_half = layout.side_roads[rng.integers(len(layout.side_roads))]
            edge = s + direction * (road_half + 0.5 * width)
            path = resample([[edge, at * (half + 1)], [edge, at * T_LIMIT]][:: rng.choice([-1, 1])])
            traffic.add_pedestrian_group(path, skip=rng.uniform(0, 35), walking=walking)
        elif route < 0.33:  # crossing
            s = rng.uniform(-25, 45)
            path = resample([[s, -side * (half + 1.5)], [s + rng.normal(0, 3), side * (half + 1.5)]])
            traffic.add_pedestrian_group(path, skip=rng.uniform(0, 1.8 * half), walking=walking)
        else:
            t = half + rng.uniform(0.5, max(width - 0.35, 0.6))
            s = rng.uniform(-35, 60)
            traffic.add_pedestrian_group(along_road(side * t, s, s + 60 * direction), skip=0.0, walking=walking)
