# SPDX-License-Identifier: Apache-2.0
"""Shapes of road users: x forward, y left, z up, origin on the ground below the middle of the body."""

import numpy as np

from training.datasets.mesh import Material, Mesh, box, ellipsoid, from_quads, join, loft, tube


def car(rng: np.random.Generator, *, height: float | None = None) -> tuple[Mesh, np.ndarray]:
    """Return a car (hatchback, saloon, estate, SUV, pick-up or small van) and its length, width, height [m], (3,)."""
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
    body = _body(size, top[::-1], axles, wheel, sill=rng.uniform(0.18, 0.26), paint=paint)
    cabin = _greenhouse(
        width,
        belt,
        height,
        (screen_base, roof_front, roof_rear, rear_base),
        paint,
        rear_glass=kind != 'van' or rng.random() < 0.5,
    )
    wheels = [_wheel(x, side * (width / 2 - 0.12), wheel, 0.2) for x in axles for side in (-1, 1)]
    mirrors = [
        box([0.12, 0.2, 0.13], [screen_base - 0.25, side * (width / 2 + 0.08), belt + 0.05], paint) for side in (-1, 1)
    ]
    plates = [box([0.02, 0.5, 0.11], [x, 0, 0.45], Material.RETRO) for x in (front + 0.01, rear - 0.01)]
    return join([body, cabin, *wheels, *mirrors, *plates]), size


def van(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """Return a delivery van or minibus and its size."""
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
    body = _body(size, top, axles, wheel, sill=rng.uniform(0.25, 0.35), paint=paint)
    split = screen_base - rng.uniform(1.4, 1.8)
    cab = _greenhouse(width, belt, height, (screen_base, screen_base - 0.55, split, split), paint, rear_glass=False)
    windows = rng.random() < 0.35
    load = _greenhouse(
        width,
        belt,
        height,
        (split, split, rear + 0.1, rear + 0.03),
        paint,
        rear_glass=rng.random() < 0.5,
        side_glass=windows,
    )
    wheels = [_wheel(x, side * (width / 2 - 0.13), wheel, 0.22) for x in axles for side in (-1, 1)]
    return join([body, cab, load, *wheels]), size


def truck(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """Return a rigid lorry (box body, flat bed, tank or skip) and its size."""
    length, width = rng.uniform(6.5, 10.5), rng.uniform(2.2, 2.55)
    cab_length, cab_height, height = rng.uniform(1.7, 2.3), rng.uniform(2.5, 3.1), rng.uniform(2.9, 3.9)
    front, rear, deck = length / 2, -length / 2, rng.uniform(0.9, 1.15)
    paint = Material.LIGHT_PAINT if rng.random() < 0.6 else Material.DARK_PAINT
    cab_rear = front - cab_length
    parts = [
        _coach_body(cab_rear, front, width, 0.45, cab_height, paint, window=(cab_height * 0.55, cab_height * 0.85)),
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
    parts += [_wheel(x, side * (width / 2 - 0.16), 0.48, 0.3) for x in axles for side in (-1, 1)]
    return join(parts), np.array([length, width, max(height, cab_height)])


def bus(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """Return a city bus and its size."""
    length, width, height = rng.uniform(8.5, 13.0), rng.uniform(2.4, 2.6), rng.uniform(2.9, 3.4)
    paint = Material.LIGHT_PAINT if rng.random() < 0.6 else Material.DARK_PAINT
    parts = [_coach_body(-length / 2, length / 2, width, 0.32, height, paint, window=(1.25, height - 0.5))]
    parts.append(box([length * 0.4, width * 0.7, 0.25], [-length * 0.1, 0, height + 0.1], paint))
    axles = [length / 2 - 2.6, -length / 2 + 3.0]
    parts += [_wheel(x, side * (width / 2 - 0.12), 0.48, 0.28) for x in axles for side in (-1, 1)]
    return join(parts), np.array([length, width, height])


def pedestrian(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """Return a person in mid-step (a rigid pose), perhaps with a bag, a pushchair or an umbrella, and the size."""
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


def cyclist(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """Return a rider on a bicycle, e-scooter or motorcycle and the size."""
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
    """Return a bicycle with nobody on it."""
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
    """Return a motorcycle or scooter with nobody on it."""
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


def _body(size, top, axles, wheel: float, sill: float, paint: Material) -> Mesh:
    """Return the lower body: a skin over cross-sections with wheel arches; `top` is its side view (K, 2), x rising."""
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
    # Seen from above the corners are rounded; 0.35 m: a bumper's usual radius.
    inset = np.clip(1 - (length / 2 - np.abs(stations)) / 0.35, 0, 1) ** 2 * 0.2
    half = width / 2 - inset
    floor = np.minimum(floor + 0.12 * (inset > 0.05), crown - 0.1)
    shoulder, waist = crown - 0.1, 0.5 * (crown + floor)
    side = [(0.94, floor), (1.0, waist), (0.98, shoulder), (0.86, crown)]
    loop = [np.stack([stations, scale * half, z], axis=1) for scale, z in side]
    loop.append(np.stack([stations, 0 * half, crown + 0.02], axis=1))
    loop += [np.stack([stations, -scale * half, z], axis=1) for scale, z in side[::-1]]
    return loft(np.stack(loop, axis=1), paint)


def _greenhouse(
    width, belt, height, outline, paint: Material, rear_glass: bool = True, side_glass: bool = True
) -> Mesh:
    """Return what is above the belt line: windscreen, side windows between pillars, a domed roof.

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


def _coach_body(rear, front, width, bottom, height, paint: Material, window) -> Mesh:
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


def _wheel(x: float, y: float, radius: float, width: float) -> Mesh:
    return tube([[x, y - width / 2, radius], [x, y + width / 2, radius]], radius, Material.RUBBER, sides=12)


def _rim(x: float, radius: float, thickness: float) -> Mesh:
    """Return an open wheel in the x-z plane: a ring and four spokes."""
    angle = np.linspace(0, 2 * np.pi, 13)
    hub = np.array([x, 0, radius])
    ring = hub + (radius - thickness) * np.column_stack([np.cos(angle), 0 * angle, np.sin(angle)])
    spokes = [tube([hub, ring[k]], 0.012, Material.METAL, 3) for k in (1, 4, 7, 10)]
    return join([tube(ring, thickness + 0.005, Material.RUBBER, 4), *spokes])


def _torso(heights, radii, lean: float) -> Mesh:
    """Return an upright trunk, wider (y) than deep, over `heights` with half-widths `radii` [m]."""
    angle = np.arange(8) * np.pi / 4
    rings = [
        np.column_stack([lean + 0.65 * r * np.cos(angle), r * np.sin(angle), np.full(8, z)])
        for z, r in zip(heights, radii, strict=True)
    ]
    return loft(rings, Material.CLOTH)
