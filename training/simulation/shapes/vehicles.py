# SPDX-License-Identifier: Apache-2.0
"""Shapes of cars, vans, lorries and buses: x forward, y left, z up, origin on the ground below the middle."""

import numpy as np

from training.simulation.shapes.bodywork import coach_body, greenhouse, lower_body, wheel_at
from training.simulation.shapes.mesh import Material, Mesh, box, join, tube


def car(rng: np.random.Generator, *, height: float | None = None) -> tuple[Mesh, np.ndarray]:
    """Return a car (hatchback, saloon, estate, SUV, pick-up or small van) and its length, width, height [m], (3,).

    height: of the car [m]; None: random.
    """
    kind = rng.choice(['hatchback', 'saloon', 'estate', 'suv', 'pickup', 'van'], p=[0.3, 0.22, 0.18, 0.17, 0.05, 0.08])
    length = {'hatchback': 4.0, 'saloon': 4.7, 'estate': 4.7, 'suv': 4.65, 'pickup': 5.3, 'van': 4.6}[kind]
    tall = {'hatchback': 1.48, 'saloon': 1.44, 'estate': 1.5, 'suv': 1.72, 'pickup': 1.8, 'van': 1.85}[kind]
    length *= rng.uniform(0.92, 1.08)
    height = tall * rng.uniform(0.95, 1.06) if height is None else height
    width = rng.uniform(1.68, 1.9) + 0.08 * (kind in ('suv', 'pickup', 'van'))
    front, rear = length / 2, -length / 2
    belt = height * rng.uniform(0.6, 0.66)
    bonnet = belt - rng.uniform(0.02, 0.14)
    screen_base = front - length * (rng.uniform(0.16, 0.2) if kind == 'van' else rng.uniform(0.23, 0.29))
    roof_front = screen_base - rng.uniform(0.45, 0.8)
    tail = {'hatchback': 0.03, 'saloon': 0.19, 'estate': 0.02, 'suv': 0.03, 'pickup': 0.36, 'van': 0.01}[kind] * length
    rear_base = rear + tail + 0.02
    rear_rake = {'hatchback': 0.45, 'saloon': 0.7, 'estate': 0.25, 'suv': 0.3, 'pickup': 0.15, 'van': 0.06}[kind]
    roof_rear = rear_base + rear_rake * rng.uniform(0.8, 1.2)
    wheel = rng.uniform(0.29, 0.34) + 0.04 * (kind in ('suv', 'pickup'))
    axles = np.array([front - rng.uniform(0.78, 0.95), rear + rng.uniform(0.7, 0.95)])
    paint = Material.LIGHT_PAINT if rng.random() < 0.55 else Material.DARK_PAINT
    size = np.array([length, width, height])
    top = np.array(
        [
            [front, bonnet - 0.25],
            [front - 0.12, bonnet - 0.08],
            [front - 0.5, bonnet],
            [screen_base, belt],
            [rear_base, belt],
            [rear + 0.06, belt - (0.08 if tail > 0.3 else 0.02)],
            [rear, belt - 0.15],
        ]
    )
    body = lower_body(size, top[::-1], axles, wheel, sill=rng.uniform(0.18, 0.26), paint=paint)
    cabin = greenhouse(
        width,
        belt,
        height,
        (screen_base, roof_front, roof_rear, rear_base),
        paint,
        rear_glass=kind != 'van' or rng.random() < 0.5,
    )
    wheels = [wheel_at(x, side * (width / 2 - 0.12), wheel, 0.2) for x in axles for side in (-1, 1)]
    mirrors = [
        box([0.12, 0.2, 0.13], [screen_base - 0.25, side * (width / 2 + 0.08), belt + 0.05], paint) for side in (-1, 1)
    ]
    plates = [box([0.02, 0.5, 0.11], [x, 0, 0.45], Material.RETRO) for x in (front + 0.01, rear - 0.01)]
    return join([body, cabin, *wheels, *mirrors, *plates]), size


