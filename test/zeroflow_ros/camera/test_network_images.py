# SPDX-License-Identifier: Apache-2.0
"""Images of a camera become those of a network, and its pixels become those of the camera."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip('cv2', reason='camera images need OpenCV')

from zeroflow_ros.camera.network_images import NetworkImages
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame
from zeroflow_ros.errors import ModelError

CAMERA = StereoCamera(12, 6, 10.0, 10.0, 5.5, 2.5, 0.5)


def frame(camera=CAMERA, channels=3):
    rng = np.random.default_rng(0)
    size = (camera.height, camera.width, channels) if channels == 3 else (camera.height, camera.width)
    return StereoFrame(*rng.integers(0, 256, (2, *size), np.uint8), camera)


def test_the_same_size_changes_nothing():
    given, network = frame(), NetworkImages(12, 6)
    assert np.array_equal(network.images(given), [given.left, given.right])
    values = np.zeros((6, 12), np.float32)
    assert network.to_camera(network.of_camera(values, CAMERA), CAMERA) is values and network.pixel_size(CAMERA) == (
        1,
        1,
    )
    assert network.camera(CAMERA) == CAMERA


def test_half_the_size_is_the_mean_of_four_pixels():
    given, network = frame(), NetworkImages(6, 3)
    mean = given.left.reshape(3, 2, 6, 2, 3).mean(axis=(1, 3))
    assert np.abs(network.images(given)[0] - mean).max() <= 0.5  # rounding
    assert network.camera(CAMERA) == CAMERA.scaled(6, 3) and network.pixel_size(CAMERA) == (2, 2)
    assert (network.to_camera(np.ones((3, 6), np.float32), CAMERA) == np.ones((6, 12))).all()
    is_left = np.arange(6) < np.full((3, 1), 3)
    assert np.array_equal(network.to_camera(is_left, CAMERA), np.arange(12) < np.full((6, 1), 6))


@pytest.mark.parametrize('step', [2, 3])
@pytest.mark.parametrize('size', [(6, 3), (5, 4), (12, 6)])
def test_every_nth_pixel_is_that_of_all_pixels(size, step):
    network, rng = NetworkImages(*size), np.random.default_rng(0)
    values = rng.uniform(0, 10, size[::-1]).astype(np.float32)
    whole = network.to_camera(values, CAMERA)[::step, ::step]
    np.testing.assert_allclose(network.to_camera(values, CAMERA, step), whole, atol=0.2)  # px: 1/32 px of position
    mask = values > 5
    np.testing.assert_array_equal(
        network.to_camera(mask, CAMERA, step), network.to_camera(mask, CAMERA)[::step, ::step]
    )


def test_grey_images_become_rgb():
    images = NetworkImages(12, 6).images(frame(channels=1))
    assert images.shape == (2, 6, 12, 3) and (images == images[..., :1]).all()


def test_a_colour_image_beside_a_grey_one_becomes_grey():
    given = frame()
    grey = np.full((6, 12), 7, np.uint8)
    images = NetworkImages(12, 6).images(StereoFrame(given.left, grey, CAMERA))
    brightness = given.left @ [0.299, 0.587, 0.114]  # BT.601
    assert np.abs(images[0] - brightness[..., None]).max() < 1 and (images[1] == 7).all()


def test_padding_mirrors_and_keeps_the_pixels():
    given, network = frame(), NetworkImages(16, 9, 'pad')
    images = network.images(given)
    assert np.array_equal(images[0, 1:7, 2:14], given.left)  # the odd row goes to the bottom
    assert np.array_equal(images[0, 1:7, 1], given.left[:, 1]) and np.array_equal(images[0, 7, 2:14], given.left[4])
    values = np.arange(9 * 16, dtype=np.float32).reshape(9, 16)
    assert np.array_equal(network.to_camera(network.of_camera(values, CAMERA), CAMERA), values[1:7, 2:14])
    assert np.array_equal(
        NetworkImages(16, 9, 'pad').images(frame(channels=1))[0, 1:7, 2:14, 0], frame(channels=1).left
    )
    assert network.pixel_size(CAMERA) == (1, 1)
    padded = network.camera(CAMERA)
    assert (padded.width, padded.height, padded.cx, padded.cy, padded.fx) == (16, 9, 7.5, 3.5, 10)


def test_images_larger_than_those_of_a_padding_network_are_refused():
    with pytest.raises(ModelError, match='12 x 6 px, and the model takes at most 8 x 8'):
        NetworkImages(8, 8, 'pad').images(frame())


def test_disparity_of_infinitely_far_points_becomes_zero():
    """The right camera's principal point is 3 px to the left: points infinitely far away have a disparity of 3 px."""
    camera = dataclasses.replace(CAMERA, right_cx=2.5)
    left = frame().left
    right = np.roll(left, -3, axis=1)
    images = NetworkImages(12, 6).images(StereoFrame(left, right, camera))
    assert np.array_equal(images[1][:, 3:], left[:, 3:])
    assert NetworkImages(12, 6).camera(camera).disparity_at_infinity == 0
