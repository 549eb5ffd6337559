# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from training.teachers.semi_global_matching import SemiGlobalConfig, census, is_blank, match
from zeroflow_ros.errors import ConfigError

CONFIG = SemiGlobalConfig(max_disparity=32, speckle=20)


def noise(height=60, width=120):
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


def shifted(image, disparity):
    """Return the right image of a surface at one disparity; new texture enters on its right."""
    right = np.roll(image, -disparity, axis=1)
    right[:, -disparity:] = np.random.default_rng(1).integers(0, 256, (len(image), disparity))
    return right


def test_disparity_of_two_surfaces_and_what_the_right_image_does_not_show():
    far = noise()
    left, right = far.copy(), shifted(far, 5)
    near = np.random.default_rng(2).integers(0, 256, (24, 40), dtype=np.uint8)
    left[20:44, 60:100], right[20:44, 45:85] = near, near
    disparity, right_disparity = match(left, right, CONFIG)
    assert disparity.dtype == right_disparity.dtype == np.float32
    np.testing.assert_allclose(np.nanmedian(disparity[22:42, 64:96]), 15, atol=0.3)
    np.testing.assert_allclose(np.nanmedian(disparity[48:, 20:]), 5, atol=0.3)
    assert np.median(right_disparity[22:42, 49:81]) == 15
    known = np.isfinite(disparity)
    assert known[48:, 8:].mean() > 0.95
    assert known[22:42, 52:58].mean() < 0.2  # hidden behind the near surface
    assert not known[:, :4].any()  # left of the right image


def test_parts_of_a_pixel_are_found():
    fine = np.kron(noise(40, 120), np.ones((1, 4)))
    fine = (fine + np.roll(fine, 1, 1) + np.roll(fine, 2, 1) + np.roll(fine, 3, 1) + np.roll(fine, 4, 1)) / 5
    left, right = (fine[:, start::4].astype(np.uint8) for start in (0, 26))  # 6.5 px
    disparity, _ = match(left[:, :110], right[:, :110], CONFIG)
    assert abs(np.nanmean(disparity[:, 10:]) - 6.5) < 0.2  # px; the equal slopes are an approximation


@pytest.mark.parametrize('value', [0, 128, 255])
def test_a_black_overexposed_or_uniform_window_has_no_disparity(value):
    image = noise()
    image[20:50, 30:80] = value
    disparity, _ = match(image, shifted(image, 4), CONFIG)
    assert is_blank(image, CONFIG.flat)[25:45, 36:74].all() and not np.isfinite(disparity[25:45, 36:74]).any()


def test_bits_of_the_census():
    image = np.full((9, 11), 100, np.uint8)
    image[4, 4] = 90  # left of the centre: the 31st of 62 neighbours, the last but 31
    assert census(image)[4, 5] == 1 << 31


@pytest.mark.parametrize('wrong', [
    {'max_disparity': 4}, {'small_penalty': 0}, {'small_penalty': 60, 'large_penalty': 50}, {'large_penalty': 240},
    {'grey_step': 0},
])  # fmt: skip
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=r'semi-global matching'):
        SemiGlobalConfig(**wrong)
