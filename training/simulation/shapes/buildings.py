# SPDX-License-Identifier: Apache-2.0
"""Buildings: the front faces -y and stands on the x axis, centred on x = 0; z up from the ground [m]."""

import numpy as np

from training.simulation.shapes.mesh import Material, Mesh, box, from_quads, from_triangles, join


def town_house(rng: np.random.Generator, length: float) -> Mesh:
    """Return a block of flats, offices or shops of two to seven floors, `length` wide."""
    num_floors = rng.integers(2, 8)
    floor_height, depth = rng.uniform(2.8, 3.6), rng.uniform(8, 14)
    height = num_floors * floor_height + rng.uniform(0.3, 1.2)
    material = rng.choice([Material.BRICK, Material.CONCRETE, Material.LIGHT_PAINT], p=[0.4, 0.45, 0.15])
    # 22 m: the steepest beam of all sensors (25 deg) seldom reaches higher; floors above are one plain wall.
    detailed = min(num_floors, int(22 / floor_height))
    parts = [_facade(rng, length, detailed, floor_height, material, shops=rng.random() < 0.45)]
    parts.append(_shell(length, depth, height, material))
    if height > detailed * floor_height:
        parts.append(_panel(-length / 2, length / 2, detailed * floor_height, height, 0.0, material))
    if rng.random() < 0.4:
        parts.append(_balconies(rng, length, num_floors, floor_height))
    if rng.random() < 0.35:
        bay = rng.uniform(2.0, 4.0)
        parts.append(box([bay, 1.0, height * 0.8], [rng.uniform(-0.3, 0.3) * length, -0.35, height * 0.4], material))
    if rng.random() < 0.4:
        parts.append(box([length, 0.35, 0.3], [0, -0.12, floor_height], Material.CONCRETE))
    if rng.random() < 0.3:
        parts.append(_steps(rng, rng.uniform(1.4, 3)).placed(rng.uniform(-0.3, 0.3) * length, 0))
    pipes = rng.uniform(-0.48, 0.48, rng.integers(0, 4)) * length
    parts += [box([0.1, 0.1, height], [x, -0.07, height / 2], Material.METAL) for x in pipes]
    return join(parts)


def detached_house(rng: np.random.Generator, length: float) -> Mesh:
    """Return a house of one or two floors with a pitched roof; some have a porch, a garage or a bay window."""
    num_floors, floor_height, depth = rng.integers(1, 3), rng.uniform(2.6, 3.0), rng.uniform(7, 11)
    eaves = num_floors * floor_height + rng.uniform(0.1, 0.6)
    ridge = eaves + rng.uniform(1.8, 4.0)
    material = rng.choice([Material.BRICK, Material.CONCRETE, Material.LIGHT_PAINT])
    half, over = length / 2, 0.4
    parts = [
        _facade(rng, length, num_floors, floor_height, material, shops=False),
        _shell(length, depth, eaves, material),
    ]
    parts.append(_panel(-half, half, num_floors * floor_height, eaves, 0.0, material))
    if rng.random() < 0.6:  # ridge along the street
        low, high = [-over, depth + over], depth / 2
        roof = [
            [
                [-half - over, y, eaves - 0.1],
                [half + over, y, eaves - 0.1],
                [half + over, high, ridge],
                [-half - over, high, ridge],
            ]
            for y in low
        ]
        gables = [[[x, 0, eaves], [x, depth, eaves], [x, depth / 2, ridge]] for x in (-half, half)]
    else:  # gable to the street
        roof = [
            [[x, -over, eaves - 0.1], [x, depth + over, eaves - 0.1], [0, depth + over, ridge], [0, -over, ridge]]
            for x in (-half - over, half + over)
        ]
        gables = [[[-half, y, eaves], [half, y, eaves], [0, y, ridge]] for y in (0, depth)]
    parts += [from_quads(roof, Material.BRICK), from_triangles(gables, material)]
    if rng.random() < 0.7:
        x = rng.uniform(-0.3, 0.3) * length
        parts.append(box([1.8, 1.2, 0.12], [x, -0.6, 2.5], Material.CONCRETE))
        parts += [box([0.12, 0.12, 2.5], [x + dx, -1.1, 1.25], Material.LIGHT_PAINT) for dx in (-0.8, 0.8)]
        parts.append(_steps(rng, 1.4).placed(x, 0))
    if rng.random() < 0.4:
        parts.append(box([2.2, 0.9, eaves * 0.9], [rng.uniform(-0.3, 0.3) * length, -0.45, eaves * 0.45], material))
    if rng.random() < 0.4:
        parts.append(box([3.2, 5.5, 2.6], [rng.choice([-1, 1]) * (half + 1.6), 3.5, 1.3], material))
    chimney = [rng.uniform(-0.4, 0.4) * length, depth / 2, ridge]
    return join([*parts, box([0.6, 0.6, 1.6], chimney, Material.BRICK)])


