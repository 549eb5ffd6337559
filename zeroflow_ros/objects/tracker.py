# SPDX-License-Identifier: Apache-2.0
"""Track moving objects in points with velocities: persistent IDs, open world, no classes. Independent of ROS."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.lidar.dynamic_points import moving_rows
from zeroflow_ros.lidar.ground import above_ground
from zeroflow_ros.objects.cluster_boxes import ClusterBoxes, fit_boxes
from zeroflow_ros.objects.clusters import cluster_moving
from zeroflow_ros.objects.occupancy_memory import CELL, OccupancyMemory
from zeroflow_ros.objects.track import Track
from zeroflow_ros.runtime.parameter_fields import check_fields, parameter

_MEMORY = 1.0  # s of places
_GATE, _GATE_LENGTH, _GATE_SECONDS = 1.0, 0.25, 0.05  # m, share of the length, s of its way: a body may be off by that
_VELOCITY_GATE, _VELOCITY_SHARE = 1.5, 0.4  # m/s, share of the speed: flow of one body may change by that
_NEAR = 0.5  # m around a box: what is there is part of the body
_SEEN_BEFORE = 0.4  # share of a body's place that may have held something before it came
_HARDLY_GONE = 0.9  # of its place is still its old one: nothing can be said yet
_PATIENCE = 0.2  # s that a body is believed without evidence: two sweeps


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

    track_id: stays with it. center: (3,) [m], middle of what is seen of it. size: (3,) [m] along its heading, across
    it, and up; its lowest ground_clearance is not in it. yaw: heading [rad]. velocity: (3,) over ground [m/s].
    unseen_s: time since it was last seen [s]; 0 now. num_hits: sweeps that it was seen in.
    """

    track_id: int
    center: np.ndarray
    size: np.ndarray
    yaw: float
    velocity: np.ndarray
    unseen_s: float
    num_hits: int


