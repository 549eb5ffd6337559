# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.camera_motion import moved_pixels
from zeroflow_ros.camera.rigid_fit import (
    MatchedPixels,
    _kernel_values,
    _moved,
    _normal_equations,
    _residuals,
    agreement,
    refine_motion,
    refine_motions,
)
from zeroflow_ros.camera.stereo import StereoCamera

CAMERA = StereoCamera(160, 80, 120.0, 125.0, 78.0, 41.0, 0.5, right_cx=77.0)


def motion(axis_angle, translation):
    other_T_reference = np.eye(4)
    other_T_reference[:3, :3] = transforms.rotation_matrix(axis_angle)
    other_T_reference[:3, 3] = translation
    return other_T_reference


TRUE = motion((0.02, 0.03, -0.1), (0.1, 0.2, -0.5))


def pixels_of(true, count, *, seed=0, noise=0.0, with_other=True):
    """Return pixels that move by a motion, with noise [px]."""
    rng = np.random.default_rng(seed)
    u, v, disparity = rng.uniform([[10], [5], [3]], [[150], [75], [20]], (3, count))
    flow, other = moved_pixels(CAMERA, u, v, disparity, true)
    flow, other = flow + rng.normal(0, noise, flow.shape), other + rng.normal(0, noise, other.shape)
    return MatchedPixels(u, v, disparity, flow[:, 0], flow[:, 1], other if with_other else None)


def test_the_jacobian_is_the_derivative_of_the_residual():
    start = TRUE
    # With the exact flow, the standard deviations, which also change with the motion, do not change the residual.
    pixels = pixels_of(TRUE, 7)
    residual, jacobian = _residuals(CAMERA, pixels, start[None])
    assert jacobian.shape == (1, 7, 3, 6)
    for k in range(6):
        step = np.zeros((1, 6))
        step[0, k] = 1e-5
        change = (_residuals(CAMERA, pixels, _moved(start[None], step))[0] - residual) / 1e-5
        np.testing.assert_allclose(change, jacobian[..., k], atol=2e-3 * np.abs(jacobian[..., k]).max() + 1e-3)


@pytest.mark.parametrize('width', [1.0, np.inf])
@pytest.mark.parametrize('with_other', [True, False])
@pytest.mark.parametrize('has_own_pixels', [True, False])
def test_the_kernel_gives_the_normal_equations_of_numpy(width, with_other, has_own_pixels, monkeypatch):
    if numba_support.numba_kernels is None:
        pytest.skip('needs numba')
    pixels = pixels_of(TRUE, 60, noise=1.0, with_other=with_other)
    pixels.disparity[3] = np.nan
    if with_other:
        pixels.other_disparity[5] = np.nan
    motions = np.stack([TRUE, np.eye(4), motion((0, 0, 0), (0, 0, -40.0))])  # the last: some are behind the camera
    if has_own_pixels:
        pixels = pixels.rows(np.random.default_rng(1).integers(60, size=(3, 20)))
    fast = _normal_equations(CAMERA, pixels, motions, width, _kernel_values(pixels))
    monkeypatch.setattr(numba_support, 'numba_kernels', None)
    for a, b in zip(fast, _normal_equations(CAMERA, pixels, motions, width, None), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize('rotation_sigma', [None, 0.03])
def test_the_kernel_refines_motions_as_numpy_does(rotation_sigma, monkeypatch):
    if numba_support.numba_kernels is None:
        pytest.skip('needs numba')
    sets = [pixels_of(TRUE, 60, seed=seed, noise=0.5) for seed in range(3)]
    fields = ('u', 'v', 'disparity', 'flow_u', 'flow_v', 'other_disparity')
    pixels = MatchedPixels(*(np.stack([getattr(one, name) for one in sets]) for name in fields))
    starts = np.stack([motion((0.02, 0.03, -0.08), (0.1, 0.1 * k, -0.4)) for k in range(3)])
    options = {'loose': 3.0, 'rotation_sigma': rotation_sigma}
    motions, covariances = refine_motions(CAMERA, pixels, starts, **options)
    monkeypatch.setattr(numba_support, 'numba_kernels', None)
    plain = refine_motions(CAMERA, pixels, starts, **options)
    np.testing.assert_allclose(motions, plain[0], atol=1e-9)
    np.testing.assert_allclose(covariances, plain[1], rtol=1e-6)
    assert np.abs(motions - TRUE).max() < 0.05


@pytest.mark.parametrize('has_kernels', [True, False], ids=['numba', 'numpy'])
def test_a_motion_is_refined_among_outliers(has_kernels, monkeypatch):
    if not has_kernels:
        monkeypatch.setattr(numba_support, 'numba_kernels', None)
    pixels = pixels_of(TRUE, 400, noise=0.2)
    pixels.flow_u[:80] += 9.0
    found, _ = refine_motion(CAMERA, pixels, motion((0, 0.02, -0.08), (0, 0.1, -0.4)), loose=10.0)
    assert np.abs(found - TRUE).max() < 0.01
    agrees = agreement(CAMERA, pixels, found, 3.0)
    assert not agrees[:80].any() and agrees[80:].mean() > 0.95


def test_several_motions_are_fitted_at_once_and_a_known_rotation_is_kept():
    sets = [pixels_of(true, 50, seed=k, noise=0.1) for k, true in enumerate((TRUE, motion((0, 0, 0), (1, 0, 0))))]
    both = MatchedPixels(*(np.stack([getattr(one, name) for one in sets]) for name in (
        'u', 'v', 'disparity', 'flow_u', 'flow_v', 'other_disparity')))  # fmt: skip
    found, _ = refine_motions(CAMERA, both, np.stack([TRUE, np.eye(4)]), loose=20.0)
    assert np.abs(found[0] - TRUE).max() < 0.05 and np.abs(found[1] - motion((0, 0, 0), (1, 0, 0))).max() < 0.05
    fixed, _ = refine_motions(CAMERA, both, np.stack([TRUE, np.eye(4)]), loose=20.0, rotation_sigma=1e-6)
    np.testing.assert_allclose(fixed[1][:3, :3], np.eye(3), atol=1e-5)
