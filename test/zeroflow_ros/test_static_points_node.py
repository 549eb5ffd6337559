# SPDX-License-Identifier: Apache-2.0
"""~/output/static_points, ego_box and min_range as users meet them: a process, real DDS, the model in the package."""

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import NodeProcess, Vehicle, cloud, column, scene, stamp_of  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import PointCloud2  # noqa: E402

S = 1_000_000_000
TOPIC = '/still/flow_node/output/static_points'


@pytest.fixture(scope='module')
def node():
    qos = f'qos_overrides.{TOPIC}.publisher.reliability:=best_effort'
    with NodeProcess('-r', '__ns:=/still', '-p', 'ego_motion:=none', '-p', qos, '-p', 'min_range:=2.0',
                     '-p', 'ego_box:=[-5.0, -2.0, -2.0, 2.0, -1.7, 2.0]') as node:  # fmt: skip
        yield node


def sweep(k: int, *, row_step=None) -> PointCloud2:
    """Return a street where a car drives by, with a rider behind the sensor and a mirror beside it."""
    rng = np.random.default_rng(1)
    rider = rng.uniform([-3, -0.3, -1.5], [-2.5, 0.3, 0], (300, 3))
    mirror = rng.uniform([0.5, 0.9, -0.2], [0.7, 1.1, 0.2], (200, 3))
    points = np.concatenate([scene(box_x=10.0 + k), rider, mirror, np.full((10, 3), np.nan)])
    msg = cloud(points, (k + 1) * S // 10)
    msg.row_step = msg.row_step if row_step is None else row_step
    msg.is_dense = k > 0
    return msg


def test_what_moves_and_the_own_vehicle_are_left_out_and_all_else_stays_as_it_came(node):
    with Vehicle('/still', markers=False) as vehicle:
        static, dynamic = [], []
        best_effort = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
        vehicle.node.create_subscription(PointCloud2, TOPIC, static.append, best_effort)
        topic = TOPIC.replace('static', 'dynamic')
        vehicle.node.create_subscription(PointCloud2, topic, dynamic.append, 10)
        vehicle.connect(node)
        vehicle.spin(0.5)
        for k in range(2):
            vehicle.send(sent := sweep(k, row_step=0))
            vehicle.spin(0.1)
        flow = vehicle.flow_of(stamp_of(sent))
        assert flow is not None and vehicle.wait_for(lambda: static and dynamic, 10), node.log
        still, moving = static[-1], dynamic[-1]
        rows = np.frombuffer(sent.data, np.uint8).reshape(3510, 16)
        x, y, z = rows.view(np.float32)[:, :3].T
        own = x * x + y * y + z * z < 4
        own |= (np.abs(x + 3.5) <= 1.5) & (np.abs(y) <= 2) & (z >= -1.7) & (z <= 2)
        assert own[3000:3500].all() and not own[3500:].any()
        assert not column(flow, 'flow_valid')[own].any() and np.isnan(column(flow, 'vx')[own]).all()
        assert flow.row_step == flow.width * flow.point_step and flow.width == 3510
        moves = (column(flow, 'speed') >= 0.4) & ~own
        num_own, num_moving = np.count_nonzero(own), np.count_nonzero(moves)
        assert 0 < moving.width == num_moving < 1500
        # The points beside what moves are left out, too.
        of_input = {row.tobytes() for row in rows}
        left = {row.tobytes() for row in np.frombuffer(still.data, np.uint8).reshape(-1, 16)}
        assert left < of_input and not left & {row.tobytes() for row in rows[moves | own]}
        removed = np.array([row.tobytes() not in left for row in rows]) & ~moves & ~own
        assert np.count_nonzero(removed) < num_moving and not removed[-10:].any()
        near = np.linalg.norm(np.stack([x, y, z], 1)[removed][:, None] - np.stack([x, y, z], 1)[moves], axis=2)
        assert not len(near) or near.min(axis=1).max() < 0.9
        assert (still.fields, still.point_step, still.is_dense) == (sent.fields, sent.point_step, sent.is_dense)
        assert (still.height, still.row_step, still.header) == (1, len(still.data), sent.header)

        def said(status, values):
            texts = ('row_step', 'ego_box is in')
            return values.get('own_points') == str(num_own) and all(text in status.message for text in texts)

        assert vehicle.status('input', said), node.log
        assert sum('does not agree with their' in line for line in node.lines) == 1, node.log


@pytest.mark.parametrize('argument, says', [
    ('ego_box:=[1.0, 2.0]', 'ego_box must be'),
    ('ego_box:=[2.0, 1.0, 0.0, 1.0, 0.0, 1.0]', 'each minimum below its maximum'),
    ('min_range:=-1.0', "'min_range' must be from 0.0"),
    ('time_unit:=hours', "'time_unit' must be one of auto, s, ms, us, ns"),
])  # fmt: skip
def test_values_without_sense_end_the_node(argument, says):
    from zeroflow_ros.errors import ConfigError
    from zeroflow_ros.ros.parameters import Parameters

    name, _, value = argument.partition(':=')
    value = value if name == 'time_unit' else tuple(map(float, value.strip('[]').split(',')))
    with pytest.raises(ConfigError, match=says):
        Parameters(**{name: value[0] if name == 'min_range' else value})
