# SPDX-License-Identifier: Apache-2.0
"""Poses and twists of nav_msgs/Odometry, and where the poses jump; without ROS."""

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from zeroflow_ros.ego_motion.trajectory import Trajectory
from zeroflow_ros.transforms import from_quaternion, invert, rotation_matrix, rotation_vector

_NS = 1_000_000_000
_STEP_NS = 90_000_000  # poses nearer than this are judged together: 5 ms of odometry are mostly noise
_HOLD_NS = 300_000_000  # a publisher that repeats each pose for longer stands still
_GAP_NS = 600_000_000  # across a longer gap no speed is expected
_RESET_AFTER_NS = _NS  # as in Trajectory
# A suspect step differs by this much from the speed before: noise, and a change of speed (per s^2). Real vehicles brake
# with up to 10 m/s^2, and KITTI's GPS has 2.5 cm of noise. Clouds decide on suspects.
_SUSPECT_M, _SUSPECT_M_S2 = 0.12, 6.0
_SUSPECT_RAD, _SUSPECT_RAD_S2 = np.radians(1.0), np.radians(150.0)
# Poses this far apart do not show how the speed changes between them: 2 m/s^2 over 0.4 s are 0.4 m/s at either end.
_SPARSE_S, _SPARSE_M_S2, _SPARSE_RAD_S2 = 0.25, 2.0, np.radians(12.0)
# Such a step is a jump unless the clouds say otherwise.
_JUMP_M, _JUMP_M_S2 = 0.2, 15.0
_JUMP_RAD, _JUMP_RAD_S2 = np.radians(1.5), np.radians(250.0)
_MAX_SUSPECTS = 4  # in a row; then the speed is taken to be what the poses say
_SAME_M, _SAME_RAD = 0.03, np.radians(0.2)  # what a pair may differ by from the smooth track
_TWIST_NS = 150_000_000  # a twist farther from a pair says nothing about it
_MAX_TWISTS = 600  # 3 s at 200 Hz
_MIN_TWIST = 1e-3  # m/s: less is a field that nobody filled in


@dataclass(frozen=True)
class Jump:
    """A step between poses that does not fit the motion before it.

    stamps_ns: of the two poses. metres, degrees: by how much. is_certain: more than a vehicle can do.
    """

    stamps_ns: tuple[int, int]
    metres: float
    degrees: float
    is_certain: bool

    @property
    def seconds(self) -> float:
        """Time between the two poses."""
        return (self.stamps_ns[1] - self.stamps_ns[0]) / _NS

    @property
    def is_sparse(self) -> bool:
        """Whether the poses are too far apart to tell a jump from an acceleration; neither makes a good motion."""
        return self.seconds >= _SPARSE_S


@dataclass(frozen=True)
class PairMotion:
    """What the odometry says of the motion between two stamps, as (4, 4) child0_T_child1.

    claimed: from the poses. expected: without the jump; None where there is none. jump: the step that is left out.
    twist: from the twists; None where they are not filled in. turned_twist: the same if they are wrongly in the axes of
    the odometry's frame.
    """

    claimed: np.ndarray
    expected: np.ndarray | None = None
    jump: Jump | None = None
    twist: np.ndarray | None = None
    turned_twist: np.ndarray | None = None

    def seen_from(self, child_T_lidar: np.ndarray) -> 'PairMotion':
        """Return the motion of a frame that is fixed to the child frame."""
        lidar_T_child = invert(child_T_lidar)

        def of(motion: np.ndarray | None) -> np.ndarray | None:
            return None if motion is None else lidar_T_child @ motion @ child_T_lidar

        return PairMotion(of(self.claimed), of(self.expected), self.jump, of(self.twist), of(self.turned_twist))


