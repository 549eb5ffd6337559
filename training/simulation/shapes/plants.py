# SPDX-License-Identifier: Apache-2.0
"""Shapes of trees, bushes and hedges: origin on the ground, z up."""

import numpy as np

from training.simulation.shapes.mesh import Material, Mesh, box, join, leaves, points_in_ellipsoid, tube


def tree(rng: np.random.Generator) -> Mesh:
    """Return a tree: bent trunk, a few boughs, and a crown of clustered leaves."""
    height = rng.uniform(3.5, 13.0)
    clear = rng.uniform(1.5, 3.2) if height > 5 else rng.uniform(0.7, 1.8)
    girth = 0.025 * height * rng.uniform(0.7, 1.4)
    bend = rng.normal(0, 0.03 * height, 2)
    trunk = np.array([[0, 0, -0.2], [0, 0, 0.3], [*bend * 0.3, clear], [*bend, 0.7 * height]])
    parts = [tube(trunk, [girth * 1.5, girth, girth * 0.85, girth * 0.3], Material.BARK, 7)]
    radius = rng.uniform(0.18, 0.34) * height
    middle = (height + clear) / 2
    density = rng.uniform(0.5, 1.3)
    for _ in range(rng.integers(4, 9)):
        angle, out = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.3, 0.8)
        tip = np.array(
            [bend[0] + out * np.cos(angle), bend[1] + out * np.sin(angle), rng.uniform(clear + 0.4, height * 0.85)]
        )
        fork = np.array([*bend * 0.5, clear + rng.uniform(0, 0.3) * (tip[2] - clear)])
        parts.append(tube([fork, tip], [girth * 0.4, girth * 0.12], Material.BARK, 4))
        lobe = rng.uniform(0.35, 0.6) * radius
        parts.append(leaves(rng, points_in_ellipsoid(rng, int(80 * density), tip, [lobe, lobe, 0.8 * lobe]), 0.17))
    crown = points_in_ellipsoid(rng, int(320 * density), [*bend, middle], [radius, radius, (height - clear) / 2])
    parts.append(leaves(rng, crown, rng.uniform(0.13, 0.22)))
    return join(parts)


def conifer(rng: np.random.Generator) -> Mesh:
    """Return a cone-shaped evergreen, leafy to near the ground."""
    height = rng.uniform(2.0, 9.0)
    radius, skirt = height * rng.uniform(0.16, 0.3), rng.uniform(0.1, 0.9)
    up = 1 - np.sqrt(rng.random(500))
    out = radius * (1 - up) * rng.random(500) ** 0.35
    angle = rng.uniform(0, 2 * np.pi, 500)
    centers = np.column_stack([out * np.cos(angle), out * np.sin(angle), skirt + up * (height - skirt)])
    trunk = tube([[0, 0, -0.1], [0, 0, height * 0.9]], [0.02 * height + 0.03, 0.02], Material.BARK)
    return join([trunk, leaves(rng, centers, 0.16)])


def bush(rng: np.random.Generator) -> Mesh:
    """Return a shrub 0.4 to 2.5 m high of one to three leafy lobes."""
    size = rng.uniform(0.3, 1.2)
    parts = []
    for _ in range(rng.integers(1, 4)):
        lobe = size * rng.uniform(0.6, 1.0)
        center = [*rng.normal(0, 0.5 * size, 2), 0.75 * lobe]
        parts.append(leaves(rng, points_in_ellipsoid(rng, 85, center, [lobe, lobe, 0.95 * lobe], 0.4), 0.11))
    parts += [tube([[0, 0, 0], [*rng.normal(0, 0.3 * size, 2), size]], 0.02, Material.BARK, 3) for _ in range(3)]
    return join(parts)


def hedge(rng: np.random.Generator, length: float, height: float) -> Mesh:
    """Return a hedge along x from 0 to `length` [m]: an opaque core under a skin of leaves."""
    depth = rng.uniform(0.4, 0.9)
    count = int(np.clip(45 * length * (0.6 + height), 20, 1500))
    centers = rng.uniform([0, -depth / 2, 0.02], [length, depth / 2, height], (count, 3))
    face = rng.random(count)
    centers[face < 0.55, 1] = (rng.choice([-0.5, 0.5], count) * depth)[face < 0.55]
    centers[face > 0.8, 2] = height
    centers += rng.normal(0, 0.05, centers.shape)
    core = box([length, depth * 0.45, height * 0.8], [length / 2, 0, height * 0.42], Material.LEAF)
    return join([core, leaves(rng, centers, 0.09)])


def tufts(rng: np.random.Generator, count: int, length: float, depth: float, height: float) -> Mesh:
    """Return weeds or flower beds: leaves close to the ground over [0, length] x [0, depth] [m]."""
    centers = rng.uniform([0, 0, 0], [length, depth, 1], (count, 3))
    centers[:, 2] = height * centers[:, 2] ** 2
    return leaves(rng, centers, 0.07)
