# SPDX-License-Identifier: Apache-2.0
"""Parts of vehicle shapes: bodies, windows, wheels."""

import numpy as np

from training.simulation.shapes.mesh import Material, Mesh, box, from_quads, join, loft, tube


def lower_body(
    size: np.ndarray, top: np.ndarray, axles: np.ndarray, wheel: float, sill: float, paint: Material
) -> Mesh:
    """Return the body below the belt line: a skin over cross-sections, with wheel arches.

    size: length, width, height [m]. top: (K, 2) x and z of its upper edge seen from the side, x rising [m].
    axles: x of each axle [m]. wheel: radius [m]. sill: height of the lower edge [m].
    """
    length, width, _ = size
    arch = wheel + 0.07
    stations = np.unique(
        np.concatenate(
            [
                np.linspace(-length / 2, length / 2, 9),
                top[:, 0],
                *(axle + arch * np.array([-1, -0.98, -0.7, 0, 0.7, 0.98, 1]) for axle in axles),
            ]
        )
    )
    stations = stations[(stations >= -length / 2) & (stations <= length / 2)]
    crown = np.interp(stations, top[:, 0], top[:, 1])
    square = np.clip(arch**2 - (stations[:, None] - axles) ** 2, 0, None)
    floor = np.maximum(sill, (np.sqrt(square) + wheel * (square > 0)).max(axis=1))
    # The corners are rounded seen from above; 0.35 m: a usual radius of bumpers.
    inset = np.clip(1 - (length / 2 - np.abs(stations)) / 0.35, 0, 1) ** 2 * 0.2
    half = width / 2 - inset
    floor = np.minimum(floor + 0.12 * (inset > 0.05), crown - 0.1)
    shoulder, waist = crown - 0.1, 0.5 * (crown + floor)
    side = [(0.94, floor), (1.0, waist), (0.98, shoulder), (0.86, crown)]
    loop = [np.stack([stations, scale * half, z], axis=1) for scale, z in side]
    loop.append(np.stack([stations, 0 * half, crown + 0.02], axis=1))
    loop += [np.stack([stations, -scale * half, z], axis=1) for scale, z in side[::-1]]
    return loft(np.stack(loop, axis=1), paint)


def greenhouse(
    width: float,
    belt: float,
    height: float,
    outline: tuple[float, float, float, float],
    paint: Material,
    rear_glass: bool = True,
    side_glass: bool = True,
) -> Mesh:
    """Return the body above the belt line: windscreen, side windows between pillars, a domed roof.

    outline: x [m] of windscreen foot, roof front, roof rear, rear-window foot.
    """
    screen_base, roof_front, roof_rear, rear_base = outline
    low, high, edge = width / 2 - 0.06, width / 2 - 0.06 - 0.22 * (height - belt), height - 0.05
    glass = Material.GLASS

    def side_line(fraction, up):  # a point on the window plane: fraction 0 front .. 1 rear, up 0 belt .. 1 roof edge
        foot, head = (
            screen_base + (rear_base - screen_base) * fraction,
            roof_front + (roof_rear - roof_front) * fraction,
        )
        return [foot + (head - foot) * up, low + (high - low) * up, belt + (edge - belt) * up]

    quads, materials = [], []
    panes = [(0, 0.04, paint), (0.04, 0.46, glass), (0.46, 0.52, paint), (0.52, 0.9, glass), (0.9, 1, paint)]
    for start, end, material in panes:
        quad = np.array([side_line(start, 0), side_line(end, 0), side_line(end, 1), side_line(start, 1)])
        for sign in (1, -1):
            quads.append(quad * [1, sign, 1])
            materials.append(material if side_glass else paint)
    for base, head, is_glass in ((screen_base, roof_front, True), (rear_base, roof_rear, rear_glass)):
        quads.append([[base, low, belt], [base, -low, belt], [head, -high, edge], [head, high, edge]])
        materials.append(glass if is_glass else paint)
    loop = [(high, edge), (high * 0.85, height - 0.015), (0, height), (-high * 0.85, height - 0.015), (-high, edge)]
    bow = [(roof_front, 0.03), (roof_front + 0.4 * (roof_rear - roof_front), 0), (roof_rear, 0.03)]
    rings = [[[x, y, z - drop * (z > edge)] for y, z in loop] for x, drop in bow]
    roof = loft(rings, paint, capped=False)
    seats = [
        box([0.15, 0.45, 0.6], [screen_base + (rear_base - screen_base) * f, y, belt], Material.CLOTH)
        for f in (0.45, 0.75)
        for y in (-0.35, 0.35)
    ]
    return join([from_quads(quads, materials), roof, *seats])


def coach_body(
    rear: float,
    front: float,
    width: float,
    bottom: float,
    height: float,
    paint: Material,
    window: tuple[float, float],
) -> Mesh:
    """Return a box body with rounded vertical edges and a band of windows between heights `window`."""
    half, r = width / 2, 0.18
    outline = np.array(
        [
            [front - r, half],
            [front, half - r],
            [front, -half + r],
            [front - r, -half],
            [rear + r, -half],
            [rear, -half + r],
            [rear, half - r],
            [rear + r, half],
        ]
    )
    levels = [bottom, window[0], window[1], height - 0.1, height]
    shrink = [1, 1, 1, 0.99, 0.93]
    middle = np.array([(front + rear) / 2, 0])
    rings = [
        np.column_stack([middle + (outline - middle) * k, np.full(8, z)]) for z, k in zip(levels, shrink, strict=True)
    ]
    material = np.full((4, 8), paint)
    material[1, [0, 1, 2, 3, 7]] = Material.GLASS
    skin = loft(rings, material)
    pillars = (
        [
            box([0.1, width, window[1] - window[0]], [x, 0, sum(window) / 2], paint)
            for x in np.arange(rear + 0.8, front - 0.8, 1.6)
        ]
        if front - rear > 4
        else []
    )
    return join([skin, *pillars])


def wheel_at(x: float, y: float, radius: float, width: float) -> Mesh:
    """Return a wheel on the ground at (x, y) [m]."""
    return tube([[x, y - width / 2, radius], [x, y + width / 2, radius]], radius, Material.RUBBER, sides=12)
