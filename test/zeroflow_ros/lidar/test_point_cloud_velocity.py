# SPDX-License-Identifier: Apache-2.0
from copy import deepcopy

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import cloud
from sensor_msgs.msg import PointCloud2

from zeroflow_ros.errors import CloudError
from zeroflow_ros.lidar.point_cloud import decode_velocity, flow_cloud
from zeroflow_ros.ros.messages import flow_message

POINTS = np.random.default_rng(0).uniform(-9, 9, (12, 3)).astype(np.float32)
VELOCITY = np.random.default_rng(1).uniform(-9, 9, (12, 3)).astype(np.float32)
VELOCITY[3] = np.nan
NAMES = ('vx', 'vy', 'vz', 'speed', 'flow_valid')


def flow(velocity=VELOCITY, **layout) -> PointCloud2:
    msg = cloud(POINTS[: len(velocity)], 1, **layout)
    return flow_message(msg, flow_cloud(msg, velocity, np.isfinite(velocity[:, 0]).astype(np.uint8)))


def renamed(old, new) -> PointCloud2:
    msg = deepcopy(flow())  # messages share their fields
    next(field for field in msg.fields if field.name == old).name = new
    return msg


def changed(name, **values) -> PointCloud2:
    msg = deepcopy(flow())  # messages share their fields
    field = next(field for field in msg.fields if field.name == name)
    for key, value in values.items():
        setattr(field, key, value)
    return msg


@pytest.mark.parametrize('layout', [{}, {'height': 3}, {'is_bigendian': True}, {'point_padding': 3}])
def test_velocity_of_a_flow_cloud_is_read_back(layout):
    np.testing.assert_array_equal(decode_velocity(flow(**layout)), VELOCITY)


def test_no_points_have_no_velocities():
    assert decode_velocity(flow(VELOCITY[:0])).shape == (0, 3)


def test_float64_and_row_padding():
    msg = cloud(POINTS, 1, types=('f8', 'f8', 'f8', 'f4'), height=2, row_padding=5)
    for field, name in zip(msg.fields, NAMES, strict=False):
        field.name = name
    np.testing.assert_array_equal(decode_velocity(msg), POINTS)


@pytest.mark.parametrize(
    'label, msg, said',
    [
        ('no fields at all', PointCloud2(), 'vx is missing or has another type. Fields seen: none'),
        ('a plain cloud', cloud(POINTS, 1), "vx is missing or has another type. Fields seen: 'x' float32"),
        ('one is missing', renamed('vz', 'v_z'), 'vz is missing'),
        ('an integer', changed('vy', datatype=5), 'vy is missing or has another type'),
        ('several in one', changed('vy', count=2), 'vy is missing or has another type'),
        ('outside the point', changed('vy', offset=1000), 'vy is missing or has another type'),
    ],
)
def test_a_cloud_without_velocity_says_what_was_expected(label, msg, said):
    with pytest.raises(CloudError) as error:
        decode_velocity(msg)
    assert said in str(error.value) and '~/output/dynamic_points' in str(error.value)
