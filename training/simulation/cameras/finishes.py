# SPDX-License-Identifier: Apache-2.0
"""What the surfaces of a world are made of and painted with: one kind, colour and texture direction per triangle."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from training.simulation.cameras.world import World
from training.simulation.sensors.lidar import Category
from training.simulation.shapes.mesh import Material


class Finish(IntEnum):
    """The pattern on a surface; see surface_patterns."""

    PLAIN = 0
    ROAD = 1
    PAVING = 2
    GRASS = 3
    PLASTER = 4
    BRICKS = 5
    ROOF = 6
    WINDOW = 7
    BLIND = 8
    WOOD = 9
    BARK = 10
    LEAVES = 11
    SIGN = 12
    VEHICLE = 13
    GLASS = 14
    CLOTHES = 15
    TYRE = 16
    SKIN = 17
    KERB = 18


# Shares of red, green and blue light that surfaces return, before textures. From photographs of streets by eye.
_FACADES = (
    (0.60, 0.53, 0.38), (0.72, 0.66, 0.52), (0.75, 0.73, 0.68), (0.50, 0.40, 0.28), (0.42, 0.30, 0.22),
    (0.48, 0.46, 0.43), (0.55, 0.40, 0.30), (0.50, 0.55, 0.45), (0.45, 0.50, 0.56), (0.66, 0.48, 0.42),
)  # fmt: skip
_BRICKS = ((0.34, 0.14, 0.09), (0.42, 0.20, 0.12), (0.28, 0.16, 0.12), (0.46, 0.34, 0.20), (0.30, 0.24, 0.20))
_ROOFS = ((0.32, 0.12, 0.08), (0.22, 0.12, 0.09), (0.12, 0.11, 0.11), (0.38, 0.18, 0.10))
_LIGHT_PAINTS = (
    (0.80, 0.80, 0.78), (0.75, 0.76, 0.77), (0.50, 0.51, 0.52), (0.42, 0.44, 0.46), (0.60, 0.58, 0.50),
    (0.70, 0.68, 0.62), (0.34, 0.36, 0.38), (0.62, 0.45, 0.10), (0.40, 0.50, 0.58),
)  # fmt: skip
_DARK_PAINTS = (
    (0.02, 0.02, 0.025), (0.04, 0.04, 0.045), (0.08, 0.085, 0.09), (0.02, 0.04, 0.12), (0.03, 0.08, 0.22),
    (0.25, 0.02, 0.02), (0.12, 0.02, 0.03), (0.03, 0.09, 0.05), (0.14, 0.13, 0.11),
)  # fmt: skip
_CLOTHES = (
    (0.03, 0.03, 0.04), (0.06, 0.06, 0.08), (0.04, 0.06, 0.14), (0.10, 0.13, 0.22), (0.30, 0.05, 0.05),
    (0.70, 0.68, 0.64), (0.25, 0.20, 0.14), (0.42, 0.36, 0.26), (0.10, 0.20, 0.12), (0.55, 0.30, 0.10),
    (0.35, 0.36, 0.38), (0.12, 0.28, 0.45), (0.60, 0.50, 0.15),
)  # fmt: skip
_SIGNS = ((0.03, 0.12, 0.42), (0.75, 0.74, 0.70), (0.60, 0.03, 0.03), (0.75, 0.50, 0.02), (0.02, 0.28, 0.12))
_METALS = ((0.28, 0.29, 0.30), (0.10, 0.11, 0.12), (0.05, 0.12, 0.09), (0.40, 0.41, 0.42), (0.16, 0.17, 0.19))
_LEAVES = (
    (0.060, 0.110, 0.025), (0.085, 0.135, 0.035), (0.050, 0.085, 0.030), (0.110, 0.140, 0.030), (0.075, 0.120, 0.040),
    (0.260, 0.170, 0.035), (0.200, 0.090, 0.025),
)  # fmt: skip
_BARKS = ((0.13, 0.10, 0.07), (0.18, 0.15, 0.11), (0.09, 0.075, 0.06), (0.22, 0.15, 0.09))
_SKINS = ((0.55, 0.36, 0.26), (0.40, 0.25, 0.17), (0.62, 0.44, 0.34), (0.16, 0.09, 0.06))
_GROUND = {
    Material.ASPHALT: (0.125, 0.125, 0.13),
    Material.PAVING: (0.26, 0.25, 0.235),
    Material.GRASS: (0.09, 0.12, 0.035),
}

_VEHICLES = (Category.CAR, Category.OTHER_VEHICLE)


@dataclass(frozen=True)
class Finishes:
    """The look of every triangle of a world, and of every piece (object).

    kind: (T,) uint8, a Finish. albedo: (T, 3) float32, mean share of red, green and blue light that is returned.
    axes: (T, 2, 3) float32, texture coordinates [m] are axes @ point (in the frame of the body) + offset (T, 2).
    pane_origin: (T, 3), pane_axes: (T, 2, 3) float32: unit vectors along the edges of the quadrilateral that a triangle
    is half of; pane_size: (T, 2) [m] its width and height. The width is 0 where a triangle is no such half; then the
    height is the length of its first edge, as of a fan around pane_origin.
    chance: (P, 12) float32 in [0, 1), random numbers of each piece. low, high: (P, 3) float32 [m], bounds of each
    piece in the frame of its body.
    """

    kind: np.ndarray
    albedo: np.ndarray
    axes: np.ndarray
    offset: np.ndarray
    pane_origin: np.ndarray
    pane_axes: np.ndarray
    pane_size: np.ndarray
    chance: np.ndarray
    low: np.ndarray
    high: np.ndarray


def choose_finishes(world: World, rng: np.random.Generator) -> Finishes:
    """Return random but sensible finishes: paints of vehicles, facades, clothes, plants."""
    num_pieces = int(world.piece.max()) + 1
    chance = rng.random((num_pieces, 12), np.float32)
    low, high = _bounds(world, num_pieces)
    size = high - low
    material, piece, category = world.material, world.piece, world.category
    upward = np.abs(world.normals[:, 2])
    has_leaves = np.zeros(num_pieces, bool)
    has_leaves[piece[material == Material.LEAF]] = True
    is_building = (size[:, 2] > 2.2) & (size[:, :2].max(axis=1) > 3.5) & ~has_leaves
    in_building = is_building[piece] & (category == Category.BACKGROUND)
    in_vehicle = np.isin(category, _VEHICLES)
    in_ground = category == Category.GROUND

    kind = np.full(len(material), Finish.PLAIN, np.uint8)
    albedo = np.full((len(material), 3), 0.3, np.float32)

    def paint(rows, finish, palette, column, spread=0.25):
        colours = np.asarray(palette, np.float32)
        chosen = chance[piece[rows], column]
        index = np.minimum((chosen * len(colours)).astype(int), len(colours) - 1)
        # The rest of the random number varies the brightness.
        tone = 1 + spread * (2 * (chosen * len(colours) - index) - 1)
        kind[rows], albedo[rows] = finish, colours[index] * tone[:, None]

    def of(*materials):
        return np.isin(material, materials)

    wall = of(Material.CONCRETE, Material.LIGHT_PAINT)
    paint(of(Material.METAL), Finish.PLAIN, _METALS, 0)
    paint(wall, Finish.PLASTER, _FACADES, 1)
    paint(of(Material.BRICK), Finish.BRICKS, _BRICKS, 2)
    paint(of(Material.METAL) & in_building, Finish.PLASTER, _FACADES, 3)
    paint(in_building & (upward > 0.3) & (upward < 0.97) & (of(Material.BRICK) | wall), Finish.ROOF, _ROOFS, 4)
    paint(of(Material.DARK_PAINT), Finish.PLAIN, _DARK_PAINTS, 5)
    paint(of(Material.BARK), Finish.BARK, _BARKS, 0)
    paint(of(Material.BARK) & ~has_leaves[piece], Finish.WOOD, _BARKS + _FACADES[3:6], 6)
    paint(of(Material.LEAF), Finish.LEAVES, _LEAVES, 7)
    paint(of(Material.CLOTH), Finish.CLOTHES, _CLOTHES, 8, 0.15)
    paint(of(Material.SKIN), Finish.SKIN, _SKINS, 3)
    paint(of(Material.RETRO), Finish.SIGN, _SIGNS, 9, 0.1)
    paint(of(Material.RUBBER), Finish.TYRE, ((0.03, 0.03, 0.032),), 0)
    paint(of(Material.GLASS), Finish.GLASS, ((0.03, 0.035, 0.04),), 0)
    paint(in_vehicle & of(Material.LIGHT_PAINT), Finish.VEHICLE, _LIGHT_PAINTS, 10)
    paint(in_vehicle & of(Material.DARK_PAINT), Finish.VEHICLE, _DARK_PAINTS, 10)
    paint(in_vehicle & of(Material.CLOTH), Finish.PLAIN, ((0.05, 0.05, 0.055),), 0)
    for ground, colour in _GROUND.items():
        finish = {Material.ASPHALT: Finish.ROAD, Material.PAVING: Finish.PAVING, Material.GRASS: Finish.GRASS}[ground]
        paint(in_ground & (material == ground), finish, (colour,), 11, 0.3)
    paint(in_ground & (upward < 0.8) & (material != Material.GRASS), Finish.KERB, ((0.33, 0.32, 0.30),), 11)

    pane_origin, pane_axes, pane_size = _panes(world.corners, material)
    is_pane = (pane_size.min(axis=1) > 0.2) & in_building
    paint(is_pane & of(Material.GLASS), Finish.WINDOW, ((0.03, 0.035, 0.04),), 0)
    paint(is_pane & of(Material.CLOTH), Finish.BLIND, ((0.62, 0.60, 0.55), (0.45, 0.44, 0.42), (0.50, 0.38, 0.28)), 8)
    axes, offset = _texture_axes(world, chance)
    return Finishes(kind, albedo, axes, offset, pane_origin, pane_axes, pane_size, chance, low, high)


def _bounds(world: World, num_pieces: int) -> tuple[np.ndarray, np.ndarray]:
    low = np.full((num_pieces, 3), np.inf, np.float32)
    high = np.full((num_pieces, 3), -np.inf, np.float32)
    np.minimum.at(low, world.piece, world.corners.min(axis=1).astype(np.float32))
    np.maximum.at(high, world.piece, world.corners.max(axis=1).astype(np.float32))
    return low, high


def _texture_axes(world: World, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return texture axes: along the level direction in the surface and up it; x and y where it is nearly level."""
    normal = world.normals
    is_level = np.abs(normal[:, 2]) > 0.95
    level = np.stack([-normal[:, 1], normal[:, 0], np.zeros(len(normal), np.float32)], axis=1)
    level /= np.maximum(np.linalg.norm(level, axis=1, keepdims=True), 1e-9)
    # One direction for both sides of a wall and for triangles that wind the other way.
    level *= np.where((level[:, :1] < -1e-6) | ((np.abs(level[:, :1]) <= 1e-6) & (level[:, 1:2] < 0)), -1, 1)
    up = np.cross(normal, level)
    up *= np.where(up[:, 2:] < 0, -1, 1)
    axes = np.stack([level, up], axis=1).astype(np.float32)
    axes[is_level] = np.eye(3, dtype=np.float32)[:2]
    offset = 37 * chance[world.piece][:, :2]
    offset[world.piece == 0] = 0
    # The rows of bricks and of tiles start at the same height all around a building.
    offset[:, 1] *= is_level
    return axes, offset.astype(np.float32)


