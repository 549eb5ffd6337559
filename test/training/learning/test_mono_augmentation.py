# SPDX-License-Identifier: Apache-2.0
"""Cuts of images of one camera, and what their configuration refuses."""

import numpy as np
import pytest

pytest.importorskip('cv2', reason='camera images need OpenCV')

from training.learning.mono_augmentation import MonoAugmentation
from zeroflow_ros.errors import ConfigError


@pytest.mark.parametrize('size', [(1242, 375), (621, 188), (1224, 370), (33, 1000)])
def test_a_cut_lies_inside_the_image_and_is_as_large_as_it_should_be(size):
    augmentation, rng = MonoAugmentation(), np.random.default_rng(0)
    whole = [min(side, crop) for side, crop in zip(size, (1224, 370), strict=True)]
    for _ in range(200):
        left, top, width, height = augmentation.draw_crop(*size, rng)
        assert left >= 0 and top >= 0 and left + width <= size[0] + 1e-9 and top + height <= size[1] + 1e-9
        assert 0.93 * whole[0] <= width <= whole[0] and width / whole[0] == pytest.approx(height / whole[1])


def test_without_augmentation_a_cut_is_the_image():
    none = MonoAugmentation(crop_width=0, crop_height=0, min_scale=1.0)
    assert none.draw_crop(640, 480, np.random.default_rng(0)) == (0, 0, 640, 480)


def test_all_images_of_a_window_change_alike():
    images = np.full((6, 2, 2, 3), 0.4, np.float32)
    changed = MonoAugmentation(colour=1.0).images(images, np.random.default_rng(1))
    assert np.ptp(changed, axis=0).max() == 0 and abs(float(changed[0, 0, 0, 0]) - 0.4) > 0.01


def test_each_image_of_a_window_turns_by_itself():
    rng = np.random.default_rng(0)
    assert MonoAugmentation().draw_rotations(4, rng) is None
    found = MonoAugmentation(rotation=0.5).draw_rotations(200, rng)
    np.testing.assert_allclose(found @ found.transpose(0, 2, 1), np.broadcast_to(np.eye(3), found.shape), atol=1e-9)
    yaw = np.degrees(np.arctan2(found[:, 0, 2], found[:, 2, 2]))
    assert 0.4 < yaw.std() < 0.6  # degrees


@pytest.mark.parametrize(
    'wrong',
    [{'min_scale': 0}, {'flip': 2}, {'max_shift': -1}, {'crop_width': -1}, {'reverse': 1.5}, {'right_eye': -0.1},
     {'rotation': 90}],
)  # fmt: skip
def test_wrong_strengths_are_errors(wrong):
    with pytest.raises(ConfigError):
        MonoAugmentation(**wrong)
