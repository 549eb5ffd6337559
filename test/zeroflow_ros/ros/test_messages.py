# SPDX-License-Identifier: Apache-2.0
import array
import os
import subprocess
import sys

import numpy as np
import pytest

from zeroflow_ros.lidar.point_cloud import decode_cloud, flow_cloud
from zeroflow_ros.views.arrows import pick_arrows

pytest.importorskip('rclpy', reason='messages need ROS 2')
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import PointCloud2, PointField
from visualization_msgs.msg import Marker

from zeroflow_ros.ros.messages import arrow_marker, diagnostic_array, flow_message


def cloud_message(points, frame='/lidar_top'):
    """An organised cloud of two rows, x y z intensity."""
    msg = PointCloud2()
    msg.header.stamp.sec, msg.header.stamp.nanosec, msg.header.frame_id = 7, 8, frame
    msg.height, msg.width = 2, len(points) // 2
    names = ['x', 'y', 'z', 'intensity']
    msg.fields = [PointField(name=n, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, n in enumerate(names)]
    msg.point_step, msg.row_step = 16, 16 * msg.width
    rows = np.concatenate([points, np.full((len(points), 1), 0.5)], axis=1).astype(np.float32)
    msg.data = array.array('B', rows.tobytes())
    msg.is_dense = True
    return msg


def test_flow_message_survives_the_wire():
    points = np.arange(18, dtype=np.float32).reshape(6, 3)
    points[4] = np.nan
    msg_in = deserialize_message(serialize_message(cloud_message(points)), PointCloud2)
    velocity = np.full((6, 3), 2, np.float32)
    velocity[4] = np.nan
    flow_valid = np.array([3, 3, 3, 3, 0, 3], np.uint8)
    msg = flow_message(msg_in, flow_cloud(msg_in, velocity, flow_valid))
    assert type(msg.data) is array.array  # any other type costs a conversion byte by byte
    msg = deserialize_message(serialize_message(msg), PointCloud2)

    assert (msg.header.stamp, msg.header.frame_id) == (msg_in.header.stamp, 'lidar_top')
    assert (msg.height, msg.width, msg.point_step, msg.row_step, msg.is_dense) == (2, 3, 36, 108, False)
    assert [f.name for f in msg.fields] == ['x', 'y', 'z', 'intensity', 'vx', 'vy', 'vz', 'speed', 'flow_valid']
    np.testing.assert_array_equal(decode_cloud(msg).points, points)
    rows = np.frombuffer(msg.data, np.uint8).reshape(6, 36)
    np.testing.assert_array_equal(rows[:, 16:28].copy().view(np.float32), velocity)
    np.testing.assert_array_equal(rows[:, 32], flow_valid)
    assert msg_in.header.frame_id == '/lidar_top' and msg_in.is_dense  # the input is left alone


def test_a_message_whose_data_holds_the_next_cloud_is_used_again_without_a_copy():
    msg, data = None, None
    for k, num_points in enumerate([6, 6, 6, 4, 4]):
        msg_in = cloud_message(np.full((num_points, 3), k + 1, np.float32))
        cloud = flow_cloud(
            msg_in, np.full((num_points, 3), k, np.float32), np.full(num_points, 3, np.uint8), reuse=msg and msg.data
        )
        msg = flow_message(msg_in, cloud, reuse=msg)
        assert k not in (1, 2, 4) or msg.data is data
        data = msg.data
        assert (msg.width, msg.row_step, len(data)) == (num_points // 2, 18 * num_points, 36 * num_points)
        rows = np.frombuffer(data, np.float32).reshape(num_points, 9)
        assert (rows[:, :3] == k + 1).all() and (rows[:, 4:7] == k).all()


def test_flow_message_of_a_rosbags_message(shared_data):
    highlevel = pytest.importorskip('rosbags.highlevel')
    with highlevel.AnyReader([shared_data / 'bags' / 'apollo_columbia_park']) as reader:
        connections = [c for c in reader.connections if c.msgtype == 'sensor_msgs/msg/PointCloud2']
        connection, _, raw = next(reader.messages(connections))
        msg_in = reader.deserialize(raw, connection.msgtype)
    num_points = msg_in.height * msg_in.width
    cloud = flow_cloud(msg_in, np.zeros((num_points, 3), np.float32), np.ones(num_points, np.uint8))
    msg = deserialize_message(serialize_message(flow_message(msg_in, cloud)), PointCloud2)
    assert (msg.height, msg.width, msg.point_step) == (msg_in.height, msg_in.width, 44)
    assert msg.header.stamp.nanosec == msg_in.header.stamp.nanosec
    np.testing.assert_array_equal(decode_cloud(msg).points, decode_cloud(msg_in).points)


def test_arrow_marker():
    points = np.array([[0, 0, 0], [10, 0, 0], [20, 0, 0]], np.float32)
    velocity = np.array([[0, 0, 0], [4, 0, 0], [0, -2, 0]], np.float32)
    segments, colors = pick_arrows(points, velocity, min_speed=0.5, seconds=0.5)
    marker = arrow_marker(cloud_message(points[:2]).header, segments, colors, 1.25)
    marker = deserialize_message(serialize_message(marker), Marker)
    assert (marker.header.frame_id, marker.ns, marker.id) == ('lidar_top', 'flow', 0)
    assert (marker.type, marker.action) == (Marker.LINE_LIST, Marker.ADD)
    assert (marker.lifetime.sec, marker.lifetime.nanosec) == (1, 250_000_000)
    assert [(p.x, p.y, p.z) for p in marker.points] == [(10, 0, 0), (12, 0, 0), (20, 0, 0), (20, -1, 0)]
    np.testing.assert_allclose([(c.r, c.g, c.b, c.a) for c in marker.colors], colors.reshape(-1, 4), atol=1e-6)
    assert marker.pose.orientation.w == 1 and marker.scale.x > 0


def test_arrow_marker_without_arrows_takes_the_old_ones_away():
    segments, colors = pick_arrows(np.empty((0, 3), np.float32), np.empty((0, 3), np.float32))
    marker = arrow_marker(cloud_message(np.zeros((2, 3))).header, segments, colors, 0.2)
    assert (marker.action, marker.ns, marker.id, len(marker.points)) == (Marker.DELETE, 'flow', 0, 0)


def test_diagnostic_array():
    msg = diagnostic_array(
        Time(sec=4), [('flow_node: input', 0, 'receiving', {'rate_hz': 10.0}), ('flow_node: model', 2, 'gone', {})]
    )
    msg = deserialize_message(serialize_message(msg), DiagnosticArray)
    assert msg.header.stamp.sec == 4
    first, second = msg.status
    assert (first.name, first.level, first.message) == ('flow_node: input', DiagnosticStatus.OK, 'receiving')
    assert [(v.key, v.value) for v in first.values] == [('rate_hz', '10.0')]
    assert (second.level, list(second.values)) == (DiagnosticStatus.ERROR, [])


def test_messages_pass_the_field_checks_that_humble_always_makes():
    if os.environ.get('ROS_PYTHON_CHECK_FIELDS') == '1':
        pytest.skip('this is the run with checks')
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', __file__],
        env={**os.environ, 'ROS_PYTHON_CHECK_FIELDS': '1'},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
