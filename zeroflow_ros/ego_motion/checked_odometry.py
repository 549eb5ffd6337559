# SPDX-License-Identifier: Apache-2.0
"""Ego motion from one nav_msgs/Odometry, checked; the node and the offline programs use the same one. Without ROS."""

import numpy as np

from zeroflow_ros.ego_motion.motion_checks import MotionChecks
from zeroflow_ros.ego_motion.odometry_track import OdometryTrack
from zeroflow_ros.ego_motion.world_clouds import WorldFrame, in_sensor_frame
from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import invert


class CheckedOdometry:
    """Poses of one odometry topic, and the motion of the sensor from them.

    `add` may run on another thread. child_T_lidar: (4, 4) pose of the clouds' frame in the odometry's child frame; for
    clouds in the odometry's own frame, of the sensor's frame. offset_ns: added to all stamps of sweeps.
    """

    def __init__(self, capacity: int = 1000):
        self.track = OdometryTrack(capacity)
        self._checks, self._world = MotionChecks(), WorldFrame()
        self._offset_ns = 0

    @property
    def warning(self) -> str:
        """What is wrong with the odometry throughout, though it is used; '' for nothing."""
        return self._checks.warning

    def add(self, message) -> None:
        """Add a nav_msgs/Odometry. Raises: EgoMotionError for a message without a pose."""
        self.track.add(message)

    def is_world(self, frame_id: str) -> bool:
        """Return whether clouds in a frame have already been moved into the odometry's fixed frame."""
        return self._world.holds(frame_id, self.track.frame_id, self.track.child_frame_id)

    def to_sensor_frame(self, sweep: Sweep, child_T_lidar: np.ndarray, offset_ns: int = 0) -> Sweep:
        """Return a sweep in the frame of the sensor; unchanged unless it is in the odometry's fixed frame.

        Raises: EgoMotionError where the pose of the sensor is not known.
        """
        is_world = self.is_world(sweep.frame_id)
        if not is_world and not self._world.is_uncertain():
            return sweep
        stamp_ns = sweep.stamp_ns + offset_ns
        pose = self.track.pose(stamp_ns)
        if pose is not None:
            self._world.look_at(sweep.points, pose)
            is_world = self.is_world(sweep.frame_id)
        if not is_world:
            return sweep
        if pose is None:
            self.track.between(stamp_ns, stamp_ns)  # raises, and says which poses are known
            raise EgoMotionError(f'The odometry has no pose of the sensor at {stamp_ns * 1e-9:.3f} s.')
        return in_sensor_frame(sweep, pose @ child_T_lidar)

    def between(self, sweep0: Sweep, sweep1: Sweep, child_T_lidar: np.ndarray, offset_ns: int = 0) -> np.ndarray:
        """Return ego0_T_ego1, (4, 4) float64, of the sensor at the two sweeps.

        Raises: EgoMotionError when it is unknown, ImplausibleMotionError when the odometry is wrong.
        """
        if (sweep0.frame_T_sensor is None) != (sweep1.frame_T_sensor is None):
            raise EgoMotionError(
                f"The clouds are in '{sweep1.frame_id}', the fixed frame of the odometry, and the first pose arrived "
                'between two of them. The next pair is used.'
            )
        if offset_ns != self._offset_ns:  # what was measured with another offset is not true any more
            self._checks.reset()
            self._offset_ns = offset_ns
        motion = self.track.between(sweep0.stamp_ns + offset_ns, sweep1.stamp_ns + offset_ns).seen_from(child_T_lidar)
        self._checks.check(sweep0, sweep1, motion)
        return motion.claimed

    def poses_at_offsets(self, sweep: Sweep, offsets_ns: np.ndarray, child_T_lidar: np.ndarray, offset_ns: int = 0):
        """Return ego_T_then, (K, 4, 4) float64, at offsets (K,) [ns] from the stamp of a sweep; see `Deskew.pair`.

        Raises: EgoMotionError when it is unknown.
        """
        child_T_then = self.track.poses_at_offsets(sweep.stamp_ns + offset_ns, offsets_ns)
        return invert(child_T_lidar) @ child_T_then @ child_T_lidar

    def reset_checks(self) -> None:
        """Forget all decisions, when the next sweep does not follow the last one."""
        self._checks.reset()
