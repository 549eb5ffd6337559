# SPDX-License-Identifier: Apache-2.0
"""Sources of the ego motion between two sweeps: odometry messages, tf, registration, or none."""

import threading
from typing import Protocol

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from zeroflow_ros.ego_motion.lidar_odometry import LidarOdometry
from zeroflow_ros.ego_motion.trajectory import Trajectory
from zeroflow_ros.errors import ConfigError, EgoMotionError
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.ros.messages import odometry_pose
from zeroflow_ros.ros.parameters import Parameters
from zeroflow_ros.ros.tf_buffer import TfBuffer
from zeroflow_ros.runtime.health import Health, Level
from zeroflow_ros.transforms import invert

ODOMETRY_TOPIC = '~/input/odometry'


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


def open_ego_motion(node: Node, parameters: Parameters, health: Health) -> EgoMotion:
    """Return the source that the parameters name.

    Raises: ConfigError when what it needs is not installed.
    """
    if parameters.ego_motion == 'odometry':
        return OdometryMotion(node, parameters.extrinsic(), health)
    if parameters.ego_motion == 'tf':
        return TfMotion(node, parameters.fixed_frame)
    return RegistrationMotion() if parameters.ego_motion == 'registration' else NoMotion()


class NoMotion:
    """Identity, on request: velocities are then relative to the sensor, and flow_valid says so."""

    is_incremental = False

    def between(self, sweep0: Sweep, sweep1: Sweep, *, timeout: float, offset_ns: int) -> np.ndarray:
        return np.eye(4)

    def poses_at_offsets(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray, *, timeout: float, offset_ns: int):
        return np.tile(np.eye(4), (len(offsets_ns), 1, 1))

    def reset(self, stamp_ns: int) -> None:
        pass

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return 'no ego motion (velocities are relative to the sensor)'


class RegistrationMotion:
    """Registers each sweep to the one before; see `LidarOdometry`."""

    is_incremental = True

    def __init__(self):
        self._odometry = LidarOdometry()

    def between(self, sweep0: Sweep, sweep1: Sweep, *, timeout: float, offset_ns: int) -> np.ndarray:
        return self._odometry.between(sweep0, sweep1)

    def poses_at_offsets(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray, *, timeout: float, offset_ns: int):
        return self._odometry.poses_at_offsets(sweep, other, offsets_ns)

    def reset(self, stamp_ns: int) -> None:
        self._odometry.reset()

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return 'ego motion from registration of the sweeps'


