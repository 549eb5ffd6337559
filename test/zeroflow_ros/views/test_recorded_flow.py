# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from tiny_bag import CLOUD_TOPIC, street, write_bag

from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message, encode_message, flow_cloud_message
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.point_cloud import flow_cloud
from zeroflow_ros.views.recorded_flow import count_moving, draw_busy_sweep, read_flow, read_velocity


@pytest.fixture
def recording(tmp_path):
    """Return a recording of four sweeps in which 0, 100, 4000 and 10 points move at 2 m/s, and their velocities."""
    velocities = np.zeros((4, 4000, 3), np.float32)
    with Bag(write_bag(tmp_path / 'bag', num_sweeps=4)) as bag, BagWriter(tmp_path / 'flow.mcap') as writer:
        for velocity, count, m in zip(velocities, (0, 100, 4000, 10), bag.messages([CLOUD_TOPIC]), strict=True):
            velocity[4000 - count :, 1] = -2
            velocity[::50] = np.nan
            message = decode_message(m.cdr, POINT_CLOUD)
            cloud = flow_cloud(message, velocity, np.isfinite(velocity[:, 0]) * np.uint8(3))
            writer.write(
                '/flow', POINT_CLOUD, m.time_ns, encode_message(flow_cloud_message(message.header, cloud), POINT_CLOUD)
            )
    return tmp_path / 'flow.mcap', velocities


def test_what_was_recorded_is_read_back(recording):
    path, velocities = recording
    for k, (_, points, velocity) in enumerate(read_flow(path)):
        np.testing.assert_array_equal(points, street(k)[:, :3])
        np.testing.assert_array_equal(velocity, velocities[k])


def test_moving_points_are_counted_and_the_picture_is_of_a_lively_sweep(recording, tmp_path):
    path, _ = recording
    num_moving = count_moving(path)
    assert num_moving == [0, 98, 3920, 10]
    pytest.importorskip('matplotlib', reason='needs matplotlib')
    draw_busy_sweep(path, num_moving, tmp_path / 'flow.png', 'A street')
    assert (tmp_path / 'flow.png').read_bytes().startswith(b'\x89PNG')


def test_big_endian_velocities_and_clouds_without(recording, tmp_path):
    path, velocities = recording
    with Bag(path) as bag:
        message = decode_message(next(bag.messages(['/flow'])).cdr, POINT_CLOUD)
    message.is_bigendian, message.data = True, message.data.reshape(-1, 4)[:, ::-1].reshape(-1).copy()
    np.testing.assert_array_equal(read_velocity(message), velocities[0])
    message.fields = message.fields[:4]
    with pytest.raises(DataError, match=r"must have vx, vy and vz.*'intensity'"):
        read_velocity(message)


def test_velocity_of_another_type_is_none_and_an_empty_cloud_has_none(recording):
    path, _ = recording
    with Bag(path) as bag:
        message = decode_message(next(bag.messages(['/flow'])).cdr, POINT_CLOUD)
    message.height, message.width, message.row_step, message.data = 1, 0, 0, message.data[:0]
    assert read_velocity(message).shape == (0, 3)
    message.fields[4].datatype = 2  # a byte at the end of a point has no room for a float
    with pytest.raises(DataError, match='each one float32'):
        read_velocity(message)
