# SPDX-License-Identifier: Apache-2.0
"""Sources of the ego motion between two sweeps: odometry messages, tf, registration, or none."""

import contextlib
import threading
import time
from typing import Protocol

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from zeroflow_ros.ego_motion.checked_odometry import CheckedOdometry
from zeroflow_ros.ego_motion.clock_difference import ClockWatch
from zeroflow_ros.ego_motion.lidar_odometry import LidarOdometry
from zeroflow_ros.ego_motion.motion_checks import MotionChecks
from zeroflow_ros.ego_motion.odometry_track import PairMotion
from zeroflow_ros.ego_motion.world_clouds import REGISTERED_REMEDY
from zeroflow_ros.errors import ConfigError, EgoMotionError
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.ros.parameters import Parameters
from zeroflow_ros.ros.sensor_mount import MountTransforms
from zeroflow_ros.ros.tf_buffer import TfBuffer
from zeroflow_ros.runtime.health import Health, Level

ODOMETRY, ODOMETRY_TOPIC = 'nav_msgs/msg/Odometry', '~/input/odometry'
_POLL_S = 0.002


class EgoMotion(Protocol):
    """A source of ego motion; `between` runs on the worker thread and may wait there.

    is_incremental: each call continues from the sweep of the call before; a call that cannot costs far more.
    """

    is_incremental: bool

    def between(self, sweep0: Sweep, sweep1: Sweep, *, timeout: float, offset_ns: int) -> np.ndarray:
        """Return ego0_T_ego1, (4, 4) float64, of the frames of the two sweeps.

        timeout: seconds to wait for missing messages. offset_ns: added to both stamps for the lookup.
        Raises: EgoMotionError when the motion is unknown; identity is never assumed.
        """

    def to_sensor_frame(self, sweep: Sweep, *, timeout: float, offset_ns: int) -> Sweep:
        """Return a sweep that is in the fixed frame of the odometry in the frame of the sensor; any other unchanged.

        Raises: EgoMotionError where the pose of the sensor is not known.
        """

    def poses_at_offsets(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray, *, timeout: float, offset_ns: int):
        """Return ego_T_then, (K, 4, 4) float64: poses of a sweep's frame at offsets (K,) [ns] from its stamp.

        Each pose is in the sweep's frame at its stamp.

        other: the other sweep of the pair. timeout, offset_ns: as for `between`.
        Raises: EgoMotionError when the motion is unknown.
        """

    def reset(self, stamp_ns: int) -> None:
        """Discard poses of an earlier time or another frame; stamp_ns: the sweep to start anew with."""

    def close(self) -> None:
        """Release the ROS resources."""

    def describe(self) -> str:
        """Describe the source in a few words."""


def open_ego_motion(node: Node, parameters: Parameters, health: Health, *, is_camera: bool = False) -> EgoMotion:
    """Return the source that the parameters name.

    is_camera: the sensor frame is an optical frame, which is never that of the odometry where a name is missing.
    Raises: ConfigError when what it needs is not installed.
    """
    if parameters.ego_motion == 'odometry':
        return OdometryMotion(node, parameters.extrinsic(), health, needs_names=is_camera)
    if parameters.ego_motion == 'tf':
        return TfMotion(node, parameters.fixed_frame, health)
    if parameters.ego_motion == 'visual':
        return NoMotion('ego motion from the images')
    return RegistrationMotion(node) if parameters.ego_motion == 'registration' else NoMotion()


class NoMotion:
    """Identity, on request: velocities are then relative to the sensor, and flow_valid says so.

    description: of the source, where something else finds the ego motion.
    """

    is_incremental = False

    def __init__(self, description: str = 'no ego motion (velocities are relative to the sensor)'):
        self._description = description

    def between(self, sweep0: Sweep, sweep1: Sweep, *, timeout: float, offset_ns: int) -> np.ndarray:
        return np.eye(4)

    def to_sensor_frame(self, sweep: Sweep, *, timeout: float, offset_ns: int) -> Sweep:
        return sweep

    def poses_at_offsets(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray, *, timeout: float, offset_ns: int):
        return np.tile(np.eye(4), (len(offsets_ns), 1, 1))

    def reset(self, stamp_ns: int) -> None:
        pass

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return self._description


