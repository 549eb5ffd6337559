# SPDX-License-Identifier: Apache-2.0
"""How the sensor is mounted: from a parameter, from /tf_static, or from a transform on /tf that never changes."""

import time

import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from zeroflow_ros.ego_motion.static_transforms import TF_TOPIC, StaticTransforms
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.lidar.level import Level

_CONSTANT_S = 2.0  # for how long a transform on /tf must stay the same to count as static
_BURST_S = 0.25  # /tf is read in bursts, as it may have a thousand messages a second, ...
_PERIODS = ((4.0, 0.0), (30.0, 1.0), (float('inf'), 5.0))  # ... one each period [s], until seconds after the first


class Bursts:
    """Says when to look at the messages of a busy topic: all at first, then in short bursts."""

    def __init__(self):
        self._first: float | None = None

    def is_due(self, now: float) -> bool:
        """Return whether to look at a message that comes now [s, any monotonic clock]."""
        self._first = now if self._first is None else self._first
        since = now - self._first
        period = next(period for until, period in _PERIODS if since < until)
        return not period or since % period < _BURST_S

    def seconds(self, now: float) -> float:
        """Return the seconds since the first message, 0 without any."""
        return 0.0 if self._first is None else now - self._first


class MountTransforms:
    """The transforms between frames of one rigid body, live.

    Raises: ConfigError when tf2_msgs is not installed.
    """

    def __init__(self, node: Node):
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError as error:
            raise ConfigError('Transforms are read with tf2_msgs, which is not installed.') from error
        self._node, self._message_type = node, TFMessage
        self._static, self._all = StaticTransforms(), StaticTransforms(_CONSTANT_S)
        self._bursts, self._needs_tf = Bursts(), True
        transient = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        best_effort = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._subscriptions = [
            node.create_subscription(TFMessage, '/tf_static', self._on_static, transient),
            node.create_subscription(TFMessage, TF_TOPIC, self._on_tf, best_effort, raw=True),
        ]

    def _on_static(self, msg) -> None:
        self._static.add(msg)
        self._all.add(msg)

    def _on_tf(self, raw: bytes) -> None:
        if not self._needs_tf:
            if len(self._subscriptions) > 1:
                self._node.destroy_subscription(self._subscriptions.pop())
        elif self._bursts.is_due(time.monotonic()):
            from rclpy.serialization import deserialize_message

            self._all.observe(deserialize_message(raw, self._message_type))

    def lookup(self, target: str, source: str) -> np.ndarray | None:
        """Return target_T_source, (4, 4); None where it is not known (yet)."""
        found = self._static.lookup(target, source)
        if found is not None:
            self.ignore_tf()
            return found
        found = self._all.lookup(target, source)
        if found is None and self._bursts.seconds(time.monotonic()) > 30.0 and not self._all.obstacle(target, source):
            self.ignore_tf()  # it does not connect the frames either
        return found

    def ignore_tf(self) -> None:
        """Stop reading /tf, where no transform is needed."""
        self._needs_tf = False

    def obstacle(self, target: str, source: str) -> str:
        """Return why two frames that /tf connects have no static transform; '' where it does not connect them."""
        return self._all.obstacle(target, source)

    def close(self) -> None:
        """Release the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []


class SensorMount:
    """Transforms from the frames of clouds to a base frame whose z is up.

    base_frame: '' for none. base_T_lidar: (4, 4), is used instead of tf; or None.
    """

    def __init__(self, node: Node, base_frame: str, base_T_lidar: np.ndarray | None):
        self._node, self._base_frame, self._base_T_lidar = node, base_frame.lstrip('/'), base_T_lidar
        self._logged: str | None = None
        self._transforms: MountTransforms | None = None
        if self._base_frame and base_T_lidar is None:
            try:
                self._transforms = MountTransforms(node)
            except ConfigError as error:  # clouds in the base frame, and the ground, need no tf
                node.get_logger().debug(
                    f'{error} A sensor tilted by more than 15 degrees needs the parameter base_T_lidar.'
                )

    def lookup(self, frame_id: str) -> np.ndarray | None:
        """Return base_T_sensor, (4, 4), of clouds in a frame; None where it is not known (yet). Logs what it finds."""
        if self._base_T_lidar is not None:
            return self._base_T_lidar
        if not self._base_frame or not frame_id:
            return None
        if self._transforms is None:
            return np.eye(4) if frame_id == self._base_frame else None
        base_T_sensor = self._transforms.lookup(self._base_frame, frame_id)
        if base_T_sensor is not None and frame_id not in (self._logged, self._base_frame):
            level = Level(base_T_sensor[2, :3], float('nan'), 'mount')
            self._node.get_logger().info(
                f"tf says how '{frame_id}' is mounted on '{self._base_frame}': roll "
                f'{np.degrees(level.roll):.1f} and pitch {np.degrees(level.pitch):.1f} degrees.'
            )
            self._logged = frame_id
        return base_T_sensor

    def close(self) -> None:
        """Release the subscriptions."""
        if self._transforms is not None:
            self._transforms.close()
