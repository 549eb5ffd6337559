# SPDX-License-Identifier: Apache-2.0
"""Ground-truth objects of each sweep: from tracked boxes, or from the actors of a simulation."""

from dataclasses import dataclass

import numpy as np

from training.datasets.tracked_boxes import TrackedBoxes, pose_of
from training.simulation.clips import SimulatedClip
from training.simulation.sensors.lidar import Category
from zeroflow_ros import transforms

_AROUND = 2  # sweeps before and after for a box's velocity: boxes jitter by centimetres
_MARGIN = 0.1  # m added around length and width: boxes are annotated tightly


@dataclass(frozen=True)
class GroundTruthObject:
    """One object, moving or not, in the frame of its sweep.

    center, size: (3,) [m], size as length, width, height. yaw: [rad]. velocity: (3,) over ground [m/s].
    num_points: points of the sweep on it.
    """

    track_id: int
    category: str
    center: np.ndarray
    size: np.ndarray
    yaw: float
    velocity: np.ndarray
    num_points: int

    @property
    def speed(self) -> float:
        """Horizontal speed over ground [m/s]."""
        return float(np.hypot(*self.velocity[:2]))

    def holds(self, points: np.ndarray, margin: float) -> np.ndarray:
        """Return which of points (N, 3) lie within its outline seen from above, grown by a margin [m]."""
        ego_T_object = transforms.yaw_translation(self.yaw, *self.center)
        local = transforms.apply(transforms.invert(ego_T_object), np.asarray(points, np.float64).reshape(-1, 3))
        return (np.abs(local[:, :2]) <= self.size[:2] / 2 + margin).all(axis=1)


def count_points(points: np.ndarray, boxes: list[dict]) -> list[int]:
    """Return how many of points (N, 3) [m] lie in each box."""
    counts = []
    for box in boxes:
        ego_T_box = pose_of(box)
        local = transforms.apply(transforms.invert(ego_T_box), points.astype(np.float64))
        half = np.array(box['size_lwh']) / 2 + [_MARGIN, _MARGIN, 0]
        counts.append(int(np.count_nonzero((np.abs(local) <= half).all(axis=1))))
    return counts


def box_objects(boxes: TrackedBoxes, poses: dict[int, tuple[float, np.ndarray]],
                num_points: dict[int, list[int]]) -> dict[int, list[GroundTruthObject]]:  # fmt: skip
    """Return the objects of each sweep that has a pose, by the number of the sweep.

    poses: stamp [s] and world_T_ego (4, 4) by number. num_points: of each box, as `count_points` has it, by number.
    The velocity of a box is taken from two sweeps before to two sweeps after, as far as the box exists.
    """
    places: dict[object, dict[int, np.ndarray]] = {}
    for number, (_, pose) in poses.items():
        for box in boxes.sweeps[number]:
            center = transforms.apply(pose, np.array([box['center']], np.float64))[0]
            places.setdefault(box['track_id'], {})[number] = center
    return {
        number: [
            GroundTruthObject(box['track_id'], box['category'], np.array(box['center'], np.float64),
                       np.array(box['size_lwh'], np.float64), float(box['yaw']),
                       pose[:3, :3].T @ _velocity(places[box['track_id']], poses, number), count)
            for box, count in zip(boxes.sweeps[number], num_points[number], strict=True)
        ]
        for number, (_, pose) in poses.items()
    }  # fmt: skip


def _velocity(places: dict[int, np.ndarray], poses: dict, number: int) -> np.ndarray:
    """Return the velocity (3,) in the world [m/s] of a box with centres `places` (3,) by sweep number."""
    first, last = (min(places, key=lambda k: abs(k - wanted)) for wanted in (number - _AROUND, number + _AROUND))
    seconds = poses[last][0] - poses[first][0]
    return (places[last] - places[first]) / seconds if seconds else np.zeros(3)


def actor_objects(clip: SimulatedClip) -> list[list[GroundTruthObject]]:
    """Return the actors visible in each sweep of a clip; their size is that of all their points over the clip."""
    extents = _extents(clip)
    dt = 1 / clip.lidar.rate_hz
    found = []
    for number, sweep in enumerate(clip.sweeps):
        lidar_T_odom = transforms.invert(sweep.odom_T_lidar)
        before, after = max(number - 1, 0), max(number, 1)  # motion since the previous sweep
        objects = []
        for actor, (category, low, high) in extents.items():
            num_points = int(np.count_nonzero(sweep.instance == actor))
            if num_points == 0:
                continue
            middle = ((low + high) / 2)[None]
            then, now = (transforms.apply(clip.odom_T_actors[k, actor], middle)[0] for k in (before, after))
            lidar_T_actor = lidar_T_odom @ clip.odom_T_actors[number, actor]
            objects.append(
                GroundTruthObject(actor, category, transforms.apply(lidar_T_actor, middle)[0], high - low,
                           float(np.arctan2(lidar_T_actor[1, 0], lidar_T_actor[0, 0])),
                           lidar_T_odom[:3, :3] @ (now - then) / dt, num_points)
            )  # fmt: skip
        found.append(objects)
    return found


def _extents(clip: SimulatedClip) -> dict[int, tuple[str, np.ndarray, np.ndarray]]:
    """Return category, lowest and highest corner in the body frame of each actor with at least five points."""
    on_body: dict[int, list[np.ndarray]] = {}
    category: dict[int, str] = {}
    for number, sweep in enumerate(clip.sweeps):
        for actor in np.unique(sweep.instance[(sweep.instance >= 0) & (sweep.category != Category.EGO)]).tolist():
            rows = np.flatnonzero(sweep.instance == actor)
            body_T_lidar = transforms.invert(clip.odom_T_actors[number, actor]) @ sweep.odom_T_lidar
            on_body.setdefault(actor, []).append(transforms.apply(body_T_lidar, sweep.points[rows].astype(np.float64)))
            category[actor] = Category(int(sweep.category[rows[0]])).name.capitalize()
    joined = {actor: np.concatenate(parts) for actor, parts in on_body.items()}
    return {
        actor: (category[actor], points.min(axis=0), points.max(axis=0))
        for actor, points in joined.items()
        if len(points) >= 5
    }
