# SPDX-License-Identifier: Apache-2.0
"""Pixels of a static scene move as their points do."""

import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.camera.static_scene import UNKNOWN_MOTION, pixel_motion
from zeroflow_ros.camera.stereo import StereoCamera

CAMERA = StereoCamera(64, 32, 50.0, 52.0, 31.0, 15.5, 0.5)


@pytest.mark.parametrize(
    'other_T_reference',
    [np.eye(4), transforms.yaw_translation(0.0, 0.1, -0.2, -1.0), transforms.yaw_translation(0.02, 0.0, 0.0, 0.9)],
    ids=['still', 'forward', 'backward, turning'],
)
def test_a_pixel_goes_where_its_point_is_projected(other_T_reference):
    rng = np.random.default_rng(0)
    disparity = rng.uniform(1, 20, (32, 64)).astype(np.float32)
    pixels, other_disparity = CAMERA.project(
        transforms.apply(other_T_reference, CAMERA.points(disparity).reshape(-1, 3))
    )
    v, u = np.mgrid[:32, :64]
    moved = pixel_motion(CAMERA, other_T_reference) @ np.stack([u, v, np.ones_like(u), disparity]).reshape(4, -1)
    np.testing.assert_allclose((moved[:2] / moved[2]).T, pixels, atol=2e-3)  # px, float32
    np.testing.assert_allclose(disparity.ravel() / moved[2], other_disparity, rtol=1e-4)


def test_without_ego_motion_pixels_stay():
    np.testing.assert_allclose(pixel_motion(CAMERA, np.eye(4)), UNKNOWN_MOTION, atol=1e-6)
