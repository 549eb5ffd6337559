# SPDX-License-Identifier: Apache-2.0
"""How the sensor is mounted, from a parameter or from /tf_static."""

import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

from zeroflow_ros.ego_motion.static_transforms import StaticTransforms
from zeroflow_ros.lidar.level import Level


class SensorMount:
    """Transforms from the frames of clouds to a base frame whose z is up.

    base_frame: '' for none. base_T_lidar: (4, 4), is used instead of /tf_static; or None.
    """

    def __init__(self, node: Node, base_frame: str, base_T_lidar: np.ndarray | None):
        self._node, self._base_frame, self._base_T_lidar = node, base_frame.lstrip('/'), base_T_lidar
        self._transforms = StaticTransforms()
        self._logged: str | None = None
        self._subscription = None
        if self._base_frame and base_T_lidar is None:
            self._subscribe()

    def _subscribe(self) -> None:
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError:  # clouds in the base frame, and the ground, need no tf
            self._node.get_logger().debug(
                'tf2_msgs is not installed, so the mount of the sensor is not looked up on /tf_static. A sensor tilted '
                'by more than 15 degrees needs the parameter base_T_lidar.'
            )
            return
        qos = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._subscription = self._node.create_subscription(TFMessage, '/tf_static', self._transforms.add, qos)

    def lookup(self, frame_id: str) -> np.ndarray | None:
        """Return base_T_sensor, (4, 4), of clouds in a frame; None where it is not known (yet). Logs what it finds."""
        if self._base_T_lidar is not None:
            return self._base_T_lidar
        if not self._base_frame or not frame_id:
            return None
        base_T_sensor = self._transforms.lookup(self._base_frame, frame_id)
        if base_T_sensor is not None and frame_id not in (self._logged, self._base_frame):
            level = Level(base_T_sensor[2, :3], float('nan'), 'mount')
            self._node.get_logger().info(
                f"/tf_static says how '{frame_id}' is mounted on '{self._base_frame}': roll "
                f'{np.degrees(level.roll):.1f} and pitch {np.degrees(level.pitch):.1f} degrees.'
            )
            self._logged = frame_id
        return base_T_sensor

    def close(self) -> None:
        """Release the subscription."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