class OdometryMotion:
    """Poses from nav_msgs/Odometry, interpolated at the stamps of the sweeps.

    odometry_T_lidar: (4, 4) pose of the cloud frame in the odometry's child frame; None: both are one frame, or tf
    has the transform (needs tf2_ros).
    """

    is_incremental = False

    def __init__(self, node: Node, odometry_T_lidar: np.ndarray | None, health: Health):
        self._node, self._health = node, health
        self._odometry_T_lidar = odometry_T_lidar
        self._from_tf: dict[tuple[str, str], np.ndarray] = {}
        self._child_frame: str | None = None
        self._tf: TfBuffer | None = None
        self._trajectory = Trajectory(1000)
        self._pose_added = threading.Condition()
        # Best effort connects to every publisher, and messages this small are not lost; 100 are 0.5 s at 200 Hz.
        qos = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._subscription = node.create_subscription(Odometry, ODOMETRY_TOPIC, self._on_odometry, qos)

    def _on_odometry(self, msg: Odometry) -> None:
        try:
            stamp_ns, odom_T_child = odometry_pose(msg)
        except EgoMotionError as error:
            self._health.report_issue('odometry_pose', 'ego_motion', Level.ERROR, str(error))
            return
        child_frame = msg.child_frame_id.lstrip('/')
        with self._pose_added:
            if child_frame != self._child_frame:
                self._trajectory.clear()  # poses of two frames do not form one trajectory
                self._child_frame = child_frame
            self._trajectory.add(stamp_ns, odom_T_child)
            self._pose_added.notify_all()

    def between(self, sweep0: Sweep, sweep1: Sweep, *, timeout: float, offset_ns: int) -> np.ndarray:
        offsets_ns = np.array([sweep1.stamp_ns - sweep0.stamp_ns])
        return self.poses_at_offsets(sweep0, sweep1, offsets_ns, timeout=timeout, offset_ns=offset_ns)[0]

    def poses_at_offsets(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray, *, timeout: float, offset_ns: int):
        stamp_ns = sweep.stamp_ns + offset_ns
        with self._pose_added:
            last_ns = stamp_ns + int(offsets_ns.max())
            self._pose_added.wait_for(lambda: (self._trajectory.latest_stamp_ns or 0) >= last_ns, timeout)
            child_frame = self._child_frame
        try:
            child_T_then = self._trajectory.poses_at_offsets(stamp_ns, offsets_ns)
        except EgoMotionError as error:
            topic = self._node.resolve_topic_name(ODOMETRY_TOPIC)
            raise EgoMotionError(f'{error} (odometry topic {topic})') from error
        child_T_lidar = self._extrinsic(child_frame or '', sweep.frame_id, timeout)
        return invert(child_T_lidar) @ child_T_then @ child_T_lidar

    def _extrinsic(self, child_frame: str, lidar_frame: str, timeout: float) -> np.ndarray:
        """Return child_T_lidar, (4, 4).

        Raises: EgoMotionError when it is unknown.
        """
        if self._odometry_T_lidar is not None:
            return self._odometry_T_lidar
        if not child_frame or not lidar_frame or child_frame == lidar_frame:
            return np.eye(4)
        frames = child_frame, lidar_frame
        if frames in self._from_tf:
            return self._from_tf[frames]
        try:
            self._tf = self._tf or TfBuffer(self._node)
        except ConfigError as error:
            raise EgoMotionError(
                f"The odometry moves the frame '{child_frame}', the clouds are in '{lidar_frame}'. Set the parameter "
                'odometry_T_lidar to the pose [x, y, z, qx, qy, qz, qw] of the cloud frame in the child frame, or '
                'install tf2_ros and publish it as a static transform.'
            ) from error
        child_T_lidar = self._tf.lookup(child_frame, 0, lidar_frame, 0, child_frame, timeout)
        self._from_tf = {frames: child_T_lidar}  # the last one is enough
        return child_T_lidar

    def reset(self, stamp_ns: int) -> None:
        # Poses of the new time may arrive before its first sweep: keep those, discard all of the old time.
        if (self._trajectory.latest_stamp_ns or 0) > stamp_ns + 1_000_000_000:
            self._trajectory.clear()

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)
        if self._tf is not None:
            self._tf.close()

    def describe(self) -> str:
        return f'ego motion from odometry {self._node.resolve_topic_name(ODOMETRY_TOPIC)}'


class TfMotion:
    """One tf lookup per pair, from the newer stamp to the older one through the fixed frame."""

    is_incremental = False

    def __init__(self, node: Node, fixed_frame: str):
        self._fixed_frame = fixed_frame.lstrip('/')
        self._tf = TfBuffer(node)

    def between(self, sweep0: Sweep, sweep1: Sweep, *, timeout: float, offset_ns: int) -> np.ndarray:
        stamp0_ns, stamp1_ns = sweep0.stamp_ns + offset_ns, sweep1.stamp_ns + offset_ns
        return self._lookup(sweep1.frame_id, stamp0_ns, stamp1_ns, timeout)

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
        return self._tf.lookup(frame_id, stamp0_ns, frame_id, stamp1_ns, self._fixed_frame, timeout)

    def reset(self, stamp_ns: int) -> None:
        self._tf.buffer.clear()

    def close(self) -> None:
        self._tf.close()

    def describe(self) -> str:
        return f"ego motion from tf through '{self._fixed_frame}'"
