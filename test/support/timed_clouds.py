# SPDX-License-Identifier: Apache-2.0
"""Clouds with per-point times, and a static world as seen by a spinning LiDAR on a moving vehicle."""

from types import SimpleNamespace

import numpy as np

from zeroflow_ros.transforms import invert, yaw_translation

DATATYPES = {'u4': 6, 'i4': 5, 'f4': 7, 'f8': 8, 'u8': 10, 'u2': 4}
S = 1_000_000_000
T0 = 1_700_000_000 * S
SPEED, TURN_RATE = 14.0, 0.7  # m/s and rad/s


def timed_message(points, stamp_ns, values, *, name='t', dtype='u4', big=False, height=1):
    """Return a PointCloud2 of points (N, 3) and a field of values (N,); values None: no such field."""
    order = '>' if big else '<'
    columns = {'x': 'f4', 'y': 'f4', 'z': 'f4', 'ring': 'u2'} | ({name: dtype} if values is not None else {})
    rows = np.zeros(len(points), np.dtype([(n, order + t) for n, t in columns.items()]))  # packed, unaligned fields
    for axis, column in zip('xyz', np.asarray(points).T, strict=True):
        rows[axis] = column
    if values is not None:
        rows[name] = values
    fields = [
        SimpleNamespace(name=n, offset=rows.dtype.fields[n][1], datatype=DATATYPES[t], count=1)
        for n, t in columns.items()
    ]
    stamp, width = SimpleNamespace(sec=stamp_ns // S, nanosec=stamp_ns % S), len(points) // height
    return SimpleNamespace(
        header=SimpleNamespace(stamp=stamp, frame_id='lidar'), height=height, width=width, fields=fields,
        is_bigendian=big, point_step=rows.itemsize, row_step=rows.itemsize * width,
        data=rows.view(np.uint8).reshape(-1), is_dense=False,
    )  # fmt: skip


def odom_T_ego(seconds: float) -> np.ndarray:
    """Return the exact pose of a vehicle in a curve."""
    yaw = TURN_RATE * seconds
    radius = SPEED / TURN_RATE
    return yaw_translation(yaw, radius * np.sin(yaw), radius * (1 - np.cos(yaw)), 0.1 * seconds)


def world(num_points=3000, seed=0) -> np.ndarray:
    """Return points (N, 3) [m] in odom on ground, walls and posts."""
    rng = np.random.default_rng(seed)
    third = num_points // 3
    ground = np.c_[rng.uniform(-40, 40, (third, 2)), np.full(third, -1.8)]
    walls = np.c_[rng.uniform(-40, 40, third), rng.choice([-12.0, 14.0], third), rng.uniform(-1.8, 3, third)]
    walls[::2, :2] = walls[::2, 1::-1] * [2.2, 0.4]
    number = rng.integers(0, 40, num_points - 2 * third)
    posts = rng.uniform(-35, 35, (40, 2))[number] + rng.normal(0, 0.05, (len(number), 2))
    return np.concatenate([ground, walls, np.c_[posts, rng.uniform(-1.8, 1, len(number))]])


def seen(points: np.ndarray, seconds: float, times: np.ndarray) -> np.ndarray:
    """Return points of odom as measured in the sensor frame at times (N,) after `seconds`, (N, 3) float32."""
    moments, rows = np.unique(times, return_inverse=True)
    ego_T_odom = np.stack([invert(odom_T_ego(seconds + float(t))) for t in moments])[rows]
    return (np.einsum('nij,nj->ni', ego_T_odom[:, :3, :3], points) + ego_T_odom[:, :3, 3]).astype(np.float32)
