# SPDX-License-Identifier: Apache-2.0
"""Ego motion that goes on from sweep to sweep by registration; knows no ROS."""

import numpy as np

from zeroflow_ros.ego_motion.registration import Registration
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import interpolate


class RegisteredMotion:
    """Registers each sweep to the one before; the first guess is that the vehicle goes on as before.

    Raises: ConfigError when small_gicp is not installed.
    """

    def __init__(self):
        self._registration = Registration()
        self._last_motion: tuple[np.ndarray, float] | None = None  # and the seconds that it took

    def between(self, sweep0: Sweep, sweep1: Sweep) -> np.ndarray:
        """Return ego0_T_ego1, (4, 4) float64, of the frames of the two sweeps.

        Raises: EgoMotionError when registration is not to be trusted.
        """
        dt = (sweep1.stamp_ns - sweep0.stamp_ns) * 1e-9
        guess = self._after(dt) if self._last_motion is not None else None
        self._last_motion = None
        ego0_T_ego1 = self._registration.align(sweep0.points, sweep1.points, guess)
        self._last_motion = ego0_T_ego1, dt
        return ego0_T_ego1

    def within(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray) -> np.ndarray:
        """Return ego_T_then, (K, 4, 4) float64: of the frame at each offset (K,) [ns] from the stamp of a sweep.

        The vehicle goes on as it did between the last two sweeps. At first, and after a failure, nobody knows how; then
        this sweep and the other one of its pair are registered as they are: where both are skewed alike, that shows
        the motion all the same.
        Raises: EgoMotionError when that registration is not to be trusted.
        """
        if self._last_motion is None:
            self.between(*sorted((sweep, other), key=lambda one: one.stamp_ns))
        return np.stack([self._after(ns * 1e-9) for ns in offsets_ns.tolist()])

    def reset(self) -> None:
        """Forget the last sweep and the last motion."""
        self._registration.reset()
        self._last_motion = None

    def _after(self, seconds: float) -> np.ndarray:
        motion, dt = self._last_motion
        return interpolate(np.eye(4), motion, seconds / dt)
