# SPDX-License-Identifier: Apache-2.0
"""What this package uses of tf2_ros, which is not on PyPI: every transform is the last one that came, on /tf.

The listener subscribes in the given node, as the real one does; messages are geometry_msgs/TransformStamped, because
tf2_msgs is not on PyPI either.
"""

from geometry_msgs.msg import TransformStamped


class TransformException(Exception):  # noqa: N818
    """Of the real module."""


class Buffer:
    """The last transform; before the first one, lookups fail."""

    def __init__(self, cache_time=None):
        self.last = None

    def can_transform_full(self, *_) -> bool:
        return self.last is not None

    def lookup_transform_full(self, *_) -> TransformStamped:
        if self.last is None:
            raise TransformException('frame does not exist')
        return self.last

    def clear(self) -> None:
        self.last = None


class TransformListener:
    """Subscribes to /tf until it is deleted."""

    def __init__(self, buffer: Buffer, node):
        self.buffer, self.node = buffer, node
        self.subscription = node.create_subscription(TransformStamped, '/tf', self._on_transform, 100)

    def _on_transform(self, msg: TransformStamped) -> None:
        if msg.child_frame_id == 'bad':
            raise ValueError('a bad transform')
        self.buffer.last = msg

    def __del__(self):
        self.node.destroy_subscription(self.subscription)
