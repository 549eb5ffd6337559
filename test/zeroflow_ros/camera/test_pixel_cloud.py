# SPDX-License-Identifier: Apache-2.0
import array

import numpy as np
import pytest

from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message, encode_message, flow_cloud_message, typestore
from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.output_frame import BODY_T_OPTICAL, OutputFrame, is_optical
from zeroflow_ros.camera.pixel_cloud import (
    FIELDS,
    every_nth_pixel,
    moving_pixels,
    pixel_cloud,
    static_pixels,
    unpacked_rgb,
)
from zeroflow_ros.lidar.dynamic_points import dynamic_cloud
from zeroflow_ros.lidar.point_cloud import decode_cloud, decode_velocity, read_field

H, W = 4, 6
RNG = np.random.default_rng(0)
POINTS = RNG.uniform(1, 20, (H, W, 3)).astype(np.float32)
IMAGE = RNG.integers(0, 256, (H, W, 3)).astype(np.uint8)
VELOCITY = RNG.normal(0, 3, (H, W, 3)).astype(np.float32)
SIGMA = RNG.uniform(0.1, 1, (H, W)).astype(np.float32)
VALID = np.full((H, W), 3, np.uint8)
VELOCITY[2] *= 0.01  # static
POINTS[0, 0] = VELOCITY[0, 0] = VELOCITY[1, 1] = np.nan
VALID[0, 0] = VALID[1, 1] = 0


def message(cloud):
    """Return a cloud as a message that was sent and received."""
    types = typestore().types
    header = types['std_msgs/msg/Header'](types['builtin_interfaces/msg/Time'](5, 6), 'optical')
    return decode_message(encode_message(flow_cloud_message(header, cloud), POINT_CLOUD), POINT_CLOUD)


def test_every_pixel_comes_back_in_its_place():
    msg = message(pixel_cloud(POINTS, IMAGE, VELOCITY, SIGMA, VALID))
    assert (msg.height, msg.width, tuple(f.name for f in msg.fields)) == (H, W, FIELDS)
    np.testing.assert_array_equal(decode_cloud(msg).points, POINTS.reshape(-1, 3))
    np.testing.assert_array_equal(decode_velocity(msg), VELOCITY.reshape(-1, 3))
    np.testing.assert_array_equal(unpacked_rgb(read_field(msg, 'rgb')).reshape(H, W, 3), IMAGE)
    np.testing.assert_array_equal(read_field(msg, 'speed_sigma'), SIGMA.ravel())
    np.testing.assert_array_equal(read_field(msg, 'flow_valid'), VALID.ravel())
    np.testing.assert_allclose(read_field(msg, 'speed'), np.linalg.norm(VELOCITY.reshape(-1, 3), axis=1), rtol=1e-6)


@pytest.mark.parametrize('image', [IMAGE, IMAGE[..., 1]], ids=['colour', 'grey'])
def test_numba_and_numpy_write_the_same_bytes(image, monkeypatch):
    if numba_support.numba_kernels is None:
        pytest.skip('needs numba')
    fast = pixel_cloud(POINTS, image, VELOCITY, SIGMA, VALID)
    monkeypatch.setattr(numba_support, 'numba_kernels', None)
    plain = pixel_cloud(POINTS, image, VELOCITY, SIGMA, VALID)
    for a, b in zip(*(np.frombuffer(cloud.data, np.float32) for cloud in (fast, plain)), strict=True):
        assert a == pytest.approx(b, rel=1e-6, nan_ok=True)


def test_views_of_every_second_pixel_and_grey_images_are_taken():
    parts = (every_nth_pixel(values, 2) for values in (POINTS, IMAGE[..., 0], VELOCITY, SIGMA, VALID))
    msg = message(pixel_cloud(*parts))
    assert (msg.height, msg.width) == (2, 3)
    np.testing.assert_array_equal(decode_cloud(msg).points, POINTS[::2, ::2].reshape(-1, 3))
    grey = unpacked_rgb(read_field(msg, 'rgb')).reshape(2, 3, 3)
    np.testing.assert_array_equal(grey, np.repeat(IMAGE[::2, ::2, :1], 3, axis=2))


