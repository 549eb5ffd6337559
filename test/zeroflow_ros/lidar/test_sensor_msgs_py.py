# SPDX-License-Identifier: Apache-2.0
"""Our decoder and our flow cloud, read as ROS users do: by sensor_msgs_py, where ROS provides it."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy')
point_cloud2 = pytest.importorskip('sensor_msgs_py.point_cloud2', reason='is not among the wheels of ROS')

from sensor_msgs.msg import PointCloud2, PointField  # noqa: E402

from zeroflow_ros.lidar.point_cloud import decode_cloud, flow_cloud  # noqa: E402
from zeroflow_ros.ros.messages import flow_message  # noqa: E402

FLOW = ('vx', 'vy', 'vz', 'speed', 'flow_valid')


def message(fields: list[tuple[str, int, str]], point_step: int, height: int, width: int) -> PointCloud2:
    """Return a cloud of random points; fields: (name, offset, numpy type)."""
    names, offsets, formats = zip(*fields, strict=True)
    offsets = {'offsets': [int(offset) for offset in offsets], 'itemsize': point_step}
    rows = np.zeros(height * width, np.dtype({'names': names, 'formats': formats, **offsets}))
    rng = np.random.default_rng(0)
    for name in names:
        rows[name] = rng.uniform(0, 100, len(rows)).astype(rows[name].dtype)
    rows['x'][::7] = np.nan
    msg = PointCloud2(height=height, width=width, point_step=point_step, row_step=width * point_step)
    msg.header.stamp.sec, msg.header.frame_id, msg.data = 1, 'lidar', rows.tobytes()
    kinds = {'f4': PointField.FLOAT32, 'f8': PointField.FLOAT64, 'u1': PointField.UINT8, 'u2': PointField.UINT16}
    msg.fields = [PointField(name=n, offset=o, datatype=kinds[t], count=1) for n, o, t in fields]
    return msg


XYZ = [('x', 0, 'f4'), ('y', 4, 'f4'), ('z', 8, 'f4')]
CLOUDS = {
    'packed': (XYZ, 12, 1, 100),
    'padded, as PCL writes it': ([*XYZ, ('intensity', 16, 'f4')], 32, 1, 100),
    'organised': ([*XYZ, ('ring', 12, 'u2')], 16, 8, 25),
    'unaligned, with float64': ([('x', 1, 'f8'), ('y', 9, 'f8'), ('z', 17, 'f8'), ('intensity', 0, 'u1')], 25, 4, 30),
}


@pytest.mark.parametrize('layout', CLOUDS.values(), ids=CLOUDS)
def test_it_reads_the_points_that_we_decode_and_the_flow_that_we_write(layout, compiled_or_not):
    msg = message(*layout)
    theirs = point_cloud2.read_points(msg, field_names=['x', 'y', 'z'])
    sweep = decode_cloud(msg)
    points = np.column_stack([theirs[name] for name in 'xyz']).astype(np.float32)
    points[~np.isfinite(points).all(axis=1)] = np.nan  # a row that is no return is NaN as a whole
    np.testing.assert_array_equal(sweep.points, points)
    n = msg.height * msg.width
    velocity = np.random.default_rng(1).uniform(-9, 9, (n, 3)).astype(np.float32)
    flow_valid = np.where(np.isfinite(sweep.points).all(axis=1), 3, 0).astype(np.uint8)
    velocity[flow_valid == 0] = np.nan
    published = flow_message(msg, flow_cloud(msg, velocity, flow_valid))
    rows = point_cloud2.read_points(published, field_names=[*(name for name, _, _ in layout[0]), *FLOW])
    whole = point_cloud2.read_points(msg)
    for name in whole.dtype.names:
        np.testing.assert_array_equal(rows[name], whole[name])
    for axis, name in enumerate(('vx', 'vy', 'vz')):
        np.testing.assert_array_equal(rows[name], velocity[:, axis])
    np.testing.assert_array_equal(rows['flow_valid'], flow_valid)
    np.testing.assert_allclose(rows['speed'], np.linalg.norm(velocity, axis=1), rtol=1e-6)
