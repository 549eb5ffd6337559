# SPDX-License-Identifier: Apache-2.0
"""A small image of three bodies whose motion is known by hand."""

import numpy as np
import pytest

pytest.importorskip('embreex', reason='the simulation needs embreex: pip install embreex')

from training.simulation.cameras.pixel_motion import NO_BODY, is_object, pixel_motion, pixel_points
from training.simulation.sensors.lidar import Category
from zeroflow_ros.camera.stereo import StereoCamera

CAMERA = StereoCamera(8, 4, 10.0, 10.0, 4.0, 2.0, 0.5)  # 10 m away, the disparity is 0.5 px
FAR = np.full((4, 8), 0.5, np.float32)


def poses(*translations):
    """Return poses (len, 4, 4) without rotation."""
    found = np.tile(np.eye(4), (len(translations), 1, 1))
    found[:, :3, 3] = translations
    return found


def motion(body, left, bodies, disparity=FAR):
    return pixel_motion(CAMERA, disparity, np.asarray(body), left, bodies)


def test_the_sky_has_no_motion():
    sky = np.full((4, 8), np.nan, np.float32)
    found = motion(np.full((4, 8), NO_BODY), poses([0, 0, 0], [0, 0, 1]), np.stack([poses([0, 0, 0])] * 2), sky)
    assert np.isnan(found.flow).all() and np.isnan(found.other_disparity).all() and not found.is_moving.any()


@pytest.mark.parametrize(
    ('step', 'flow', 'disparity'),
    [
        ([0, 0, 0], [0, 0], 0.5),
        ([1, 0, 0], [-1, 0], 0.5),  # to the right by 1 m: 10 px m / 10 m
        ([0, 0, 5], [-2, -1], 1.0),  # half way towards the wall: twice as far from the principal point
    ],
)
def test_a_static_world_moves_against_the_camera(step, flow, disparity):
    found = motion(np.zeros((4, 8), int), poses([0, 0, 0], step), np.stack([poses([0, 0, 0])] * 2))
    np.testing.assert_allclose(found.flow[1, 2], flow, atol=1e-5)
    np.testing.assert_allclose(found.other_disparity[1, 2], disparity, atol=1e-5)
    assert not found.is_moving.any()


def test_bodies_move_by_themselves():
    body = np.zeros((4, 8), int)
    body[:, 4:6], body[:, 6:] = 1, 2  # body 1 moves, body 2 stands
    bodies = np.stack([poses([0, 0, 0], [1, 0, 10], [2, 0, 10]), poses([0, 0, 0], [2, 0, 10], [2, 0, 10])])
    found = motion(body, poses([0, 0, 0], [0, 0, 0]), bodies)
    np.testing.assert_array_equal(found.is_moving, body == 1)
    np.testing.assert_allclose(found.flow[..., 0], (body == 1) * 1.0, atol=1e-5)


def test_what_is_behind_the_camera_or_far_outside_has_no_pixel():
    body, still = np.zeros((4, 8), int), np.stack([poses([0, 0, 0])] * 2)
    behind = motion(body, poses([0, 0, 0], [0, 0, 12]), still)
    assert np.isnan(behind.flow).all() and np.isnan(behind.other_disparity).all()
    outside = motion(body, poses([0, 0, 0], [4, 0, 0]), still)  # 4 px, and 41 % of 8 px are 3.3 px
    assert np.isnan(outside.flow).all() and np.isnan(outside.other_disparity).all()
    assert np.isfinite(motion(body, poses([0, 0, 0], [3, 0, 0]), still).flow).all()


def test_points_are_those_of_the_camera():
    disparity = np.random.default_rng(0).uniform(0.2, 3, (4, 8)).astype(np.float32)
    np.testing.assert_allclose(pixel_points(CAMERA, disparity), CAMERA.points(disparity), rtol=1e-5, atol=1e-6)


def test_objects_are_road_users():
    values = np.array([Category.BACKGROUND, Category.GROUND, Category.CAR, Category.CYCLIST, Category.EGO, 255])
    assert is_object(values).tolist() == [False, False, True, True, False, False]
