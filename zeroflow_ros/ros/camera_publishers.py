# SPDX-License-Identifier: Apache-2.0
"""The publishers of the camera node."""

from dataclasses import dataclass

from rclpy.node import Node
from sensor_msgs.msg import Image, PointCloud2
from stereo_msgs.msg import DisparityImage
from visualization_msgs.msg import Marker

from zeroflow_ros.camera.output_frame import OutputFrame
from zeroflow_ros.camera.pixel_cloud import moving_pixels, pixel_cloud, static_pixels
from zeroflow_ros.camera_pipeline import CameraFlowEstimate
from zeroflow_ros.lidar.clusters import cluster_moving
from zeroflow_ros.lidar.dynamic_points import dynamic_cloud
from zeroflow_ros.ros.camera_messages import depth_message, disparity_message, stamped_header
from zeroflow_ros.ros.messages import arrow_marker, flow_message
from zeroflow_ros.ros.publishers import DYNAMIC_POINTS, FLOW, MARKERS, STATIC_POINTS, NodePublishers
from zeroflow_ros.runtime.camera_worker import STAGES, Frame
from zeroflow_ros.views.arrows import pick_arrows

DEPTH, DISPARITY = '~/output/depth', '~/output/disparity'
TOPICS = (FLOW, DYNAMIC_POINTS, STATIC_POINTS, MARKERS, DEPTH, DISPARITY)


@dataclass(frozen=True)
class _Header:
    """What `flow_message` reads of an input message."""

    header: object


class CameraPublishers(NodePublishers):
    """The node's `CameraSink`: publishes the results of each frame. Used on the worker thread.

    has_disparity: whether there is a topic of disparity.
    """

    def __init__(self, node: Node, *, has_disparity: bool = True):
        super().__init__(node, STAGES)
        self._flow = self._overridable(PointCloud2, FLOW)
        self._cloud = None  # the last published cloud; the next one reuses its memory
        self._dynamic = self._overridable(PointCloud2, DYNAMIC_POINTS)
        self._static = self._overridable(PointCloud2, STATIC_POINTS)
        self._markers = self._overridable(Marker, MARKERS)
        self._depth = self._overridable(Image, DEPTH)
        # Of one camera, disparity is only another word for depth.
        self._disparity = self._overridable(DisparityImage, DISPARITY) if has_disparity else None

    def publish(self, frame: Frame, estimate: CameraFlowEstimate, output: OutputFrame) -> None:
        """Publish what has subscribers; the flow always."""
        p = self._node.parameters
        optical = stamped_header(frame.stamp_ns, frame.frame_id)
        msg = _Header(stamped_header(frame.stamp_ns, output.frame_id or frame.frame_id))
        points, velocity = output.moved(estimate.points, estimate.velocity)
        reuse = self._cloud.data if self._cloud is not None else None  # publish() copies, so its memory is free again
        self._cloud = pixel_cloud(
            points, estimate.image(frame.left), velocity, estimate.speed_sigma, estimate.flow_valid, reuse=reuse
        )
        self._flow.publish(flow_message(msg, self._cloud))
        points, velocity = points.reshape(-1, 3), velocity.reshape(-1, 3)
        wanted = [one for one in (self._dynamic, self._static, self._markers) if one.get_subscription_count()]
        if wanted:
            rows = moving_pixels(velocity, estimate.speed_sigma.reshape(-1), p.dynamic_min_speed, p.dynamic_min_sigmas)
        if self._dynamic in wanted:
            of_rows = output.to_upright(points[rows]), output.to_upright(velocity[rows])
            cluster_id = cluster_moving(*of_rows) if p.cluster_dynamic_points else None
            self._dynamic.publish(flow_message(msg, dynamic_cloud(self._cloud, rows, cluster_id)))
        if self._static in wanted:
            out = flow_message(msg, static_pixels(self._cloud, rows))
            out.is_dense = True
            self._static.publish(out)
        if self._markers in wanted:
            segments, colors = pick_arrows(
                output.to_upright(points[rows]), output.to_upright(velocity[rows]), max_arrows=p.max_arrows,
                min_speed=p.min_speed, seconds=p.arrow_seconds, cell=p.arrow_cell,
            )  # fmt: skip
            segments = output.from_upright(segments.reshape(-1, 3)).reshape(-1, 2, 3)
            # Two frames: arrows do not blink when one frame is lost, and old ones disappear.
            self._markers.publish(arrow_marker(msg.header, segments, colors, 2 * estimate.dt))
        if self._depth.get_subscription_count():
            self._depth.publish(depth_message(optical, frame.camera.depth(estimate.disparity)))
        if self._disparity is not None and self._disparity.get_subscription_count():
            self._disparity.publish(disparity_message(optical, estimate.disparity, frame.camera))

    def publish_debug(self, frame: Frame, stages_ms: dict, dt: float) -> None:
        """Publish milliseconds by stage and the seconds between the frames."""
        self._publish_debug(stamped_header(frame.stamp_ns, frame.frame_id), stages_ms, dt)
