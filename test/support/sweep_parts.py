# SPDX-License-Identifier: Apache-2.0
"""Recordings whose messages hold part of a revolution each, cut from the street of `tiny_bag`."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tiny_bag
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD

S = 1_000_000_000
FIELDS = ('x', 'y', 'z', 'intensity')


def sectors(widths, *, start=-180.0, direction=1, overlap=0.0) -> list[tuple[float, float]]:
    """Return (first azimuth, width) of parts one after the other [degrees]; clockwise with direction -1."""
    edges = start + direction * np.cumsum([0, *widths])
    return [(edge - (overlap if direction > 0 else width + overlap), width + 2 * overlap)
            for edge, width in zip(edges, widths, strict=False)]  # fmt: skip


def rows_in(points: np.ndarray, sector: tuple[float, float]) -> np.ndarray:
    """Return which of points (N, 3) are in a sector, (N,) bool; rows without a return are in none."""
    azimuth = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    return (azimuth - sector[0]) % 360 < sector[1]


def part_cloud(points: np.ndarray, stamp_ns: int, *, frame_id='lidar', times=None) -> SimpleNamespace:
    """Return points (N, 4) as a PointCloud2 by its attributes; times (N,) uint32 [ns] become a field t."""
    fields = [SimpleNamespace(name=name, offset=4 * k, datatype=7, count=1) for k, name in enumerate(FIELDS)]
    data = np.ascontiguousarray(points, np.float32)
    if times is not None:
        fields.append(SimpleNamespace(name='t', offset=16, datatype=6, count=1))
        data = np.concatenate([data.view(np.uint32), np.asarray(times, np.uint32)[:, None]], axis=1)
    step = 4 * len(fields)
    return SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=stamp_ns // S, nanosec=stamp_ns % S), frame_id=frame_id),
        height=1, width=len(points), fields=fields, is_bigendian=False, point_step=step, row_step=step * len(points),
        data=np.ascontiguousarray(data).view(np.uint8).reshape(-1), is_dense=False,
    )  # fmt: skip


def street_parts(parts: list[tuple[float, float]], num_sweeps: int, *, num_points=4000, moves=True, lost=(), turns=1):
    """Yield (stamp_ns, points (N, 4)) of each part of each revolution, in order.

    moves: each part is measured where the vehicle is at its stamp; else all parts of a revolution where it began.
    lost: numbers of parts that are left out. turns: revolutions that the parts make together.
    """
    turn, number = sum(width for _, width in parts) / turns, -1
    for k in range(num_sweeps):
        done = 0.0
        for sector in parts:
            share, number = done / turn, number + 1
            done += sector[1]
            if number in lost:
                continue
            points = tiny_bag.street(k + share if moves else k, num_points=num_points)
            yield tiny_bag.START_NS + round((k + share) * tiny_bag.PERIOD_NS), points[rows_in(points, sector)]


def write_bag(path: Path, parts: list[tuple[float, float]], num_sweeps: int = 6, *, odometry_hz: int = 100, **options):
    """Write such a recording with odometry; return its path."""
    store = get_typestore(Stores.LATEST)
    types = store.types
    header, stamp = types['std_msgs/msg/Header'], types['builtin_interfaces/msg/Time']
    vector, quaternion = types['geometry_msgs/msg/Vector3'], types['geometry_msgs/msg/Quaternion']
    make_field = types['sensor_msgs/msg/PointField']

    def odometry(stamp_ns):
        x = tiny_bag.EGO_SPEED * (stamp_ns - tiny_bag.START_NS) * 1e-9
        place = types['geometry_msgs/msg/Pose'](types['geometry_msgs/msg/Point'](x, 0.0, 0.0),
                                                quaternion(0.0, 0.0, 0.0, 1.0))  # fmt: skip
        twist = types['geometry_msgs/msg/Twist'](vector(tiny_bag.EGO_SPEED, 0.0, 0.0), vector(0.0, 0.0, 0.0))
        return types[ODOMETRY](
            header(stamp(stamp_ns // S, stamp_ns % S), 'odom'), 'lidar',
            types['geometry_msgs/msg/PoseWithCovariance'](place, np.zeros(36)),
            types['geometry_msgs/msg/TwistWithCovariance'](twist, np.zeros(36)),
        )  # fmt: skip

    def cloud(stamp_ns, points):
        one = part_cloud(points, stamp_ns)
        fields = [make_field(f.name, f.offset, f.datatype, f.count) for f in one.fields]
        return types[POINT_CLOUD](header(stamp(stamp_ns // S, stamp_ns % S), 'lidar'), 1, one.width, fields, False,
                                  one.point_step, one.row_step, one.data, False)  # fmt: skip

    poses = range(0, num_sweeps * options.get('turns', 1) * tiny_bag.PERIOD_NS + 1, S // odometry_hz)
    written = [(tiny_bag.START_NS + ns, tiny_bag.ODOMETRY_TOPIC, ODOMETRY, odometry) for ns in poses]
    written += [(stamp_ns, tiny_bag.CLOUD_TOPIC, POINT_CLOUD, lambda ns, points=points: cloud(ns, points))
                for stamp_ns, points in street_parts(parts, num_sweeps, **options)]  # fmt: skip
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for stamp_ns, topic, msgtype, make in sorted(written, key=lambda one: one[0]):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=store)
            writer.write(connections[topic], stamp_ns, store.serialize_cdr(make(stamp_ns), msgtype))
    return path