class Tracker:
    """Follows bodies from sweep to sweep. An object is a body that has gone where its flow says, into free space."""

    def __init__(self, options: TrackerOptions | None = None):
        self.options = options or TrackerOptions()
        self._places = OccupancyMemory(_MEMORY)
        self._next_id = 1
        self.reset()

    def reset(self) -> None:
        """Forget all bodies and places; numbers of objects go on."""
        self._tracks: list[Track] = []
        self._places.reset()
        self._time, self._world_T_ego = 0.0, np.eye(4)  # of the last sweep; the world is the frame of the first one

    def update(self, points: np.ndarray, velocity: np.ndarray, ego0_T_ego1: np.ndarray,
               dt: float) -> list[MovingObject]:  # fmt: skip
        """Take the next sweep and return the objects in it.

        points: (N, 3) float32 [m], those that move or all of the sweep: the objects are nearly the same.
        velocity: (N, 3) float32 over ground [m/s], axes of the points' frame, NaN where there is none.
        ego0_T_ego1: (4, 4), maps this sweep's frame into that of the one before. dt: seconds between the two. Both are
        of no account for the first sweep.
        """
        p = self.options
        self._time += dt
        self._world_T_ego = self._world_T_ego @ ego0_T_ego1
        surfaces = np.flatnonzero(above_ground(points, p.ground_clearance))
        moving = surfaces[moving_rows(velocity[surfaces], p.min_speed)]
        places = transforms.apply(self._world_T_ego, points[moving].astype(np.float64))  # (M, 3) in the world
        flow = velocity[moving] @ self._world_T_ego[:3, :3].T
        labels = cluster_moving(points[moving], velocity[moving], reach=p.cluster_reach,
                                velocity_gap=p.cluster_velocity_gap, min_points=p.cluster_min_points)  # fmt: skip
        bodies = fit_boxes(places, flow, labels)
        usable = bodies.size[:, 2] >= p.min_height
        body_of_track = self._associate(bodies, usable)
        yaw = bodies.yaw.copy()
        for track, body in body_of_track.items():  # a body that is known heads where it goes, not where one sweep says
            yaw[body] = track.yaw
        bodies = fit_boxes(places, flow, labels, yaw)
        for track, body in body_of_track.items():
            track.see(self._time, bodies.center[body], bodies.size[body], bodies.velocity[body])
            if track.num_hits >= p.confirm_hits:
                self._judge(track, places[labels == body])
        self._begin_tracks(bodies, usable, set(body_of_track.values()))
        self._tracks = [track for track in self._tracks if self._time - track.last_seen <= self._coasts(track, dt)]
        self._places.add(self._time, self._world_T_ego, points[surfaces])
        return [self._object(track) for track in self._tracks if track.confirmed]

    def _associate(self, bodies: ClusterBoxes, usable: np.ndarray) -> dict[Track, int]:
        """Return the body of each track that has one; the pairs that fit best choose first."""
        if not self._tracks or not usable.any():
            return {}
        expected = np.array([track.at(self._time) for track in self._tracks])  # (T, 2)
        flow = np.array([track.flow for track in self._tracks])
        length, speed = np.array([(track.size[0], track.speed) for track in self._tracks]).T
        distance = np.linalg.norm(expected[:, None] - bodies.center[None, :, :2], axis=2)  # (T, B)
        difference = np.linalg.norm(flow[:, None] - bodies.velocity[None, :, :2], axis=2)
        gate = (_GATE + _GATE_LENGTH * length + _GATE_SECONDS * speed)[:, None]
        velocity_gate = (_VELOCITY_GATE + _VELOCITY_SHARE * speed)[:, None]
        rows, columns = np.nonzero((distance < gate) & (difference < velocity_gate) & usable)
        cost = (distance / gate + 0.5 * difference / velocity_gate)[rows, columns]
        body_of_track: dict[Track, int] = {}
        taken = set()
        for pair in np.argsort(cost, kind='stable'):
            track, body = self._tracks[rows[pair]], int(columns[pair])
            if track not in body_of_track and body not in taken:
                body_of_track[track] = body
                taken.add(body)
        return body_of_track

    def _judge(self, track: Track, places: np.ndarray) -> None:
        """Decide whether a track is an object, by its way and by what was where it is now; places (K, 3)."""
        believed = track.has_gone(self.options.min_travel) and self._came_into_free_space(track, places)
        if believed:
            track.last_believed = self._time
        track.confirmed = believed or (track.confirmed and self._time - track.last_believed < _PATIENCE)

    def _came_into_free_space(self, track: Track, places: np.ndarray) -> bool:
        """Return whether the place of a track was free before it came, as far as it has left its older places."""
        seconds = (track.size[0] + CELL) / max(track.speed, 0.1)  # to leave the cells that it is in
        share, then = self._places.occupied_fraction(places, self._time - seconds)
        still_there = max(0.0, 1 - (self._time - then) / seconds)
        if still_there >= _HARDLY_GONE:
            return False
        share = (share - still_there) / (1 - still_there)
        track.seen_before = share if track.seen_before is None else (track.seen_before + share) / 2
        return track.seen_before <= _SEEN_BEFORE

    def _begin_tracks(self, bodies: ClusterBoxes, usable: np.ndarray, taken: set[int]) -> None:
        is_part = self._are_parts(bodies.center[:, :2])
        for body in np.flatnonzero(usable & ~is_part):
            if body not in taken:
                track = Track(self._next_id)
                track.see(self._time, bodies.center[body], bodies.size[body], bodies.velocity[body])
                self._tracks.append(track)
                self._next_id += 1

    def _are_parts(self, places: np.ndarray) -> np.ndarray:
        """Return which of places (B, 2) lie in or near the box of an object, (B,) bool."""
        found = np.zeros(len(places), bool)
        for track in self._tracks:
            if track.confirmed:
                cosine, sine = np.cos(track.yaw), np.sin(track.yaw)
                x, y = (places - track.at(self._time)).T
                along, across = np.abs(x * cosine + y * sine), np.abs(y * cosine - x * sine)
                found |= (along < track.size[0] / 2 + _NEAR) & (across < track.size[1] / 2 + _NEAR)
        return found

    def _coasts(self, track: Track, dt: float) -> float:
        return self.options.coast_s + 1e-6 if track.confirmed else 1.5 * dt  # without a margin rounding decides

    def _object(self, track: Track) -> MovingObject:
        ego_T_world = transforms.invert(self._world_T_ego)
        unseen_s = self._time - track.last_seen
        center = ego_T_world[:3, :3] @ np.append(track.at(self._time), track.z) + ego_T_world[:3, 3]
        velocity = ego_T_world[:3, :3] @ np.append(track.velocity, track.climb)
        yaw = float(np.arctan2(velocity[1], velocity[0]))
        return MovingObject(track.track_id, center, track.size, yaw, velocity, unseen_s, track.num_hits)
