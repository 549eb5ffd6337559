# SPDX-License-Identifier: Apache-2.0
"""Track moving objects in points with velocities: persistent IDs, open world, no classes. Independent of ROS."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.lidar.clusters import cluster_moving
from zeroflow_ros.lidar.dynamic_points import moving_rows
from zeroflow_ros.lidar.ground import above_ground
from zeroflow_ros.objects.cluster_boxes import ClusterBoxes, fit_boxes
from zeroflow_ros.objects.occupancy_memory import CELL, OccupancyMemory
from zeroflow_ros.objects.track import Track
from zeroflow_ros.runtime.parameter_fields import check_fields, parameter

_MEMORY = 1.0  # s of occupied cells
# A cluster may be this far from a track's predicted position: m, share of the length, s of travel at its speed.
_GATE, _GATE_LENGTH, _GATE_SECONDS = 1.0, 0.25, 0.05
_VELOCITY_GATE, _VELOCITY_SHARE = 1.5, 0.4  # m/s, share of the speed: largest change of a track's flow
_BOX_MARGIN = 0.5  # m: clusters this near to an object's box are parts of the object
_MAX_OCCUPIED = 0.4  # share of a track's cells that may have been occupied before it came
_MAX_OVERLAP = 0.9  # share of its cells that it still occupied itself: a higher one is no evidence of free space
_EVIDENCE_HOLD = 0.2  # s that a track stays confirmed without evidence: two sweeps


@dataclass(frozen=True)
class TrackerOptions:
    """What counts as a moving object.

    Raises: ConfigError on a value of the wrong type or out of range.
    """

    min_speed: float = parameter(0.4, 'Slower points are treated as static [m/s].', low=0.0, high=100.0, live=True)
    ground_clearance: float = parameter(
        0.3, 'Points less than this above the lowest points around them are ground [m].', low=0.0, high=5.0, live=True
    )
    min_height: float = parameter(
        0.4, 'Lower clusters are dropped: velocity that spills onto the road [m].', low=0.0, high=5.0, live=True
    )
    cluster_reach: float = parameter(
        0.5, 'Largest distance between neighbouring points of a cluster [m].', low=0.05, high=5.0, live=True
    )
    cluster_velocity_gap: float = parameter(
        1.0,
        'Largest velocity difference between neighbours in a cluster, plus 15 % [m/s].',
        low=0.01,
        high=50.0,
        live=True,
    )
    cluster_min_points: int = parameter(8, 'Smallest number of points in a cluster.', low=1, high=10_000, live=True)
    confirm_hits: int = parameter(4, 'Sweeps before a track is confirmed and published.', low=2, high=100, live=True)
    min_travel: float = parameter(
        0.3, 'Distance a track must have travelled within the last second [m].', low=0.0, high=50.0, live=True
    )
    coast_s: float = parameter(
        0.3, 'Time a track continues at constant velocity without detections [s].', low=0.0, high=5.0, live=True
    )

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class MovingObject:
    """One object, in the frame of the sweep that it was reported for.

    track_id: the same over its life. center: (3,) [m], middle of the visible part. size: (3,) [m] along its heading,
    across it, and up, without its lowest ground_clearance. yaw: heading [rad]. velocity: (3,) over ground [m/s].
    unseen_s: time since its last detection [s], 0 if it is in this sweep. num_hits: number of detections.
    """

    track_id: int
    center: np.ndarray
    size: np.ndarray
    yaw: float
    velocity: np.ndarray
    unseen_s: float
    num_hits: int


class Tracker:
    """Tracks clusters from sweep to sweep. An object is a track that moved along its flow, into free space."""

    def __init__(self, options: TrackerOptions | None = None):
        self.options = options or TrackerOptions()
        self._occupancy = OccupancyMemory(_MEMORY)
        self._next_id = 1
        self.reset()

    def reset(self) -> None:
        """Forget all tracks and occupied cells; track IDs continue."""
        self._tracks: list[Track] = []
        self._occupancy.reset()
        self._time, self._world_T_ego = 0.0, np.eye(4)  # of the last sweep; the world is the frame of the first one

    def update(self, points: np.ndarray, velocity: np.ndarray, ego0_T_ego1: np.ndarray,
               dt: float) -> list[MovingObject]:  # fmt: skip
        """Add the next sweep and return the objects in it.

        points: (N, 3) float32 [m], the dynamic points or all of the sweep: the objects are nearly the same.
        velocity: (N, 3) float32 over ground [m/s], axes of the points' frame, NaN where there is none.
        ego0_T_ego1: (4, 4), maps this sweep's frame into that of the last one. dt: seconds between the two. Both are
        not used for the first sweep.
        """
        p = self.options
        self._time += dt
        self._world_T_ego = self._world_T_ego @ ego0_T_ego1
        surfaces = np.flatnonzero(above_ground(points, p.ground_clearance))
        moving = surfaces[moving_rows(velocity[surfaces], p.min_speed)]
        points_world = transforms.apply(self._world_T_ego, points[moving].astype(np.float64))  # (M, 3) in the world
        flow = velocity[moving] @ self._world_T_ego[:3, :3].T
        labels = cluster_moving(points[moving], velocity[moving], reach=p.cluster_reach,
                                velocity_gap=p.cluster_velocity_gap, min_points=p.cluster_min_points)  # fmt: skip
        boxes = fit_boxes(points_world, flow, labels)
        usable = boxes.size[:, 2] >= p.min_height
        box_of_track = self._associate(boxes, usable)
        yaw = boxes.yaw.copy()
        for track, box in box_of_track.items():  # the heading of a track is steadier than that of one sweep
            yaw[box] = track.yaw
        boxes = fit_boxes(points_world, flow, labels, yaw)
        for track, box in box_of_track.items():
            track.add_detection(self._time, boxes.center[box], boxes.size[box], boxes.velocity[box])
            if track.num_hits >= p.confirm_hits:
                self._update_confirmation(track, points_world[labels == box])
        self._begin_tracks(boxes, usable, set(box_of_track.values()))
        self._tracks = [track for track in self._tracks if self._time - track.last_seen <= self._max_unseen(track, dt)]
        self._occupancy.add(self._time, self._world_T_ego, points[surfaces])
        return [self._to_object(track) for track in self._tracks if track.confirmed]

    def _associate(self, boxes: ClusterBoxes, usable: np.ndarray) -> dict[Track, int]:
        """Return the box of each track that has one; pairs of track and box are matched greedily, lowest cost first."""
        if not self._tracks or not usable.any():
            return {}
        expected = np.array([track.position_at(self._time) for track in self._tracks])  # (T, 2)
        flow = np.array([track.flow for track in self._tracks])
        length, speed = np.array([(track.size[0], track.speed) for track in self._tracks]).T
        distance = np.linalg.norm(expected[:, None] - boxes.center[None, :, :2], axis=2)  # (T, B)
        difference = np.linalg.norm(flow[:, None] - boxes.velocity[None, :, :2], axis=2)
        gate = (_GATE + _GATE_LENGTH * length + _GATE_SECONDS * speed)[:, None]
        velocity_gate = (_VELOCITY_GATE + _VELOCITY_SHARE * speed)[:, None]
        rows, columns = np.nonzero((distance < gate) & (difference < velocity_gate) & usable)
        cost = (distance / gate + 0.5 * difference / velocity_gate)[rows, columns]
        box_of_track: dict[Track, int] = {}
        taken = set()
        for pair in np.argsort(cost, kind='stable'):
            track, box = self._tracks[rows[pair]], int(columns[pair])
            if track not in box_of_track and box not in taken:
                box_of_track[track] = box
                taken.add(box)
        return box_of_track

    def _update_confirmation(self, track: Track, points_world: np.ndarray) -> None:
        """Confirm a track that moved along its flow into free space; points_world: its points (K, 3) [m]."""
        has_evidence = track.moved_along_flow(self.options.min_travel) and self._entered_free_space(track, points_world)
        if has_evidence:
            track.last_evidence = self._time
        track.confirmed = has_evidence or (track.confirmed and self._time - track.last_evidence < _EVIDENCE_HOLD)

    def _entered_free_space(self, track: Track, points_world: np.ndarray) -> bool:
        """Return whether the cells of a track were free before it came, except for cells it occupied itself."""
        seconds = (track.size[0] + CELL) / max(track.speed, 0.1)  # to leave the cells that it is in
        share, then = self._occupancy.occupied_fraction(points_world, self._time - seconds)
        overlap = max(0.0, 1 - (self._time - then) / seconds)
        if overlap >= _MAX_OVERLAP:
            return False
        share = (share - overlap) / (1 - overlap)
        track.occupied_before = share if track.occupied_before is None else (track.occupied_before + share) / 2
        return track.occupied_before <= _MAX_OCCUPIED

    def _begin_tracks(self, boxes: ClusterBoxes, usable: np.ndarray, taken: set[int]) -> None:
        is_part = self._are_parts_of_objects(boxes.center[:, :2])
        for box in np.flatnonzero(usable & ~is_part):
            if box not in taken:
                track = Track(self._next_id)
                track.add_detection(self._time, boxes.center[box], boxes.size[box], boxes.velocity[box])
                self._tracks.append(track)
                self._next_id += 1

    def _are_parts_of_objects(self, centers: np.ndarray) -> np.ndarray:
        """Return which of centers (B, 2) lie in or near the box of an object, (B,) bool."""
        found = np.zeros(len(centers), bool)
        for track in self._tracks:
            if track.confirmed:
                cosine, sine = np.cos(track.yaw), np.sin(track.yaw)
                x, y = (centers - track.position_at(self._time)).T
                along, across = np.abs(x * cosine + y * sine), np.abs(y * cosine - x * sine)
                found |= (along < track.size[0] / 2 + _BOX_MARGIN) & (across < track.size[1] / 2 + _BOX_MARGIN)
        return found

    def _max_unseen(self, track: Track, dt: float) -> float:
        """Return how long a track is kept without a detection [s], with a margin for rounding."""
        return self.options.coast_s + 1e-6 if track.confirmed else 1.5 * dt

    def _to_object(self, track: Track) -> MovingObject:
        ego_T_world = transforms.invert(self._world_T_ego)
        unseen_s = self._time - track.last_seen
        center = ego_T_world[:3, :3] @ np.append(track.position_at(self._time), track.z) + ego_T_world[:3, 3]
        velocity = ego_T_world[:3, :3] @ np.append(track.velocity, track.climb)
        yaw = float(np.arctan2(velocity[1], velocity[0]))
        return MovingObject(track.track_id, center, track.size, yaw, velocity, unseen_s, track.num_hits)
