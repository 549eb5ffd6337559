# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy')

from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.ros.camera_messages import depth_message, disparity_message, stamped_header


def pixels(image):
    return np.frombuffer(bytes(image.data), np.float32).reshape(image.height, image.width)


@pytest.mark.parametrize('right_cx', [None, 40.0])
def test_depth_is_f_t_over_d_also_where_the_principal_points_differ(right_cx):
    camera = StereoCamera(3, 2, 100.0, 100.0, 50.0, 1.0, 0.5, right_cx)
    depth = np.array([[2.0, 5.0, 50.0], [np.nan, 10.0, 1.0]], np.float32)
    msg = disparity_message(stamped_header(5_000_000_007, 'left'), camera.disparity(depth), camera)
    assert (msg.header.stamp.sec, msg.header.stamp.nanosec, msg.header.frame_id) == (5, 7, 'left')
    assert (msg.image.encoding, msg.image.step, msg.f, msg.t) == ('32FC1', 12, 100.0, 0.5)
    found, known = pixels(msg.image), np.isfinite(depth)
    assert (found[~known] < msg.min_disparity).all() and msg.max_disparity == pytest.approx(50.0, rel=1e-5)
    np.testing.assert_allclose(msg.f * msg.t / found[known], depth[known], rtol=1e-4)


def test_what_is_not_known_stays_unknown():
    header, unknown = stamped_header(0, ''), np.full((2, 3), np.nan, np.float32)
    assert np.isnan(pixels(depth_message(header, unknown))).all()
    msg = disparity_message(header, unknown, StereoCamera(3, 2, 100.0, 100.0, 1.0, 1.0, 0.5))
    assert (pixels(msg.image) < msg.min_disparity).all() and msg.max_disparity == 0.0
