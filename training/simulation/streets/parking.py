# SPDX-License-Identifier: Apache-2.0
"""Parked vehicles: along the curb, in perpendicular bays, in rows on a car park, in front of houses."""

import numpy as np

from training.simulation.sensors.lidar import Category
from training.simulation.streets.street_layout import StreetLayout, random_count
from training.simulation.streets.traffic import Traffic, random_shape


def park_vehicles(rng: np.random.Generator, layout: StreetLayout, traffic: Traffic) -> None:
    """Park vehicles along the main road, or in rows where the street is a car park."""
    if layout.name == 'car_park':
        _park_in_rows(rng, layout, traffic)
        return
    for side in (-1, 1):
        if layout.parked[side] or layout.name == 'residential':
            _park_along(rng, layout, traffic, side)


def park_at_houses(rng: np.random.Generator, layout: StreetLayout, traffic: Traffic) -> None:
    """Park vehicles in front of houses, off the road, where the ground is free."""
    has_drives = layout.name in ('residential', 'arterial', 'plaza')
    for _ in range(random_count(rng, (0, 16), layout.clutter) if has_drives else 0):
        side = rng.choice([-1, 1])
        t = layout.half_width + layout.pavement[side] + rng.uniform(2.2, 5.0)
        yaw = side * np.pi / 2 + rng.normal(0, 0.1) + rng.choice([0, np.pi])
        traffic.place_static(random_shape(rng, Category.CAR, 0.05), rng.uniform(-50, 80), side * t, yaw)


def _park_along(rng: np.random.Generator, layout: StreetLayout, traffic: Traffic, side: int) -> None:
    """Park vehicles along one side of the main road, parallel to it or in perpendicular bays."""
    fill = rng.uniform(0.35, 0.95) if layout.parked[side] else 0.08
    across = rng.random() < 0.15 and layout.pavement[side] > 3  # perpendicular bays beside the road
    on_pavement = rng.choice([0.0, 0.5]) if not across else 0.0  # m of the vehicle's width
    for block in (b for b in layout.blocks if np.sign(b.t0 + b.t1) == side):
        s = max(block.s0, -75.0) + 5
        while s < min(block.s1, 115.0) - 5:
            shape = random_shape(rng, Category.CAR, 0.1)
            length, width = shape[1][:2]
            if rng.random() < fill:
                inset = length / 2 if across else width / 2 + 0.15 - on_pavement
                yaw = side * np.pi / 2 if across else rng.choice([0, np.pi], p=[0.85, 0.15])
                t = side * (layout.half_width - inset) + rng.normal(0, 0.06)
                traffic.place_static(shape, s, t, yaw + rng.normal(0, 0.03))
            s += (width + rng.uniform(0.6, 1.0)) if across else length + rng.uniform(0.5, 1.8)


def _park_in_rows(rng: np.random.Generator, layout: StreetLayout, traffic: Traffic) -> None:
    fill = rng.uniform(0.3, 0.95)
    rows, _ = layout.parking_rows()
    for row in rows:
        for s in np.arange(-60, 100, rng.uniform(2.5, 2.9)):
            if rng.random() < fill:
                shape, t = random_shape(rng, Category.CAR, 0.05), row + rng.normal(0, 0.2)
                traffic.place_static(shape, s, t, rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.04), gap=0.05)
