# SPDX-License-Identifier: Apache-2.0
"""~/output/dynamic_points as users meet it: a process, real DDS, the model in the package."""

import time

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import NodeProcess, Vehicle, cloud, column, scene, stamp_of  # noqa: E402
from sensor_msgs.msg import PointCloud2  # noqa: E402

S = 1_000_000_000


@pytest.fixture(scope='module')
def node():
    with NodeProcess('-r', '__ns:=/moving', '-p', 'ego_motion:=none', '-p', 'dynamic_min_speed:=0.25') as node:
        yield node


def drive_by(vehicle, received) -> tuple[PointCloud2, PointCloud2]:
    """Send a car that drives 1 m on in 0.1 s; return the flow of the second sweep and what moves of it."""
    received.clear()
    vehicle.spin(0.3)  # the first one then pairs with nothing
    stamp_ns = time.time_ns()
    for k in range(2):
        vehicle.send(cloud(scene(box_x=10.0 + k), stamp_ns + k * S // 10))
        vehicle.spin(0.1)
    flow = vehicle.flow_of(stamp_ns + S // 10)
    moving = vehicle.wait_for(lambda: next((m for m in received if stamp_of(m) == stamp_ns + S // 10), None), 10)
    assert flow is not None and moving is not None
    return flow, moving


def test_only_what_moves_is_published_and_live_parameters_say_how(node):
    with Vehicle('/moving', markers=False) as vehicle:
        received = []
        vehicle.node.create_subscription(PointCloud2, '/moving/flow_node/output/dynamic_points', received.append, 10)
        vehicle.connect(node)
        for min_speed, with_clusters in ((0.25, False), (2.0, True)):
            assert vehicle.set_parameter('dynamic_min_speed', min_speed).successful
            assert vehicle.set_parameter('cluster_dynamic_points', with_clusters).successful
            flow, moving = drive_by(vehicle, received)
            rows = column(flow, 'speed') >= min_speed
            assert 0 < np.count_nonzero(rows) < len(rows) and moving.header == flow.header
            names = [field.name for field in flow.fields]
            assert [field.name for field in moving.fields] == names + ['cluster_id'] * with_clusters
            for name in names:
                np.testing.assert_array_equal(column(moving, name), column(flow, name)[rows])
        numbers = column(moving, 'cluster_id')
        assert numbers.dtype == np.dtype('<i4') and (numbers >= -1).all() and numbers.max() >= 0


def test_an_empty_cloud_has_nothing_that_moves(node):
    with Vehicle('/moving', markers=False) as vehicle:
        received = []
        vehicle.node.create_subscription(PointCloud2, '/moving/flow_node/output/dynamic_points', received.append, 10)
        vehicle.connect(node)
        vehicle.spin(0.3)
        vehicle.send(cloud(np.zeros((0, 3)), time.time_ns()))
        assert vehicle.wait_for(lambda: received, 10), node.log
        assert received[0].width == 0 and 'speed' in [field.name for field in received[0].fields]


def test_the_model_runs_for_it_alone():
    with NodeProcess('-r', '__ns:=/alone', '-p', 'ego_motion:=none') as alone:
        with Vehicle('/alone', markers=False, flow=False) as vehicle:
            received = []
            vehicle.node.create_subscription(PointCloud2, '/alone/flow_node/output/dynamic_points', received.append, 10)
            vehicle.connect(alone)
            for k in range(2):
                vehicle.send(cloud(scene(box_x=10.0 + k), (k + 1) * S // 10))
                vehicle.spin(0.1)
            assert vehicle.wait_for(lambda: received, 10), alone.log
