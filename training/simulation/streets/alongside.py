# SPDX-License-Identifier: Apache-2.0
"""Large vehicles close beside the ego vehicle: buses and lorries that fill a third of a sweep."""

import numpy as np

from training.simulation.sensors.lidar import Category
from training.simulation.shapes import vehicles
from training.simulation.streets.street_layout import StreetLayout
from training.simulation.streets.traffic import Actor, Traffic, along_road

_TRIES = 12
_EGO_HALF_WIDTH = 1.0  # m


def drive_alongside(rng: np.random.Generator, layout: StreetLayout, traffic: Traffic, ego: Actor) -> None:
    """Place one or two large vehicles 0.6 to 2.5 m beside the ego vehicle, at most one on each side.

    Half of them drive at nearly its speed; the others overtake or are overtaken, come towards it, or stand still. If no
    free place is found in some tries, the side stays empty.
    """
    ego_s, ego_t = _road_coordinates(layout, ego.odom_T_body[0, :2, 3])
    duration = traffic.times[-1] - traffic.times[0]
    distance = np.linalg.norm(ego.odom_T_body[-1, :2, 3] - ego.odom_T_body[0, :2, 3])
    ego_speed = distance / duration if duration else 0.0
    sides = rng.permutation([-1, 1])[: rng.choice([1, 2], p=[0.7, 0.3])]
    for side in sides:
        for _ in range(_TRIES):
            make = vehicles.truck if rng.random() < 0.4 else vehicles.bus
            mesh, size = make(rng)
            t = ego_t + side * (_EGO_HALF_WIDTH + rng.uniform(0.6, 2.5) + size[1] / 2)
            s = ego_s + rng.uniform(-8, 8)
            kind = rng.choice(['with', 'faster_or_slower', 'towards', 'static'], p=[0.5, 0.2, 0.15, 0.15])
            speed = {
                'with': max(0.0, ego_speed + rng.normal(0, 1.0)),
                'faster_or_slower': max(0.0, ego_speed + rng.uniform(-6, 6)),
                'towards': rng.uniform(2, 12),
                'static': 0.0,
            }[kind]
            direction = -1 if kind == 'towards' else 1
            path = along_road(t, s, s + direction * 150.0)
            acceleration = rng.choice([0.0, rng.normal(0, 0.8)])
            if traffic.place_moving((mesh, size, Category.OTHER_VEHICLE), path, speed, acceleration):
                break


def _road_coordinates(layout: StreetLayout, xy: np.ndarray) -> tuple[float, float]:
    """Return (s, t) [m] of a place near the road's origin, by search on a grid of 0.1 m."""
    s, t = np.meshgrid(np.arange(-30, 60, 0.1), np.arange(-20, 20, 0.1), indexing='ij')
    nearest = np.argmin(((layout.terrain.to_odom(s, t) - xy) ** 2).sum(axis=-1))
    return float(s.flat[nearest]), float(t.flat[nearest])
