# SPDX-License-Identifier: Apache-2.0
"""Images of a world: rays from the camera, shadows, colours, and finer sampling where surfaces meet."""

from dataclasses import dataclass

import numpy as np

from training.simulation.cameras.finishes import Finish, Finishes, choose_finishes
from training.simulation.cameras.light import Daylight
from training.simulation.cameras.road_surface import RoadSurface
from training.simulation.cameras.stereo_rig import CameraFaults, View
from training.simulation.cameras.surface_patterns import Spots, leaf_holes, surface_colour
from training.simulation.cameras.world import Instant, World
from zeroflow_ros.camera.opencv import load_opencv

_CHUNK = 1 << 16  # rays at a time: their arrays stay in the cache
_SUBPIXELS = np.array([[-0.125, -0.375], [0.375, -0.125], [-0.375, 0.125], [0.125, 0.375]])  # a rotated grid
_LEAF_LAYERS = 5  # how many tufts of leaves a ray may pass through
_COVER_REACH = 1.8  # [m] within which surfaces keep the light of the sky from each other
_COVERED = 0.38  # the share of light that a covered direction still gives


@dataclass(frozen=True)
class Hits:
    """First surfaces on the rays of the pixels of a view, row after row.

    triangle: (H * W,) int32, -1 where there is none. distance: (H * W,) float32 [m], inf where there is none.
    """

    triangle: np.ndarray
    distance: np.ndarray