class RegistrationMotion:
    """Registers each sweep to the one before; see `LidarOdometry`. An error names the odometry that others publish."""

    is_incremental = True

    def __init__(self, node: Node):
        self._node = node
        self._odometry = LidarOdometry()

    def set_mount(self, mount: np.ndarray | None) -> None:
        """See `LidarOdometry`."""
        self._odometry.set_mount(mount)

    def between(self, sweep0: Sweep, sweep1: Sweep, *, timeout: float, offset_ns: int) -> np.ndarray:
        with self._naming_odometry():
            return self._odometry.between(sweep0, sweep1)

    def to_sensor_frame(self, sweep: Sweep, *, timeout: float, offset_ns: int) -> Sweep:
        return sweep

    def poses_at_offsets(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray, *, timeout: float, offset_ns: int):
        with self._naming_odometry():
            return self._odometry.poses_at_offsets(sweep, other, offsets_ns)

    @contextlib.contextmanager
    def _naming_odometry(self):
        try:
            yield
        except EgoMotionError as error:
            known = self._node.get_topic_names_and_types()
            topics = [name for name, types in known if ODOMETRY in types and self._node.count_publishers(name)]
            if not topics:
                raise
            raise EgoMotionError(
                f'{error} Odometry is published on {" and ".join(topics)}: set ego_motion to odometry, and remap '
                f'{ODOMETRY_TOPIC} to it.'
            ) from error

    def reset(self, stamp_ns: int) -> None:
        self._odometry.reset()

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return 'ego motion from registration of the sweeps'


