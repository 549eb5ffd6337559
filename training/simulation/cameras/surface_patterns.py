# SPDX-License-Identifier: Apache-2.0
"""Patterns of surfaces: bricks, windows, bodywork, clothes, leaves. They stay on the surface, whoever looks at it."""

from dataclasses import dataclass

import numpy as np

from training.simulation.cameras.finishes import _CLOTHES, Finish, Finishes
from training.simulation.cameras.noise_texture import hash_cells, inside, lines, noise_texture
from training.simulation.cameras.road_surface import RoadSurface

_WHITE = np.float32([0.72, 0.72, 0.70])


@dataclass(frozen=True)
class Spots:
    """Places on surfaces whose colour is asked for.

    triangle, piece: (N,) int32. point: (N, 3) float32 [m] in the frame of the body. normal: (N, 3) float32 likewise.
    footprint: (N,) float32, width of what a pixel sees there [m]. albedo: (N, 3) float32, mean colour of the surface.
    """

    triangle: np.ndarray
    piece: np.ndarray
    point: np.ndarray
    normal: np.ndarray
    footprint: np.ndarray
    albedo: np.ndarray
    finishes: Finishes

    def rows(self, rows: np.ndarray) -> 'Spots':
        """Return some of the spots."""
        arrays = (self.triangle, self.piece, self.point, self.normal, self.footprint, self.albedo)
        return Spots(*(array[rows] for array in arrays), self.finishes)

    def texture(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the texture coordinates u and v of every spot, (N,) float32 each [m]."""
        uv = np.einsum('nij,nj->ni', self.finishes.axes[self.triangle], self.point)
        uv += self.finishes.offset[self.triangle]
        return uv[:, 0], uv[:, 1]

    def pane(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return distances [m] along width and height from a corner of the pane, and these two, (N,) each."""
        offset = self.point - self.finishes.pane_origin[self.triangle]
        # The second half of a quadrilateral starts at the same corner.
        a, b = np.einsum('nij,nj->in', self.finishes.pane_axes[self.triangle], offset)
        width, height = self.finishes.pane_size[self.triangle].T
        return a, b, width, height

    def chance(self, column: int) -> np.ndarray:
        """Return a random number of every spot's piece, (N,) float32 in [0, 1)."""
        return self.finishes.chance[self.piece, column]


def surface_colour(spots: Spots, road: RoadSurface) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of light that is returned, (N, 3), and the share that is mirrored head-on, (N,); float32."""
    albedo, mirrored = spots.albedo.copy(), np.zeros(len(spots.piece), np.float32)
    kind = spots.finishes.kind[spots.triangle]
    for finish in np.unique(kind):
        rows = np.flatnonzero(kind == finish)
        some = spots.rows(rows)
        if finish in (Finish.ROAD, Finish.PAVING):
            paint = road.asphalt if finish == Finish.ROAD else road.paving
            albedo[rows] = paint(some.albedo, some.point, some.footprint)
        else:
            albedo[rows], mirrored[rows] = _PATTERNS[Finish(finish)](some)
    return np.clip(albedo, 0.005, 0.95), mirrored


def leaf_holes(spots: Spots, corners: np.ndarray) -> np.ndarray:
    """Return where a tuft of leaves is open, (N,) bool; corners (N, 3, 3) [m] of its triangle."""
    u, v = spots.texture()
    noise = noise_texture().sample(u, v, spots.footprint, 1.1)
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    norm = np.maximum((area * area).sum(axis=1), 1e-12)
    share = [
        (area * np.cross(corners[:, (k + 2) % 3] - corners[:, (k + 1) % 3], spots.point - corners[:, (k + 1) % 3])).sum(
            axis=1
        )
        / norm
        for k in range(3)
    ]
    edge = np.minimum(np.minimum(share[0], share[1]), share[2])
    is_tuft = spots.finishes.pane_size[spots.triangle, 0] == 0
    return is_tuft & (0.35 * noise[:, 1] + 1.1 * noise[:, 0] + 6 * np.minimum(edge, 0.2) < 0.75)


def _plain(spots: Spots):
    u, v = spots.texture()
    noise = noise_texture().sample(u, v, spots.footprint, 1.7)
    return spots.albedo * np.exp(0.10 * noise[:, 0] + 0.05 * noise[:, 1])[:, None], 0.02


def _weather(spots: Spots, u, v) -> np.ndarray:
    """Return the brightness of an old facade, (N,): blotches, and dirt that runs down."""
    noise = noise_texture()
    fine, coarse = noise.sample(u, v, spots.footprint, 2.7), noise.sample(u, 0.35 * v + 11, spots.footprint, 13.0)
    above = spots.point[:, 2] - spots.finishes.low[spots.piece, 2]
    base = np.clip((above - 0.9) / spots.footprint, 0, 1)
    darker = np.where(spots.chance(5) < 0.6, 0.55 + 0.5 * spots.chance(6), 1.0)  # many have a plinth
    return np.exp(0.10 * fine[:, 0] + 0.06 * fine[:, 1] + 0.13 * coarse[:, 0]) * (base + (1 - base) * darker)


def _plaster(spots: Spots):
    u, v = spots.texture()
    tone = _weather(spots, u, v)
    # Some facades are of cut stone, some of panels.
    side = np.where(spots.chance(7) < 0.35, 0.45, np.where(spots.chance(7) < 0.55, 1.3, 0))
    for height in (0.45, 1.3):
        rows = np.flatnonzero(side == np.float32(height))
        if len(rows):
            along, up, footprint = u[rows], v[rows], spots.footprint[rows]
            row = np.floor(up / height)
            along = along + 0.5 * 1.8 * height * np.mod(row, 2)
            each = hash_cells(np.floor(along / (1.8 * height)), row) - 0.5
            joint = np.maximum(lines(along, 1.8 * height, 0.02, footprint), lines(up, height, 0.02, footprint))
            tone[rows] *= (1 + 0.22 * each * np.clip(1.5 - footprint / height, 0, 1)) * (1 - 0.4 * joint)
    return spots.albedo * tone[:, None], 0.0


def _bricks(spots: Spots):
    u, v = spots.texture()
    height, length, footprint = np.float32(0.083), np.float32(0.25), spots.footprint
    row = np.floor(v / height)
    along = u + length / 2 * np.mod(row, 2)
    each = (hash_cells(np.floor(along / length), row) - 0.5) * np.clip(1.5 - footprint / height, 0, 1)
    joint = np.maximum(lines(along, 0.25, 0.012, footprint), lines(v, 0.083, 0.012, footprint))
    tone = _weather(spots, u, v) * np.exp(0.5 * each)
    return spots.albedo * (tone * (1 - joint))[:, None] + np.float32([0.36, 0.34, 0.31]) * joint[:, None], 0.0


def _roof(spots: Spots):
    u, v = spots.texture()
    row = np.floor(v / 0.33)
    each = hash_cells(np.floor((u + 0.12 * np.mod(row, 2)) / 0.24), row) - 0.5
    each *= np.clip(1.5 - spots.footprint / 0.3, 0, 1)
    noise = noise_texture().sample(u, v, spots.footprint, 9.0)
    tone = np.exp(0.4 * each + 0.2 * noise[:, 0]) * (1 - 0.45 * lines(v, 0.33, 0.04, spots.footprint))
    return spots.albedo * tone[:, None], 0.0


def _frame(spots: Spots):
    """Return the share of a pixel on the frame of a window, (N,), and its colour, (N, 3)."""
    a, b, width, height = spots.pane()
    border = np.minimum(np.minimum(a, width - a), np.minimum(b, height - b))
    bar = np.where((width > 0.9) & (width < 2.2), np.abs(a - width / 2), 9)
    bar = np.minimum(bar, np.where(width >= 2.2, np.abs(np.mod(a, 1.5) - 0.75), 9))
    bar = np.minimum(bar, np.where((height > 1.3) & (spots.chance(4) < 0.6), np.abs(b - 0.7 * height), 9))
    share = np.maximum(inside(0.075 - border, spots.footprint), inside(0.035 - bar, spots.footprint))
    colour = np.where((spots.chance(0) < 0.65)[:, None], _WHITE, np.float32([0.12, 0.09, 0.07]))
    return share, colour


def _window(spots: Spots):
    share, colour = _frame(spots)
    a, b, width, _ = spots.pane()
    # One room behind each window: how light it is, what is in it, how far its curtains are drawn.
    origin = np.floor(spots.finishes.pane_origin[spots.triangle] * 8)
    room, drawn = hash_cells(*origin.T), hash_cells(origin[:, 2], origin[:, 0], origin[:, 1])
    noise = noise_texture().sample(a + 9 * room, b + 5 * drawn, spots.footprint, 3.1)
    behind = np.float32([0.05, 0.045, 0.04]) * (0.4 + 1.6 * room)[:, None]
    is_shop = (width > 1.9) & (spots.finishes.pane_origin[spots.triangle, 2] - spots.finishes.low[spots.piece, 2] < 1)
    # Goods: lighter and darker, and a little coloured.
    goods = np.clip(0.10 * noise + 0.25 * noise[:, :1] + 0.12, 0.01, 0.8) * np.float32([1.0, 0.9, 0.8])
    behind = np.where(is_shop[:, None], goods, behind * (1 + 0.4 * noise[:, :1]))
    curtain = inside(0.34 * drawn * width - np.minimum(a, width - a), spots.footprint) * (drawn > 0.35) * ~is_shop
    folds = 0.42 * (0.8 + 0.2 * np.sin(a * (2 * np.pi / 0.11)) * np.clip(1 - spots.footprint / 0.05, 0, 1))
    behind = behind * (1 - curtain)[:, None] + (curtain * folds)[:, None]
    return behind * (1 - share)[:, None] + colour * share[:, None], 0.09 * (1 - share)


def _blind(spots: Spots):
    share, colour = _frame(spots)
    _, b, _, height = spots.pane()
    origin = np.floor(spots.finishes.pane_origin[spots.triangle] * 8)
    down = inside(b - height * (0.75 * hash_cells(*origin.T) ** 2), spots.footprint)
    slats = spots.albedo * (1 - 0.45 * lines(b, 0.055, 0.018, spots.footprint))[:, None]
    glass = np.float32([0.05, 0.05, 0.055])
    behind = slats * down[:, None] + glass * (1 - down)[:, None]
    return behind * (1 - share)[:, None] + colour * share[:, None], 0.07 * (1 - share) * (1 - down)


def _wood(spots: Spots):
    u, v = spots.texture()
    noise = noise_texture()
    grain, coarse = noise.sample(u, 0.12 * v, spots.footprint, 0.9), noise.sample(u, v, spots.footprint, 5.0)
    tone = np.exp(0.22 * grain[:, 0] + 0.15 * coarse[:, 0]) * (1 - 0.5 * lines(u, 0.3, 0.015, spots.footprint))
    return spots.albedo * tone[:, None], 0.0


def _bark(spots: Spots):
    u, v = spots.texture()
    noise = noise_texture()
    ridges, coarse = noise.sample(u, 0.25 * v, spots.footprint, 0.8), noise.sample(u, v, spots.footprint, 3.0)
    return spots.albedo * np.exp(0.4 * ridges[:, 0] + 0.25 * coarse[:, 0])[:, None], 0.0


def _grass(spots: Spots):
    u, v = spots.texture()
    noise = noise_texture()
    fine, coarse = noise.sample(u, v, spots.footprint, 1.7), noise.sample(v, u, spots.footprint, 17.0)
    tone = np.exp(0.35 * fine[:, 1] + 0.2 * fine[:, 0] + 0.22 * coarse[:, 0])
    dry = np.clip(0.4 + 0.45 * coarse[:, 2], 0, 1)[:, None]
    return tone[:, None] * (spots.albedo * (1 - dry) + np.float32([0.17, 0.15, 0.07]) * dry), 0.0


def _leaves(spots: Spots):
    u, v = spots.texture()
    noise = noise_texture().sample(u, v, spots.footprint, 1.3)
    each = hash_cells(spots.triangle) - 0.5
    # Farther off, the brightness of single tufts melts together.
    each *= np.clip(1.5 - spots.footprint / 0.15, 0.3, 1)
    tone = np.exp(0.3 * noise[:, 1] + 0.2 * noise[:, 0] + 0.8 * each)
    return spots.albedo * tone[:, None] * (1 + each[:, None] * np.float32([0.35, 0.05, -0.2])), 0.01


def _sign(spots: Spots):
    u, v = spots.texture()
    noise = noise_texture().sample(u, v, spots.footprint, 0.8)
    _, b, width, height = spots.pane()
    glyph = inside(0.03 * (noise[:, 0] - 0.55), spots.footprint)[:, None]
    # Discs: a ring around a field with a symbol.
    offset = spots.point - spots.finishes.pane_origin[spots.triangle]
    radius = np.linalg.norm(offset, axis=1) / np.maximum(height, 1e-3)
    ring = inside((radius - 0.72) * height, spots.footprint)[:, None]
    is_blue = (spots.chance(2) < 0.35)[:, None]
    field = np.where(is_blue, np.float32([0.03, 0.14, 0.45]), _WHITE)
    ink = np.where(is_blue, _WHITE, np.float32([0.03, 0.03, 0.03]))
    disc = field * (1 - glyph) + ink * glyph
    disc = disc * (1 - ring) + np.where(is_blue, _WHITE, np.float32([0.55, 0.03, 0.03])) * ring
    # Number plates, boards and barriers are rectangles: text on a ground, or stripes.
    text = glyph * (np.abs(b - height / 2) < 0.32 * height)[:, None]
    is_plate = (width < 0.7)[:, None]
    ground = np.where(is_plate, _WHITE, spots.albedo)
    letters = np.where(is_plate | (spots.albedo.mean(axis=1, keepdims=True) > 0.4), np.float32(0.03), _WHITE)
    board = ground * (1 - text) + letters * text
    size = spots.finishes.high[spots.piece] - spots.finishes.low[spots.piece]
    is_cone = (size.max(axis=1) < 1.9)[:, None]
    stripe = lines(v + 0.7 * u * (width > 0.5), 0.26, 0.13, spots.footprint)[:, None]
    striped = _WHITE * stripe + np.float32([0.62, 0.10, 0.03]) * (1 - stripe)
    board = np.where(is_cone, striped, board)
    return np.where((width > 0)[:, None], board, disc), 0.02


def _vehicle(spots: Spots):
    low, high = spots.finishes.low[spots.piece], spots.finishes.high[spots.piece]
    x, y, z = spots.point.T
    size, footprint = high - low, spots.footprint
    up, half = (z - low[:, 2]) / size[:, 2], size[:, 1] / 2
    to_front, to_rear = high[:, 0] - x, x - low[:, 0]
    u, v = spots.texture()
    noise = noise_texture()
    coarse = noise.sample(u, v, footprint, 2.1)
    colour = spots.albedo * np.exp(0.05 * coarse[:, 0])[:, None]
    mirrored = np.full(len(x), 0.05, np.float32)

    def blend(share, other):
        nonlocal colour
        colour = colour * (1 - share)[:, None] + np.float32(other) * share[:, None]
        mirrored[:] = mirrored * (1 - 0.7 * share)

    is_side = np.abs(spots.normal[:, 1]) > 0.6
    # Lorries, buses and vans carry a livery.
    is_long, style = size[:, 0] > 4.9, spots.chance(4)
    band = inside(np.minimum(v - low[:, 2] - 0.38 * size[:, 2], low[:, 2] + 0.62 * size[:, 2] - v), footprint)
    livery = np.where((style < 0.5)[:, None], np.float32([0.5, 0.06, 0.05]), np.float32([0.04, 0.13, 0.36]))
    blend(band * is_side * is_long * (style < 0.75), livery)
    letters = inside(0.10 * (noise.sample(u, 1.6 * v, footprint, 4.0)[:, 0] - 0.7), footprint) * is_side * is_long
    blend(letters * (np.abs(up - 0.68) < 0.16) * (style > 0.3), np.float32([0.06, 0.06, 0.08]))
    seams = np.min([np.abs(x - low[:, 0] - share * size[:, 0]) for share in (0.28, 0.49, 0.72)], axis=0)
    blend(0.75 * inside(0.008 - seams, footprint) * np.minimum(0.016 / footprint, 1) * is_side * (up > 0.2), [0.02] * 3)
    handle = inside(np.minimum(0.09 - np.abs(seams - 0.14), 0.02 - np.abs(up - 0.56) * size[:, 2]), footprint)
    blend(0.6 * handle * is_side, [0.03] * 3)
    blend(inside((0.16 - up) * size[:, 2], footprint) * (spots.chance(3) < 0.8), [0.035, 0.035, 0.037])
    at_edge = inside(np.minimum(np.abs(y) - 0.55 * half, 0.5 - np.abs(y)) + 0.45 * half, footprint)
    corner = inside(np.abs(y) - 0.56 * half, footprint) * at_edge
    lamp = inside(np.minimum(up - 0.38, 0.49 - up) * size[:, 2], footprint) * corner
    blend(lamp * inside(0.32 - to_front, footprint), [0.62, 0.63, 0.64])
    tall = np.where(size[:, 2] > 1.62, 0.68, 0.56)
    rear_lamp = inside(np.minimum(up - 0.42, tall - up) * size[:, 2], footprint) * inside(
        np.abs(y) - 0.68 * half, footprint
    )
    blend(rear_lamp * inside(0.22 - to_rear, footprint), [0.42, 0.015, 0.015])
    grille = inside(np.minimum(np.minimum(up - 0.2, 0.37 - up) * size[:, 2], 0.5 * half - np.abs(y)), footprint)
    bars = 0.03 + 0.12 * lines(z, 0.06, 0.015, footprint)
    share = grille * inside(0.3 - to_front, footprint)
    colour = colour * (1 - share)[:, None] + (bars * share)[:, None]
    dirt = np.clip(0.35 - up + 0.1 * coarse[:, 2], 0, 0.5)
    return colour * (1 - 0.6 * dirt)[:, None] + (0.07 * dirt)[:, None], mirrored


def _glass(spots: Spots):
    u, v = spots.texture()
    noise = noise_texture().sample(u, v, spots.footprint, 2.0)
    return spots.albedo * np.exp(0.2 * noise[:, :1]), 0.12


def _clothes(spots: Spots):
    u, v = spots.texture()
    low, high = spots.finishes.low[spots.piece], spots.finishes.high[spots.piece]
    up = (spots.point[:, 2] - low[:, 2]) / (high[:, 2] - low[:, 2])
    wear = np.asarray(_CLOTHES, np.float32)
    lower = wear[np.minimum((spots.chance(9) * 9).astype(int), len(wear) - 1)]
    on_top = inside((up - 0.5) * (high[:, 2] - low[:, 2]), spots.footprint)[:, None]
    colour = spots.albedo * on_top + lower * (1 - on_top)
    noise = noise_texture()
    folds, coarse = noise.sample(u, 0.6 * v, spots.footprint, 0.7), noise.sample(u, v, spots.footprint, 2.3)
    tone = np.exp(0.28 * folds[:, 0] + 0.12 * coarse[:, 0])
    style = spots.chance(1)
    stripes = lines(v, 0.09, 0.045, spots.footprint)
    checks = np.maximum(lines(u, 0.11, 0.03, spots.footprint), lines(v, 0.11, 0.03, spots.footprint))
    tone *= 1 + np.where(style < 0.2, 0.9, 0) * stripes - np.where((style > 0.2) & (style < 0.4), 0.45, 0) * checks
    return colour * tone[:, None], 0.0


def _tyre(spots: Spots):
    """Wheels: the fan that closes the end of a tube is the rim, all else is rubber."""
    _, _, width, height = spots.pane()
    offset = spots.point - spots.finishes.pane_origin[spots.triangle]
    distance = np.linalg.norm(offset, axis=1)
    is_disc = (width == 0) & (height > 0.2)
    share = inside(0.66 * height - distance, spots.footprint) * is_disc
    spokes = 0.5 + 0.5 * np.cos(5 * np.arctan2(offset[:, 2], offset[:, 0] + 1e-6))
    blur = np.clip(1 - spots.footprint / 0.06, 0, 1)
    rim = (0.34 + 0.08 * spots.chance(5)) * (1 - 0.75 * (spokes * blur + 0.5 * (1 - blur)) * (distance > 0.07))
    return spots.albedo * (1 - share)[:, None] + (rim * share)[:, None], 0.02 * share


def _skin(spots: Spots):
    """Faces, and hair on the top and the back of heads."""
    u, v = spots.texture()
    noise = noise_texture().sample(u, v, spots.footprint, 0.4)
    top = spots.finishes.high[spots.piece, 2]
    is_hair = inside(0.1 - (top - spots.point[:, 2]) - 0.5 * spots.normal[:, 0] * 0.1, spots.footprint)
    tone = np.float32([0.06, 0.045, 0.035]) * (0.5 + 3 * spots.chance(6))[:, None]
    colour = spots.albedo * (1 - is_hair)[:, None] + tone * is_hair[:, None]
    return colour * np.exp(0.12 * noise[:, :1]), 0.0


_PATTERNS = {
    Finish.PLAIN: _plain,
    Finish.GRASS: _grass,
    Finish.PLASTER: _plaster,
    Finish.BRICKS: _bricks,
    Finish.ROOF: _roof,
    Finish.WINDOW: _window,
    Finish.BLIND: _blind,
    Finish.WOOD: _wood,
    Finish.BARK: _bark,
    Finish.LEAVES: _leaves,
    Finish.SIGN: _sign,
    Finish.VEHICLE: _vehicle,
    Finish.GLASS: _glass,
    Finish.CLOTHES: _clothes,
    Finish.TYRE: _tyre,
    Finish.SKIN: _skin,
    Finish.KERB: _plaster,
}