def van(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """Return a delivery van or minibus and its length, width, height [m], (3,)."""
    size = np.array([rng.uniform(4.9, 6.6), rng.uniform(1.9, 2.1), rng.uniform(1.95, 2.75)])
    length, width, height = size
    front, rear = length / 2, -length / 2
    belt = rng.uniform(1.1, 1.3)
    wheel = rng.uniform(0.33, 0.37)
    axles = np.array([front - rng.uniform(0.85, 1.0), rear + rng.uniform(0.9, 1.3)])
    paint = Material.LIGHT_PAINT if rng.random() < 0.75 else Material.DARK_PAINT
    screen_base = front - rng.uniform(0.5, 0.9)
    top = np.array(
        [
            [rear, belt - 0.02],
            [rear + 0.05, belt],
            [screen_base, belt],
            [front - 0.2, belt - 0.15],
            [front - 0.05, belt - 0.3],
            [front, belt - 0.5],
        ]
    )
    body = lower_body(size, top, axles, wheel, sill=rng.uniform(0.25, 0.35), paint=paint)
    split = screen_base - rng.uniform(1.4, 1.8)
    cab = greenhouse(width, belt, height, (screen_base, screen_base - 0.55, split, split), paint, rear_glass=False)
    windows = rng.random() < 0.35
    load = greenhouse(
        width,
        belt,
        height,
        (split, split, rear + 0.1, rear + 0.03),
        paint,
        rear_glass=rng.random() < 0.5,
        side_glass=windows,
    )
    wheels = [wheel_at(x, side * (width / 2 - 0.13), wheel, 0.22) for x in axles for side in (-1, 1)]
    return join([body, cab, load, *wheels]), size


def truck(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """Return a rigid lorry (box body, flat bed, tank or skip) and its length, width, height [m], (3,)."""
    length, width = rng.uniform(6.5, 10.5), rng.uniform(2.2, 2.55)
    cab_length, cab_height, height = rng.uniform(1.7, 2.3), rng.uniform(2.5, 3.1), rng.uniform(2.9, 3.9)
    front, rear, deck = length / 2, -length / 2, rng.uniform(0.9, 1.15)
    paint = Material.LIGHT_PAINT if rng.random() < 0.6 else Material.DARK_PAINT
    cab_rear = front - cab_length
    parts = [
        coach_body(cab_rear, front, width, 0.45, cab_height, paint, window=(cab_height * 0.55, cab_height * 0.85)),
        box([length - 0.3, width * 0.4, 0.25], [0, 0, deck - 0.15], Material.METAL),
    ]
    bed = cab_rear - rng.uniform(0.2, 0.6)
    middle, bed_length = (bed + rear) / 2, bed - rear
    load = rng.choice(['box', 'flat', 'tank', 'skip'], p=[0.6, 0.15, 0.1, 0.15])
    parts.append(box([bed_length, width, 0.12], [middle, 0, deck], Material.METAL))
    if load == 'box':
        parts.append(box([bed_length, width, height - deck], [middle, 0, (deck + height) / 2], paint))
        ribs = np.arange(rear + 0.5, bed, rng.uniform(0.8, 1.5))
        parts += [
            box([0.06, width + 0.06, height - deck - 0.2], [x, 0, (deck + height) / 2], Material.METAL) for x in ribs
        ]
    elif load == 'tank':
        radius = min(width / 2, (height - deck) / 2)
        parts.append(tube([[rear, 0, deck + radius], [bed, 0, deck + radius]], radius, Material.METAL, sides=12))
    else:
        wall = rng.uniform(0.4, 1.4)
        parts += [box([bed_length, 0.06, wall], [middle, side * width / 2, deck + wall / 2], paint) for side in (-1, 1)]
        parts += [box([0.06, width, wall], [x, 0, deck + wall / 2], paint) for x in (rear, bed)]
        height = max(deck + wall, cab_height)
    axles = [front - 1.2, rear + rng.uniform(1.4, 2.2)] + ([rear + 0.9] if length > 8.5 else [])
    parts += [wheel_at(x, side * (width / 2 - 0.16), 0.48, 0.3) for x in axles for side in (-1, 1)]
    return join(parts), np.array([length, width, max(height, cab_height)])


def bus(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """Return a city bus and its length, width, height [m], (3,)."""
    length, width, height = rng.uniform(8.5, 13.0), rng.uniform(2.4, 2.6), rng.uniform(2.9, 3.4)
    paint = Material.LIGHT_PAINT if rng.random() < 0.6 else Material.DARK_PAINT
    parts = [coach_body(-length / 2, length / 2, width, 0.32, height, paint, window=(1.25, height - 0.5))]
    parts.append(box([length * 0.4, width * 0.7, 0.25], [-length * 0.1, 0, height + 0.1], paint))
    axles = [length / 2 - 2.6, -length / 2 + 3.0]
    parts += [wheel_at(x, side * (width / 2 - 0.12), 0.48, 0.28) for x in axles for side in (-1, 1)]
    return join(parts), np.array([length, width, height])
