# SPDX-License-Identifier: Apache-2.0
"""A vehicle with a stereo camera that communicates with a camera node over DDS."""

import importlib

from flow_node import Vehicle, stamp_of
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import SetParameters
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from stereo_corridor import image_message, info_message, odometry_message

from zeroflow_ros.bags.cdr import encode_message

NODE = 'camera_flow_node'


def as_ros(message):
    """Return a message of rosbags as one of rclpy."""
    package, _, name = message.__msgtype__.split('/')
    kind = getattr(importlib.import_module(f'{package}.msg'), name)
    return deserialize_message(bytes(encode_message(message, message.__msgtype__)), kind)


class StereoVehicle(Vehicle):
    """Publishes images, CameraInfo and odometry to a camera node, and stores its output."""

    def __init__(self, *, others=(), flow=True):
        super().__init__(markers=False, flow=False)
        self._name = NODE
        self.node.destroy_publisher(self.clouds_out)
        self.node.destroy_publisher(self.odometry_out)
        self._client = self.node.create_client(SetParameters, f'/{NODE}/set_parameters')
        self.images = [self.node.create_publisher(Image, f'/{NODE}/input/{side}/image', 10)
                       for side in ('left', 'right')]  # fmt: skip
        self.infos = [self.node.create_publisher(CameraInfo, f'/{NODE}/input/{side}/camera_info', 10)
                      for side in ('left', 'right')]  # fmt: skip
        self.odometry_out = self.node.create_publisher(Odometry, f'/{NODE}/input/odometry', 10)
        self.received = {name: [] for name, _ in others}
        for name, kind in others:
            topic = f'/{NODE}/output/{name}'
            self.node.create_subscription(kind, topic, self.received[name].append, 10)
        if flow:
            self.node.create_subscription(PointCloud2, f'/{NODE}/output/flow', self.flows.append, 10)

    def connect(self, node, timeout=60.0):
        """Wait until node and vehicle have discovered each other."""

        def ready():
            assert node.process.poll() is None, node.log
            publishers = [*self.images, *self.infos]
            if 'motion from odometry' in node.log:
                publishers.append(self.odometry_out)
            return all(p.get_subscription_count() for p in publishers) and self.statuses

        assert self.wait_for(ready, timeout), node.log
        self.spin(0.2)

    def send(self, number: int, sides=(0, 1), odometry=False, spoil=lambda side, message: message) -> int:
        """Publish a frame, and return its stamp."""
        if odometry:
            self.odometry_out.publish(as_ros(odometry_message(number)))
        for side in sides:
            self.infos[side].publish(as_ros(info_message(number, side)))
        for side in sides:
            self.images[side].publish(spoil(side, as_ros(image_message(number, side))))
        return stamp_of(image_message(number, 0))
