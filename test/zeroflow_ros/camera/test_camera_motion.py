# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.camera_motion import (
    CameraMotionConfig,
    _follows,
    check_camera_motion,
    estimate_camera_motion,
    moved_pixels,
    rigid_flow,
    rigid_flow_rate,
)
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import ConfigError, EgoMotionError

CAMERA = StereoCamera(160, 80, 120.0, 125.0, 78.0, 41.0, 0.5, right_cx=77.0)
DRIVING = ((0.003, -0.02, 0.002), (0.05, -0.02, -0.9))


def motion(axis_angle, translation):
    other_T_reference = np.eye(4)
    other_T_reference[:3, :3] = transforms.rotation_matrix(axis_angle)
    other_T_reference[:3, 3] = translation
    return other_T_reference


def scene(seed=0):
    """Return disparities (H, W) of depths of 4 to 60 m, in patches."""
    depth = 4 + 56 * np.random.default_rng(seed).random((10, 20)) ** 2
    return CAMERA.disparity(np.kron(depth, np.ones((8, 8))))


def measured(disparity, other_T_reference, *, noise=0.0, seed=0):
    """Return flow and other disparity of a rigid scene, with noise [px]."""
    rng = np.random.default_rng(seed)
    flow, other = rigid_flow(CAMERA, disparity, other_T_reference)
    return flow + rng.normal(0, noise, flow.shape), other + rng.normal(0, noise, other.shape)


def error(found, true):
    """Return translation [m] and rotation [rad] between two motions."""
    difference = transforms.invert(found) @ true
    return np.linalg.norm(difference[:3, 3]), np.linalg.norm(transforms.rotation_vector(difference))


@pytest.mark.parametrize('has_kernels', [True, False], ids=['numba', 'numpy'])
def test_rigid_flow_is_the_projection_of_the_moved_points(has_kernels, monkeypatch):
    if not has_kernels:
        monkeypatch.setattr(numba_support, 'numba_kernels', None)
    disparity, true = scene(), motion(*DRIVING)
    disparity[0, 0] = np.nan
    points = CAMERA.points(disparity).astype(np.float64) @ true[:3, :3].T + true[:3, 3]
    pixels, other = CAMERA.project(points)
    places = np.stack(np.meshgrid(np.arange(160), np.arange(80)), axis=-1)
    flow, found = rigid_flow(CAMERA, disparity, true)
    np.testing.assert_allclose(flow, pixels - places, atol=1e-3)  # px, float32
    np.testing.assert_allclose(found, other, atol=1e-3)
    rows, columns = np.nonzero(disparity > 10)
    some, some_other = moved_pixels(CAMERA, columns, rows, disparity[rows, columns], true)
    np.testing.assert_allclose(some, flow[rows, columns], atol=1e-3)
    np.testing.assert_allclose(some_other, found[rows, columns], atol=1e-3)


@pytest.mark.parametrize('has_kernels', [True, False], ids=['numba', 'numpy'])
def test_rigid_flow_is_unknown_behind_the_other_camera_and_right_at_infinity(has_kernels, monkeypatch):
    if not has_kernels:
        monkeypatch.setattr(numba_support, 'numba_kernels', None)
    disparity = np.full((80, 160), CAMERA.disparity_at_infinity, np.float32)
    disparity[:40] = CAMERA.disparity(np.array(2.0))
    flow, other = rigid_flow(CAMERA, disparity, motion((0, 0.01, 0), (0, 0, -3)))
    assert np.isnan(flow[:40]).all() and np.isnan(other[:40]).all()
    np.testing.assert_allclose(other[40:], CAMERA.disparity_at_infinity)
    assert flow[60, 78, 0] == pytest.approx(120 * np.tan(0.01), abs=1e-3)


def test_the_rate_is_the_difference_that_a_small_disparity_makes():
    disparity, true, step = scene(), motion(*DRIVING), 0.05
    _, _, rate = rigid_flow_rate(CAMERA, disparity, true)
    moved = (rigid_flow(CAMERA, disparity + step, true)[0] - rigid_flow(CAMERA, disparity - step, true)[0]) / (2 * step)
    np.testing.assert_allclose(rate, (moved**2).sum(-1), rtol=0.02, atol=1e-4)


@pytest.mark.parametrize(
    'label, axis_angle, translation',
    [
        ('standing', (0, 0, 0), (0, 0, 0)),
        ('driving', *DRIVING),
        ('backward', (0, 0.01, 0), (0.0, 0.0, 1.2)),
        ('pure rotation', (0.02, -0.15, 0.03), (0, 0, 0)),
    ],
)
@pytest.mark.parametrize('with_disparity', [True, False])
def test_ego_motion_is_found_without_a_start_among_movers_and_outliers(label, axis_angle, translation, with_disparity):
    disparity, true = scene(), motion(axis_angle, translation)
    flow, other = measured(disparity, true, noise=0.2)
    mover = np.zeros(disparity.shape, bool)
    mover[:, 100:150] = True  # 31 % of the pixels
    moved, moved_other = measured(disparity, motion((0, 0, 0), (0.8, 0, 0.5)) @ true, noise=0.2)
    flow[mover], other[mover] = moved[mover], moved_other[mover]
    rng = np.random.default_rng(1)
    wrong = rng.random(disparity.shape) < 0.1
    flow[wrong] = rng.uniform(-30, 30, (wrong.sum(), 2))
    found = estimate_camera_motion(
        CAMERA, disparity, flow, np.isfinite(disparity), other_disparity=other if with_disparity else None
    )
    distance, angle = error(found.other_T_reference, true)
    assert distance < 0.03 and angle < 0.002  # 0.2 px of noise on 600 pixels; a pixel is 0.008 rad
    assert 0.5 < found.share < 0.75


