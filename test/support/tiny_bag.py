# SPDX-License-Identifier: Apache-2.0
"""Small bags with real messages for the tests: a street of a few thousand points with one moving box."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, TRANSFORMS

CLOUD_TOPIC, ODOMETRY_TOPIC = '/lidar/points', '/odometry'
START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 100_000_000
SENSOR_HEIGHT = 1.8  # [m]
EGO_SPEED, BOX_SPEED = 5.0, 8.0  # [m/s], both along x of the world
FORMATS = ('rosbag1', 'sqlite3', 'mcap')


def street(k: int, *, num_points: int = 4000, seed: int = 0) -> np.ndarray:
    """Return sweep k, (num_points, 4) float32 x y z intensity in the sensor's frame; every 50th row has no return."""
    rng = np.random.default_rng(seed)
    ego_x = EGO_SPEED * 0.1 * k
    ground = np.c_[rng.uniform(-40, 40, (num_points // 2, 2)), np.zeros(num_points // 2)]
    walls = np.c_[rng.uniform(-40, 40, num_points // 4), rng.choice([-12.0, 12.0], num_points // 4),
                  rng.uniform(0, 4, num_points // 4)]  # fmt: skip
    walls[::2, :2] = walls[::2, 1::-1] * [2.5, 0.5]  # every other one across the street, 30 m ahead and behind
    num_box = num_points - len(ground) - len(walls)
    box = rng.uniform([6, 2, 0.2], [10, 4, 1.7], (num_box, 3)) + [BOX_SPEED * 0.1 * k, 0, 0]
    points = np.concatenate([ground, walls, box]) - [ego_x, 0, SENSOR_HEIGHT]
    cloud = np.c_[points, rng.uniform(0, 1, num_points)].astype(np.float32)
    cloud[::50, :3] = np.nan
    return cloud


def messages(num_sweeps: int, *, store, is_ros1: bool = False, odometry: bool = True, num_points: int = 4000,
             stamped: float | None = None, spoil=lambda number, cloud: None):  # fmt: skip
    """Yield (topic, msgtype, time_ns, message): per sweep a transform, odometry and the cloud.

    stamped: share of the revolution before the stamp; None: all points are measured at once, without point times.
    spoil: changes a cloud in place; takes its number, too.
    """
    types = store.types
    sequence = {'seq': 0} if is_ros1 else {}

    def header(stamp_ns, frame_id):
        stamp = types['builtin_interfaces/msg/Time'](stamp_ns // 10**9, stamp_ns % 10**9)
        return types['std_msgs/msg/Header'](**sequence, stamp=stamp, frame_id=frame_id)

    def vector(name, x=0.0, y=0.0, z=0.0):
        return types[f'geometry_msgs/msg/{name}'](x, y, z)

    upright = types['geometry_msgs/msg/Quaternion'](0.0, 0.0, 0.0, 1.0)
    fields = [types['sensor_msgs/msg/PointField'](n, 4 * i, 7, 1) for i, n in enumerate(['x', 'y', 'z', 'intensity'])]
    for k in range(num_sweeps):
        stamp_ns = START_NS + k * PERIOD_NS
        x = EGO_SPEED * 0.1 * k
        if odometry:
            pose = types['geometry_msgs/msg/Transform'](vector('Vector3', x), upright)
            transform = types['geometry_msgs/msg/TransformStamped'](header(stamp_ns, 'odom'), 'lidar', pose)
            yield '/tf', TRANSFORMS, stamp_ns, types[TRANSFORMS]([transform])
            pose = types['geometry_msgs/msg/PoseWithCovariance'](
                types['geometry_msgs/msg/Pose'](vector('Point', x), upright), np.zeros(36)
            )
            twist = types['geometry_msgs/msg/TwistWithCovariance'](
                types['geometry_msgs/msg/Twist'](vector('Vector3', EGO_SPEED), vector('Vector3')), np.zeros(36)
            )
            message = types[ODOMETRY](header(stamp_ns, 'odom'), 'lidar', pose, twist)
            yield ODOMETRY_TOPIC, ODOMETRY, stamp_ns, message
        data = street(k, num_points=num_points).view(np.uint8).reshape(-1)
        cloud = types[POINT_CLOUD](header(stamp_ns, 'lidar'), 1, num_points, fields, False, 16, len(data), data, False)
        cloud = cloud if stamped is None else _timed(cloud, stamped, types)
        spoil(k, cloud)
        yield CLOUD_TOPIC, POINT_CLOUD, stamp_ns, cloud


def _timed(message, stamped: float, types):
    """Return a cloud of `street` from a LiDAR with 0.1 s per revolution, with the time `t` of each point in ns."""
    rows = message.data.view(np.float32).reshape(-1, 4)
    times = np.random.default_rng(0).integers(0, 1000, len(rows)) * 1e-4 - stamped * 0.1  # s
    out = np.zeros(len(rows), [(name, '<f4') for name in ('x', 'y', 'z', 'intensity')] + [('t', '<i4')])
    for name, column in zip(('x', 'y', 'z', 'intensity'), rows.T, strict=True):
        out[name] = column
    out['x'] -= EGO_SPEED * times
    out['t'] = (times * 1e9).round()
    field = types['sensor_msgs/msg/PointField']('t', 16, 5 if stamped else 6, 1)
    return types[POINT_CLOUD](message.header, 1, len(rows), [*message.fields, field], False, 20, out.nbytes,
                              out.view(np.uint8), False)  # fmt: skip


def write_bag(path: Path, storage: str = 'mcap', num_sweeps: int = 5, **options) -> Path:
    """Write a bag of the given format at `path` (with the suffix .bag for rosbag1) and return its path."""
    with new_bag(path, storage) as (path, store, write):
        for message in messages(num_sweeps, store=store, is_ros1=storage == 'rosbag1', **options):
            write(*message)
    return path


@contextmanager
def new_bag(path: Path, storage: str = 'mcap', store=None):
    """Yield the path of a new bag, its types, and a function that writes (topic, type, time [ns], message).

    store: of the types, where they are not those of rosbags.
    """
    is_ros1 = storage == 'rosbag1'
    store = store or get_typestore(Stores.ROS1_NOETIC if is_ros1 else Stores.LATEST)
    if is_ros1:
        store.register(get_types_from_msg('geometry_msgs/TransformStamped[] transforms', TRANSFORMS))
        path = path.with_suffix('.bag')
        writer, serialise = Ros1Writer(path), store.serialize_ros1
    else:
        writer = Ros2Writer(path, version=8, storage_plugin=StoragePlugin[storage.upper()])
        serialise = store.serialize_cdr
    connections = {}

    def write(topic, msgtype, time_ns, message):
        if topic not in connections:
            connections[topic] = writer.add_connection(topic, msgtype, typestore=store)
        writer.write(connections[topic], time_ns, serialise(message, msgtype))

    with writer:
        yield path, store, write