def warehouse(rng: np.random.Generator, length: float) -> Mesh:
    """Return a hall with ribbed walls, a few gates and a flat roof; also serves as a supermarket or a barn."""
    height, depth = rng.uniform(4, 10), rng.uniform(12, 25)
    parts = [
        _facade(rng, length, 1, height, Material.METAL, shops=rng.random() < 0.5),
        _shell(length, depth, height, Material.METAL),
    ]
    ribs = np.arange(-length / 2, length / 2, rng.uniform(0.8, 3.0))
    parts += [box([0.12, 0.12, height], [x, -0.06, height / 2], Material.METAL) for x in ribs]
    if rng.random() < 0.5:
        parts.append(box([length * 0.5, 2.5, 0.25], [0, -1.25, 3.4], Material.METAL))
        parts += [box([0.2, 0.2, 3.3], [x, -2.3, 1.65], Material.METAL) for x in np.linspace(-0.24, 0.24, 5) * length]
    return join(parts)


def _facade(rng, length: float, num_floors: int, floor_height: float, material: Material, *, shops: bool) -> Mesh:
    """Return a front of bays by floors, each with a window, door or shop front set back into the wall."""
    num_bays = max(1, round(length / rng.uniform(2.2, 4.2)))
    bay = length / num_bays
    column, row = (a.ravel() for a in np.meshgrid(np.arange(num_bays), np.arange(num_floors)))
    left, bottom = -length / 2 + column * bay, row * floor_height
    pane_width = bay * rng.uniform(0.3, 0.6)
    low = bottom + rng.uniform(0.7, 1.0) + 0 * row
    high = bottom + floor_height * rng.uniform(0.78, 0.88)
    a, b = left + (bay - pane_width) / 2, left + (bay + pane_width) / 2
    depth = np.full(len(row), rng.uniform(0.06, 0.35))
    ground = row == 0
    door = ground & (rng.random(len(row)) < 0.25)
    low[door], depth[door] = 0.05, rng.uniform(0.2, 1.2)
    if shops:
        a[ground], b[ground] = (left + 0.2)[ground], (left + bay - 0.2)[ground]
        low[ground] = 0.05 + rng.uniform(0, 0.5)
        depth[ground & (rng.random(len(row)) < 0.3)] = rng.uniform(0.5, 1.5)
    blank = ~ground & (rng.random(len(row)) < 0.08)
    high[blank] = low[blank] + 0.01
    right, top = left + bay, bottom + floor_height

    def front(x0, x1, z0, z1):  # in the wall plane
        return np.stack([_corner(x0, 0, z0), _corner(x1, 0, z0), _corner(x1, 0, z1), _corner(x0, 0, z1)], axis=1)

    def reveal(x0, z0, x1, z1):  # an edge of the opening, from the wall plane to the pane
        return np.stack(
            [_corner(x0, 0, z0), _corner(x1, 0, z1), _corner(x1, depth, z1), _corner(x0, depth, z0)], axis=1
        )

    pane = np.stack(
        [_corner(a, depth, low), _corner(b, depth, low), _corner(b, depth, high), _corner(a, depth, high)], axis=1
    )
    curtained = rng.random(len(row)) < 0.35
    pane_material = np.where(curtained, Material.CLOTH, np.where(door, Material.BARK, Material.GLASS))
    solid = np.concatenate(
        [
            front(left, a, bottom, top),
            front(b, right, bottom, top),
            front(a, b, bottom, low),
            front(a, b, high, top),
            reveal(a, low, a, high),
            reveal(b, low, b, high),
            reveal(a, low, b, low),
            reveal(a, high, b, high),
        ]
    )
    return join([from_quads(solid, material), from_quads(pane, pane_material)])


def _shell(length: float, depth: float, height: float, material: Material) -> Mesh:
    """Return the two sides, the back, the roof, and an inner wall that stops rays through windows."""
    x, quads = length / 2, []
    for side in (-x, x):
        quads.append([[side, 0, 0], [side, depth, 0], [side, depth, height], [side, 0, height]])
    quads.append([[-x, depth, 0], [x, depth, 0], [x, depth, height], [-x, depth, height]])
    quads.append([[-x, 0, height], [x, 0, height], [x, depth, height], [-x, depth, height]])
    quads.append([[-x, depth * 0.4, 0], [x, depth * 0.4, 0], [x, depth * 0.4, height], [-x, depth * 0.4, height]])
    return from_quads(quads, material)


def _panel(x0: float, x1: float, z0: float, z1: float, y: float, material: Material) -> Mesh:
    return from_quads([[[x0, y, z0], [x1, y, z0], [x1, y, z1], [x0, y, z1]]], material)


def _balconies(rng, length: float, num_floors: int, floor_height: float) -> Mesh:
    width, out = rng.uniform(1.8, 3.5), rng.uniform(0.7, 1.4)
    parts = []
    for x in rng.uniform(-0.4, 0.4, rng.integers(1, 4)) * length:
        for floor in range(1, num_floors):
            z = floor * floor_height
            parts.append(box([width, out, 0.15], [x, -out / 2, z], Material.CONCRETE))
            parts.append(_panel(x - width / 2, x + width / 2, z, z + 1.0, -out, Material.METAL))
    return join(parts)


def _steps(rng: np.random.Generator, width: float) -> Mesh:
    """Return a flight of two to six steps that rises towards +y and ends at y = 0."""
    count = rng.integers(2, 7)
    return join(
        [
            box([width, 0.32 * (count - k), 0.16], [0, -0.16 * (count - k), 0.16 * k + 0.08], Material.CONCRETE)
            for k in range(count)
        ]
    )


def _corner(x, y, z) -> np.ndarray:
    return np.stack(np.broadcast_arrays(np.asarray(x, np.float64), y, z), axis=-1)
