# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.pixel_velocity import is_moving, pixel_velocity
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow

CAMERA = StereoCamera(32, 16, 40.0, 42.0, 15.0, 8.0, 0.5, right_cx=14.5)


@pytest.fixture(autouse=True, params=['numba', 'numpy'])
def kernels(request, monkeypatch):
    """Run each test with the kernels and without them."""
    if request.param == 'numpy':
        monkeypatch.setattr(numba_support, 'numba_kernels', None)
    elif numba_support.numba_kernels is None:
        pytest.skip('needs numba')


def motion(axis_angle=(0.02, -0.05, 0.01), translation=(0.1, -0.02, -0.6)):
    other_T_reference = np.eye(4)
    other_T_reference[:3, :3] = transforms.rotation_matrix(axis_angle)
    other_T_reference[:3, 3] = translation
    return other_T_reference


def flow_of(depth, velocity, dt, ego, *, sigma=0.1, **fields):
    """Return the exact flow of a scene of a depth (H, W) that moves by velocity (3,) in the reference frame."""
    points = CAMERA.rays.astype(np.float64) * depth[..., None]
    other = (points + np.asarray(velocity) * dt) @ ego[:3, :3].T + ego[:3, 3]
    pixels, other_disparity = CAMERA.project(other)
    places = np.stack(np.meshgrid(np.arange(CAMERA.width), np.arange(CAMERA.height)), axis=-1)
    known = np.isfinite(depth)
    sigmas = np.full(depth.shape, sigma, np.float32)
    values = {
        'disparity': CAMERA.disparity(depth), 'other_disparity': other_disparity,
        'flow': (pixels - places).astype(np.float32), 'disparity_sigma': sigmas, 'other_disparity_sigma': sigmas,
        'flow_sigma': sigmas, 'is_measured': known, 'other_T_reference': ego,
    }  # fmt: skip
    return StereoFlow(**(values | fields))


@pytest.mark.parametrize('dt', [0.1, -0.1])
@pytest.mark.parametrize('velocity', [(0, 0, 0), (1.0, 0, 0), (-2.0, 0.3, 4.0)])
def test_the_velocity_of_the_world_is_found_in_both_directions_of_time(velocity, dt):
    depth = np.full((16, 32), 8.0)
    depth[:, 16:] = 20.0
    found = pixel_velocity(flow_of(depth, velocity, dt, motion()), CAMERA, dt)
    assert np.isfinite(found.speed_sigma).all()
    # float32 pixels: 1e-6 px at 20 m and 0.1 s
    np.testing.assert_allclose(found.velocity, np.broadcast_to(np.float32(velocity), (16, 32, 3)), atol=5e-3)
    np.testing.assert_allclose(found.points[..., 2], depth, rtol=1e-4)


def test_the_error_of_the_speed_is_that_of_random_errors():
    depth, velocity, dt = np.full((16, 32), 10.0), np.array([3.0, 0.5, -2.0]), -0.1
    exact = flow_of(depth, velocity, dt, motion(), sigma=0.02)
    said = pixel_velocity(exact, CAMERA, dt).speed_sigma
    rng = np.random.default_rng(0)
    speeds = []
    for _ in range(300):
        noisy = {
            name: (value := getattr(exact, name)) + rng.normal(0, 0.02, value.shape).astype(np.float32)
            for name in ('disparity', 'other_disparity', 'flow')
        }
        speeds.append(np.linalg.norm(pixel_velocity(StereoFlow(**(vars(exact) | noisy)), CAMERA, dt).velocity, axis=-1))
    # 300 draws know a deviation to 4 %; the mean over the image is far better known, but for the curvature
    assert np.std(speeds, axis=0).mean() / said.mean() == pytest.approx(1, abs=0.05)


def test_at_rest_the_error_is_that_along_the_ray_and_grows_with_the_square_of_the_depth():
    sigmas = [
        pixel_velocity(flow_of(np.full((16, 32), z), (0, 0, 0), 0.1, np.eye(4)), CAMERA, 0.1).speed_sigma[8, 15]
        for z in (5.0, 10.0)
    ]
    # z^2 / (f b) * 0.1 px * sqrt(2) / 0.1 s at the principal point
    assert sigmas[0] == pytest.approx(25 / 20 * np.sqrt(2), rel=1e-3)
    assert sigmas[1] == pytest.approx(4 * sigmas[0], rel=1e-3)


def test_the_error_of_a_common_motion_replaces_that_of_the_pixel():
    depth = np.full((16, 32), 10.0)
    known = np.full(depth.shape, np.nan, np.float32)
    known[:8] = 0.02
    flow = flow_of(depth, (2, 0, 0), 0.1, np.eye(4), motion_sigma=known)
    found = pixel_velocity(flow, CAMERA, 0.1)
    assert np.allclose(found.speed_sigma[:8], 0.2) and not np.isclose(found.speed_sigma[8:], 0.2).any()


def test_what_is_not_measured_has_no_velocity_but_may_have_a_depth():
    depth = np.full((16, 32), 10.0)
    depth[0] = np.nan
    is_measured = np.ones(depth.shape, bool)
    is_measured[1:3] = False
    has_depth = is_measured.copy()
    has_depth[1] = True
    flow = flow_of(depth, (0, 0, 0), 0.1, np.eye(4), is_measured=is_measured, is_disparity_measured=has_depth)
    found = pixel_velocity(flow, CAMERA, 0.1)
    assert np.isnan(found.velocity[:3]).all() and np.isnan(found.speed_sigma[:3]).all()
    assert np.isfinite(found.velocity[3:]).all()
    assert np.isfinite(found.points[1]).all() and np.isnan(found.points[[0, 2]]).all()


def test_a_point_behind_the_other_camera_is_not_valid():
    depth = np.full((16, 32), 0.4)
    found = pixel_velocity(flow_of(depth, (0, 0, 0), 0.1, motion()), CAMERA, 0.1)
    assert np.isnan(found.velocity).all() and np.isnan(found.speed_sigma).all()


@pytest.mark.parametrize('dt', [0.0, np.nan, np.inf])
def test_a_dt_that_cannot_be_is_refused(dt):
    flow = flow_of(np.full((16, 32), 10.0), (0, 0, 0), 0.1, np.eye(4))
    with pytest.raises(ValueError, match='dt of a stereo pair'):
        pixel_velocity(flow, CAMERA, dt)


def test_without_ego_motion_and_at_another_size_there_is_no_velocity():
    flow = flow_of(np.full((16, 32), 10.0), (0, 0, 0), 0.1, np.eye(4), other_T_reference=None)
    with pytest.raises(ValueError, match='no ego motion'):
        pixel_velocity(flow, CAMERA, 0.1)
    with pytest.raises(ValueError, match='does not fit'):
        pixel_velocity(flow, CAMERA.scaled(16, 8), 0.1, other_T_reference=np.eye(4))


@pytest.mark.parametrize(
    'speed, sigma, expected',
    [
        (0.0, 0.1, False), (1.0, 0.1, True), (1.0, 0.6, False), (0.3, 0.01, False), (np.nan, 0.1, False),
        (1.0, np.nan, False),
    ],
)  # fmt: skip
def test_what_is_slow_or_uncertain_is_not_called_moving(speed, sigma, expected):
    assert is_moving(np.array([speed]), np.array([sigma]), min_speed=0.4)[0] == expected
