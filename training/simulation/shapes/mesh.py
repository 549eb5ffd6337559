# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes with materials, and the basic solids that all shapes are built from."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

_TAU = 2 * np.pi


class Material(IntEnum):
    """The material of a surface: it sets how much light returns, and whether some of it passes through."""

    ASPHALT = 0
    PAVING = 1
    GRASS = 2
    CONCRETE = 3
    BRICK = 4
    DARK_PAINT = 5
    LIGHT_PAINT = 6
    GLASS = 7
    METAL = 8
    RUBBER = 9
    LEAF = 10
    BARK = 11
    CLOTH = 12
    SKIN = 13
    RETRO = 14


@dataclass(frozen=True)
class Mesh:
    """Triangles in one frame.

    triangles: (T, 3, 3) float64 [m], three corners each.
    material: (T,) uint8, a Material each.
    """

    triangles: np.ndarray
    material: np.ndarray

    def __len__(self) -> int:
        return len(self.triangles)

    def placed(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0, scale: float = 1.0) -> 'Mesh':
        """Return the mesh scaled, rotated by `yaw` [rad] about z, then moved to (x, y, z) [m]."""
        c, s = np.cos(yaw) * scale, np.sin(yaw) * scale
        rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, scale]])
        return Mesh(self.triangles @ rotation.T + [x, y, z], self.material)

    def transformed(self, dst_T_mesh: np.ndarray) -> 'Mesh':
        """Return the mesh under a (4, 4) transform."""
        return Mesh(self.triangles @ dst_T_mesh[:3, :3].T + dst_T_mesh[:3, 3], self.material)


def join(meshes) -> Mesh:
    """Return one mesh with the triangles of all, in order."""
    meshes = [mesh for mesh in meshes if len(mesh)]
    if not meshes:
        return Mesh(np.zeros((0, 3, 3)), np.zeros(0, np.uint8))
    return Mesh(np.concatenate([mesh.triangles for mesh in meshes]), np.concatenate([mesh.material for mesh in meshes]))


def from_triangles(triangles, material) -> Mesh:
    """Return a mesh; `material` is one Material or one per triangle."""
    triangles = np.asarray(triangles, np.float64).reshape(-1, 3, 3)
    return Mesh(triangles, np.broadcast_to(np.asarray(material, np.uint8), len(triangles)).copy())


def from_quads(corners, material) -> Mesh:
    """Return two triangles per quadrilateral; corners (Q, 4, 3) in order around; `material` one or one per quad."""
    corners = np.asarray(corners, np.float64).reshape(-1, 4, 3)
    triangles = np.stack([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]], axis=1)
    return from_triangles(triangles, np.repeat(np.broadcast_to(np.asarray(material, np.uint8), len(corners)), 2))


def box(size, center, material: Material) -> Mesh:
    """Return an axis-aligned box; size and center (3,) [m]."""
    signs = np.array(
        [[-1, -1, -1], [1, -1, -1], [1, 1, -1], [-1, 1, -1], [-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]
    )
    corners = np.asarray(center) + signs * np.asarray(size) / 2
    faces = [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]]
    return from_quads(corners[faces], material)


def loft(rings, material, capped: bool = True) -> Mesh:
    """Return a skin over closed rings (K, M, 3); `material`: one, or one per quadrilateral, (K - 1, M)."""
    rings = np.asarray(rings, np.float64)
    following = np.roll(rings, -1, axis=1)
    quads = np.stack([rings[:-1], following[:-1], following[1:], rings[1:]], axis=2)  # (K-1, M, 4, 3)
    material = np.asarray(material, np.uint8)
    parts = [from_quads(quads, np.broadcast_to(material, quads.shape[:2]).ravel())]
    if capped:
        for k in (0, -1):
            middle = np.broadcast_to(rings[k].mean(axis=0), rings[k].shape)
            end_material = material if material.ndim == 0 else material[k, 0]
            parts.append(from_triangles(np.stack([middle, rings[k], following[k]], axis=1), end_material))
    return join(parts)


def tube(path, radius, material: Material, sides: int = 6) -> Mesh:
    """Return a round tube along `path` (K, 3); radius [m]: one, or one per path point."""
    path = np.asarray(path, np.float64)
    radius = np.broadcast_to(radius, len(path))
    along = np.gradient(path, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    aside = np.array([1.0, 0, 0]) if abs(along[:, 0]).max() < 0.9 else np.array([0, 1.0, 0])
    u = np.cross(along, aside)
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-9)
    v = np.cross(along, u)
    angle = np.arange(sides) * _TAU / sides
    ring = np.cos(angle)[:, None] * u[:, None] + np.sin(angle)[:, None] * v[:, None]
    return loft(path[:, None] + radius[:, None, None] * ring, material)


def ellipsoid(center, radii, material: Material, sides: int = 8) -> Mesh:
    """Return an ellipsoid; center and radii (3,) [m]."""
    polar = np.linspace(0.15, np.pi - 0.15, 5)
    angle = np.arange(sides) * _TAU / sides
    sine = np.sin(polar)[:, None]
    unit = np.stack([sine * np.cos(angle), sine * np.sin(angle), np.cos(polar)[:, None] * np.ones(sides)], axis=-1)
    return loft(np.asarray(center) + unit * np.asarray(radii), material)


def leaves(rng: np.random.Generator, centers, size: float, material: Material = Material.LEAF) -> Mesh:
    """Return one randomly rotated triangle of about `size` [m] at each of `centers` (L, 3): a porous cloud."""
    centers = np.asarray(centers, np.float64)
    corners = rng.normal(0, 0.6 * size, (len(centers), 3, 3))
    return from_triangles(centers[:, None] + corners - corners.mean(axis=1, keepdims=True), material)


def points_in_ellipsoid(rng: np.random.Generator, count: int, center, radii, shell: float = 0.5) -> np.ndarray:
    """Return (count, 3) random points in an ellipsoid; with a `shell` below 1/3 they are denser near its surface."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return np.asarray(center) + direction * rng.random((count, 1)) ** shell * np.asarray(radii)
