# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import cloud, column

from zeroflow_ros.lidar.cloud_layout import check_rows
from zeroflow_ros.lidar.dynamic_points import dynamic_cloud, moving_rows, not_static_rows, static_cloud
from zeroflow_ros.lidar.point_cloud import flow_cloud
from zeroflow_ros.ros.messages import flow_message

POINTS = np.random.default_rng(0).uniform(-9, 9, (12, 3)).astype(np.float32)
FLOW_FIELDS = ['vx', 'vy', 'vz', 'speed', 'flow_valid']


@pytest.mark.parametrize(
    'label, velocity, min_speed, rows',
    [
        ('nothing', np.zeros((0, 3)), 0.5, []),
        ('stands', [[0, 0, 0]], 0.5, []),
        ('just fast enough', [[0.3, 0.4, 0]], 0.5, [0]),
        ('upwards counts', [[0, 0, 0.6]], 0.5, [0]),
        ('unknown is not moving', [[np.nan] * 3, [1, 0, 0]], 0.5, [1]),
        ('no speed is too slow', [[0, 0, 0], [np.nan] * 3], 0.0, [0]),
        ('beyond float32', [[3e38, 3e38, 0], [np.inf, 0, 0]], 0.5, []),
    ],
)
def test_rows_that_move(label, velocity, min_speed, rows):
    assert moving_rows(np.array(velocity, np.float32), min_speed).tolist() == rows


@pytest.mark.parametrize(
    'layout', [{}, {'height': 3}, {'is_bigendian': True}, {'point_padding': 3}, {'row_padding': 8}]
)
@pytest.mark.parametrize('rows', [[], [0], [11], [2, 3, 7], list(range(12))])
@pytest.mark.parametrize('with_clusters', [False, True])
def test_rows_keep_every_field(layout, rows, with_clusters):
    msg = cloud(POINTS, 5_000_000_007, types=('f4', 'f4', 'f4', 'u2'), **layout)
    velocity = np.arange(36, dtype=np.float32).reshape(12, 3)
    whole = flow_cloud(msg, velocity, np.full(12, 3, np.uint8))
    numbers = np.arange(len(rows), dtype=np.int32) - 1
    out = flow_message(msg, dynamic_cloud(whole, np.array(rows, int), numbers if with_clusters else None))
    assert out.header == msg.header and (out.height, out.width) == (1, len(rows))
    assert out.row_step == out.point_step * len(rows) == len(out.data) and out.point_step % 4 == 0
    expected = flow_message(msg, whole)
    for name in ('x', 'y', 'z', 'intensity', *FLOW_FIELDS):
        np.testing.assert_array_equal(column(out, name), column(expected, name)[rows])
    names = [field.name for field in out.fields]
    assert names == ['x', 'y', 'z', 'intensity', *FLOW_FIELDS] + ['cluster_id'] * with_clusters
    if with_clusters:
        np.testing.assert_array_equal(column(out, 'cluster_id'), numbers)


def test_an_input_field_called_cluster_id_gives_way():
    msg = cloud(POINTS, 1, names=('x', 'y', 'z', 'intensity'))
    msg.fields[3].name = 'cluster_id'
    whole = flow_cloud(msg, np.ones((12, 3), np.float32), np.full(12, 3, np.uint8))
    out = flow_message(msg, dynamic_cloud(whole, np.arange(2), np.array([7, -1], np.int32)))
    assert [field.name for field in out.fields].count('cluster_id') == 1
    assert column(out, 'cluster_id').tolist() == [7, -1]


@pytest.mark.parametrize(
    'layout', [{}, {'height': 3}, {'is_bigendian': True}, {'point_padding': 3}, {'height': 3, 'row_padding': 8}]
)
@pytest.mark.parametrize('removed', [[], [0], [11], [2, 3, 3, 7], list(range(12))])
def test_static_rows_keep_every_byte_of_the_input(layout, removed):
    msg = cloud(POINTS, 5_000_000_007, types=('f4', 'f4', 'f4', 'u2'), **layout)
    before = bytes(msg.data)
    out = flow_message(msg, static_cloud(msg, np.array(removed, int)))
    kept = [row for row in range(12) if row not in removed]
    assert (out.header, out.fields, out.is_bigendian) == (msg.header, msg.fields, msg.is_bigendian)
    assert (out.height, out.width, out.point_step) == (1, len(kept), msg.point_step)
    assert out.row_step == len(out.data) == len(kept) * msg.point_step and bytes(msg.data) == before
    width = msg.width
    starts = [row // width * msg.row_step + row % width * msg.point_step for row in kept]
    assert bytes(out.data) == b''.join(before[start : start + msg.point_step] for start in starts)


def test_static_rows_of_a_cloud_without_row_step():
    msg = cloud(POINTS, 1)
    msg.row_step = 0
    out = static_cloud(msg, np.array([0]))
    assert (out.width, out.row_step, len(out.data)) == (11, 11 * 16, 11 * 16)
    assert not check_rows(flow_message(msg, out)).correction


def test_static_rows_of_an_empty_cloud():
    msg = cloud(POINTS[:0], 1)
    msg.point_step = 0
    assert static_cloud(msg, np.zeros(0, int)).width == 0


def test_the_slow_edges_of_a_moving_car_leave_a_trace_in_the_map():
    rng = np.random.default_rng(0)
    car = rng.uniform([8, -1, -1.5], [12, 1, 0], (3000, 3))
    edges = rng.uniform([7.8, -1.2, -1.6], [12.2, 1.2, 0.1], (100, 3))
    street = rng.uniform([-20, 3, -1.7], [20, 9, 2], (600, 3))
    no_returns, false_one = np.full((20, 3), np.nan), np.array([[-9.0, 6.0, 0.0]])
    points = np.concatenate([car, edges, street, no_returns, false_one])
    velocity = np.zeros((len(points), 3), np.float32)
    velocity[:3000, 0] = 8.0
    velocity[3000:3100, 0], velocity[-1, 0] = 0.2, 0.7
    msg, own = cloud(points, 1), np.array([3200])
    removed = set(not_static_rows(msg, velocity, 0.4, own).tolist())
    assert removed == {*range(3100), 3200, 3720}  # beside one point alone nothing is removed
    still = np.zeros_like(velocity)
    assert not_static_rows(msg, still, 0.4, own).tolist() == [3200]
    assert not len(not_static_rows(cloud(points[:0], 1), velocity[:0], 0.4, own[:0]))
