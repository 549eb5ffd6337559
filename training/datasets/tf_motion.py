# SPDX-License-Identifier: Apache-2.0
"""Ego motion of the sweeps of a bag from its /tf, for bags without odometry; needs no ROS."""

import numpy as np

from zeroflow_ros.bags.bag import STATIC_TRANSFORMS_TOPIC, Bag
from zeroflow_ros.bags.cdr import TRANSFORMS, decode_message
from zeroflow_ros.ego_motion.trajectory import Trajectory, check_plausible
from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import from_quaternion, invert

TF_TOPIC = '/tf'
# Fixed frames of REP-105, with or without a prefix; `odom` comes before `map` in the chain and jumps less. A chain that
# ends at any other frame may end at a moving body.
FIXED_FRAMES = ('odom', 'map', 'world', 'earth')


class TfMotion:
    """The motion between two sweeps from the tf chain that links the cloud frame to a fixed frame.

    All of /tf is read at once. Has the attributes and methods of `BagMotion`.
    Raises: EgoMotionError when tf does not link them.
    """

    source, topic, note = 'tf', '', ''

    def __init__(self, bag: Bag, *, frame_id: str):
        parents: dict[str, str] = {}
        edges: dict[str, Trajectory | np.ndarray] = {}  # parent_T_child, by the name of the child
        for recorded in bag.messages([STATIC_TRANSFORMS_TOPIC, TF_TOPIC]):
            for child, parent, stamp_ns, parent_T_child in _transforms(recorded.cdr):
                if recorded.topic == TF_TOPIC:
                    if not isinstance(edges.get(child), Trajectory) or parents[child] != parent:
                        edges[child] = Trajectory(bag.num_messages + 2)
                    edges[child].add(stamp_ns, parent_T_child)
                    parents[child] = parent
                elif not isinstance(edges.get(child), Trajectory):
                    edges[child], parents[child] = parent_T_child, parent
        chain, top = [], frame_id
        while top in parents and top not in chain and top.split('/')[-1] not in FIXED_FRAMES:
            chain.append(top)
            top = parents[top]
        self._chain = [edges[child] for child in reversed(chain)]
        if top.split('/')[-1] not in FIXED_FRAMES or not any(isinstance(edge, Trajectory) for edge in self._chain):
            raise EgoMotionError(
                f'{bag.path}: {TF_TOPIC} does not say how {frame_id!r} moves: it leads up to {top!r}, expected one of '
                f'{", ".join(FIXED_FRAMES)}.'
            )

    def add_odometry(self, cdr: bytes) -> None:
        """Never called: this source has no odometry topic."""

    def covers(self, stamp_ns: int) -> bool:
        """Return True: all of tf is read at once."""
        return True

    def between(self, sweep0: Sweep, sweep1: Sweep) -> np.ndarray:
        """Return ego0_T_ego1, (4, 4) float64, of the frame of the two sweeps.

        Raises: EgoMotionError when a transform is missing around a stamp, or the motion is rejected as implausible.
        """
        fixed_T_ego0, fixed_T_ego1 = self._pose(sweep0.stamp_ns), self._pose(sweep1.stamp_ns)
        ego0_T_ego1 = invert(fixed_T_ego0) @ fixed_T_ego1
        check_plausible(ego0_T_ego1, (sweep1.stamp_ns - sweep0.stamp_ns) * 1e-9)
        return ego0_T_ego1

    def poses_at_offsets(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray) -> np.ndarray:
        """Return ego_T_then, (K, 4, 4) float64, of the frame of a sweep at offsets (K,) [ns]; see `Deskew.pair`.

        Raises: EgoMotionError when a transform is missing.
        """
        poses = [self._pose(sweep.stamp_ns + ns) for ns in offsets_ns.tolist()]
        return invert(self._pose(sweep.stamp_ns)) @ np.stack(poses)

    def reset(self) -> None:
        """Do nothing: there is no state."""

    def _pose(self, stamp_ns: int) -> np.ndarray:
        fixed_T_ego = np.eye(4)
        for edge in self._chain:
            parent_T_child = edge.pose(stamp_ns) if isinstance(edge, Trajectory) else edge
            if parent_T_child is None:
                raise EgoMotionError(
                    f'{TF_TOPIC} has no transform around {stamp_ns * 1e-9:.3f} s; the motion of a sweep needs them at '
                    '2 Hz or more, on the clock of the clouds.'
                )
            fixed_T_ego = fixed_T_ego @ parent_T_child
        return fixed_T_ego


def _transforms(cdr: bytes):
    """Yield (child, parent, stamp [ns], parent_T_child) of a message; transforms that are not finite are skipped."""
    for transform in decode_message(cdr, TRANSFORMS).transforms:
        t, q, stamp = transform.transform.translation, transform.transform.rotation, transform.header.stamp
        try:
            parent_T_child = from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
        except EgoMotionError:
            continue
        child, parent = transform.child_frame_id.lstrip('/'), transform.header.frame_id.lstrip('/')
        yield child, parent, stamp.sec * 1_000_000_000 + stamp.nanosec, parent_T_child