def test_the_covariance_says_how_far_the_motion_is_off():
    true, disparity = motion(*DRIVING), scene()
    config = CameraMotionConfig(flow_sigma=0.5, disparity_sigma=0.5)
    errors = []
    for seed in range(12):
        flow, _ = measured(disparity, true, noise=0.5, seed=seed)
        rng = np.random.default_rng(100 + seed)
        noisy = (disparity + rng.normal(0, 0.5, disparity.shape)).astype(np.float32)
        found = estimate_camera_motion(CAMERA, noisy, flow, noisy > 2, start=true, config=config)
        errors.append((found.other_T_reference - true)[:3, 3] / np.sqrt(np.diag(found.covariance)[3:]))
    assert 0.4 < np.sqrt(np.mean(np.square(errors))) < 2.5


def test_no_static_majority_is_an_error_and_no_motion():
    disparity = scene()
    flow = np.empty((80, 160, 2))
    for k, shift in enumerate(((1.0, 0, 0), (-1.0, 0, 0.8), (0, 1.0, -0.8))):  # every third column
        part = slice(k, None, 3)
        flow[:, part] = measured(disparity, motion((0, 0, 0), shift))[0][:, part]
    with pytest.raises(EgoMotionError, match=r'at least 50% of the pixels agree|is not clear'):
        estimate_camera_motion(CAMERA, disparity, flow, np.isfinite(disparity))


def test_random_flow_is_an_error():
    flow = np.random.default_rng(0).uniform(-20, 20, (80, 160, 2))
    with pytest.raises(EgoMotionError, match='the best has'):
        estimate_camera_motion(CAMERA, scene(), flow, np.ones((80, 160), bool))


@pytest.mark.parametrize('num_valid', [0, 1, 99])
def test_too_few_pixels_are_an_error(num_valid):
    valid = np.zeros((80, 160), bool)
    valid.reshape(-1)[:num_valid] = True
    with pytest.raises(EgoMotionError, match=f'at least 100 pixels .* found {num_valid}.*'):
        estimate_camera_motion(CAMERA, scene(), np.zeros((80, 160, 2)), valid)


def test_an_implausible_motion_is_an_error():
    disparity = CAMERA.disparity(np.kron(30 + 30 * np.random.default_rng(0).random((10, 20)), np.ones((8, 8))))
    flow, other = measured(disparity, motion((0, 0, 0), (0, 0, -8.0)))
    with pytest.raises(EgoMotionError, match='at most 6 m'):
        estimate_camera_motion(CAMERA, disparity, flow, np.isfinite(disparity), other_disparity=other)


def test_a_given_motion_is_refined_and_a_wrong_one_is_refused():
    disparity, true = scene(), motion(*DRIVING)
    flow, other = measured(disparity, true, noise=0.2)
    valid = np.isfinite(disparity)
    gps = motion((0.004, -0.022, 0.002), (0.08, -0.01, -0.86))
    found = check_camera_motion(CAMERA, disparity, flow, valid, gps, other_disparity=other)
    assert error(found.other_T_reference, true)[0] < 0.01 < error(gps, true)[0]
    for wrong in (transforms.invert(true), motion((0, 0, 0), (0.9, 0, 0)), motion((0, 0.1, 0), (0, 0, -0.9))):
        with pytest.raises(EgoMotionError, match='Check the odometry'):
            check_camera_motion(CAMERA, disparity, flow, valid, wrong, other_disparity=other)


def test_a_given_motion_is_kept_where_the_images_show_nothing():
    given = motion(*DRIVING)
    nothing = np.full((80, 160), np.nan, np.float32)
    found = check_camera_motion(CAMERA, nothing, np.zeros((80, 160, 2)), np.zeros((80, 160), bool), given)
    assert np.array_equal(found.other_T_reference, given) and found.share == 0


def test_a_given_motion_holds_against_an_object_that_fills_more_than_half_of_the_image():
    disparity, standing = scene(), np.eye(4)
    flow, _ = measured(disparity, standing, noise=0.2)
    truck, _ = measured(disparity, motion((0, 0, 0), (1.0, 0, 0)), noise=0.2)
    flow[:, :90] = truck[:, :90]  # 56 %
    found = check_camera_motion(CAMERA, disparity, flow, np.isfinite(disparity), standing)
    assert error(found.other_T_reference, standing)[0] < 0.01


def test_a_given_motion_that_is_not_finite_is_refused():
    given = np.eye(4)
    given[0, 3] = np.nan
    with pytest.raises(EgoMotionError, match='not finite'):
        check_camera_motion(CAMERA, scene(), np.zeros((80, 160, 2)), np.ones((80, 160), bool), given)


@pytest.mark.parametrize('values', [{'num_pixels': 0}, {'min_share': 0}, {'given_share': 1.5}, {'flow_sigma': -1}])
def test_settings_that_cannot_be_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        CameraMotionConfig(**values)


@pytest.mark.parametrize(
    'best, rival, chosen', [(0.4, 0.1, 0.1), (0.12, 0.5, 0.12), (0.4, 0.5, None), (0.15, 0.05, None)]
)
def test_of_two_motions_the_one_that_follows_from_the_pair_before_is_taken(best, rival, chosen):
    def forward(metres):
        motion = np.eye(4)
        motion[2, 3] = metres
        return motion

    of_both = [(forward(metres), 0.9, None) for metres in (best, rival)]
    if chosen is None:
        with pytest.raises(EgoMotionError, match='not clear'):
            _follows(*of_both, forward(0.1), 0.15)
    else:
        assert _follows(*of_both, forward(0.1), 0.15)[0][2, 3] == chosen
