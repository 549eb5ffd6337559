# SPDX-License-Identifier: Apache-2.0
"""The surface of roads: asphalt with patches and cracks, lane markings, crossings, manholes, paving stones."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from training.simulation.cameras.noise_texture import hash_cells, inside, lines, noise_texture
from training.simulation.streets.street_layout import StreetLayout


@dataclass(frozen=True)
class RoadSurface:
    """The paint and wear of the roads of a street.

    layout: of the street. solid, dashed: distances from the middle of the road of the lines along it [m], t.
    dash: length of a dash and of a period [m]. crossings: s of zebra crossings [m]. worn: share of paint worn off.
    patches: share of repaired cells. stones: side of paving stones [m]. is_paved: whether the road itself has stones.
    bays: (t0, t1, spacing) of rows of parking bays [m].
    """

    layout: StreetLayout
    solid: tuple[float, ...]
    dashed: tuple[float, ...]
    dash: tuple[float, float]
    crossings: tuple[float, ...]
    worn: float
    patches: float
    stones: float
    is_paved: bool
    bays: tuple[tuple[float, float, float], ...]

    @staticmethod
    def draw(layout: StreetLayout, rng: np.random.Generator) -> 'RoadSurface':
        """Return a random surface for a street."""
        half, open_place = layout.half_width, layout.name in ('plaza', 'car_park')
        solid, dashed, bays = [], [], []
        edges = sorted(t for t, _ in layout.lane_centers())
        between = [(a + b) / 2 for a, b in pairwise(edges)]
        if not open_place and (half > 4 or rng.random() < 0.5):
            for t in between:
                (solid if abs(t) < 0.9 and rng.random() < 0.3 else dashed).append(t)
        if layout.name in ('highway', 'arterial') or rng.random() < 0.25:
            solid += [side * (half - 0.3) for side in (-1, 1)]
        bays += [(side * half, side * (half - 2.1), 5.5) for side in (-1, 1) if layout.parked[side] and not open_place]
        if layout.name == 'car_park':
            bays += [(t - 2.5, t + 2.5, 2.5) for t in layout.parking_rows()[0]]
        may_cross = layout.name in ('urban', 'residential', 'arterial')
        crossings = rng.uniform(8, 60, rng.integers(0, 3)) if may_cross else ()
        dash = rng.uniform(1.5, 4.0)
        return RoadSurface(
            layout, tuple(solid), tuple(dashed), (dash, dash * rng.uniform(2, 3)), tuple(crossings),
            rng.uniform(0, 0.5), rng.uniform(0.02, 0.25), rng.choice([0.2, 0.3, 0.4, 0.5]),
            open_place and rng.random() < 0.5, tuple(bays),
        )  # fmt: skip

    def road_coordinates(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return s and t [m] of points (N, 3) in odom: the inverse of Terrain.to_odom."""
        bend = self.layout.terrain.curvature
        if abs(bend) < 1e-9:
            return points[:, 0], points[:, 1]
        x, y = points[:, 0].astype(np.float64), 1 / bend - points[:, 1].astype(np.float64)
        side = np.sign(bend)
        s, t = np.arctan2(side * x, side * y) / bend, 1 / bend - side * np.hypot(x, y)
        return s.astype(np.float32), t.astype(np.float32)

    def asphalt(self, albedo: np.ndarray, points: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Return the colour of the road at points (N, 3) in odom, (N, 3); footprint (N,) [m] of a pixel."""
        s, t = self.road_coordinates(points)
        if self.is_paved:
            return self.paving(albedo * 1.6, points, footprint)
        noise = noise_texture()
        fine = noise.sample(s, t, footprint, 2.3)
        coarse = noise.sample(0.8 * s + 0.6 * t, 0.8 * t - 0.6 * s, footprint, 29.0)
        grain = noise.sample(t, s, footprint, 1.1)
        tone = np.exp(0.20 * grain[:, 1] + 0.07 * fine[:, 0] + 0.07 * coarse[:, 0] + 0.05 * coarse[:, 2])
        # Repairs: rectangles of another mixture, with a seam of bitumen around them.
        cell_s, cell_t = np.floor(s / 5.3), np.floor(t / 2.3)
        chance = hash_cells(cell_s, cell_t)
        patched = (chance < self.patches).astype(np.float32)
        tone *= 1 + patched * (hash_cells(cell_t, cell_s) - 0.6) * 0.8
        seam = np.maximum(lines(s, 5.3, 0.05, footprint), lines(t, 2.3, 0.05, footprint))
        tone *= 1 - 0.55 * seam * (chance < 1.6 * self.patches)
        # Cracks run along a contour of the noise.
        crack = inside(0.012 - np.abs(coarse[:, 2] - 0.4) * 0.5, footprint + 0.01) * np.minimum(0.03 / footprint, 1)
        tone *= 1 - 0.5 * crack * (fine[:, 2] > 0.2)
        tone *= 1 - 0.12 * np.cos(2 * np.pi * t / 1.75).astype(np.float32)  # wheels polish two tracks in each lane
        colour = albedo * tone[:, None]
        hole_s, hole_t = np.floor(s / 17) * 17 + 3 + 11 * hash_cells(np.floor(s / 17)), self.layout.half_width * 0.4
        radius = np.hypot(s - hole_s, np.abs(t) - hole_t)
        iron = inside(0.32 - radius, footprint) * (1 - 0.5 * lines(s + t, 0.07, 0.03, footprint))
        colour *= (1 - 0.55 * iron)[:, None]
        paint = self._paint(s, t, footprint) * inside(
            0.02 * (fine[:, 0] + coarse[:, 2] * 0.7 + 2.4 - 3.5 * self.worn), footprint * 0.5 + 0.012
        )
        return colour * (1 - paint)[:, None] + np.float32([0.60, 0.60, 0.57]) * (paint * (0.85 + 0.1 * tone))[:, None]

    def _paint(self, s: np.ndarray, t: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Return the share of a pixel that is painted white, (N,)."""
        half = self.layout.half_width
        paint = np.zeros_like(s)
        on, period = self.dash
        is_dash = inside(on / 2 - np.abs(np.mod(s, period) - period / 2), footprint)
        for where, share in [*((t0, 1.0) for t0 in self.solid), *((t0, is_dash) for t0 in self.dashed)]:
            band = np.minimum(np.abs(t - np.float32(where)) + footprint / 2, 0.06)
            band = band - np.maximum(np.abs(t - np.float32(where)) - footprint / 2, -0.06)
            paint = np.maximum(paint, np.maximum(band, 0) / footprint * share)
        for t0, t1, spacing in self.bays:
            within = inside(np.minimum(t - min(t0, t1), max(t0, t1) - t), footprint)
            paint = np.maximum(paint, within * lines(s, spacing, 0.1, footprint))
        for at in self.crossings:
            beside = inside(np.minimum(2.0 - np.abs(s - np.float32(at)), half - np.abs(t)), footprint)
            paint = np.maximum(paint, beside * lines(t + 0.25, 1.0, 0.5, footprint))
            stop = inside(np.minimum(0.2 - np.abs(s - np.float32(at - 3.2)), half - np.abs(t)), footprint)
            paint = np.maximum(paint, stop * (t * self.layout.driving_side > 0))
        return paint * (np.abs(t) < half)

    def paving(self, albedo: np.ndarray, points: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Return the colour of paving stones at points (N, 3) in odom, (N, 3)."""
        s, t = self.road_coordinates(points)
        noise, side = noise_texture(), self.stones
        row = np.floor(t / side)
        along = s + 0.5 * side * np.mod(row, 2)
        each = hash_cells(np.floor(along / side), row) - 0.5
        # Single stones are seen up to where a pixel covers one.
        each *= np.clip(1.5 - footprint / side, 0, 1)
        fine, coarse = noise.sample(s, t, footprint, 2.9), noise.sample(t, s, footprint, 23.0)
        tone = np.exp(0.12 * fine[:, 1] + 0.10 * fine[:, 0] + 0.15 * coarse[:, 0] + 0.35 * each)
        joint = np.maximum(lines(along, side, 0.014, footprint), lines(t, side, 0.014, footprint))
        return albedo * (tone * (1 - 0.6 * joint))[:, None]
