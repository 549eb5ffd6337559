# SPDX-License-Identifier: Apache-2.0
"""Bags of a short drive with chosen transforms, odometry, and clocks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from tiny_bag import CLOUD_TOPIC, EGO_SPEED, ODOMETRY_TOPIC, PERIOD_NS, START_NS, street

from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, TRANSFORMS, typestore
from zeroflow_ros.transforms import to_quaternion, yaw_translation

SECONDS = 1.2  # of recording, from START_NS


def driving(seconds: float) -> np.ndarray:
    """Return the pose of a vehicle that drives ahead, (4, 4)."""
    return yaw_translation(0, EGO_SPEED * seconds, 0)


def constant(pose: np.ndarray = yaw_translation(0, 0, 0, 1.8)):  # noqa: B008
    """Return a pose that never changes, as a function of time."""
    return lambda seconds: pose


@dataclass(frozen=True)
class Tf:
    """A transform on /tf. pose: of the child in the parent, by seconds. clock: added to its stamps [s]."""

    parent: str
    child: str
    pose: object = driving
    rate: float = 50.0
    start: float = -0.2
    end: float = SECONDS
    clock: float = 0.0


def write(path: Path, tf=(), static=(), *, frame='lidar', num_sweeps=10, cloud_clock=0.0, odometry_clock=None,
          child_frame='lidar') -> Path:  # fmt: skip
    """Write a bag of a street from a vehicle that drives, and return its path.

    tf: of `Tf`. static: (parent, child, pose). cloud_clock: added to the stamps of the clouds [s].
    odometry_clock: the same of odometry at 50 Hz; None: no odometry.
    """
    types, messages = typestore().types, []

    def header(stamp_ns, frame_id):
        stamp = types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 10**9))
        return types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame_id)

    def transform(parent, child, stamp_ns, pose):
        moved = types['geometry_msgs/msg/Vector3'](*pose[:3, 3])
        turned = types['geometry_msgs/msg/Quaternion'](*to_quaternion(pose))
        both = types['geometry_msgs/msg/Transform'](moved, turned)
        return types['geometry_msgs/msg/TransformStamped'](header(stamp_ns, parent), child, both)

    for one in tf:
        for seconds in np.arange(one.start, one.end + 1e-9, 1 / one.rate):
            recorded_ns = START_NS + round(seconds * 1e9)
            stamped = transform(one.parent, one.child, recorded_ns + round(one.clock * 1e9), one.pose(seconds))
            messages.append(('/tf', TRANSFORMS, recorded_ns, types[TRANSFORMS]([stamped])))
    if static:
        all_static = [transform(parent, child, START_NS, pose) for parent, child, pose in static]
        messages.append(('/tf_static', TRANSFORMS, START_NS - 10**9 // 2, types[TRANSFORMS](all_static)))
    for seconds in np.arange(-0.2, SECONDS, 0.02) if odometry_clock is not None else ():
        recorded_ns = START_NS + round(seconds * 1e9)
        point = types['geometry_msgs/msg/Point'](EGO_SPEED * seconds, 0.0, 0.0)
        pose = types['geometry_msgs/msg/Pose'](point, types['geometry_msgs/msg/Quaternion'](0.0, 0.0, 0.0, 1.0))
        vector = types['geometry_msgs/msg/Vector3']
        twist = types['geometry_msgs/msg/Twist'](vector(EGO_SPEED, 0.0, 0.0), vector(0.0, 0.0, 0.0))
        message = types[ODOMETRY](
            header(recorded_ns + round(odometry_clock * 1e9), 'odom'), child_frame,
            types['geometry_msgs/msg/PoseWithCovariance'](pose, np.zeros(36)),
            types['geometry_msgs/msg/TwistWithCovariance'](twist, np.zeros(36)),
        )  # fmt: skip
        messages.append((ODOMETRY_TOPIC, ODOMETRY, recorded_ns, message))
    field = types['sensor_msgs/msg/PointField']
    fields = [field(name, 4 * k, 7, 1) for k, name in enumerate(['x', 'y', 'z', 'intensity'])]
    for k in range(num_sweeps):
        recorded_ns = START_NS + k * PERIOD_NS
        data = street(k).view(np.uint8).reshape(-1)
        stamped = header(recorded_ns + round(cloud_clock * 1e9), frame)
        cloud = types[POINT_CLOUD](stamped, 1, len(data) // 16, fields, False, 16, len(data), data, False)
        messages.append((CLOUD_TOPIC, POINT_CLOUD, recorded_ns, cloud))
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for topic, msgtype, time_ns, message in sorted(messages, key=lambda item: item[2]):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=typestore())
            writer.write(connections[topic], time_ns, typestore().serialize_cdr(message, msgtype))
    return path