class OdometryMotion:
    """Poses from nav_msgs/Odometry, interpolated at the stamps of the sweeps.

    odometry_T_lidar: (4, 4) pose of the cloud frame in the odometry's child frame; None: both are one frame, or
    /tf_static, or /tf without ever changing, has the transform (needs tf2_msgs). needs_names: without it, a frame
    without a name is taken to be the other one.
    """

    is_incremental = False

    def __init__(self, node: Node, odometry_T_lidar: np.ndarray | None, health: Health, *, needs_names: bool = False):
        self._node, self._health, self._needs_names = node, health, needs_names
        self._odometry_T_lidar = odometry_T_lidar
        self._mount: MountTransforms | None = None
        if odometry_T_lidar is None:
            with contextlib.suppress(ConfigError):  # no tf2_msgs: only said where it is needed
                self._mount = MountTransforms(node)
        self._odometry = CheckedOdometry()
        self._clocks, self._clock_text = ClockWatch('odometry'), ''
        self._pose_added = threading.Condition()
        # Best effort connects to every publisher, and messages this small are not lost; 100 are 0.5 s at 200 Hz.
        qos = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._subscription = node.create_subscription(Odometry, ODOMETRY_TOPIC, self._on_odometry, qos)

    def _on_odometry(self, msg: Odometry) -> None:
        try:
            with self._pose_added:
                self._odometry.add(msg)
                self._pose_added.notify_all()
        except EgoMotionError as error:
            self._health.report_issue('odometry_pose', 'ego_motion', Level.ERROR, str(error))

    def to_sensor_frame(self, sweep: Sweep, *, timeout: float, offset_ns: int) -> Sweep:
        track = self._odometry.track
        if not sweep.frame_id or track.frame_id != sweep.frame_id:
            return sweep
        self._wait_until(sweep.stamp_ns + offset_ns, timeout)
        child_T_lidar = np.eye(4) if self._odometry_T_lidar is None else self._odometry_T_lidar
        with self._named():
            return self._odometry.to_sensor_frame(sweep, child_T_lidar, offset_ns)

    def between(self, sweep0: Sweep, sweep1: Sweep, *, timeout: float, offset_ns: int) -> np.ndarray:
        self._wait_until(max(sweep0.stamp_ns, sweep1.stamp_ns) + offset_ns, timeout)
        self._compare_clocks(sweep1.stamp_ns + offset_ns)
        child_frame = self._odometry.track.child_frame_id
        with self._named():
            # The poses first: without any, the frames of the odometry are not known either.
            self._odometry.track.between(sweep0.stamp_ns + offset_ns, sweep1.stamp_ns + offset_ns)
        child_T_lidar = self._extrinsic(child_frame, sweep1, timeout)
        with self._named():
            motion = self._odometry.between(sweep0, sweep1, child_T_lidar, offset_ns)
        if self._odometry.warning:
            text = f'{self._odometry.warning} (odometry topic {self._node.resolve_topic_name(ODOMETRY_TOPIC)})'
            self._health.report_issue('measured motion', 'ego_motion', Level.WARN, text)
        return motion

    def poses_at_offsets(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray, *, timeout: float, offset_ns: int):
        self._wait_until(sweep.stamp_ns + offset_ns + int(offsets_ns.max()), timeout)
        self._compare_clocks(sweep.stamp_ns + offset_ns)
        child_frame = self._odometry.track.child_frame_id
        with self._named():
            self._odometry.track.poses_at_offsets(sweep.stamp_ns + offset_ns, offsets_ns)
        child_T_lidar = self._extrinsic(child_frame, sweep, timeout)
        with self._named():
            return self._odometry.poses_at_offsets(sweep, offsets_ns, child_T_lidar, offset_ns)

    def _wait_until(self, stamp_ns: int, timeout: float) -> None:
        """Wait for the odometry to reach a stamp, or for the timeout."""
        with self._pose_added:
            self._pose_added.wait_for(lambda: (self._odometry.track.latest_stamp_ns or 0) >= stamp_ns, timeout)

    def _compare_clocks(self, stamp_ns: int) -> None:
        self._clock_text = self._clocks.look(stamp_ns, self._odometry.track.latest_stamp_ns)
        if self._clock_text:
            self._health.report_issue('clocks', 'ego_motion', Level.WARN, self._clock_text)

    @contextlib.contextmanager
    def _named(self):
        """Add the topic, and a difference of the clocks, to an error about the odometry."""
        try:
            yield
        except EgoMotionError as error:
            topic = self._node.resolve_topic_name(ODOMETRY_TOPIC)
            raise type(error)(f'{error} (odometry topic {topic}) {self._clock_text}'.rstrip()) from error

    def _extrinsic(self, child_frame: str, sweep: Sweep, timeout: float) -> np.ndarray:
        """Return child_T_lidar, (4, 4).

        Raises: EgoMotionError when it is unknown.
        """
        if self._odometry_T_lidar is not None:
            return self._odometry_T_lidar
        lidar_frame = sweep.frame_id
        same = child_frame == lidar_frame or not (self._needs_names or (child_frame and lidar_frame))
        if same or sweep.frame_T_sensor is not None:
            if self._mount is not None:
                self._mount.ignore_tf()
            return np.eye(4)
        deadline = time.monotonic() + timeout
        while self._mount is not None:
            child_T_lidar = self._mount.lookup(child_frame, lidar_frame)
            if child_T_lidar is not None:
                return child_T_lidar
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_S)
        obstacle = self._mount.obstacle(child_frame, lidar_frame) if self._mount is not None else ''
        known = f'tf connects them, but {obstacle}' if obstacle else 'no transform that never changes connects them'
        remedy = '' if self._mount is not None else ', and install tf2_msgs, which is missing'
        raise EgoMotionError(
            f"The odometry moves the frame '{child_frame}', the clouds are in '{lidar_frame}'; {known}. Set the "
            'parameter odometry_T_lidar to the pose [x, y, z, qx, qy, qz, qw] of the cloud frame in the child frame, '
            f'or publish it on /tf_static{remedy}. For a sensor that moves on the vehicle, set ego_motion to tf.'
        )

    def reset(self, stamp_ns: int) -> None:
        # Poses of the new time may arrive before its first sweep: keep those, discard all of the old time.
        self._odometry.reset_checks()
        self._clocks.reset()
        if (self._odometry.track.latest_stamp_ns or 0) > stamp_ns + 1_000_000_000:
            self._odometry.track.clear()

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)
        if self._mount is not None:
            self._mount.close()

    def describe(self) -> str:
        return f'ego motion from odometry {self._node.resolve_topic_name(ODOMETRY_TOPIC)}'


