# SPDX-License-Identifier: Apache-2.0
"""tf lookups between two frames at two times."""

import threading
import time

import rclpy
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.time import Time

from zeroflow_ros.errors import ConfigError, EgoMotionError
from zeroflow_ros.transforms import from_quaternion

_POLL_S = 0.002  # tf2's own wait polls every 20 ms
_CACHE_S = 10.0


class TfBuffer:
    """tf2's buffer, fed by a node and an executor of its own: a busy /tf must not delay the clouds.

    Raises: ConfigError when tf2_ros is not installed.
    """

    def __init__(self, node: Node):
        try:
            import tf2_ros
        except ImportError as error:
            raise ConfigError(
                f'ego_motion from tf needs the ROS package tf2_ros, which cannot be imported ({error}). Install '
                'ros-$ROS_DISTRO-tf2-ros-py, or use ego_motion odometry or registration.'
            ) from error
        self._error = tf2_ros.TransformException
        self._main_node = node
        self._node = rclpy.create_node(
            f'{node.get_name()}_tf', namespace=node.get_namespace(), context=node.context,
            cli_args=['--ros-args', '-r', f'__node:={node.get_name()}_tf'], start_parameter_services=False,
        )  # fmt: skip
        self.buffer = tf2_ros.Buffer(cache_time=Duration(seconds=_CACHE_S))
        self._listener = tf2_ros.TransformListener(self.buffer, self._node)
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(self._node)
        self._is_closing = False
        self._thread = threading.Thread(target=self._spin, name='tf', daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while self._node.context.ok() and not self._is_closing:
            try:
                self._executor.spin_once(timeout_sec=1.0)
            except Exception as error:
                # A signal shuts the context down at any moment: rclpy then raises one of several errors.
                if not self._node.context.ok() or self._is_closing:
                    return
                # One bad transform must not end tf for good.
                self._main_node.get_logger().error(
                    f'A message of tf failed: {type(error).__name__}: {error}', throttle_duration_sec=5.0
                )
                time.sleep(_POLL_S)

    def lookup(self, target: str, target_ns: int, source: str, source_ns: int, fixed: str, timeout: float):
        """Return target_T_source, (4, 4), each frame at its own stamp; a stamp of 0 is the latest one.

        Raises: EgoMotionError with the lookup and the reason that tf gives.
        """
        times = Time(nanoseconds=target_ns), Time(nanoseconds=source_ns)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.buffer.can_transform_full(target, times[0], source, times[1], fixed):
                break
            time.sleep(_POLL_S)
        try:
            found = self.buffer.lookup_transform_full(target, times[0], source, times[1], fixed).transform
        except self._error as error:
            use_sim_time = self._main_node.get_parameter('use_sim_time').value
            raise EgoMotionError(
                f"tf has no transform from '{source}' at {source_ns * 1e-9:.6f} s to '{target}' at "
                f"{target_ns * 1e-9:.6f} s through '{fixed}' (waited {timeout:.2f} s, use_sim_time "
                f'{str(use_sim_time).lower()}): {error}. Check that tf and the clouds are stamped by the same clock, '
                'and the parameter fixed_frame.'
            ) from error
        t, q = found.translation, found.rotation
        return from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))

    def close(self) -> None:
        """End the thread, and destroy the listener and its node; the context may be shut down already."""
        self._is_closing = True
        self._executor.shutdown(timeout_sec=0.5)  # wakes the thread
        self._thread.join(timeout=2.0)
        self._listener = None
        self._node.destroy_node()
