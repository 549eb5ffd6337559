# SPDX-License-Identifier: Apache-2.0
"""Ego motion from /tf of a bag, checked as that of odometry is; without ROS."""

import numpy as np

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.ego_motion.motion_checks import MotionChecks
from zeroflow_ros.ego_motion.odometry_track import PairMotion
from zeroflow_ros.ego_motion.tf_poses import TfPoses
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import invert


class TfMotion:
    """The motion of the clouds' frame in a fixed frame. All of /tf is read at once.

    frame_id, fixed_frame: see `TfPoses`. offset_ns: added to the stamps of sweeps [ns].
    Raises: EgoMotionError when tf does not say how the frame moves.
    """

    def __init__(self, bag: Bag, frame_id: str, fixed_frame: str = '', offset_ns: int = 0):
        self.poses = TfPoses(bag, frame_id, fixed_frame)
        self._offset_ns = offset_ns
        self._checks = MotionChecks('tf')

    @property
    def warning(self) -> str:
        """What is wrong with the motion throughout, though it is used; '' for nothing."""
        return self._checks.warning

    def between(self, sweep0: Sweep, sweep1: Sweep) -> np.ndarray:
        """Return ego0_T_ego1, (4, 4) float64, of the frame at two sweeps.

        Raises: EgoMotionError when a transform is unknown at a stamp, ImplausibleMotionError when tf is wrong.
        """
        poses = (self.poses.pose(sweep.stamp_ns + self._offset_ns) for sweep in (sweep0, sweep1))
        fixed_T_ego0, fixed_T_ego1 = poses
        motion = PairMotion(invert(fixed_T_ego0) @ fixed_T_ego1)
        self._checks.check(sweep0, sweep1, motion)
        return motion.claimed

    def poses_at_offsets(self, sweep: Sweep, offsets_ns: np.ndarray) -> np.ndarray:
        """Return ego_T_then, (K, 4, 4) float64, at offsets (K,) [ns] from the stamp of a sweep; see `Deskew.pair`.

        Raises: EgoMotionError when a transform is unknown.
        """
        stamp_ns = sweep.stamp_ns + self._offset_ns
        poses = [self.poses.pose(stamp_ns + ns) for ns in offsets_ns.tolist()]
        return invert(self.poses.pose(stamp_ns)) @ np.stack(poses)

    def reset_checks(self) -> None:
        """Forget all decisions, when the next sweep does not follow the last one."""
        self._checks.reset()
