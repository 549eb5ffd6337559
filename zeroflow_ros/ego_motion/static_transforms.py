# SPDX-License-Identifier: Apache-2.0
"""Transforms between frames of one rigid body, from messages on /tf_static; without ROS."""

import threading
from collections import deque

import numpy as np

from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.transforms import from_quaternion, invert


class StaticTransforms:
    """A graph of frames; thread-safe."""

    def __init__(self):
        self._neighbours: dict[str, dict[str, np.ndarray]] = {}
        self._found: dict[tuple[str, str], np.ndarray | None] = {}
        self._lock = threading.Lock()

    @property
    def frames(self) -> list[str]:
        """Names of all frames."""
        with self._lock:
            return sorted(self._neighbours)

    def add(self, message) -> None:
        """Add all transforms of a tf2_msgs/TFMessage, rclpy's or rosbags'; one that is no pose is left out."""
        with self._lock:
            for transform in message.transforms:
                t, q = transform.transform.translation, transform.transform.rotation
                parent, child = transform.header.frame_id.lstrip('/'), transform.child_frame_id.lstrip('/')
                try:
                    parent_T_child = from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
                except EgoMotionError:
                    continue
                self._neighbours.setdefault(parent, {})[child] = parent_T_child
                self._neighbours.setdefault(child, {})[parent] = invert(parent_T_child)
            self._found.clear()

    def lookup(self, target: str, source: str) -> np.ndarray | None:
        """Return target_T_source, (4, 4) float64, identity for one frame; None where they are not connected."""
        if target == source:
            return np.eye(4)
        with self._lock:
            if (target, source) not in self._found:
                self._found[target, source] = self._search(target, source)
            return self._found[target, source]

    def _search(self, target: str, source: str) -> np.ndarray | None:
        target_T_frame = {target: np.eye(4)}
        frontier = deque([target])
        while frontier:
            frame = frontier.popleft()
            for neighbour, frame_T_neighbour in self._neighbours.get(frame, {}).items():
                if neighbour not in target_T_frame:
                    target_T_frame[neighbour] = target_T_frame[frame] @ frame_T_neighbour
                    frontier.append(neighbour)
        return target_T_frame.get(source)
