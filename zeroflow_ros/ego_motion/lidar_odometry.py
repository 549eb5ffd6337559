# SPDX-License-Identifier: Apache-2.0
"""LiDAR odometry: ego motion from sweep to sweep by registration; without ROS."""

import numpy as np

from zeroflow_ros.ego_motion.registration import Registration
from zeroflow_ros.lidar.level import level_rotation
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import apply, interpolate, invert

_UPRIGHT = np.cos(np.radians(15.0))  # registration itself takes smaller tilts


class LidarOdometry:
    """Registers each sweep to the previous one; the initial guess assumes constant velocity.

    Raises: ConfigError when small_gicp is not installed.
    """

    def __init__(self):
        self._registration = Registration()
        self._last_motion: tuple[np.ndarray, float] | None = None  # ego0_T_ego1 and its duration [s]
        self._level_T_sensor = np.eye(4)
        self._turned: tuple[np.ndarray | None, np.ndarray | None] = None, None  # points of the last sweep, turned ones

    def set_mount(self, mount: np.ndarray | None) -> None:
        """Say how the sensor is mounted: registration tells walls from ground by z, so it gets level sweeps.

        mount: base_T_sensor, (4, 4), of a base frame whose z is up; None: not known, then z of the points is about up.
        """
        level_T_sensor = np.eye(4)
        if mount is not None and mount[2, 2] < _UPRIGHT:
            level_T_sensor[:3, :3] = level_rotation(mount[2, :3])
        if not np.array_equal(level_T_sensor, self._level_T_sensor):
            self._level_T_sensor = level_T_sensor
            self.reset()

    def between(self, sweep0: Sweep, sweep1: Sweep) -> np.ndarray:
        """Return ego0_T_ego1, (4, 4) float64, of the frames of the two sweeps.

        Raises: EgoMotionError when registration fails.
        """
        dt = (sweep1.stamp_ns - sweep0.stamp_ns) * 1e-9
        turn, back = self._level_T_sensor, invert(self._level_T_sensor)  # identity for an upright sensor
        guess = turn @ self._extrapolate(dt) @ back if self._last_motion is not None else None
        self._last_motion = None
        ego0_T_ego1 = back @ self._registration.align(self._level(sweep0), self._level(sweep1), guess) @ turn
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

    def _level(self, sweep: Sweep) -> np.ndarray:
        """Return the points (N, 3) turned level; the same array for the same sweep, which registration recognises."""
        if self._level_T_sensor[2, 2] == 1:
            return sweep.points
        if sweep.points is not self._turned[0]:
            self._turned = sweep.points, apply(self._level_T_sensor, sweep.points)
        return self._turned[1]

    def _extrapolate(self, seconds: float) -> np.ndarray:
        motion, dt = self._last_motion
        return interpolate(np.eye(4), motion, seconds / dt)
