# SPDX-License-Identifier: Apache-2.0
"""Shapes of people: x forward, y left, z up, origin on the ground between the feet."""

import numpy as np

from training.simulation.shapes.mesh import Material, Mesh, box, ellipsoid, join, loft, tube


def pedestrian(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """Return a person in mid-step (a rigid pose) and the length, width, height [m], (3,).

    Some have a bag, a pushchair or an umbrella.
    """
    height = rng.uniform(1.0, 1.45) if rng.random() < 0.12 else np.clip(rng.normal(1.71, 0.09), 1.5, 2.0)
    build = rng.uniform(0.85, 1.25)
    hip, shoulder, stride = 0.5 * height, 0.82 * height, rng.uniform(0, 0.42)
    parts = []
    if rng.random() < 0.15:  # a skirt or a long coat hides the legs
        parts.append(_torso([0.08 * height, 0.3 * height, hip], [0.2 * build, 0.19 * build, 0.17 * build], 0))
    for side, reach in ((-1, stride), (1, -stride)):
        y = side * 0.09 * build
        knee = [0.35 * reach + 0.04, y, 0.28 * height]
        parts.append(
            tube([[0, y, hip], knee, [reach * 0.8, y, 0.06]], [0.085 * build, 0.065 * build, 0.05], Material.CLOTH)
        )
        parts.append(box([0.26, 0.09, 0.08], [reach * 0.8 + 0.05, y, 0.04], Material.RUBBER))
        arm = rng.uniform(-0.7, 0.7) * stride + rng.uniform(-0.05, 0.15)
        hand = [-reach * 0.7 + arm, side * (0.24 * build + 0.03), hip - 0.02]
        elbow = [-reach * 0.3, side * 0.25 * build, 0.64 * height]
        parts.append(tube([[0, side * 0.2 * build, shoulder - 0.03], elbow, hand], [0.06, 0.05, 0.04], Material.CLOTH))
    lean = rng.uniform(-0.02, 0.06)
    parts.append(
        _torso(
            [hip - 0.05, 0.62 * height, shoulder - 0.06, shoulder + 0.01],
            [0.17 * build, 0.16 * build, 0.21 * build, 0.1],
            lean,
        )
    )
    parts.append(ellipsoid([lean, 0, height - 0.12], [0.1, 0.085, 0.125], Material.SKIN))
    width, length = 0.6 * build, 0.5 + stride
    extra = rng.random()
    if extra < 0.15:
        parts.append(ellipsoid([-0.2, 0, 0.72 * height], [0.13, 0.17, 0.24], Material.CLOTH))
    elif extra < 0.3:
        parts.append(box([0.35, 0.14, 0.35], [0.0, rng.choice([-1, 1]) * 0.35, 0.35 * height], Material.CLOTH))
    elif extra < 0.36:
        parts += [
            box([0.75, 0.4, 0.4], [0.75, 0, 0.6], Material.CLOTH),
            box([0.5, 0.42, 0.12], [0.75, 0, 0.12], Material.METAL),
        ]
        length = 2.0
    elif extra < 0.4:
        parts.append(ellipsoid([0.1, 0, height + 0.15], [0.5, 0.5, 0.16], Material.CLOTH))
    return join(parts), np.array([length, width, height])


def _torso(heights, radii, lean: float) -> Mesh:
    """Return an upright trunk, wider (y) than deep, over `heights` with half-widths `radii` [m]."""
    angle = np.arange(8) * np.pi / 4
    rings = [
        np.column_stack([lean + 0.65 * r * np.cos(angle), r * np.sin(angle), np.full(8, z)])
        for z, r in zip(heights, radii, strict=True)
    ]
    return loft(rings, Material.CLOTH)
