# SPDX-License-Identifier: Apache-2.0
"""Shapes of lamps, signs, signals and bollards: origin on the ground, x along the street, z up."""

import numpy as np

from training.simulation.shapes.mesh import Material, Mesh, box, join, loft, tube


def lamp_post(rng: np.random.Generator) -> Mesh:
    """Return a street lamp 4 to 10 m high with its arm towards +y."""
    height, reach = rng.uniform(4, 10), rng.uniform(0.0, 2.0)
    radius = rng.uniform(0.06, 0.12)
    parts = [
        tube([[0, 0, 0], [0, 0, height]], [radius, 0.6 * radius], Material.METAL, 8),
        box([2.6 * radius, 2.6 * radius, 0.9], [0, 0, 0.45], Material.METAL),
    ]
    parts.append(tube([[0, 0, height], [0, reach + 0.05, height + 0.2]], 0.04, Material.METAL, 4))
    parts.append(box([0.25, 0.7, 0.14], [0, reach + 0.2, height + 0.2], Material.METAL))
    if rng.random() < 0.25:
        parts.append(box([0.6, 0.03, 0.8], [0.35, 0, rng.uniform(2.3, 3.2)], Material.LIGHT_PAINT))
    return join(parts)


def traffic_sign(rng: np.random.Generator) -> Mesh:
    """Return one or two sign plates on a thin post that face along x."""
    height = rng.uniform(2.0, 3.2)
    parts = [tube([[0, 0, 0], [0, 0, height]], 0.032, Material.METAL, 6)]
    z = height - 0.35
    for _ in range(rng.integers(1, 3)):
        angle = np.arange(8) * np.pi / 4 if rng.random() < 0.6 else np.pi / 4 + np.arange(4) * np.pi / 2
        radius = rng.uniform(0.28, 0.45)
        plate = np.column_stack([0 * angle, radius * np.cos(angle), z + radius * np.sin(angle)])
        parts.append(loft([plate - [0.045, 0, 0], plate - [0.035, 0, 0]], Material.RETRO))
        z -= 0.75
    return join(parts).placed(0, 0, 0, rng.choice([0, np.pi]) + rng.normal(0, 0.15))


def traffic_light(rng: np.random.Generator) -> Mesh:
    """Return a traffic light on a post, some with an arm over the road (+y)."""
    parts = [
        tube([[0, 0, 0], [0, 0, 3.4]], 0.07, Material.METAL, 8),
        box([0.25, 0.3, 0.9], [0.1, 0, 2.7], Material.DARK_PAINT),
    ]
    if rng.random() < 0.4:
        reach = rng.uniform(3, 6)
        parts += [
            tube([[0, 0, 3.2], [0, 0, 5.8], [0, reach, 6.0]], [0.09, 0.09, 0.05], Material.METAL),
            box([0.3, 0.35, 1.0], [0, reach, 5.7], Material.DARK_PAINT),
        ]
    return join(parts)


def bollard(rng: np.random.Generator) -> Mesh:
    """Return a bollard 0.5 to 1.1 m high."""
    return tube([[0, 0, 0], [0, 0, rng.uniform(0.5, 1.1)]], rng.uniform(0.05, 0.14), Material.METAL, 8)


def gantry(rng: np.random.Generator, half_width: float) -> Mesh:
    """Return a sign gantry over a road that runs along x."""
    height = rng.uniform(5.5, 7.0)
    legs = [
        tube([[0, side * half_width, 0], [0, side * half_width, height]], 0.2, Material.METAL, 8) for side in (-1, 1)
    ]
    boards = [
        box([0.1, rng.uniform(2, 4), rng.uniform(1.5, 2.5)], [0, y, height + 0.3], Material.RETRO)
        for y in rng.uniform(-0.7, 0.7, 2) * half_width
    ]
    return join([*legs, *boards, box([0.5, 2 * half_width, 0.5], [0, 0, height], Material.METAL)])
