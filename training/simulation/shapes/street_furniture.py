# SPDX-License-Identifier: Apache-2.0
"""Shapes of street furniture: origin on the ground, x along the street, z up."""

import numpy as np

from training.simulation.shapes.mesh import Material, Mesh, box, ellipsoid, from_quads, join, loft, tube
from training.simulation.shapes.plants import bush


def waste_bin(rng: np.random.Generator) -> Mesh:
    """Return a wheeled bin, a litter bin or a large container."""
    kind = rng.random()
    if kind < 0.55:
        size = np.array([0.58, 0.7, 1.05]) * rng.uniform(0.9, 1.05)
        tilt = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
        rings = [
            np.column_stack([tilt * size[:2] * k, np.full(4, z)])
            for k, z in ((0.8, 0.06), (1, 0.9 * size[2]), (1.04, size[2]))
        ]
        return join([loft(rings, Material.DARK_PAINT), box([0.06, 0.5, 0.2], [0.26, 0, 0.1], Material.RUBBER)])
    if kind < 0.8:
        return tube([[0, 0, 0], [0, 0, rng.uniform(0.7, 1.1)]], rng.uniform(0.2, 0.3), Material.METAL, 10)
    size = [rng.uniform(1.2, 2.0), rng.uniform(0.9, 1.2), rng.uniform(1.1, 1.5)]
    return box(size, [0, 0, size[2] / 2], Material.DARK_PAINT)


def bench(rng: np.random.Generator) -> Mesh:
    """Return a park bench, with or without a back."""
    length = rng.uniform(1.4, 2.2)
    slats = [box([length, 0.1, 0.04], [0, y, 0.45], Material.BARK) for y in (-0.18, 0, 0.18)]
    if rng.random() < 0.7:
        slats += [box([length, 0.04, 0.1], [0, 0.25, z], Material.BARK) for z in (0.6, 0.78)]
    return join(
        [*slats, *[box([0.06, 0.45, 0.45], [side * 0.4 * length, 0, 0.22], Material.METAL) for side in (-1, 1)]]
    )


def cabinet(rng: np.random.Generator) -> Mesh:
    """Return a utility cabinet, ticket machine, mail box or planter on the pavement."""
    size = rng.uniform([0.35, 0.3, 0.6], [1.6, 0.5, 1.6])
    body = box(size, [0, 0, size[2] / 2], rng.choice([Material.METAL, Material.CONCRETE, Material.LIGHT_PAINT]))
    if size[2] < 0.9 and rng.random() < 0.6:
        return join([body, bush(rng).placed(0, 0, size[2] - 0.15, scale=0.6)])
    return body


def advertising_column(rng: np.random.Generator) -> Mesh:
    """Return a round or flat advertisement stand."""
    if rng.random() < 0.4:
        return tube([[0, 0, 0], [0, 0, 2.9]], 0.6, Material.CONCRETE, 14)
    parts = [
        box([0.15, 1.3, 1.8], [0, 0, 1.6], Material.LIGHT_PAINT),
        box([0.12, 0.3, 0.7], [0, 0, 0.35], Material.METAL),
    ]
    return join(parts).placed(0, 0, 0, rng.uniform(-0.6, 0.6))


def bus_shelter(rng: np.random.Generator) -> Mesh:
    """Return a bus shelter: glass back and side, roof on posts; open towards -y."""
    length, depth = rng.uniform(2.5, 5.0), rng.uniform(1.2, 1.7)
    posts = [
        tube([[x, y, 0], [x, y, 2.4]], 0.045, Material.METAL, 6)
        for x in (-length / 2, 0, length / 2)
        for y in (0, depth)
    ]
    panes = from_quads(
        [
            [[-length / 2, depth, 0.2], [length / 2, depth, 0.2], [length / 2, depth, 2.2], [-length / 2, depth, 2.2]],
            [[length / 2, 0.2, 0.2], [length / 2, depth, 0.2], [length / 2, depth, 2.2], [length / 2, 0.2, 2.2]],
        ],
        Material.GLASS,
    )
    seat = box([length * 0.7, 0.35, 0.06], [0, depth - 0.25, 0.48], Material.METAL)
    return join([*posts, panes, seat, box([length + 0.3, depth + 0.4, 0.12], [0, depth / 2, 2.45], Material.METAL)])


def cafe_table(rng: np.random.Generator) -> Mesh:
    """Return a table with chairs, some with a parasol."""
    parts = [
        tube([[0, 0, 0.7], [0, 0, 0.74]], 0.4, Material.METAL, 10),
        tube([[0, 0, 0], [0, 0, 0.7]], 0.04, Material.METAL),
    ]
    for angle in rng.permutation(4)[: rng.integers(2, 5)] * np.pi / 2 + rng.normal(0, 0.3):
        chair = join(
            [
                box([0.42, 0.42, 0.05], [0, 0, 0.45], Material.CLOTH),
                box([0.04, 0.42, 0.45], [0.2, 0, 0.68], Material.CLOTH),
                *[
                    tube([[x, y, 0], [x, y, 0.45]], 0.015, Material.METAL, 3)
                    for x in (-0.18, 0.18)
                    for y in (-0.18, 0.18)
                ],
            ]
        )
        parts.append(chair.placed(0.65 * np.cos(angle), 0.65 * np.sin(angle), 0, angle))
    if rng.random() < 0.35:
        parts += [
            tube([[0, 0, 0.7], [0, 0, 2.4]], 0.025, Material.METAL, 4),
            ellipsoid([0, 0, 2.3], [1.4, 1.4, 0.25], Material.CLOTH),
        ]
    return join(parts)


def cone(rng: np.random.Generator) -> Mesh:
    """Return a traffic cone or a striped barrier board."""
    if rng.random() < 0.6:
        height = rng.uniform(0.45, 0.9)
        return join(
            [
                tube([[0, 0, 0.03], [0, 0, height]], [0.15, 0.03], Material.RETRO, 8),
                box([0.38, 0.38, 0.04], [0, 0, 0.02], Material.RUBBER),
            ]
        )
    return join(
        [
            box([0.06, 1.6, 0.25], [0, 0, 0.95], Material.RETRO),
            *[box([0.5, 0.08, 1.0], [0, y, 0.5], Material.METAL) for y in (-0.7, 0.7)],
        ]
    )
