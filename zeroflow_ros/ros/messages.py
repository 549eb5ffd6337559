# SPDX-License-Identifier: Apache-2.0
"""Conversion between ROS messages and the arrays of this package."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker

from zeroflow_ros.lidar.point_cloud import Field, FlowCloud

_ARROW_WIDTH = 0.06  # m: a few pixels wide in a view of a street
_LEVELS = (DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE)


def flow_message(msg_in: PointCloud2, cloud: FlowCloud, *, reuse: PointCloud2 | None = None) -> PointCloud2:
    """Return the message of a cloud with velocities, with the header of the input cloud.

    msg_in: rclpy's or rosbags'. A '/' before its frame_id, which tf2 refuses, is removed. is_dense is False: rows
    without a velocity are NaN. reuse: an earlier message that is no longer needed; changed and returned. Where the
    cloud was written into its data, nothing is copied.
    """
    msg = PointCloud2() if reuse is None else reuse
    msg.header = _copy_header(msg_in.header)
    msg.height, msg.width = cloud.height, cloud.width
    msg.fields = _point_fields(tuple(cloud.fields))
    msg.is_bigendian = cloud.is_bigendian
    msg.point_step, msg.row_step = cloud.point_step, cloud.row_step
    if msg.data is not cloud.data:  # ROS 2 Jazzy copies: 2 ms for 4 MB
        msg.data = cloud.data  # an array.array, because an ndarray takes 280 ms
    msg.is_dense = False
    return msg


@lru_cache(maxsize=16)
def _point_fields(fields: tuple[Field, ...]) -> list[PointField]:
    """Return the fields as messages; made once per layout, which saves 0.6 ms a cloud."""
    return [PointField(name=name, offset=offset, datatype=datatype, count=count)
            for name, offset, datatype, count in fields]  # fmt: skip


def arrow_marker(header: Header, segments: np.ndarray, colors: np.ndarray, lifetime: float) -> Marker:
    """Return one LINE_LIST marker with all arrows; without arrows, a marker that deletes the last one.

    segments: (A, 2, 3) [m], tail and head, in the frame of `header`. colors: (A, 2, 4) rgba in [0, 1].
    lifetime: seconds until RViz removes them when nothing newer comes.
    """
    marker = Marker()
    marker.header = _copy_header(header)
    marker.ns = 'flow'
    marker.id = 0
    marker.type = Marker.LINE_LIST
    if len(segments) == 0:  # RViz warns about a LINE_LIST of no points
        marker.action = Marker.DELETE
        return marker
    marker.action = Marker.ADD
    marker.pose.orientation.w = 1.0
    marker.scale.x = _ARROW_WIDTH
    marker.lifetime.sec = int(lifetime)
    marker.lifetime.nanosec = int((lifetime - int(lifetime)) * 1e9)
    marker.points = [Point(x=x, y=y, z=z) for x, y, z in segments.reshape(-1, 3).tolist()]
    palette: dict[tuple, ColorRGBA] = {}  # few colours, many vertices: each message object is made once
    vertex_colors = []
    for rgba in map(tuple, colors.reshape(-1, 4).tolist()):
        color = palette.get(rgba)
        if color is None:
            color = palette[rgba] = ColorRGBA(r=rgba[0], g=rgba[1], b=rgba[2], a=rgba[3])
        vertex_colors.append(color)
    marker.colors = vertex_colors
    return marker


def stamp_ns(stamp) -> int:
    """Return a builtin_interfaces/Time in nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def diagnostic_array(
    stamp, statuses: Iterable[tuple[str, int, str, Mapping]], hardware_id: str = 'zeroflow_ros'
) -> DiagnosticArray:
    """Return a /diagnostics message.

    stamp: builtin_interfaces/Time. statuses: (name, level, message, values) each; level 0 OK, 1 WARN, 2 ERROR,
    3 STALE; values any mapping, written as text.
    """
    msg = DiagnosticArray()
    msg.header.stamp = stamp
    msg.status = [
        DiagnosticStatus(
            level=_LEVELS[int(level)],
            name=name,
            message=message,
            hardware_id=hardware_id,
            values=[KeyValue(key=str(key), value=str(value)) for key, value in values.items()],
        )
        for name, level, message, values in statuses
    ]
    return msg


def _copy_header(header_in) -> Header:
    """Return rclpy's Header from rclpy's or rosbags', its frame_id without a leading '/'."""
    header = Header()
    header.stamp.sec, header.stamp.nanosec = int(header_in.stamp.sec), int(header_in.stamp.nanosec)
    header.frame_id = header_in.frame_id.lstrip('/')
    return header
