# SPDX-License-Identifier: Apache-2.0
"""Kinds of street, each as ranges to draw one from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StreetKind:
    """Ranges (low, high) from which a street of one kind is drawn; lengths [m], speeds [m/s], counts per clip.

    weight: relative frequency.
    half_width: half the width of the road. pavement: width on either side. setback: from the pavement to the buildings.
    buildings: functions in shapes.buildings, one is drawn for each side; 'none': no buildings.
    boundary: share of plots with a hedge, wall or fence. greenery, furniture: relative amounts.
    tree_gap, post_gap: mean distance between street trees, and between lamps or signs.
    parking: share of road sides with parked cars.
    side_roads: number on either side.
    vehicles, walkers, riders: number of attempts to place one, besides parked vehicles; one that would collide with a
    placed object is not added.
    speed: of vehicles. heavy: share of vans, lorries and buses among them.
    """

    weight: float
    half_width: tuple[float, float]
    pavement: tuple[float, float]
    setback: tuple[float, float]
    buildings: tuple[str, ...]
    boundary: float
    greenery: float
    furniture: float
    tree_gap: tuple[float, float]
    post_gap: tuple[float, float]
    parking: float
    side_roads: tuple[int, int]
    vehicles: tuple[int, int]
    walkers: tuple[int, int]
    riders: tuple[int, int]
    speed: tuple[float, float]
    heavy: float = 0.12


KINDS: dict[str, StreetKind] = {
    'residential': StreetKind(
        weight=0.25,
        half_width=(3.0, 5.5),
        pavement=(1.2, 2.8),
        setback=(2.0, 9.0),
        buildings=('detached_house', 'detached_house', 'town_house'),
        boundary=0.75,
        greenery=1.2,
        furniture=0.6,
        tree_gap=(9, 60),
        post_gap=(18, 35),
        parking=0.75,
        side_roads=(0, 3),
        vehicles=(2, 8),
        walkers=(4, 16),
        riders=(2, 8),
        speed=(3, 11),
    ),
    'urban': StreetKind(
        weight=0.28,
        half_width=(4.5, 9.0),
        pavement=(2.2, 5.5),
        setback=(0.0, 2.5),
        buildings=('town_house',),
        boundary=0.25,
        greenery=0.6,
        furniture=1.5,
        tree_gap=(8, 300),
        post_gap=(10, 24),
        parking=0.6,
        side_roads=(0, 3),
        vehicles=(6, 18),
        walkers=(14, 45),
        riders=(4, 14),
        speed=(4, 14),
    ),
    'arterial': StreetKind(
        weight=0.14,
        half_width=(8.0, 13.0),
        pavement=(2.0, 5.0),
        setback=(1.0, 15.0),
        buildings=('town_house', 'warehouse', 'none'),
        boundary=0.4,
        greenery=1.0,
        furniture=0.8,
        tree_gap=(9, 50),
        post_gap=(14, 30),
        parking=0.15,
        side_roads=(0, 2),
        vehicles=(12, 26),
        walkers=(4, 16),
        riders=(2, 9),
        speed=(8, 20),
        heavy=0.2,
    ),
    'highway': StreetKind(
        weight=0.08,
        half_width=(9.0, 14.0),
        pavement=(1.0, 1.5),
        setback=(8.0, 25.0),
        buildings=('none', 'none', 'warehouse'),
        boundary=0.2,
        greenery=1.6,
        furniture=0.0,
        tree_gap=(250, 300),
        post_gap=(30, 60),
        parking=0.0,
        side_roads=(0, 0),
        vehicles=(14, 30),
        walkers=(0, 0),
        riders=(0, 0),
        speed=(16, 25),
        heavy=0.3,
    ),
    'car_park': StreetKind(
        weight=0.09,
        half_width=(18.0, 30.0),
        pavement=(1.0, 3.0),
        setback=(1.0, 12.0),
        buildings=('warehouse', 'town_house', 'none'),
        boundary=0.5,
        greenery=1.0,
        furniture=0.7,
        tree_gap=(8, 30),
        post_gap=(15, 30),
        parking=0.0,
        side_roads=(0, 1),
        vehicles=(3, 8),
        walkers=(6, 22),
        riders=(0, 5),
        speed=(1, 6),
    ),
    'plaza': StreetKind(
        weight=0.16,
        half_width=(7.0, 18.0),
        pavement=(1.5, 5.0),
        setback=(0.0, 6.0),
        buildings=('town_house', 'town_house', 'detached_house'),
        boundary=0.3,
        greenery=0.9,
        furniture=1.6,
        tree_gap=(7, 40),
        post_gap=(10, 30),
        parking=0.12,
        side_roads=(0, 2),
        vehicles=(2, 8),
        walkers=(18, 55),
        riders=(4, 16),
        speed=(1, 7),
    ),
}
