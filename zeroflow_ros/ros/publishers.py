# SPDX-License-Identifier: Apache-2.0
"""The publishers of the flow node, and what those of other nodes share with them."""

from collections.abc import Iterable

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Float64, Header
from visualization_msgs.msg import Marker

from zeroflow_ros.errors import ConfigError
from zeroflow_ros.lidar.clusters import cluster_moving
from zeroflow_ros.lidar.dynamic_points import dynamic_cloud, moving_rows, not_static_rows, static_cloud
from zeroflow_ros.lidar.point_cloud import flow_cloud
from zeroflow_ros.ros.messages import arrow_marker, flow_message, stamp_ns
from zeroflow_ros.runtime.flow_worker import STAGES
from zeroflow_ros.views.arrows import pick_arrows

FLOW, MARKERS = '~/output/flow', '~/output/markers'
DYNAMIC_POINTS, STATIC_POINTS = '~/output/dynamic_points', '~/output/static_points'


class NodePublishers:
    """Publishers of one node: topics whose QoS users may override, and one debug topic per stage.

    stages: names of the stages whose milliseconds are published.
    """

    def __init__(self, node: Node, stages: Iterable[str]):
        self._node = node
        self._topics: list = []
        names = {stage: f'processing_time/{stage}_ms' for stage in stages}
        names |= {'latency': 'pipeline_latency_ms', 'dt': 'dt_s'}
        self._debug = {key: node.create_publisher(Float64, f'~/debug/{name}', 10) for key, name in names.items()}

    def _overridable(self, message_type, topic: str):
        """Return a publisher, reliable and keep_last 1 unless qos_overrides parameters say otherwise."""
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
        options = QoSOverridingOptions.with_default_policies()
        try:
            publisher = self._node.create_publisher(message_type, topic, qos, qos_overriding_options=options)
        except Exception as error:  # rclpy raises various types for a value that is not a policy
            raise ConfigError(
                f'A qos_overrides parameter of {topic} cannot be used: {type(error).__name__} {error}. Expected are '
                'history keep_last or keep_all, an integer depth, and reliability reliable or best_effort.'
            ) from error
        self._topics.append(publisher)
        return publisher

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in self._all():
            self._node.destroy_publisher(publisher)

    def _all(self) -> tuple:
        return *self._topics, *self._debug.values()

    def ok(self) -> bool:
        """Return False once nothing can be published any more, because the node shuts down."""
        return self._node.context.ok()

    def has_subscribers(self) -> bool:
        """Return whether there are subscribers."""
        return any(publisher.get_subscription_count() for publisher in self._all())

    def _publish_debug(self, header: Header, stages_ms: dict, dt: float) -> None:
        latency_ms = (self._node.get_clock().now().nanoseconds - stamp_ns(header.stamp)) * 1e-6
        values = {**stages_ms, 'latency': latency_ms, 'dt': dt}
        for key, publisher in self._debug.items():
            if publisher.get_subscription_count():
                publisher.publish(Float64(data=float(values.get(key, 0.0))))


class FlowPublishers(NodePublishers):
    """The node's `FlowSink`: publishes the results of each sweep. Used on the worker thread."""

    def __init__(self, node: Node):
        super().__init__(node, STAGES)
        self._flow = self._overridable(PointCloud2, FLOW)
        self._cloud = self._message = None  # the last published cloud; the next one reuses its memory
        self._dynamic = self._overridable(PointCloud2, DYNAMIC_POINTS)
        self._static = self._overridable(PointCloud2, STATIC_POINTS)
        self._markers = self._overridable(Marker, MARKERS)

    def publish_flow(self, msg: PointCloud2, velocity: np.ndarray, flow_valid: np.ndarray) -> None:
        last = self._message  # publish() copies, so its memory is free again
        self._cloud = flow_cloud(msg, velocity, flow_valid, reuse=last.data if last is not None else None)
        self._message = flow_message(msg, self._cloud, reuse=last)
        self._flow.publish(self._message)

    def publish_dynamic_points(self, msg: PointCloud2, points: np.ndarray, velocity: np.ndarray) -> None:
        if not self._dynamic.get_subscription_count():
            return
        p = self._node.parameters
        rows = moving_rows(velocity, p.dynamic_min_speed)
        cluster_id = cluster_moving(points[rows], velocity[rows]) if p.cluster_dynamic_points else None
        self._dynamic.publish(flow_message(msg, dynamic_cloud(self._cloud, rows, cluster_id)))

    def publish_static_points(self, msg: PointCloud2, velocity: np.ndarray, own_rows: np.ndarray) -> None:
        if not self._static.get_subscription_count():
            return
        removed = not_static_rows(msg, velocity, self._node.parameters.dynamic_min_speed, own_rows)
        out = flow_message(msg, static_cloud(msg, removed))
        out.is_dense = msg.is_dense  # SLAM programs refuse a cloud that is not
        self._static.publish(out)

    def publish_arrows(self, msg: PointCloud2, points: np.ndarray, velocity: np.ndarray) -> None:
        if not self._markers.get_subscription_count():
            return
        p = self._node.parameters
        segments, colors = pick_arrows(
            points, velocity, max_arrows=p.max_arrows, min_speed=p.min_speed, seconds=p.arrow_seconds, cell=p.arrow_cell
        )
        # Two sweeps: arrows do not blink when one sweep is lost, and old ones disappear.
        self._markers.publish(arrow_marker(msg.header, segments, colors, 2 * self._node.nominal_dt))

    def publish_debug(self, msg: PointCloud2, stages_ms: dict, dt: float) -> None:
        self._publish_debug(msg.header, stages_ms, dt)
