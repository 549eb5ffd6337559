# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame
from zeroflow_ros.errors import ConfigError

KITTI = StereoCamera(1242, 375, 721.5377, 721.5377, 609.5593, 172.8540, 0.5327)


def test_depth_is_focal_length_times_baseline_over_disparity():
    assert KITTI.depth(np.float32([721.5377 * 0.5327 / 10])) == pytest.approx(10, rel=1e-6)


def test_depth_is_nan_where_there_is_no_disparity():
    assert np.isnan(KITTI.depth(np.float32([np.nan, 0, -3]))).all()


def test_a_point_projects_to_the_pixel_it_came_from():
    disparity = np.full((375, 1242), 20, np.float32)
    pixel, back = KITTI.project(KITTI.points(disparity))
    u, v = np.meshgrid(np.arange(1242), np.arange(375))
    np.testing.assert_allclose(pixel, np.stack([u, v], axis=-1), atol=1e-3)
    np.testing.assert_allclose(back, disparity, rtol=1e-5)


def test_principal_points_that_differ_shift_the_disparity_of_infinity():
    shifted = StereoCamera(100, 50, 80, 80, 50, 25, 0.5, right_cx=44)
    assert shifted.depth(np.float32([6 + 4])) == pytest.approx(80 * 0.5 / 4)
    assert shifted.disparity(np.float32([10.0])) == pytest.approx(10)


def test_a_resized_image_keeps_the_rays_of_its_corners():
    half = KITTI.scaled(621, 125)
    corner = lambda camera: ((-0.5 - camera.cx) / camera.fx, (camera.height - 0.5 - camera.cy) / camera.fy)  # noqa: E731
    assert corner(half) == pytest.approx(corner(KITTI))


@pytest.mark.parametrize('field', ['width', 'fx', 'baseline'])
def test_a_camera_without_size_focal_length_or_baseline_is_refused(field):
    with pytest.raises(ConfigError, match=field):
        replace(KITTI, **{field: 0})


def test_an_image_of_another_size_than_its_camera_is_refused():
    image = np.zeros((375, 1242, 3), np.uint8)
    with pytest.raises(ValueError, match='right'):
        StereoFrame(image, image[:-1], KITTI)
