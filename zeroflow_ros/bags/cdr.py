# SPDX-License-Identifier: Apache-2.0
"""Decode and encode serialised ROS 2 messages (CDR), with `rosbags` and without ROS."""

import struct
from functools import cache

import numpy as np

from zeroflow_ros.errors import DataError

POINT_CLOUD = 'sensor_msgs/msg/PointCloud2'
ODOMETRY = 'nav_msgs/msg/Odometry'
TRANSFORMS = 'tf2_msgs/msg/TFMessage'
NUMBER = 'std_msgs/msg/Float64'
DIAGNOSTICS = 'diagnostic_msgs/msg/DiagnosticArray'
MARKER = 'visualization_msgs/msg/Marker'


@cache
def typestore():
    """Return the ROS 2 message definitions; those used here are the same in every distribution."""
    from rosbags.typesys import Stores, get_typestore  # imported here because it takes 0.2 s

    return get_typestore(Stores.LATEST)


def decode_message(cdr: bytes | memoryview, msgtype: str):
    """Return the message object of a serialised message.

    Raises: DataError when the bytes are not a message of this type.
    """
    try:
        return typestore().deserialize_cdr(cdr, msgtype)
    except Exception as error:  # the generated code of rosbags raises many types
        raise DataError(f'A message of {len(cdr)} bytes is not a {msgtype}: {error}') from error


def encode_message(message, msgtype: str) -> memoryview:
    """Return the CDR bytes of a message object."""
    return typestore().serialize_cdr(message, msgtype)


def header_stamp_ns(cdr: bytes | memoryview) -> int:
    """Return the stamp [ns] of a serialised message that starts with a std_msgs/Header."""
    if len(cdr) < 12:
        raise DataError(f'A message of {len(cdr)} bytes is too short for a header.')
    seconds, nanoseconds = struct.unpack_from('<iI' if cdr[1] & 1 else '>iI', cdr, 4)
    return seconds * 1_000_000_000 + nanoseconds


def flow_cloud_message(header, cloud):
    """Return a `FlowCloud` as a sensor_msgs/PointCloud2 with the given header, for `encode_message`."""
    types = typestore().types
    make_field = types['sensor_msgs/msg/PointField']
    return types[POINT_CLOUD](
        header=header,
        height=cloud.height,
        width=cloud.width,
        fields=[make_field(*field) for field in cloud.fields],
        is_bigendian=cloud.is_bigendian,
        point_step=cloud.point_step,
        row_step=cloud.row_step,
        data=np.frombuffer(cloud.data, np.uint8),
        is_dense=False,
    )
