# SPDX-License-Identifier: Apache-2.0
"""Shapes of what stands in a street: plants, posts, fences, furniture. Origin on the ground, x along the street."""

import numpy as np

from training.datasets.mesh import (
    Material,
    Mesh,
    box,
    ellipsoid,
    from_quads,
    join,
    leaves,
    loft,
    points_in_ellipsoid,
    tube,
)


def tree(rng: np.random.Generator) -> Mesh:
    """Return a tree: bent trunk, a few boughs, and a crown of clustered leaves (or bare twigs in winter)."""
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
    """Return a clipped hedge along x from 0 to `length` [m]: an opaque core under a skin of leaves."""
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


def wall(rng: np.random.Generator, length: float, height: float) -> Mesh:
    """Return a garden wall along x from 0 to `length` with piers and perhaps a railing on top."""
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
    """Return a wire fence along x from 0 to `length`: posts, and wires that few rays hit."""
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


def lamp_post(rng: np.random.Generator) -> Mesh:
    """Return a street lamp 4 to 10 m high; its arm reaches towards +y."""
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
    """Return a sign plate, or two, on a thin post; it faces traffic along x."""
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
    """Return a signal on a post, perhaps with an arm over the road (+y)."""
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


def bin_(rng: np.random.Generator) -> Mesh:
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
    """Return a table with chairs and perhaps a parasol."""
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


def steps(rng: np.random.Generator, width: float) -> Mesh:
    """Return a flight of two to six steps that rises towards +y and ends at y = 0."""
    count = rng.integers(2, 7)
    return join(
        [
            box([width, 0.32 * (count - k), 0.16], [0, -0.16 * (count - k), 0.16 * k + 0.08], Material.CONCRETE)
            for k in range(count)
        ]
    )


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
