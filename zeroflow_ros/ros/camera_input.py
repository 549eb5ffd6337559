# SPDX-License-Identifier: Apache-2.0
"""The subscriptions of the camera node: images and CameraInfo of both cameras, or of one."""

from collections.abc import Callable
from functools import partial

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from zeroflow_ros.ros.sensor_input import SensorInput
from zeroflow_ros.runtime.camera_sensor import CameraSensor
from zeroflow_ros.runtime.health import Health

LEFT_IMAGE, RIGHT_IMAGE = '~/input/left/image', '~/input/right/image'
LEFT_INFO, RIGHT_INFO = '~/input/left/camera_info', '~/input/right/camera_info'
IMAGE, INFO = '~/input/image', '~/input/camera_info'
_IMAGES = {'left': LEFT_IMAGE, 'right': RIGHT_IMAGE, 'camera': IMAGE}
_INFOS = {'left': LEFT_INFO, 'right': RIGHT_INFO, 'camera': INFO}
_TYPES = {'raw': Image, 'compressed': CompressedImage}
_DEPTH, _INFO_DEPTH = 4, 10  # an image of one side waits for the other


class CameraInput:
    """Subscribes to images as `SensorInput` does, and to their CameraInfo with best effort: the last one counts.

    sensor: whose sides have a topic each. transport: 'raw' or 'compressed'. on_image, on_info: called with the side and
    the message.
    """

    def __init__(self, node: Node, sensor: CameraSensor, *, transport: str, reliability: str, on_image: Callable,
                 on_info: Callable, health: Health):  # fmt: skip
        self._node, self._transport, self._sides = node, transport, sensor.sides
        qos = QoSProfile(depth=_INFO_DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._infos = [node.create_subscription(CameraInfo, _INFOS[side], partial(on_info, side), qos)
                       for side in sensor.sides]  # fmt: skip
        self._images = [
            SensorInput(node, _IMAGES[side], _TYPES[transport], partial(on_image, side), health, noun='image',
                        reliability=reliability, depth=_DEPTH)
            for side in sensor.sides
        ]  # fmt: skip

    @property
    def topics(self) -> list[str]:
        """Resolved topics of the images."""
        return [image.topic for image in self._images]

    @property
    def reliability(self) -> str:
        """Reliability of the subscriptions to images."""
        return ', '.join(dict.fromkeys(image.reliability for image in self._images))

    def match_qos(self) -> None:
        """Compare the QoS of the publishers with that of the subscriptions; see `SensorInput`."""
        for image in self._images:
            image.match_qos()

    def describe(self) -> str:
        """Describe the publishers of all topics, or what to do if there are none."""
        texts = [image.describe() for image in self._images]
        texts += [f'{topic} has 0 publishers.' for topic in self._without_publisher()]
        if any('but of sensor_msgs/msg/' in text for text in texts):
            other = 'compressed' if self._transport == 'raw' else 'raw'
            texts.append(f'Set image_transport to {other}, if the publishers send such images.')
        return ' '.join(texts)

    def _without_publisher(self) -> list[str]:
        topics = [self._node.resolve_topic_name(_INFOS[side]) for side in self._sides]
        return [topic for topic in topics if not self._node.count_publishers(topic)]

    def close(self) -> None:
        """Unsubscribe."""
        for image in self._images:
            image.close()
        for info in self._infos:
            self._node.destroy_subscription(info)
