# SPDX-License-Identifier: Apache-2.0
"""Transforms between frames of one rigid body: /tf_static, and what never changes on /tf; without ROS."""

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.transforms import from_quaternion, invert, rotation_vector

TF_TOPIC = '/tf'
SAME, SAME_ANGLE = 0.005, np.radians(0.1)  # m, rad: what the numbers of one mount may differ by
_MIN_MESSAGES = 3  # of /tf with one pose, over `min_seconds`, ...
_MANY_MESSAGES = 100  # ... or as many, where all have one stamp


@dataclass
class _Observed:
    """A transform on /tf. pose: the first one. distance, angle: the largest change [m, rad]."""

    pose: np.ndarray
    first_ns: int
    last_ns: int
    num_messages: int = 0
    distance: float = 0.0
    angle: float = 0.0

    def changes(self) -> bool:
        return self.distance > SAME or self.angle > SAME_ANGLE


class StaticTransforms:
    """A graph of frames; thread-safe.

    min_seconds: for how long a transform on /tf must not have changed to count as static.
    """

    def __init__(self, min_seconds: float = 0.0):
        self._min_ns = round(min_seconds * 1e9)
        self._neighbours: dict[str, dict[str, np.ndarray]] = {}
        self._observed: dict[tuple[str, str], _Observed] = {}
        self._found: dict[tuple[str, str], np.ndarray | None] = {}
        self._lock = threading.Lock()

    @property
    def frames(self) -> list[str]:
        """Names of all frames of static transforms."""
        with self._lock:
            return sorted(self._connected(self._is_static))

    def add(self, message) -> None:
        """Add all transforms of a tf2_msgs/TFMessage of /tf_static, rclpy's or rosbags'; a non-pose is left out."""
        with self._lock:
            for parent, child, _, parent_T_child in poses_of(message):
                self._neighbours.setdefault(parent, {})[child] = parent_T_child
                self._neighbours.setdefault(child, {})[parent] = invert(parent_T_child)
            self._found.clear()

    def observe(self, message) -> None:
        """Take note of the transforms of a message of /tf: those that never change count as static."""
        with self._lock:
            for parent, child, stamp_ns, parent_T_child in poses_of(message):
                edge = self._observed.get((parent, child))
                if edge is None:
                    edge = self._observed[parent, child] = _Observed(parent_T_child, stamp_ns, stamp_ns)
                was_static = self._is_static(edge)
                edge.num_messages += 1
                edge.first_ns, edge.last_ns = min(edge.first_ns, stamp_ns), max(edge.last_ns, stamp_ns)
                if not edge.changes():
                    distance, angle = _difference(edge.pose, parent_T_child)
                    edge.distance, edge.angle = max(edge.distance, distance), max(edge.angle, angle)
                if self._is_static(edge) != was_static:
                    self._found.clear()

    def lookup(self, target: str, source: str) -> np.ndarray | None:
        """Return target_T_source, (4, 4) float64, identity for one frame; None where they are not connected."""
        if target == source:
            return np.eye(4)
        with self._lock:
            if (target, source) not in self._found:
                self._found[target, source] = self._search(target, source, self._is_static)
            return self._found[target, source]

    def obstacle(self, target: str, source: str) -> str:
        """Return why two frames are connected on /tf, but not by static transforms; '' where they are not."""
        with self._lock:
            if self._search(target, source, lambda edge: True) is None:
                return ''
            reasons = []
            for (parent, child), edge in self._observed.items():
                without = self._search(target, source, lambda other, edge=edge: other is not edge)
                if self._is_static(edge) or without is not None:
                    continue
                what = f'the transform from {child!r} to {parent!r} on /tf'
                if edge.changes():
                    reasons.append(f'{what} changes (by {edge.distance:.3f} m, {np.degrees(edge.angle):.1f} degrees)')
                else:
                    reasons.append(f'{what} was seen {edge.num_messages} times, too few to tell whether it changes')
            return ' and '.join(reasons)

    def _is_static(self, edge: _Observed) -> bool:
        seconds_ns = edge.last_ns - edge.first_ns
        seen_long = seconds_ns >= self._min_ns or (not seconds_ns and edge.num_messages >= _MANY_MESSAGES)
        return edge.num_messages >= _MIN_MESSAGES and seen_long and not edge.changes()

    def _connected(self, is_used) -> dict[str, dict[str, np.ndarray]]:
        """Return the neighbours of each frame, by the static transforms and the observed ones that are used."""
        neighbours = {frame: dict(of_frame) for frame, of_frame in self._neighbours.items()}
        for (parent, child), edge in self._observed.items():
            if is_used(edge):
                neighbours.setdefault(parent, {}).setdefault(child, edge.pose)
                neighbours.setdefault(child, {}).setdefault(parent, invert(edge.pose))
        return neighbours

    def _search(self, target: str, source: str, is_used) -> np.ndarray | None:
        neighbours = self._connected(is_used)
        target_T_frame = {target: np.eye(4)}
        frontier = deque([target])
        while frontier:
            frame = frontier.popleft()
            for neighbour, frame_T_neighbour in neighbours.get(frame, {}).items():
                if neighbour not in target_T_frame:
                    target_T_frame[neighbour] = target_T_frame[frame] @ frame_T_neighbour
                    frontier.append(neighbour)
        return target_T_frame.get(source)


def poses_of(message) -> Iterator[tuple[str, str, int, np.ndarray]]:
    """Yield (parent, child, stamp [ns], parent_T_child) of a tf2_msgs/TFMessage; what is no pose is left out."""
    for transform in message.transforms:
        t, q = transform.transform.translation, transform.transform.rotation
        try:
            parent_T_child = from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
        except EgoMotionError:
            continue
        stamp = transform.header.stamp
        stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
        yield transform.header.frame_id.lstrip('/'), transform.child_frame_id.lstrip('/'), stamp_ns, parent_T_child


def _difference(a_T_b: np.ndarray, other_T_b: np.ndarray) -> tuple[float, float]:
    apart = invert(a_T_b) @ other_T_b
    return float(np.linalg.norm(apart[:3, 3])), float(np.linalg.norm(rotation_vector(apart)))
