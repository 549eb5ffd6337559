# SPDX-License-Identifier: Apache-2.0
"""A spinning LiDAR over triangles: ray casting, transparency, lost returns, noise."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from training.simulation.sensors.lidar_models import LidarModel
from training.simulation.shapes.mesh import Material, Mesh
from zeroflow_ros import transforms


class Category(IntEnum):
    """The class of a point: up to GROUND the static world, from CAR on an actor."""

    BACKGROUND = 0
    GROUND = 1
    CAR = 2
    OTHER_VEHICLE = 3
    PEDESTRIAN = 4
    CYCLIST = 5
    EGO = 6


# Share of light returned at normal incidence, by Material.
_REFLECTIVITY = np.array(
    [0.12, 0.25, 0.28, 0.35, 0.35, 0.06, 0.55, 0.15, 0.3, 0.05, 0.4, 0.25, 0.3, 0.4, 1.0], np.float32
)


@dataclass(frozen=True)
class SensorCondition:
    """Sensor imperfections in one clip.

    range_noise: standard deviation of each return [m].
    beam_bias: (num_beams,) constant range error of each beam [m], from imperfect calibration.
    threshold: weakest detectable signal: reflectivity * cos(incidence) / range^2 [1/m^2].
    dropout: share of rays lost at random.
    spurious: share of rays with a false return (rain, dust, cross-talk).
    mixed: share of rays at a depth edge that return from between its two sides.
    min_range: nearer returns are cut [m].
    leaf_pass: share of rays that pass a leaf triangle, which represents a tuft of leaves.
    glass_pass, glass_back: shares of rays that pass glass and that return from it; the rest is reflected away.
    """

    range_noise: float
    beam_bias: np.ndarray
    threshold: float
    dropout: float
    spurious: float
    mixed: float
    min_range: float
    leaf_pass: float
    glass_pass: float
    glass_back: float

    @staticmethod
    def draw(rng: np.random.Generator, num_beams: int) -> 'SensorCondition':
        """Return the condition of one clip: from a crisp sensor on a dry day to a noisy one in drizzle."""
        return SensorCondition(
            range_noise=rng.uniform(0.006, 0.03),
            beam_bias=rng.uniform(0.0, 0.02) * rng.standard_normal(num_beams).astype(np.float32),
            threshold=10 ** rng.uniform(-6.2, -5.2),
            dropout=rng.choice([0.0, 0.01, 0.05, 0.15], p=[0.3, 0.4, 0.2, 0.1]),
            spurious=rng.choice([0.0, 1e-4, 1e-3], p=[0.4, 0.4, 0.2]),
            mixed=rng.uniform(0.0, 0.25),
            # Some vehicles cut at 2.5 m and see nothing of themselves; one clip in ten keeps its own roof and bonnet.
            min_range=0.3 if rng.random() < 0.1 else rng.uniform(2.0, 3.0),
            leaf_pass=rng.uniform(0.1, 0.4),
            glass_pass=rng.uniform(0.1, 0.45),
            glass_back=rng.uniform(0.02, 0.25),
        )


@dataclass(frozen=True)
class Surfaces:
    """Triangles of one rigid body or of the static world, with their classes.

    mesh: (T) triangles and materials.
    category, instance: (T,) a Category, and an actor index or -1, of each triangle.
    """

    mesh: Mesh
    category: np.ndarray
    instance: np.ndarray

    @staticmethod
    def of(mesh: Mesh, category: Category, instance: int) -> 'Surfaces':
        """Return the surfaces of one object."""
        return Surfaces(mesh, np.full(len(mesh), category, np.uint8), np.full(len(mesh), instance, np.int32))

    @staticmethod
    def join(parts: list['Surfaces']) -> 'Surfaces':
        """Return all parts as one."""
        return Surfaces(
            Mesh(*(np.concatenate([getattr(p.mesh, name) for p in parts]) for name in ('triangles', 'material'))),
            np.concatenate([p.category for p in parts]),
            np.concatenate([p.instance for p in parts]),
        )


class _Caster:
    """Casts rays at surfaces, in the frame of their mesh."""

    def __init__(self, surfaces: Surfaces):
        self.surfaces = surfaces
        self._scene = EmbreeScene()
        TriangleMesh(self._scene, surfaces.mesh.triangles.astype(np.float32))
        self._corners = surfaces.mesh.triangles.reshape(-1, 3)
        self._center = (self._corners.min(axis=0) + self._corners.max(axis=0)) / 2
        self._radius = float(np.linalg.norm(self._corners - self._center, axis=1).max())

    def cast(self, origins: np.ndarray, directions: np.ndarray):
        """Return range [m] (inf: none), triangle index and cosine of incidence, (N,) each; rays are (N, 3) float32."""
        result = self._scene.run(origins, directions, output=True)
        triangle, normal = result['primID'], result['Ng']
        length = np.sqrt(np.einsum('ij,ij->i', normal, normal))
        cosine = np.abs(np.einsum('ij,ij->i', normal, directions)) / np.maximum(length, 1e-12)
        return np.where(triangle >= 0, result['tfar'], np.float32(np.inf)), triangle, cosine

    def candidates(
        self, odom_T_body: np.ndarray, eye: np.ndarray, directions: np.ndarray, ranges: np.ndarray
    ) -> np.ndarray:
        """Return the rows of rays from `eye` (3,) that may hit this body nearer than `ranges` (N,) [m]; all in odom."""
        center = odom_T_body[:3, :3] @ self._center + odom_T_body[:3, 3] - eye
        distance = float(np.linalg.norm(center))
        reach = self._radius + 0.2  # beams of a stacked pair start up to 0.2 m from the eye
        if distance > reach:
            least_cosine = np.sqrt(1 - (reach / distance) ** 2)
            aligned = directions @ (center / distance).astype(np.float32)
            return np.flatnonzero((aligned > least_cosine) & (ranges > distance - reach))
        # The eye is inside or near the body: rays above its highest corner cannot hit it.
        up = odom_T_body[:3, 2]
        offset = self._corners + odom_T_body[:3, :3].T @ (odom_T_body[:3, 3] - eye)
        highest = (offset[:, 2] / np.linalg.norm(offset, axis=1)).max()
        return np.flatnonzero(directions @ up.astype(np.float32) < highest + 0.05)


@dataclass
class _Hits:
    """First surface on each ray: range [m] (inf: none), cosine of incidence, Material, Category, actor index."""

    range: np.ndarray
    cosine: np.ndarray
    material: np.ndarray
    category: np.ndarray
    instance: np.ndarray

    def put(self, rows, ranges, cosine, surfaces: Surfaces, triangle) -> None:
        self.range[rows], self.cosine[rows] = ranges, cosine
        self.material[rows] = surfaces.mesh.material[triangle]
        self.category[rows], self.instance[rows] = surfaces.category[triangle], surfaces.instance[triangle]


class Scene:
    """All surfaces of one clip: static ones in odom, and moving bodies.

    Acceleration structures are built once; rays are transformed into the frame of each moving body.
    """

    def __init__(self, resting: Surfaces, moving: list[Surfaces]):
        self._resting = _Caster(resting)
        self._moving = [_Caster(surfaces) for surfaces in moving]

    def first_hits(
        self, origins: np.ndarray, directions: np.ndarray, odom_T_moving: np.ndarray, start: np.ndarray
    ) -> _Hits:
        """Return the first surface on each ray beyond `start`.

        origins, directions: (N, 3) float32 in odom, directions of length 1; all origins within 0.2 m of each other.
        odom_T_moving: (bodies, 4, 4). start: (N,) [m]; ranges are measured from the origin.
        """
        num_rays = len(origins)
        begin = origins + directions * start[:, None]
        ranges, triangle, cosine = self._resting.cast(begin, directions)
        hits = _Hits(
            np.full(num_rays, np.inf, np.float32),
            cosine,
            *(np.zeros(num_rays, t) for t in (np.uint8, np.uint8, np.int32)),
        )
        rows = np.flatnonzero(triangle >= 0)
        hits.put(rows, ranges[rows] + start[rows], cosine[rows], self._resting.surfaces, triangle[rows])
        if not num_rays:
            return hits
        eye = origins.mean(axis=0, dtype=np.float64)
        for body, odom_T_body in zip(self._moving, odom_T_moving, strict=True):
            rows = body.candidates(odom_T_body, eye, directions, hits.range)
            if not len(rows):
                continue
            body_T_odom = transforms.invert(odom_T_body)
            ranges, triangle, cosine = body.cast(
                transforms.apply(body_T_odom, begin[rows]), directions[rows] @ odom_T_body[:3, :3].astype(np.float32)
            )
            ranges += start[rows]
            nearer = ranges < hits.range[rows]
            hits.put(rows[nearer], ranges[nearer], cosine[nearer], body.surfaces, triangle[nearer])
        return hits

    def simulate_sweep(
        self,
        lidar: LidarModel,
        condition: SensorCondition,
        odom_T_lidar: np.ndarray,
        odom_T_moving: np.ndarray,
        rng: np.random.Generator,
    ):
        """Simulate one sweep, all rays at one instant.

        Returns points (N, 3) float32 [m] in the LiDAR frame, intensity (N,) float32 in [0, 1], category (N,) uint8,
        instance (N,) int32.
        """
        origins, directions = lidar.rays(rng.uniform(-np.pi, np.pi))
        directions += np.float32(2e-4) * rng.standard_normal(directions.shape, np.float32)  # 0.2 mrad of encoder jitter
        directions /= np.sqrt(np.einsum('ij,ij->i', directions, directions))[:, None]
        ray_origin = transforms.apply(odom_T_lidar, origins)
        ray_direction = directions @ odom_T_lidar[:3, :3].T.astype(np.float32)
        hits = self.first_hits(ray_origin, ray_direction, odom_T_moving, np.zeros(len(ray_origin), np.float32))
        self._pass_through(hits, ray_origin, ray_direction, odom_T_moving, condition, rng)
        seen = _detect(hits, lidar, condition, rng)
        noise = np.where(hits.material == Material.LEAF, 0.04, condition.range_noise).astype(np.float32)  # 4 cm: wind
        ranges = hits.range + noise * rng.standard_normal(len(seen), np.float32)
        ranges += np.tile(condition.beam_bias, lidar.num_azimuths)
        _mix_edges(hits, ranges, seen, lidar.num_beams, condition, rng)
        speckle = np.exp(np.float32(0.35) * rng.standard_normal(len(seen), np.float32))
        intensity = _REFLECTIVITY[hits.material] * (0.3 + 0.7 * hits.cosine) * speckle
        _add_spurious(hits, ranges, seen, intensity, condition, rng)
        seen &= (ranges > condition.min_range) & (ranges < lidar.max_range)
        points = (origins[seen] + directions[seen] * ranges[seen, None]).astype(np.float32)
        return points, np.clip(intensity[seen], 0, 1).astype(np.float32), hits.category[seen], hits.instance[seen]

    def _pass_through(self, hits: _Hits, origins, directions, odom_T_moving, condition: SensorCondition, rng) -> None:
        """Continue a random share of the rays on leaves and glass to the next surface, at most three times."""
        rows = np.arange(len(origins))
        for _ in range(3):
            chance, material = rng.random(len(rows), np.float32), hits.material[rows]
            is_glass = material == Material.GLASS
            passing = (material == Material.LEAF) & (chance < condition.leaf_pass) | is_glass & (
                chance < condition.glass_pass
            )
            # At normal incidence glass reflects the beam back to the sensor.
            returned = np.where(hits.cosine[rows] > 0.98, 0.7, condition.glass_back)
            hits.range[rows[is_glass & ~passing & (chance < 1 - returned)]] = np.inf
            rows = rows[passing & np.isfinite(hits.range[rows])]
            # 2 cm: past the pane or leaf itself.
            behind = self.first_hits(
                origins[rows], directions[rows], odom_T_moving, hits.range[rows] + np.float32(0.02)
            )
            for name in ('range', 'cosine', 'material', 'category', 'instance'):
                getattr(hits, name)[rows] = getattr(behind, name)


def _detect(hits: _Hits, lidar: LidarModel, condition: SensorCondition, rng) -> np.ndarray:
    """Return which rays are detected, (N,) bool: a soft threshold on the signal, and random drop-outs."""
    signal = _REFLECTIVITY[hits.material] * np.maximum(hits.cosine, 0.01) / np.maximum(hits.range, 1) ** 2
    seen = np.isfinite(hits.range) & (hits.range < lidar.max_range)
    seen &= signal > condition.threshold * np.exp(np.float32(0.7) * rng.standard_normal(len(signal), np.float32))
    return seen & (rng.random(len(signal), np.float32) >= condition.dropout)


def _mix_edges(hits: _Hits, ranges, seen, num_beams: int, condition: SensorCondition, rng) -> None:
    """Where a beam straddles a depth edge of the static world, return some points from between its two sides.

    Edges of actors are left alone: a point between an actor and a wall has no defined flow.
    """
    static = seen & (hits.instance < 0)
    rows = np.flatnonzero(
        static[num_beams:] & static[:-num_beams] & (rng.random(len(seen) - num_beams, np.float32) < condition.mixed)
    )
    gap = ranges[rows + num_beams] - ranges[rows]
    edge = (np.abs(gap) > 0.2) & (np.abs(gap) < 4)
    rows = rows[edge]
    ranges[rows] += gap[edge] * rng.random(len(rows), np.float32)
    hits.category[rows] = Category.BACKGROUND


def _add_spurious(hits: _Hits, ranges, seen, intensity, condition: SensorCondition, rng) -> None:
    """Replace a few rays by weak static returns from the air."""
    rows = np.flatnonzero(rng.random(len(ranges), np.float32) < condition.spurious)
    farthest = np.minimum(np.where(np.isfinite(ranges[rows]), ranges[rows], 40), 40)
    ranges[rows] = farthest * rng.random(len(rows)) ** 0.7
    hits.category[rows], hits.instance[rows] = Category.BACKGROUND, -1
    seen[rows], intensity[rows] = True, 0.02
