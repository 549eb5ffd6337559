# SPDX-License-Identifier: Apache-2.0
"""The triangles of a street with the bodies they belong to, and ray casting at one instant."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from training.simulation.cameras.pixel_motion import STATIC_WORLD
from training.simulation.sensors.lidar import Category
from training.simulation.shapes.mesh import Material
from training.simulation.streets.street import Street

_LEAF_GROWTH = 2.3  # a LiDAR's triangle for a tuft of leaves, enlarged: its texture has holes


@dataclass(frozen=True)
class World:
    """All triangles of a street. Those of the vehicle that carries the camera cast a shadow and are not seen.

    corners: (T, 3, 3) float64 [m] in the frame of their body: odom for body 0, else that of actor `body` - 1.
    material, category: (T,) uint8. body: (T,) int32.
    piece: (T,) int32, number of the object that a triangle is part of: the ground is 0.
    num_resting: the triangles before it never move.
    odom_T_bodies: (S, B, 4, 4) float64, at every time of the street.
    street: where the triangles come from.
    """

    corners: np.ndarray
    material: np.ndarray
    category: np.ndarray
    body: np.ndarray
    piece: np.ndarray
    num_resting: int
    odom_T_bodies: np.ndarray
    street: Street

    @staticmethod
    def of(street: Street) -> 'World':
        """Return the world of a street."""
        first_actor_piece = 1 + int(street.background_piece.max(initial=-1)) + 1
        static = [
            (street.ground, Category.GROUND, STATIC_WORLD, np.zeros(len(street.ground), np.int32)),
            (street.background, Category.BACKGROUND, STATIC_WORLD, 1 + street.background_piece),
        ]
        resting, moving = [], []
        for k, actor in enumerate(street.actors):
            piece = np.full(len(actor.mesh), first_actor_piece + k, np.int32)
            (moving if actor.is_moving else resting).append((actor.mesh, actor.category, k + 1, piece))
        parts = [*static, *resting, *moving]
        num_steps = len(street.ego.odom_T_body)
        poses = [np.broadcast_to(np.eye(4), (num_steps, 4, 4)), *(actor.odom_T_body for actor in street.actors)]
        corners = np.concatenate([mesh.triangles for mesh, *_ in parts])
        material = np.concatenate([mesh.material for mesh, *_ in parts])
        leaf = material == Material.LEAF
        center = corners[leaf].mean(axis=1, keepdims=True)
        # The cores of hedges are leaves, too, metres long: those stay.
        is_tuft = np.abs(corners[leaf] - center).max(axis=(1, 2)) < 0.6
        grown = center + (corners[leaf] - center) * np.where(is_tuft, _LEAF_GROWTH, 1.0)[:, None, None]
        corners[leaf] = grown
        return World(
            corners,
            material,
            np.concatenate([np.full(len(mesh), category, np.uint8) for mesh, category, _, _ in parts]),
            np.concatenate([np.full(len(mesh), body, np.int32) for mesh, _, body, _ in parts]),
            np.concatenate([piece for *_, piece in parts]),
            sum(len(mesh) for mesh, *_ in (*static, *resting)),
            np.stack(poses, axis=1),
            street,
        )

    @cached_property
    def normals(self) -> np.ndarray:
        """Unit normals of the triangles in the frame of their body, (T, 3) float32."""
        edges = self.corners[:, 1:] - self.corners[:, :1]
        normal = np.cross(edges[:, 0], edges[:, 1])
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        return (normal / np.maximum(length, 1e-12)).astype(np.float32)

    @cached_property
    def resting_scene(self) -> EmbreeScene:
        """The triangles that never move, in odom."""
        return self._scene(slice(0, self.num_resting), 0)

    def at(self, step: int) -> 'Instant':
        """Return the world at one of the times of its street."""
        moving = self._scene(slice(self.num_resting, None), step) if self.num_resting < len(self.corners) else None
        ego = self.street.ego
        ego_scene = EmbreeScene()
        TriangleMesh(ego_scene, ego.mesh.transformed(ego.odom_T_body[step]).triangles.astype(np.float32))
        return Instant(self, self.odom_T_bodies[step], moving, ego_scene, ego.odom_T_body[step])

    def _scene(self, rows: slice, step: int) -> EmbreeScene:
        pose = self.odom_T_bodies[step, self.body[rows]]
        corners = np.einsum('tij,tkj->tki', pose[:, :3, :3], self.corners[rows]) + pose[:, None, :3, 3]
        scene = EmbreeScene()
        TriangleMesh(scene, corners.astype(np.float32))
        return scene


@dataclass(frozen=True)
class Instant:
    """The world at one time. Rays are in odom, (N, 3) float32; directions have length 1.

    odom_T_bodies: (B, 4, 4). moving: the scene of the triangles that move in the clip, or None.
    ego: the scene of the vehicle that carries the camera, at odom_T_ego (4, 4).
    """

    world: World
    odom_T_bodies: np.ndarray
    moving: EmbreeScene | None
    ego: EmbreeScene
    odom_T_ego: np.ndarray

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the triangle (-1: none), (N,) int32, and its distance (inf: none), (N,) float32 [m]."""
        result = self.world.resting_scene.run(origins, directions, output=True)
        triangle = result['primID'].copy()
        distance = np.where(triangle >= 0, result['tfar'], np.float32(np.inf))
        if self.moving is not None:
            result = self.moving.run(origins, directions, output=True)
            nearer = (result['primID'] >= 0) & (result['tfar'] < distance)
            triangle[nearer] = result['primID'][nearer] + self.world.num_resting
            distance[nearer] = result['tfar'][nearer]
        return triangle, distance

    def occluded(self, origins: np.ndarray, directions: np.ndarray, reach: float = 1e30) -> np.ndarray:
        """Return whether anything is within `reach` [m] of each origin, (N,) bool; the own vehicle included."""
        blocked = np.zeros(len(origins), bool)
        limits = np.full(len(origins), reach, np.float32)
        for scene in (self.world.resting_scene, self.moving):
            if scene is not None and len(origins):
                rows = np.flatnonzero(~blocked)
                hit = scene.run(origins[rows], directions[rows], dists=limits[rows], query='OCCLUDED')
                blocked[rows] = hit == 0
        # Its shadow is at most some metres long, unless the sun is about to set.
        beside = np.abs(origins - self.odom_T_ego[:3, 3].astype(np.float32)).max(axis=1, initial=0) < 12
        rows = np.flatnonzero(~blocked & beside)
        if len(rows):
            hit = self.ego.run(origins[rows], directions[rows], dists=limits[rows], query='OCCLUDED')
            blocked[rows] = hit == 0
        return blocked

    def in_body(self, points: np.ndarray, triangle: np.ndarray) -> np.ndarray:
        """Return points (N, 3) in odom in the frames of the bodies of their triangles, float32."""
        body = self.world.body[triangle]
        local = points.astype(np.float32)
        rows = np.flatnonzero(body != STATIC_WORLD)
        pose = self.odom_T_bodies[body[rows]]
        offset = points[rows] - pose[:, :3, 3]
        local[rows] = np.einsum('nji,nj->ni', pose[:, :3, :3], offset)
        return local

    def normals(self, triangle: np.ndarray) -> np.ndarray:
        """Return the unit normals in odom of triangles (N,), (N, 3) float32."""
        normal = self.world.normals[triangle]
        body = self.world.body[triangle]
        rows = np.flatnonzero(body != STATIC_WORLD)
        rotation = self.odom_T_bodies[body[rows], :3, :3].astype(np.float32)
        normal[rows] = np.einsum('nij,nj->ni', rotation, normal[rows])
        return normal
