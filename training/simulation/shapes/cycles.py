# SPDX-License-Identifier: Apache-2.0
"""Shapes of bicycles, motorcycles and their riders: x forward, y left, z up, origin on the ground below the middle."""

import numpy as np

from training.simulation.shapes.mesh import Material, Mesh, box, ellipsoid, join, tube
from training.simulation.shapes.people import pedestrian


def cyclist(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """Return a rider on a bicycle, e-scooter or motorcycle, and its length, width, height [m], (3,)."""
    kind = rng.choice(['bicycle', 'motorcycle', 'scooter'], p=[0.75, 0.15, 0.1])
    if kind == 'scooter':
        rider, size = pedestrian(rng)
        board = [
            box([1.0, 0.14, 0.08], [0.1, 0, 0.12], Material.METAL),
            tube([[0.55, 0, 0.12], [0.42, 0, 1.1]], 0.025, Material.METAL, 5),
            box([0.05, 0.5, 0.04], [0.42, 0, 1.1], Material.METAL),
        ]
        return join([rider.placed(0, 0, 0.16), *board]), np.array([1.2, size[1], size[2] + 0.16])
    mesh = motorcycle(rng) if kind == 'motorcycle' else bicycle(rng)
    length = np.ptp(mesh.triangles[..., 0])
    seat = 0.8 if kind == 'motorcycle' else rng.uniform(0.88, 1.0)
    reach = rng.uniform(0.15, 0.45)
    shoulder = [reach, 0, seat + rng.uniform(0.45, 0.55)]
    torso = tube(
        [[-0.2, 0, seat], [reach * 0.4, 0, (seat + shoulder[2]) / 2], shoulder], [0.16, 0.18, 0.14], Material.CLOTH, 8
    )
    head = ellipsoid([reach + 0.08, 0, shoulder[2] + 0.22], [0.12, 0.1, 0.14], Material.SKIN)
    limbs = []
    for side, down in ((-1, 0.0), (1, rng.uniform(0.0, 0.3))):
        limbs.append(
            tube(
                [
                    [-0.15, side * 0.1, seat],
                    [0.25, side * 0.13, seat - 0.12 - down / 2],
                    [0.05, side * 0.12, 0.2 + down],
                ],
                [0.09, 0.07, 0.05],
                Material.CLOTH,
            )
        )
        limbs.append(
            tube([[reach, side * 0.18, shoulder[2] - 0.04], [0.5, side * 0.25, 1.02]], [0.055, 0.04], Material.CLOTH, 5)
        )
    if rng.random() < 0.25:
        limbs.append(box([0.4, 0.4, 0.4], [-0.55, 0, seat + 0.15], Material.CLOTH))
    return join([mesh, torso, head, *limbs]), np.array([length, 0.65, shoulder[2] + 0.36])


def bicycle(rng: np.random.Generator) -> Mesh:
    """Return a bicycle without a rider."""
    radius, base = rng.uniform(0.31, 0.36), rng.uniform(0.5, 0.56)
    parts = [_rim(x, radius, 0.02) for x in (-base, base)]
    crank, saddle, bar = [-0.05, 0, 0.3], [-0.2, 0, 0.92], [0.42, 0, 0.98]
    tubes = [
        (crank, saddle),
        (crank, [0.4, 0, 0.75]),
        ([-0.17, 0, 0.75], [0.4, 0, 0.78]),
        ([base, 0, radius], bar),
        ([-base, 0, radius], [-0.17, 0, 0.75]),
        ([-base, 0, radius], crank),
    ]
    parts += [tube([a, b], 0.022, Material.METAL, 4) for a, b in tubes]
    parts += [
        box([0.26, 0.15, 0.06], saddle, Material.RUBBER),
        box([0.05, rng.uniform(0.45, 0.62), 0.04], bar, Material.METAL),
    ]
    return join(parts)


def motorcycle(rng: np.random.Generator) -> Mesh:
    """Return a motorcycle or scooter without a rider."""
    base = rng.uniform(0.62, 0.72)
    parts = [_rim(x, 0.3, 0.07) for x in (-base, base)]
    parts += [
        ellipsoid([-0.05, 0, 0.52], [0.55, 0.2, 0.26], Material.DARK_PAINT),
        box([0.7, 0.28, 0.14], [-0.3, 0, 0.75], Material.RUBBER),
        tube([[base, 0, 0.3], [0.45, 0, 0.98]], 0.05, Material.METAL),
        box([0.06, 0.7, 0.05], [0.45, 0, 1.02], Material.METAL),
        ellipsoid([0.58, 0, 0.85], [0.1, 0.17, 0.2], Material.LIGHT_PAINT),
    ]
    return join(parts)


def _rim(x: float, radius: float, thickness: float) -> Mesh:
    """Return an open wheel in the x-z plane: a ring and four spokes."""
    angle = np.linspace(0, 2 * np.pi, 13)
    hub = np.array([x, 0, radius])
    ring = hub + (radius - thickness) * np.column_stack([np.cos(angle), 0 * angle, np.sin(angle)])
    spokes = [tube([hub, ring[k]], 0.012, Material.METAL, 3) for k in (1, 4, 7, 10)]
    return join([tube(ring, thickness + 0.005, Material.RUBBER, 4), *spokes])