class OdometryTrack:
    """The latest messages of one odometry; thread-safe.

    frame_id, child_frame_id: of the last message, without a leading '/'; '' before the first.
    """

    def __init__(self, capacity: int = 1000):
        self._poses, self._smooth = Trajectory(capacity), Trajectory(capacity)  # as sent, and without the jumps
        self._lock = threading.Lock()
        self.frame_id = self.child_frame_id = ''
        self._restart()

    @property
    def latest_stamp_ns(self) -> int | None:
        """Stamp of the newest pose, None without one."""
        return self._poses.latest_stamp_ns

    def add(self, message) -> None:
        """Add a nav_msgs/Odometry, rclpy's or rosbags'.

        Poses of another child frame or another odometry frame do not form one trajectory: those before are removed.
        Raises: EgoMotionError when the pose is not finite or its quaternion has no length.
        """
        stamp_ns, pose = odometry_pose(message)
        frames = message.header.frame_id.lstrip('/'), message.child_frame_id.lstrip('/')
        twist = message.twist.twist
        twist = np.array([getattr(part, axis) for part in (twist.linear, twist.angular) for axis in 'xyz'], np.float64)
        with self._lock:
            latest_ns = self._poses.latest_stamp_ns
            if frames != (self.frame_id, self.child_frame_id):
                self.frame_id, self.child_frame_id = frames
                self._clear()
            elif latest_ns is not None and stamp_ns <= latest_ns - _RESET_AFTER_NS:
                self._restart()
            in_order = not self._recent or stamp_ns > self._recent[-1][0]
            if in_order:
                self._watch(stamp_ns, pose)
                if np.isfinite(twist).all() and np.linalg.norm(twist[:3]) < 1e3:
                    self._twists.append((stamp_ns, twist))
                    self._has_twist = self._has_twist or bool(np.linalg.norm(twist[:3]) > _MIN_TWIST)
            self._poses.add(stamp_ns, pose)
            self._smooth.add(stamp_ns, self._smooth_T_odom @ pose)

    def clear(self) -> None:
        """Remove all poses."""
        with self._lock:
            self._clear()

    def pose(self, stamp_ns: int) -> np.ndarray | None:
        """Return odom_T_child, (4, 4) float64, at a stamp; None where unknown."""
        return self._poses.pose(stamp_ns)

    def poses_at_offsets(self, stamp_ns: int, offsets_ns: np.ndarray) -> np.ndarray:
        """Return child_T_then, (K, 4, 4) float64, as `Trajectory.poses_at_offsets` does, without the jumps.

        Raises: EgoMotionError where a pose is missing.
        """
        return self._smooth.poses_at_offsets(stamp_ns, offsets_ns)

    def between(self, stamp0_ns: int, stamp1_ns: int) -> PairMotion:
        """Return what is known of the motion between two stamps.

        Raises: EgoMotionError as `Trajectory.between` does.
        """
        claimed = self._poses.between(stamp0_ns, stamp1_ns)
        expected, jump = self._smooth.between(stamp0_ns, stamp1_ns), None
        with self._lock:
            crossed = [j for j in self._jumps if stamp0_ns < j.stamps_ns[1] and stamp1_ns > j.stamps_ns[0]]
            twist = self._twist_motion(stamp0_ns, stamp1_ns)
        if crossed and _differ(claimed, expected, _SAME_M, _SAME_RAD):
            jump = max(crossed, key=lambda j: (j.is_certain, j.metres))
        turned_twist, pose = None, self._poses.pose(stamp0_ns)
        if twist is not None and pose is not None:
            turned_twist = twist.copy()
            turned_twist[:3, 3] = pose[:3, :3].T @ twist[:3, 3]
        return PairMotion(claimed, None if jump is None else expected, jump, twist, turned_twist)

    def _clear(self) -> None:
        self._poses.clear()
        self._smooth.clear()
        self._restart()

    def _restart(self) -> None:
        self._smooth_T_odom = np.eye(4)
        self._recent: list[tuple[int, np.ndarray]] = []  # poses since the end of the last step that was judged
        self._velocity: np.ndarray | None = None  # (6,) of the step before, in child axes [m/s, rad/s]
        self._step_s = 0.0  # its duration
        self._suspect_velocity: np.ndarray | None = None
        self._num_suspects = 0
        self._changed_ns = self._hold_ns = self._num_repeats = 0
        self._jumps: deque[Jump] = deque(maxlen=50)
        self._twists: deque[tuple[int, np.ndarray]] = deque(maxlen=_MAX_TWISTS)
        self._has_twist = False

    def _watch(self, stamp_ns: int, pose: np.ndarray) -> None:
        """Judge the step from the last one to this pose, and correct the smooth track where it jumps."""
        if self._recent and stamp_ns - self._recent[-1][0] > _GAP_NS:
            self._recent, self._velocity, self._num_suspects = [], None, 0
        if self._is_repeated(stamp_ns, pose):
            return
        self._recent.append((stamp_ns, pose))
        start_ns, start = self._recent[0]
        if stamp_ns - start_ns < _STEP_NS and not self._is_sudden():
            return
        seconds = (stamp_ns - start_ns) / _NS
        velocity = _velocity(invert(start) @ pose, seconds)
        change = seconds * (seconds + self._step_s) / 2
        # The step before a suspect one counts too: then the speed did change.
        known = [v for v in (self._velocity, self._suspect_velocity) if v is not None]
        apart = [(*_difference(velocity, v, seconds), v) for v in known]
        is_sparse = seconds >= _SPARSE_S
        most_m = _SUSPECT_M + (_SPARSE_M_S2 if is_sparse else _SUSPECT_M_S2) * change
        most_rad = _SUSPECT_RAD + (_SPARSE_RAD_S2 if is_sparse else _SUSPECT_RAD_S2) * change
        is_suspect = bool(known) and all(m > most_m or r > most_rad for m, r, _ in apart)
        if is_suspect and self._num_suspects < _MAX_SUSPECTS:
            is_certain = all(m > _JUMP_M + _JUMP_M_S2 * change or r > _JUMP_RAD + _JUMP_RAD_S2 * change
                             for m, r, _ in apart)  # fmt: skip
            metres, angle, expected = min(apart, key=lambda one: one[0] + one[1])
            self._leave_out(expected, metres, angle, is_certain)
            self._suspect_velocity = velocity
            self._num_suspects += 1
        else:
            self._velocity, self._step_s = velocity, seconds
            self._suspect_velocity, self._num_suspects = None, 0
        self._recent = [(stamp_ns, pose)]

    def _is_repeated(self, stamp_ns: int, pose: np.ndarray) -> bool:
        """Return whether this is the last pose again, from a publisher that is faster than its localisation."""
        if not self._recent or not np.array_equal(pose, self._recent[-1][1]):
            changed_ns, self._changed_ns = self._changed_ns, stamp_ns
            self._hold_ns = stamp_ns - changed_ns if self._num_repeats and stamp_ns - changed_ns <= _HOLD_NS else 0
            self._num_repeats = 0
            return False
        self._num_repeats += 1
        return stamp_ns - self._changed_ns < 1.5 * self._hold_ns

    def _is_sudden(self) -> bool:
        """Return whether the last pose alone jumps, within less time than a step."""
        if self._velocity is None or len(self._recent) < 2:
            return False
        (before_ns, before), (stamp_ns, pose) = self._recent[-2:]
        seconds = (stamp_ns - before_ns) / _NS
        metres, angle = _difference(_velocity(invert(before) @ pose, seconds), self._velocity, seconds)
        return metres > _SUSPECT_M or angle > _SUSPECT_RAD

    def _leave_out(self, velocity: np.ndarray, metres: float, angle: float, is_certain: bool) -> None:
        """Take the jump out of the smooth track: the one step between poses that holds most of it, or all of them."""
        steps = list(zip(self._recent, self._recent[1:], strict=False))
        sizes = [_difference(_velocity(invert(a) @ b, (tb - ta) / _NS), velocity, (tb - ta) / _NS)
                 for (ta, a), (tb, b) in steps]  # fmt: skip
        unit = [m / max(metres, 1e-6) if metres > _SUSPECT_M else r / max(angle, 1e-6) for m, r in sizes]
        worst = int(np.argmax(unit))
        ((from_ns, start), (to_ns, end)) = steps[worst] if unit[worst] > 0.7 else (self._recent[0], self._recent[-1])
        expected = start @ _moved(velocity, (to_ns - from_ns) / _NS)
        self._smooth_T_odom = self._smooth_T_odom @ expected @ invert(end)
        self._jumps.append(Jump((from_ns, to_ns), metres, float(np.degrees(angle)), is_certain))
        # Poses of this step that were added before its end was known: those behind the jump follow the new correction.
        for stamp_ns, pose in self._recent:
            if stamp_ns >= to_ns:
                self._smooth.add(stamp_ns, self._smooth_T_odom @ pose)

    def _twist_motion(self, stamp0_ns: int, stamp1_ns: int) -> np.ndarray | None:
        """Return child0_T_child1 from the mean twist between two stamps; None where twists are not filled in."""
        if not self._has_twist or not self._twists:
            return None
        first_ns, last_ns = stamp0_ns - _TWIST_NS, stamp1_ns + _TWIST_NS
        chosen = [twist for stamp_ns, twist in self._twists if first_ns < stamp_ns < last_ns]
        inside = [twist for stamp_ns, twist in self._twists if stamp0_ns <= stamp_ns <= stamp1_ns]
        chosen = inside or chosen
        if not chosen:
            return None
        return _moved(np.median(chosen, axis=0), (stamp1_ns - stamp0_ns) / _NS)