def _panes(corners: np.ndarray, material: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find triangles that are the halves (0, 1, 2) and (0, 2, 3) of a quadrilateral, as mesh.from_quads writes them."""
    follows = np.zeros(len(corners), bool)  # the next triangle has the corner 0 of this one, and its 2 as 1
    follows[:-1] = (
        (material[:-1] == material[1:])
        & (corners[:-1, 0] == corners[1:, 0]).all(axis=1)
        & (corners[:-1, 2] == corners[1:, 1]).all(axis=1)
    )
    # Three and more in a row are a fan around one corner.
    is_first = follows & ~np.roll(follows, 1) & ~np.roll(follows, -1)
    is_second = np.roll(is_first, 1)
    along = np.where(is_first[:, None], corners[:, 1] - corners[:, 0], corners[:, 1] - corners[:, 2])
    across = np.where(is_first[:, None], corners[:, 2] - corners[:, 1], corners[:, 2] - corners[:, 0])
    axes = np.stack([along, across], axis=1)
    size = np.linalg.norm(axes, axis=2)
    axes /= np.maximum(size, 1e-9)[..., None]
    single = ~(is_first | is_second)
    size[single, 0] = 0
    size[single, 1] = np.linalg.norm(corners[single, 1] - corners[single, 0], axis=1)
    return corners[:, 0].astype(np.float32), axes.astype(np.float32), size.astype(np.float32)
