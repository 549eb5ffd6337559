# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from textured_planes import STATIC_SCENE, camera_motion, stereo_frame, truth

from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.stereo_matching import (
    MatchingConfig,
    StereoMatcher,
    fill_from_background,
    fit_road,
    is_below_road,
    is_road,
    road_disparity,
    without_road,
)
from zeroflow_ros.errors import ConfigError

NAN = float('nan')


def test_disparity_is_that_of_the_planes():
    frame, true = stereo_frame(STATIC_SCENE), truth(STATIC_SCENE, camera_motion()).disparity
    found = StereoMatcher(MatchingConfig(max_disparity=32)).disparity(frame.left, frame.right)
    known = np.isfinite(found)
    assert known.mean() > 0.75
    error = np.abs(found - true)[known]
    assert np.median(error) < 0.3 and (error > 1).mean() < 0.05  # px


def test_the_columns_that_the_right_image_does_not_show_are_unknown():
    frame = stereo_frame(STATIC_SCENE)
    found = StereoMatcher(MatchingConfig(max_disparity=32)).disparity(frame.left, frame.right)
    assert np.isnan(found[:, :6]).all()  # the wall has 7.3 px of disparity


@pytest.mark.parametrize('brightness', [0, 128, 255])
def test_without_texture_there_is_no_disparity(brightness):
    image = np.full((64, 128), brightness, np.uint8)
    assert np.isnan(StereoMatcher(MatchingConfig(max_disparity=16)).disparity(image, image)).all()


def road_scene():
    """Return a disparity map of a road with a wall on it, and the road."""
    road = np.array([0.01, 0.3, -6.0])
    disparity = np.maximum(road_disparity(road, (80, 160)), 3.0).astype(np.float32)
    disparity[20:60, 60:100] = 12.0
    return disparity, road


def test_the_road_is_found_beside_what_is_on_it():
    disparity, road = road_scene()
    noisy = disparity + np.random.default_rng(0).normal(0, 0.2, disparity.shape).astype(np.float32)
    noisy[::3] = np.nan
    np.testing.assert_allclose(
        road_disparity(fit_road(noisy), (80, 160)), road_disparity(road, (80, 160)), atol=0.15
    )  # px


def test_what_is_below_the_road_and_what_is_on_its_surface():
    disparity, road = road_scene()
    disparity[70, 10:20] -= 4
    below = is_below_road(disparity, road)
    assert below[70, 10:20].all() and below.sum() == 10
    assert is_road(disparity, road)[65:, 100:].all() and not is_road(disparity, road)[20:50, 60:100].any()


@pytest.mark.parametrize(
    'disparity',
    [
        np.full((40, 80), np.nan, np.float32),
        np.full((40, 80), 5.0, np.float32),  # a wall
        np.random.default_rng(0).uniform(1, 30, (40, 80)).astype(np.float32),
    ],
    ids=['empty', 'wall', 'noise'],
)
def test_where_there_is_no_road_none_is_found(disparity):
    assert fit_road(disparity) is None


@pytest.mark.parametrize(
    'rows, expected',
    [
        ([[5.0, 6.0]], [[5.0, 6.0]]),
        ([[NAN, 5.0, NAN, NAN, 3.0, NAN]], [[5.0, 5.0, 3.0, 3.0, 3.0, 3.0]]),
        ([[NAN, NAN], [2.0, NAN], [NAN, NAN], [4.0, 4.0]], [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0], [4.0, 4.0]]),
    ],
)
def test_unknown_pixels_take_the_farther_of_their_neighbours(rows, expected):
    np.testing.assert_array_equal(fill_from_background(np.float32(rows)), np.float32(expected))


def test_an_image_without_disparity_stays_unknown():
    assert np.isnan(fill_from_background(np.full((3, 4), np.nan, np.float32))).all()


def test_filled_pixels_are_not_below_the_road():
    filled = fill_from_background(np.float32([[1.0, NAN, 1.0], [1.0, NAN, 1.0]]), np.array([0.0, 2.0, 0.5]))
    np.testing.assert_array_equal(filled, np.float32([[1.0, 1.0, 1.0], [1.0, 2.5, 1.0]]))


@pytest.mark.parametrize(
    'values', [{'max_disparity': 8}, {'window': 4}, {'small_penalty': 0}, {'small_penalty': 100, 'large_penalty': 50}]
)
def test_settings_that_cannot_be_are_refused(values):
    with pytest.raises(ConfigError, match='matching'):
        MatchingConfig(**values)


def test_the_kernel_takes_the_road_away_as_numpy_does(monkeypatch):
    if numba_support.numba_kernels is None:
        pytest.skip('needs numba')
    rng = np.random.default_rng(0)
    road = np.array([0.01, 0.3, -6.0])
    disparity = (road_disparity(road, (60, 80)) + rng.uniform(-4, 4, (60, 80))).astype(np.float32)
    disparity[::7] = np.nan
    fast = without_road(disparity, road)
    monkeypatch.setattr(numba_support, 'numba_kernels', None)
    for a, b in zip(fast, without_road(disparity, road), strict=True):
        np.testing.assert_array_equal(a, b)
    assert 0.05 < np.isnan(fast[0][1]).mean() < 0.9 and 0.05 < fast[1].mean() < 0.9


@pytest.mark.parametrize('start', [None, np.array([0.0, 0.28, -5.0]), np.array([0.0, 3.0, 0.0])])
def test_the_kernel_fits_the_road_as_numpy_does(start, monkeypatch):
    if numba_support.numba_kernels is None:
        pytest.skip('needs numba')
    rng = np.random.default_rng(0)
    disparity = road_disparity(np.array([0.01, 0.3, -6.0]), (60, 80)).astype(np.float32)
    disparity += rng.normal(0, 0.3, disparity.shape).astype(np.float32)
    disparity[:, 20:45] = 18.0  # a wall
    disparity[::7] = np.nan
    noise = rng.uniform(0, 40, (60, 80)).astype(np.float32)
    fast = fit_road(disparity, start=start), fit_road(noise, start=start)
    monkeypatch.setattr(numba_support, 'numba_kernels', None)
    np.testing.assert_allclose(fast[0], fit_road(disparity, start=start), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(fast[0], [0.01, 0.3, -6.0], rtol=0.05, atol=0.003)
    assert fast[1] is None and fit_road(noise, start=start) is None