def odometry_pose(message) -> tuple[int, np.ndarray]:
    """Return (stamp_ns, odom_T_child) of a nav_msgs/Odometry, rclpy's or rosbags'.

    Raises: EgoMotionError when the pose is not finite or its quaternion has no length.
    """
    p, q, stamp = message.pose.pose.position, message.pose.pose.orientation, message.header.stamp
    return int(stamp.sec) * _NS + int(stamp.nanosec), from_quaternion((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))


def _velocity(motion: np.ndarray, seconds: float) -> np.ndarray:
    """Return (6,) metres and radians per second of a motion (4, 4), in the axes of its middle."""
    turn = rotation_vector(motion)
    return np.concatenate([rotation_matrix(-turn / 2) @ motion[:3, 3], turn]) / seconds


def _moved(velocity: np.ndarray, seconds: float) -> np.ndarray:
    """Return the motion (4, 4) of a velocity (6,) over some seconds."""
    half = rotation_matrix(velocity[3:] * seconds / 2)
    motion = np.eye(4)
    motion[:3, 3] = half @ velocity[:3] * seconds
    motion[:3, :3] = half @ half
    return motion


def _difference(velocity: np.ndarray, other: np.ndarray, seconds: float) -> tuple[float, float]:
    """Return metres and radians between two velocities (6,) over some seconds."""
    apart = np.abs(velocity - other) * seconds
    return float(np.linalg.norm(apart[:3])), float(np.linalg.norm(apart[3:]))


def _differ(one: np.ndarray, other: np.ndarray, metres: float, angle: float) -> bool:
    apart = invert(one) @ other
    return bool(np.linalg.norm(apart[:3, 3]) > metres or np.linalg.norm(rotation_vector(apart)) > angle)
