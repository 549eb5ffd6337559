# SPDX-License-Identifier: Apache-2.0
"""Shapes of walls, fences and rails: along x from x = 0, z up from the ground."""

import numpy as np

from training.simulation.shapes.mesh import Material, Mesh, box, from_quads, join, leaves, loft, tube


def wall(rng: np.random.Generator, length: float, height: float) -> Mesh:
    """Return a garden wall along x from 0 to `length` with piers, some with a railing on top."""
    material = rng.choice([Material.BRICK, Material.CONCRETE])
    parts = [box([length, 0.2, height], [length / 2, 0, height / 2], material)]
    for x in np.arange(0, length + 0.1, rng.uniform(2.5, 5.0)):
        parts.append(box([0.32, 0.32, height + 0.15], [x, 0, (height + 0.15) / 2], material))
    if height < 0.9 and rng.random() < 0.4:
        parts.append(railing(rng, length, rng.uniform(0.5, 0.9)).placed(0, 0, height))
    return join(parts)


def railing(rng: np.random.Generator, length: float, height: float) -> Mesh:
    """Return an open railing or picket fence along x from 0 to `length`."""
    gap, thick = rng.uniform(0.11, 0.2), rng.choice([0.018, 0.06])
    x = np.arange(0, length, gap)
    picket = np.array([[-thick, 0, 0.05], [thick, 0, 0.05], [thick, 0, height], [-thick, 0, height]])
    quads = picket + np.column_stack([x, 0 * x, 0 * x])[:, None]
    rails = [box([length, 0.04, 0.05], [length / 2, 0, z * height], Material.METAL) for z in (0.12, 0.95)]
    posts = [
        box([0.07, 0.07, height + 0.05], [p, 0, height / 2], Material.METAL) for p in np.arange(0, length + 0.1, 2.2)
    ]
    return join([from_quads(quads, Material.METAL), *rails, *posts])


def panel_fence(rng: np.random.Generator, length: float, height: float) -> Mesh:
    """Return a close-boarded fence along x from 0 to `length`: boards alternate in depth."""
    x = np.arange(0, length, 0.3)
    boards = [
        box([0.29, 0.02, height - 0.05], [p + 0.15, 0.03 * (k % 2), height / 2], Material.BARK) for k, p in enumerate(x)
    ]
    posts = [box([0.1, 0.1, height], [p, 0.05, height / 2], Material.BARK) for p in np.arange(0, length + 0.1, 1.8)]
    return join([*boards, *posts])


def mesh_fence(rng: np.random.Generator, length: float, height: float) -> Mesh:
    """Return a wire fence along x from 0 to `length`: posts, and thin wires that few rays hit."""
    posts = [tube([[p, 0, 0], [p, 0, height]], 0.03, Material.METAL, 4) for p in np.arange(0, length + 0.1, 2.5)]
    count = int(length * height * 28)
    centers = rng.uniform([0, -0.01, 0.05], [length, 0.01, height], (count, 3))
    wires = leaves(rng, centers, 0.035, Material.METAL)
    return join([*posts, wires, tube([[0, 0, height], [length, 0, height]], 0.02, Material.METAL, 4)])


def guard_rail(length: float) -> Mesh:
    """Return a W-beam guard rail along x from 0 to `length` on posts 2 m apart."""
    profile = np.array([[0.0, 0.45], [0.06, 0.52], [0.0, 0.6], [0.06, 0.68], [0.0, 0.75], [-0.01, 0.6]])
    rings = [np.column_stack([np.full(6, x), profile]) for x in (0.0, length)]
    posts = [box([0.1, 0.12, 0.7], [x, -0.08, 0.35], Material.METAL) for x in np.arange(0, length, 2.0)]
    return join([loft(rings, Material.METAL, capped=False), *posts])