class TfMotion:
    """One tf lookup per pair, from the newer stamp to the older one through the fixed frame."""

    is_incremental = False

    def __init__(self, node: Node, fixed_frame: str, health: Health):
        self._fixed_frame, self._health = fixed_frame.lstrip('/'), health
        self._tf = TfBuffer(node)
        self._clocks = ClockWatch('tf')
        self._checks, self._offset_ns = MotionChecks('tf'), 0

    def between(self, sweep0: Sweep, sweep1: Sweep, *, timeout: float, offset_ns: int) -> np.ndarray:
        stamp0_ns, stamp1_ns = sweep0.stamp_ns + offset_ns, sweep1.stamp_ns + offset_ns
        motion = PairMotion(self._lookup(sweep1.frame_id, stamp0_ns, stamp1_ns, timeout))
        self._compare_clocks(sweep1.frame_id, stamp1_ns)  # a pose was found, but perhaps that of another moment
        if offset_ns != self._offset_ns:  # what was measured with another offset is not true any more
            self._checks.reset()
            self._offset_ns = offset_ns
        self._checks.check(sweep0, sweep1, motion)
        if self._checks.warning:
            self._health.report_issue('measured motion', 'ego_motion', Level.WARN, self._checks.warning)
        return motion.claimed

    def to_sensor_frame(self, sweep: Sweep, *, timeout: float, offset_ns: int) -> Sweep:
        return sweep

    def poses_at_offsets(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray, *, timeout: float, offset_ns: int):
        stamp_ns = sweep.stamp_ns + offset_ns
        return np.stack([self._lookup(sweep.frame_id, stamp_ns, stamp_ns + ns, timeout) for ns in offsets_ns.tolist()])

    def _lookup(self, frame_id: str, stamp0_ns: int, stamp1_ns: int, timeout: float) -> np.ndarray:
        """Return the pose of a frame at stamp 1 in itself at stamp 0."""
        if not frame_id:
            raise EgoMotionError(
                'The cloud has no frame_id, so tf cannot look up its motion. Make the driver set header.frame_id, or '
                'use ego_motion registration.'
            )
        if frame_id == self._fixed_frame:
            raise EgoMotionError(
                f"The clouds are in '{frame_id}', the fixed frame itself, so tf cannot tell where the sensor is. "
                f'{REGISTERED_REMEDY.format(frame_id=frame_id)}'
            )
        try:
            return self._tf.lookup(frame_id, stamp0_ns, frame_id, stamp1_ns, self._fixed_frame, timeout)
        except EgoMotionError as error:
            raise EgoMotionError(f'{error} {self._compare_clocks(frame_id, stamp1_ns)}'.rstrip()) from error

    def _compare_clocks(self, frame_id: str, stamp_ns: int) -> str:
        """Return a sentence if clouds and tf have different clocks, and warn of it; else ''."""
        try:
            newest_ns = self._tf.buffer.get_latest_common_time(self._fixed_frame, frame_id).nanoseconds
        except Exception:  # tf2 raises several types for frames that it does not know
            return ''
        text = self._clocks.look(stamp_ns, newest_ns or None)
        if text:
            self._health.report_issue('clocks', 'ego_motion', Level.WARN, text)
        return text

    def reset(self, stamp_ns: int) -> None:
        self._tf.buffer.clear()
        self._clocks.reset()
        self._checks.reset()

    def close(self) -> None:
        self._tf.close()

    def describe(self) -> str:
        return f"ego motion from tf through '{self._fixed_frame}'"
