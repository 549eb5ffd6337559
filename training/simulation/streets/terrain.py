# SPDX-License-Identifier: Apache-2.0
"""The ground of a street in road coordinates (s along the road, t to the left): position, height and triangles."""

from dataclasses import dataclass

import numpy as np

from training.simulation.shapes.mesh import Material, Mesh, from_quads, join

S_RANGE = (-110.0, 150.0)  # the street's extent along the road [m]; the ego starts at s = 0
T_LIMIT = 75.0  # its extent to either side [m]


@dataclass(frozen=True)
class Block:
    """A raised rectangle in road coordinates [m]: the pavement and the ground behind it."""

    s0: float
    s1: float
    t0: float
    t1: float


@dataclass(frozen=True)
class Terrain:
    """Ground height over road coordinates.

    curvature: of the main road [1/m]; side roads leave it at right angles and are straight.
    slope: rise per metre along x and y in odom, (2,).
    waves: (W, 4) rows of amplitude [m], wave vector x and y [rad/m], phase [rad].
    blocks: areas raised by `curb` [m] above the road.
    bank: rise per metre beyond `bank_start` [m] from the road's middle, left and right, (2,).
    camber: fall of the road from its middle [m/m].
    roughness: standard deviations of the height of road and of soft ground [m], (2,).
    soft_start: distance from the road's middle [m] beyond which the ground is grass instead of paving.
    """

    curvature: float
    slope: np.ndarray
    waves: np.ndarray
    blocks: tuple[Block, ...]
    curb: float
    bank: tuple[float, float]
    bank_start: float
    camber: float
    roughness: tuple[float, float]
    soft_start: float

    def heading(self, s) -> np.ndarray:
        """Return the road's direction [rad] at s."""
        return self.curvature * np.asarray(s, np.float64)

    def to_odom(self, s, t) -> np.ndarray:
        """Return (..., 2) odom x, y [m] of road coordinates."""
        s, t = np.broadcast_arrays(np.asarray(s, np.float64), np.asarray(t, np.float64))
        h = self.heading(s)
        if abs(self.curvature) < 1e-9:
            return np.stack([s, t], axis=-1)
        return np.stack(
            [np.sin(h) / self.curvature - t * np.sin(h), (1 - np.cos(h)) / self.curvature + t * np.cos(h)], axis=-1
        )

    def height(self, s, t) -> np.ndarray:
        """Return ground height [m] at road coordinates, without roughness."""
        s, t = np.broadcast_arrays(np.asarray(s, np.float64), np.asarray(t, np.float64))
        xy = self.to_odom(s, t)
        z = xy @ self.slope - self.camber * np.minimum(np.abs(t), 8.0)
        for amplitude, kx, ky, phase in self.waves:
            z = z + amplitude * np.sin(kx * xy[..., 0] + ky * xy[..., 1] + phase)
        beyond = np.clip(np.abs(t) - self.bank_start, 0, None)
        z = z + np.where(t > 0, self.bank[0], self.bank[1]) * np.minimum(beyond, 40.0)
        raised = np.zeros_like(z)
        for b in self.blocks:
            inside = np.minimum(np.minimum(s - b.s0, b.s1 - s), np.minimum(t - b.t0, b.t1 - t))
            raised = np.maximum(raised, np.clip(inside / 0.04, 0, 1))  # 4 cm: a curb is not quite vertical
        return z + self.curb * raised

    def mesh(self, rng: np.random.Generator, half_width: float) -> Mesh:
        """Return the ground: fine near the road, coarse far from it, with grid lines on both sides of every curb."""
        s = _grid_lines(S_RANGE, 0.0, 35.0, (0.7, 4.0), [e for b in self.blocks for e in (b.s0, b.s1)])
        t = _grid_lines(
            (-T_LIMIT, T_LIMIT), 0.0, half_width + 6.0, (0.5, 3.0), [e for b in self.blocks for e in (b.t0, b.t1)]
        )
        grid_s, grid_t = np.meshgrid(s, t, indexing='ij')
        z = self.height(grid_s, grid_t)
        soft = np.abs(grid_t) > self.soft_start
        z += rng.normal(0, 1, z.shape) * np.where(soft, self.roughness[1], self.roughness[0])
        vertices = np.concatenate([self.to_odom(grid_s, grid_t), z[..., None]], axis=-1)
        quads = np.stack([vertices[:-1, :-1], vertices[1:, :-1], vertices[1:, 1:], vertices[:-1, 1:]], axis=2)
        middle_s, middle_t = (s[1:] + s[:-1]) / 2, (t[1:] + t[:-1]) / 2
        center_s, center_t = np.meshgrid(middle_s, middle_t, indexing='ij')
        on_block = np.zeros(center_s.shape, bool)
        for b in self.blocks:
            on_block |= (center_s > b.s0) & (center_s < b.s1) & (center_t > b.t0) & (center_t < b.t1)
        material = np.where(on_block, Material.PAVING, Material.ASPHALT)
        material[on_block & (np.abs(center_t) > self.soft_start)] = Material.GRASS
        return join([from_quads(quads.reshape(-1, 4, 3), material.ravel())])


def _grid_lines(limits, middle: float, near: float, spacing, edges) -> np.ndarray:
    """Return sorted grid lines: `spacing` (fine, coarse) within and beyond `near` of `middle`, doubled at edges."""
    fine = np.arange(max(limits[0], middle - near), min(limits[1], middle + near), spacing[0])
    coarse = np.arange(limits[0], limits[1] + spacing[1], spacing[1])
    lines = np.concatenate([fine, coarse[np.abs(coarse - middle) > near]])
    edges = np.unique([e for e in edges if limits[0] < e < limits[1]])
    if len(edges):  # within 10 cm of a curb there are only its own grid lines
        lines = lines[np.abs(lines[:, None] - edges).min(axis=1) > 0.1]
    return np.unique(np.concatenate([lines, edges, edges + 0.04, edges - 0.04]))
