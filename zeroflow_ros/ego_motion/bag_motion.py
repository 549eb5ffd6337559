# SPDX-License-Identifier: Apache-2.0
"""Ego motion between the sweeps of a bag, from odometry, from registration, or none; without ROS."""

import numpy as np

from zeroflow_ros.bags.bag import STATIC_TRANSFORMS_TOPIC, Bag
from zeroflow_ros.bags.cdr import ODOMETRY, TRANSFORMS, decode_message
from zeroflow_ros.ego_motion.static_transforms import StaticTransforms
from zeroflow_ros.ego_motion.trajectory import Trajectory, check_plausible
from zeroflow_ros.errors import ConfigError, DataError, EgoMotionError
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import from_quaternion, invert

EGO_MOTION = ('auto', 'odometry', 'registration', 'none')
_CAPACITY = 10_000  # poses: 50 s at 200 Hz, far more than is read ahead


class BagMotion:
    """The motion between two sweeps, from one source for the whole bag.

    source: 'odometry', 'registration' or 'none'; 'auto' uses odometry where available, else registration.
    odometry_T_lidar: (4, 4) pose of the clouds' frame in the odometry's child frame; None: read from the bag.
    frame_id: frame of the clouds.
    Raises: DataError or EgoMotionError when the bag lacks the data that the source needs.
    """

    def __init__(self, bag: Bag, source: str, *, frame_id: str, odometry_topic: str = '',
                 odometry_T_lidar: np.ndarray | None = None):  # fmt: skip
        if source not in EGO_MOTION:
            raise ConfigError(f'Ego motion must be one of {", ".join(EGO_MOTION)}, got {source!r}.')
        self.topic = ''
        self.note = ''  # why 'auto' does not use odometry
        self._trajectory = Trajectory(_CAPACITY)
        self._lidar_odometry = None
        self.odometry_T_lidar = odometry_T_lidar
        if source in ('auto', 'odometry'):
            try:
                self._use_odometry(bag, odometry_topic, frame_id)
                source = 'odometry'
            except (DataError, EgoMotionError) as error:
                if source == 'odometry' or odometry_topic:
                    raise
                source, self.note = 'registration', str(error)
        self.source = source
        self.reset()

    def _use_odometry(self, bag: Bag, requested: str, frame_id: str) -> None:
        topic = bag.odometry_topic(requested)
        if not topic:
            raise DataError(f'{bag.path} has no topic of {ODOMETRY}. It has:\n{bag.list_topics()}')
        child_frame = decode_message(bag.first(topic).cdr, ODOMETRY).child_frame_id.lstrip('/')
        if self.odometry_T_lidar is None:
            self.odometry_T_lidar = static_transform(bag, child_frame, frame_id)
        self.topic = topic

    def add_odometry(self, cdr: bytes) -> None:
        """Add one nav_msgs/Odometry; a non-finite pose is ignored, so `between` may lack a pose there."""
        message = decode_message(cdr, ODOMETRY)
        p, q = message.pose.pose.position, message.pose.pose.orientation
        try:
            odom_T_child = from_quaternion((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
        except EgoMotionError:
            return
        stamp = message.header.stamp
        self._trajectory.add(stamp.sec * 1_000_000_000 + stamp.nanosec, odom_T_child)

    def covers(self, stamp_ns: int) -> bool:
        """Return whether the odometry read so far reaches a stamp."""
        return not self.topic or (self._trajectory.latest_stamp_ns or 0) >= stamp_ns

    def between(self, sweep0: Sweep, sweep1: Sweep) -> np.ndarray:
        """Return ego0_T_ego1, (4, 4) float64, of the frames of the two sweeps.

        Raises: EgoMotionError when it is unknown or implausible.
        """
        if self.source == 'none':
            return np.eye(4)
        if self.source == 'registration':
            ego0_T_ego1 = self._lidar_odometry.between(sweep0, sweep1)
        else:
            child0_T_child1 = self._trajectory.between(sweep0.stamp_ns, sweep1.stamp_ns)
            ego0_T_ego1 = invert(self.odometry_T_lidar) @ child0_T_child1 @ self.odometry_T_lidar
        check_plausible(ego0_T_ego1, (sweep1.stamp_ns - sweep0.stamp_ns) * 1e-9)
        return ego0_T_ego1

    def poses_at_offsets(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray) -> np.ndarray:
        """Return ego_T_then, (K, 4, 4) float64, for offsets (K,) [ns] from the stamp of a sweep; see `Deskew.pair`.

        Raises: EgoMotionError when it is unknown.
        """
        if self.source == 'none':
            return np.tile(np.eye(4), (len(offsets_ns), 1, 1))
        if self.source == 'registration':
            return self._lidar_odometry.poses_at_offsets(sweep, other, offsets_ns)
        child_T_then = self._trajectory.poses_at_offsets(sweep.stamp_ns, offsets_ns)
        return invert(self.odometry_T_lidar) @ child_T_then @ self.odometry_T_lidar

    def reset(self) -> None:
        """Forget the last sweep, when the next one does not follow it."""
        if self.source == 'registration':
            from zeroflow_ros.ego_motion.lidar_odometry import LidarOdometry  # small_gicp is optional

            self._lidar_odometry = LidarOdometry()


def static_transform(bag: Bag, target: str, source: str) -> np.ndarray:
    """Return target_T_source, (4, 4), of two frames on one rigid body, from /tf_static of a bag.

    Identity when the names are equal or one is empty.
    Raises: EgoMotionError when /tf_static does not connect the frames.
    """
    if not target or not source or target == source:
        return np.eye(4)
    transforms = static_transforms(bag)
    target_T_source = transforms.lookup(target, source)
    if target_T_source is None:
        known = ', '.join(transforms.frames) or 'nothing'
        raise EgoMotionError(
            f'The odometry moves the frame {target!r}, the clouds are in {source!r}, and {STATIC_TRANSFORMS_TOPIC} of '
            f'{bag.path} does not connect them (it has {known}). Say how the LiDAR is mounted with '
            '--odometry-T-lidar X Y Z QX QY QZ QW, or use --ego-motion registration.'
        )
    return target_T_source


def static_transforms(bag: Bag) -> StaticTransforms:
    """Return all transforms on /tf_static of a bag."""
    transforms = StaticTransforms()
    for recorded in bag.messages([STATIC_TRANSFORMS_TOPIC]):
        transforms.add(decode_message(recorded.cdr, TRANSFORMS))
    return transforms