class Renderer:
    """Renders a world under one day's light, with the finishes of its surfaces."""

    def __init__(self, world: World, rng: np.random.Generator):
        self.world = world
        self.light = Daylight.draw(rng)
        self.road = RoadSurface.draw(world.street.layout, rng)
        self.finishes: Finishes = choose_finishes(world, rng)
        self._is_leaf = self.finishes.kind == Finish.LEAVES

    def cast(self, instant: Instant, origins, directions, pixel_angle: float) -> tuple[np.ndarray, np.ndarray]:
        """Return triangle and distance as Instant.cast, through the holes between leaves."""
        triangle, distance = instant.cast(origins, directions)
        rows = np.flatnonzero((triangle >= 0) & self._is_leaf[triangle])
        for _ in range(_LEAF_LAYERS):
            if not len(rows):
                break
            points = origins[rows] + directions[rows] * distance[rows, None]
            spots = self._spots(instant, triangle[rows], points, distance[rows] * np.float32(pixel_angle))
            rows = rows[leaf_holes(spots, self.world.corners[triangle[rows]].astype(np.float32))]
            start = distance[rows] + np.float32(0.005)
            behind, beyond = instant.cast(origins[rows] + directions[rows] * start[:, None], directions[rows])
            triangle[rows], distance[rows] = behind, beyond + start
            rows = rows[(behind >= 0) & self._is_leaf[behind]]
        return triangle, distance

    def render(self, instant: Instant, view: View) -> tuple[np.ndarray, Hits]:
        """Return the light that arrives at every pixel, (H, W, 3) float32, and what the rays of their centres hit."""
        u, v = view.pixels()
        pixel_angle = 1 / view.fx
        colour = np.empty((len(u), 3), np.float32)
        triangle, distance = np.empty(len(u), np.int32), np.empty(len(u), np.float32)
        shading = np.empty(len(u), np.uint8)
        for start in range(0, len(u), _CHUNK):
            part = slice(start, start + _CHUNK)
            rays = view.rays(u[part], v[part])
            triangle[part], distance[part], colour[part], shading[part] = self._look(instant, *rays, pixel_angle)
        shape = (view.height, view.width)
        edges = np.flatnonzero(self._edges(instant, triangle.reshape(shape), shading.reshape(shape)))
        for start in range(0, len(edges), _CHUNK // 4):
            rows = edges[start : start + _CHUNK // 4]
            at_u, at_v = (u[rows, None] + _SUBPIXELS[:, 0]).ravel(), (v[rows, None] + _SUBPIXELS[:, 1]).ravel()
            *_, finer, _ = self._look(instant, *view.rays(at_u, at_v), pixel_angle / 2)
            colour[rows] = finer.reshape(-1, len(_SUBPIXELS), 3).mean(axis=1)
        return colour.reshape(*shape, 3), Hits(triangle, distance)

    def _look(self, instant: Instant, origins, directions, pixel_angle: float):
        """Return triangle, distance, colour (N, 3) and a code of how the light falls (N,) of rays."""
        triangle, distance = self.cast(instant, origins, directions, pixel_angle)
        colour = np.empty((len(triangle), 3), np.float32)
        shading = np.zeros(len(triangle), np.uint8)
        sky = np.flatnonzero(triangle < 0)
        colour[sky] = self.light.sky_radiance(directions[sky])
        rows = np.flatnonzero(triangle >= 0)
        if len(rows):
            colour[rows], shading[rows] = self._shade(
                instant, triangle[rows], origins[rows], directions[rows], distance[rows], pixel_angle
            )
        return triangle, distance, colour, shading

    def _shade(self, instant: Instant, triangle, origins, directions, distance, pixel_angle: float):
        points = origins + directions * distance[:, None]
        normals = instant.normals(triangle)
        facing = -np.einsum('ij,ij->i', normals, directions)
        normals *= np.where(facing < 0, -1, 1)[:, None].astype(np.float32)
        facing = np.abs(facing)
        # Surfaces seen at a grazing angle: between the short and the long side of what the pixel covers.
        footprint = distance * np.float32(pixel_angle) / np.sqrt(np.maximum(facing, 0.02))
        spots = self._spots(instant, triangle, points, footprint)
        albedo, mirrored = surface_colour(spots, self.road)
        # 1 cm off the surface, and a little towards the camera for surfaces seen edge-on
        above = points + normals * np.float32(0.01) - directions * (np.float32(1e-5) * distance[:, None])
        light = self.light
        in_sun = np.zeros(len(points), np.float32)
        toward = np.flatnonzero(normals @ light.sun_direction > 0) if light.sun.any() else np.zeros(0, int)
        to_sun = np.broadcast_to(light.sun_direction, (len(toward), 3)).astype(np.float32)
        in_sun[toward] = ~instant.occluded(above[toward], to_sun)
        openness, code = np.ones(len(points), np.float32), in_sun.astype(np.uint8)
        for k, aside in enumerate(([0.45, 0.35, 0.5], [-0.45, -0.35, 0.5])):
            outward = normals + np.float32(aside)
            outward /= np.linalg.norm(outward, axis=1, keepdims=True)
            covered = instant.occluded(above, outward, _COVER_REACH)
            openness -= np.float32((1 - _COVERED) / 2) * covered
            code |= covered.astype(np.uint8) << (k + 1)
        colour = light.lit(albedo, normals, in_sun, openness)
        shiny = np.flatnonzero(mirrored > 0.01)
        reflected = directions[shiny] + 2 * facing[shiny, None] * normals[shiny]
        share = mirrored[shiny] + (1 - mirrored[shiny]) * (1 - facing[shiny]) ** 5 * np.minimum(
            mirrored[shiny] * 8, 0.6
        )
        mirror = light.mirrored_radiance(reflected) * (0.5 + 0.5 * openness[shiny, None])
        glint = in_sun[shiny] * np.clip(reflected @ light.sun_direction, 0, 1) ** 60
        mirror += (4 * glint)[:, None] * light.sun
        colour[shiny] = colour[shiny] * (1 - share)[:, None] + mirror * share[:, None]
        return light.through_haze(colour, distance), code

    def _spots(self, instant: Instant, triangle, points, footprint) -> Spots:
        world = self.world
        return Spots(
            triangle, world.piece[triangle], instant.in_body(points, triangle), world.normals[triangle],
            np.maximum(footprint, np.float32(1e-4)), self.finishes.albedo[triangle], self.finishes,
        )  # fmt: skip

    def _edges(self, instant: Instant, triangle: np.ndarray, shading: np.ndarray) -> np.ndarray:
        """Return the pixels (H, W) bool whose neighbours show another surface or another light, and all leaves."""
        there = triangle >= 0
        piece = np.where(there, self.world.piece[triangle], -1)
        kind = np.where(there, self.finishes.kind[triangle], 255)
        look = (piece.astype(np.int64) << 16) | (kind.astype(np.int64) << 8) | shading
        normal = np.round(self.world.normals[triangle.ravel()] * 4).astype(np.int8).reshape(*triangle.shape, 3)
        is_edge = kind == Finish.LEAVES
        for axis in (0, 1):
            differs = np.diff(look, axis=axis) != 0
            differs |= (np.diff(normal, axis=axis) != 0).any(axis=2) & (np.diff(triangle, axis=axis) != 0)
            before = [slice(None)] * 2
            after = [slice(None)] * 2
            before[axis], after[axis] = slice(None, -1), slice(1, None)
            is_edge[tuple(before)] |= differs
            is_edge[tuple(after)] |= differs
        return is_edge


def exposure_of(light: np.ndarray, faults: CameraFaults) -> float:
    """Return the factor on the light (H, W, 3) that exposes an image well: bright surfaces are near full scale."""
    luminance = light.mean(axis=2)
    return float(faults.exposure * 0.30 / max(np.percentile(luminance[luminance.shape[0] // 3 :], 80), 1e-6))


def develop(
    light: np.ndarray, exposure: float, faults: CameraFaults, side: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the image (H, W, 3) uint8 RGB of the light that arrives (H, W, 3), with the camera's faults.

    exposure: from exposure_of. side: 0 left, 1 right.
    """
    cv2 = load_opencv()
    height, width = light.shape[:2]
    v, u = np.mgrid[:height, :width]
    radius = ((2 * u / width - 1) ** 2 + (2 * v / width - height / width) ** 2) / (1 + (height / width) ** 2)
    signal = light * (exposure * (1 - faults.vignetting * radius))[..., None] * faults.gains[side]
    blur = faults.blur * width / 1242
    if blur > 0.1:
        signal = cv2.GaussianBlur(signal, (0, 0), blur)
    if faults.read_noise or faults.shot_noise:
        deviation = np.sqrt(faults.read_noise**2 + faults.shot_noise**2 * np.clip(signal, 0, 1))
        signal = signal + deviation * rng.standard_normal(signal.shape, np.float32)
    # A straight toe: the darkest parts of real images are black.
    tone = np.clip(signal, 0, 1) ** (1 / faults.gamma)
    return np.round(255 * np.clip(1.06 * tone - 0.06, 0, 1)).astype(np.uint8)
