# SPDX-License-Identifier: Apache-2.0
"""LiDAR odometry: ego motion from sweep to sweep by registration; without ROS."""

import numpy as np

from zeroflow_ros.ego_motion.registration import Registration
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import interpolate


class LidarOdometry:
    """Registers each sweep to the previous one; the initial guess assumes constant velocity.

    Raises: ConfigError when small_gicp is not installed.
    """

    def __init__(self):
        self._registration = Registration()
        self._last_motion: tuple[np.ndarray, float] | None = None  # ego0_T_ego1 and its duration [s]

    def between(self, sweep0: Sweep, sweep1: Sweep) -> np.ndarray:
        """Return ego0_T_ego1, (4, 4) float64, of the frames of the two sweeps.

        Raises: EgoMotionError when registration fails.
        """
        dt = (sweep1.stamp_ns - sweep0.stamp_ns) * 1e-9
        guess = self._extrapolate(dt) if self._last_motion is not None else None
        self._last_motion = None
        ego0_T_ego1 = self._registration.align(sweep0.points, sweep1.points, guess)
        self._last_motion = ego0_T_ego1, dt
        return ego0_T_ego1

    def poses_at_offsets(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray) -> np.ndarray:
        """Return ego_T_then, (K, 4, 4) float64: poses of the frame at offsets (K,) [ns] from the stamp of a sweep.

        Assumes the velocity between the last two sweeps. At the start and after a failure that velocity is unknown, so
        this sweep and the other one of its pair are registered without deskewing: both are skewed alike, so the motion
        is still right.
        Raises: EgoMotionError when this registration fails.
        """
        if self._last_motion is None:
            self.between(*sorted((sweep, other), key=lambda one: one.stamp_ns))
        return np.stack([self._extrapolate(ns * 1e-9) for ns in offsets_ns.tolist()])

    def reset(self) -> None:
        """Forget the last sweep and the last motion."""
        self._registration.reset()
        self._last_motion = None

    def _extrapolate(self, seconds: float) -> np.ndarray:
        motion, dt = self._last_motion
        return interpolate(np.eye(4), motion, seconds / dt)
