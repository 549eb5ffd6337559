# SPDX-License-Identifier: Apache-2.0
"""Poses over time, and the motion between two stamps."""

import threading
from bisect import bisect_left

import numpy as np

from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.transforms import interpolate, invert, rotation_vector

_NS = 1_000_000_000
_MAX_EXTRAPOLATION_NS = 50_000_000
_MAX_GAP_NS = 500_000_000  # across a longer gap interpolation is unreliable: 0.5 s at 10 m/s^2 is 0.3 m
_RESET_AFTER_NS = 1_000_000_000  # older by this much: a bag loop, not a late message; as in SweepBuffer

_MAX_SPEED = 50.0  # m/s: 5 m in 0.1 s
_MAX_TURN_RATE_DEG = 200.0  # deg/s: 20 deg in 0.1 s


def check_plausible(ego0_T_ego1: np.ndarray, dt: float) -> None:
    """Reject a motion over dt seconds that is impossible for a vehicle, such as a localisation jump.

    Raises: EgoMotionError above 50 m/s or 200 deg/s, or for a transform or dt that is not finite.
    """
    if not (np.isfinite(ego0_T_ego1).all() and dt > 0):
        raise EgoMotionError(f'Ego motion must be finite, with dt above 0, got dt {dt} s and {ego0_T_ego1}.')
    distance = float(np.linalg.norm(ego0_T_ego1[:3, 3]))
    angle = float(np.degrees(np.linalg.norm(rotation_vector(ego0_T_ego1))))
    if distance > _MAX_SPEED * dt or angle > _MAX_TURN_RATE_DEG * dt:
        raise EgoMotionError(
            f'Ego motion of {distance:.2f} m and {angle:.1f} deg in {dt:.3f} s is more than {_MAX_SPEED:.0f} m/s or '
            f'{_MAX_TURN_RATE_DEG:.0f} deg/s: the localisation jumped. Use a frame that does not jump (odom, not map).'
        )


class Trajectory:
    """The latest poses of the ego frame, sorted by stamp in any order of arrival. Thread-safe.

    capacity: poses kept; 1000 are 5 s of 200 Hz odometry.
    """

    def __init__(self, capacity: int = 1000):
        if capacity < 2:
            raise ValueError(f'A trajectory needs a capacity of at least 2 poses, got {capacity}')
        self._capacity = capacity
        self._stamps_ns: list[int] = []
        self._poses: list[np.ndarray] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._stamps_ns)

    @property
    def latest_stamp_ns(self) -> int | None:
        """Stamp of the newest pose, None without one; shows whether odometry has reached a sweep."""
        with self._lock:
            return self._stamps_ns[-1] if self._stamps_ns else None

    def add(self, stamp_ns: int, odom_T_ego: np.ndarray) -> None:
        """Add a pose; a second one with the same stamp replaces the first.

        A stamp older than the newest by 1 s or more means that time went back: all earlier poses are removed.
        """
        with self._lock:
            stamps = self._stamps_ns
            if stamps and stamp_ns <= stamps[-1] - _RESET_AFTER_NS:
                self._forget()
            place = len(stamps) if not stamps or stamp_ns > stamps[-1] else bisect_left(stamps, stamp_ns)
            if place < len(stamps) and stamps[place] == stamp_ns:
                self._poses[place] = odom_T_ego
                return
            stamps.insert(place, stamp_ns)
            self._poses.insert(place, odom_T_ego)
            if len(stamps) > self._capacity:
                del stamps[0], self._poses[0]

    def clear(self) -> None:
        """Remove all poses."""
        with self._lock:
            self._forget()

    def pose(self, stamp_ns: int) -> np.ndarray | None:
        """Return odom_T_ego, (4, 4) float64, at a stamp, interpolated as in `between`; None where unknown."""
        with self._lock:
            return self._at(stamp_ns)

    def between(self, stamp0_ns: int, stamp1_ns: int) -> np.ndarray:
        """Return ego0_T_ego1, (4, 4) float64: it maps points from the ego frame at stamp 1 to the one at stamp 0.

        Poses are interpolated at constant velocity, and extrapolated by at most 50 ms.

        Raises: EgoMotionError when the poses do not reach either stamp, or are more than 0.5 s apart around it.
        """
        return self.poses_at_offsets(stamp0_ns, np.array([stamp1_ns - stamp0_ns]))[0]

    def poses_at_offsets(self, stamp_ns: int, offsets_ns: np.ndarray) -> np.ndarray:
        """Return ego_T_then, (K, 4, 4) float64: the ego pose at each offset (K,) [ns] from a stamp.

        The poses are in the ego frame at the stamp.
        Raises: EgoMotionError as `between` does.
        """
        stamps_ns = [stamp_ns, *(stamp_ns + ns for ns in offsets_ns.tolist())]
        with self._lock:
            poses = [self._at(then_ns) for then_ns in stamps_ns]
            missing = next((then_ns for then_ns, pose in zip(stamps_ns, poses, strict=True) if pose is None), None)
            known = '' if missing is None else self._describe()
        if missing is not None:
            raise EgoMotionError(
                f'The motion from {_seconds(min(stamps_ns))} to {_seconds(max(stamps_ns))} needs a pose at '
                f'{_seconds(missing)}, but {known}. Check that odometry is published, at 2 Hz or more, and that its '
                'stamps come from the clock of the clouds (use_sim_time on replay).'
            )
        return invert(poses[0]) @ np.stack(poses[1:])

    def _at(self, stamp_ns: int) -> np.ndarray | None:
        """Return odom_T_ego at a stamp, None where unknown."""
        stamps, poses = self._stamps_ns, self._poses
        place = bisect_left(stamps, stamp_ns)
        if place < len(stamps) and stamps[place] == stamp_ns:
            return poses[place]
        if len(stamps) < 2:
            return None
        if place == 0 or place == len(stamps):
            # Extrapolate from poses 50 ms apart where possible: poses 5 ms apart would amplify noise.
            if place == 0:
                near, far = 0, bisect_left(stamps, stamps[0] + _MAX_EXTRAPOLATION_NS, 1, len(stamps) - 1)
            else:
                near, far = len(stamps) - 1, max(bisect_left(stamps, stamps[-1] - _MAX_EXTRAPOLATION_NS + 1) - 1, 0)
            if abs(stamp_ns - stamps[near]) > _MAX_EXTRAPOLATION_NS:
                return None
            before, after = min(near, far), max(near, far)
        else:
            before, after = place - 1, place
        gap_ns = stamps[after] - stamps[before]
        if gap_ns > _MAX_GAP_NS:
            return None
        return interpolate(poses[before], poses[after], (stamp_ns - stamps[before]) / gap_ns)

    def _forget(self) -> None:
        self._stamps_ns.clear()
        self._poses.clear()

    def _describe(self) -> str:
        stamps = self._stamps_ns
        if not stamps:
            return 'no pose has arrived'
        rate = f'; the largest gap is {max(np.diff(stamps)) / _NS:.3f} s' if len(stamps) > 1 else ''
        return f'the {len(stamps)} known poses reach from {_seconds(stamps[0])} to {_seconds(stamps[-1])}{rate}'


def _seconds(stamp_ns: int) -> str:
    return f'{stamp_ns // _NS}.{stamp_ns % _NS:09d} s'