def test_memory_of_an_earlier_cloud_is_overwritten_only_if_it_fits():
    first = pixel_cloud(POINTS, IMAGE, VELOCITY, SIGMA, VALID)
    again = pixel_cloud(POINTS + 1, IMAGE, VELOCITY, SIGMA, VALID, reuse=first.data)
    assert again.data is first.data
    np.testing.assert_array_equal(decode_cloud(message(again)).points, (POINTS + 1).reshape(-1, 3))
    assert pixel_cloud(POINTS, IMAGE, VELOCITY, SIGMA, VALID, reuse=array.array('B', b'1')).data is not first.data


def test_dynamic_and_static_pixels_share_the_cloud_out():
    cloud = pixel_cloud(POINTS, IMAGE, VELOCITY, SIGMA, VALID)
    rows = moving_pixels(VELOCITY.reshape(-1, 3), SIGMA.ravel(), 0.5, 3.0)
    dynamic, static = message(dynamic_cloud(cloud, rows)), message(static_pixels(cloud, rows))
    np.testing.assert_array_equal(decode_cloud(dynamic).points, POINTS.reshape(-1, 3)[rows])
    rest = np.setdiff1d(np.arange(1, H * W), rows)  # pixel 0 has no depth
    np.testing.assert_array_equal(decode_cloud(static).points, POINTS.reshape(-1, 3)[rest])
    assert [f.name for f in static.fields] == ['x', 'y', 'z', 'rgb'] and 0 < len(rows) < H * W - 2


@pytest.mark.parametrize(
    'speed, sigma, expected',
    [(0.0, 0.0, False), (0.3, 0.01, False), (2.0, 0.5, True), (2.0, 1.0, False), (np.nan, 0.1, False),
     (2.0, np.nan, False)],
)  # fmt: skip
def test_what_is_uncertain_does_not_move(speed, sigma, expected):
    velocity = np.array([[speed, 0, 0]], np.float32)
    assert (len(moving_pixels(velocity, np.array([sigma], np.float32), 0.5, 3.0)) == 1) == expected


def test_nothing_moves_in_an_empty_image():
    assert len(moving_pixels(np.empty((0, 3), np.float32), np.empty(0, np.float32), 0.5, 3.0)) == 0


def test_the_optical_frame_stays_as_it_is_and_knows_which_way_is_up():
    output = OutputFrame()
    points, velocity = output.moved(POINTS, VELOCITY)
    assert points is POINTS and velocity is VELOCITY
    ahead_left_up = output.to_upright(np.float32([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]))
    np.testing.assert_array_equal(ahead_left_up, np.eye(3))
    np.testing.assert_allclose(output.from_upright(output.to_upright(POINTS[1])), POINTS[1])


def test_another_frame_moves_points_and_turns_velocities():
    pose = BODY_T_OPTICAL.copy()
    pose[:3, 3] = 1.0, 0.0, 1.5
    output = OutputFrame('base_link', pose)
    points, velocity = output.moved(np.float32([[[0, 0, 10]]]), np.float32([[[0, 0, 2]]]))
    np.testing.assert_array_equal(points, [[[11, 0, 1.5]]])
    np.testing.assert_array_equal(velocity, [[[2, 0, 0]]])
    assert output.to_upright(points[0]) is points[0] or np.array_equal(output.to_upright(points[0]), points[0])


def test_pixels_in_their_optical_frame_are_recognised():
    u, v = np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-0.4, 0.4, 20))
    depth = np.random.default_rng(1).uniform(2, 30, u.shape)
    points = np.stack([u * depth, v * depth, depth], axis=-1).astype(np.float32)
    points[:5] = np.nan
    assert is_optical(points)
    assert not is_optical(OutputFrame('base_link', BODY_T_OPTICAL).moved(points, points)[0])
    rings = np.stack([np.cos(u * 3) * depth, np.sin(u * 3) * depth, v * depth], axis=-1).astype(np.float32)
    assert not is_optical(rings) and not is_optical(rings[:1]) and not is_optical(np.full_like(points, np.nan))
