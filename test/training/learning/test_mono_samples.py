# SPDX-License-Identifier: Apache-2.0
"""Samples of students of one camera: geometry of cuts and flips, labels, order."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')
cv2 = pytest.importorskip('cv2', reason='camera images need OpenCV')

from mono_world import CAMERA, HEIGHT, PLAIN, STEP, TINY, WIDTH, MonoWorld  # noqa: E402

from training.learning.mono_augmentation import MonoAugmentation  # noqa: E402
from training.learning.mono_samples import MonoSamples, collate_mono, cut, flipped, turned  # noqa: E402
from training.learning.mono_sources import window_source  # noqa: E402
from training.students import build_student  # noqa: E402
from zeroflow_ros.errors import ConfigError, DataError  # noqa: E402

LIDAR = dataclasses.replace(TINY, strategy='mono_from_lidar')


@pytest.fixture(scope='module')
def student():
    return build_student('mono_lite')


def samples(config, student, *datasets):
    return MonoSamples(config, window_source(datasets or [MonoWorld(10)], config), student)


def at(image, pixels):
    """Return an image (H, W, 3) at pixels (N, 2), bilinear."""
    return cv2.remap(image, *pixels.astype(np.float32).T[..., None], cv2.INTER_LINEAR)[:, 0]


def test_a_sample_is_the_same_whenever_it_is_read(student):
    config = dataclasses.replace(TINY, augmentation=MonoAugmentation(crop_width=60, crop_height=60, noise=0.1))
    one, other = (samples(config, student)[3, 0] for _ in range(2))
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(one.left, samples(config, student)[4, 0].left)


@pytest.mark.parametrize(
    'more',
    [{'flip': 0.5}, {'flip': 0, 'reverse': 0.5}, {'flip': 0, 'right_eye': 1}, {'flip': 0.5, 'rotation': 1.0}],
    ids=lambda more: list(more)[-1],
)
def test_labels_follow_the_images(student, more):
    """The pixel of a label shows the same texture in all images, whatever the cut, the flip, the size and the turn."""
    wild = MonoAugmentation(crop_width=60, crop_height=62, min_scale=0.9, colour=0, **more)
    config = dataclasses.replace(LIDAR, self_supervised=0.0, augmentation=wild)
    source, flips = samples(config, student), []
    for step in range(6):
        sample = source[step, 0]
        assert sample.left.shape == (4, HEIGHT, WIDTH, 3) and len(sample.right) == 0
        flips.append(sample.labels[0, 0, 0, 4] < 0)
        for image, direction in ((0, 0), (0, 1), (1, 0), (1, 1)):
            labels = sample.labels[image, direction]
            labels = labels[np.isfinite(labels).all(axis=1)]
            assert 50 < len(labels) <= 200
            here, there = sample.left[1 + image], sample.left[1 + image + (1, -1)[direction]]
            target = labels[:, :2] + labels[:, 4:]
            inside = ((target >= 0) & (target <= (WIDTH - 1, HEIGHT - 1))).all(axis=1) & (labels[:, 0] > 8)
            inside &= labels[:, 0] < WIDTH - 9  # the texture wraps around at the borders
            difference = np.abs(at(here, labels[inside, :2]) - at(there, target[inside]))
            assert difference.mean() < 0.03
    assert len(set(flips)) == (2 if 0.5 in more.values() else 1)


def test_disparities_follow_the_eyes(student):
    config = dataclasses.replace(LIDAR, self_supervised=1.0)
    sample = samples(config, student)[0, 0]
    labels = sample.labels[0, 0]
    inside = (labels[:, 0] > 12) & (labels[:, 0] < WIDTH - 12)
    right = labels[inside, :2] - labels[inside, 2:3] * [1, 0]
    assert np.abs(at(sample.left[1], labels[inside, :2]) - at(sample.right[1], right)).max() < 1e-5


def test_intrinsics_follow_the_cut(student):
    """A point of the scene has the same texture before and after."""
    wild = dataclasses.replace(PLAIN, crop_width=50, crop_height=56, min_scale=0.9)
    sample = samples(dataclasses.replace(LIDAR, augmentation=wild), student)[0, 0]
    labels, k = sample.labels[0, 0].astype(np.float64), sample.intrinsics.astype(np.float64)
    depth = k[0, 0] * CAMERA.baseline / labels[:, 2]
    points = np.stack([*((labels[:, i] - k[i, 2]) / k[i, i] * depth for i in (0, 1)), depth], axis=1)
    pixels, disparities = CAMERA.project(points)
    np.testing.assert_allclose(disparities, 4, atol=1e-3)
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=2e-3)  # labels are at whole pixels of the camera
    np.testing.assert_allclose(sample.pixel_size, [CAMERA.fx / k[0, 0], CAMERA.fy / k[1, 1]], rtol=1e-6)


def test_a_cut_has_the_pixels_of_the_image_at_any_size():
    image = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    assert np.array_equal(cut(image, CAMERA, (0, 0, WIDTH, HEIGHT), WIDTH, HEIGHT), image)
    assert np.array_equal(cut(image, CAMERA, (8, 4, 32, 16), 32, 16)[0], image[0, 4:20, 8:40])


def test_a_mirror_swaps_the_eyes():
    left, right = np.zeros((2, 3, 4, 3)), np.ones((2, 3, 4, 3))
    intrinsics, labels = np.float32([[5, 0, 1], [0, 5, 1], [0, 0, 1]]), np.float32([[[[1, 2, 3, 4, 5, 6]]]])
    new_left, new_right, new_intrinsics, new_labels = flipped(left, right, intrinsics, labels)
    assert new_left.all() and not new_right.any() and new_intrinsics[0, 2] == 3
    assert new_labels.ravel().tolist() == [2, 2, 3, 4, -5, 6]
    assert not flipped(left, right[:0], intrinsics, labels)[0].any()


def test_labels_of_the_other_frame():
    rows = np.float32([[10, 20, 4, 5, 2, -1], [1, 2, 3, np.nan, np.nan, np.nan]])
    assert turned(rows).tolist() == [[12, 19, 5, 4, -2, 1]]
    np.testing.assert_array_equal(turned(turned(rows)), rows[:1])
    assert turned(None) is None


def test_labels_of_both_directions_are_used(student):
    world = MonoWorld(6, latest=True)
    sample = samples(LIDAR, student, MonoWorld(6), world)[0, 0]
    assert (sample.labels[:, 0, :, 4] == STEP).all() and (sample.labels[:, 1, :, 4] == -STEP).all()
    assert np.rint(sample.labels[..., :2]).tolist() == sample.labels[..., :2].tolist()


def test_fine_tuning_takes_turns(student):
    config = dataclasses.replace(TINY, strategy='mono_finetuning')
    raw = MonoWorld(8, with_truth=False, name='raw')
    found = samples(config, student, MonoWorld(6), raw)
    assert [bool(np.isfinite(found[step, 0].labels).any()) for step in range(6)] == [True, False] * 3


def test_batches_have_all_samples(student):
    source = samples(dataclasses.replace(LIDAR, batch=2, labels=0), student)
    batch = collate_mono([source[0, 0], source[0, 1]])
    assert batch.left.shape == (2, 4, 3, HEIGHT, WIDTH) and batch.right.shape == (2, 0, 3, HEIGHT, WIDTH)
    assert batch.labels.shape == (2, 2, 2, HEIGHT * WIDTH * 3 // 4, 6)
    assert batch.baseline.tolist() == [0.5, 0.5] and batch.intrinsics.shape == (2, 3, 3)


def test_what_cannot_be_trained_on_is_an_error(student):
    with pytest.raises(DataError, match='has no labels to learn'):
        samples(LIDAR, student, MonoWorld(8, with_truth=False))
    with pytest.raises(ConfigError, match='multiples of 32 px, not 80 x 64'):
        samples(dataclasses.replace(TINY, width=80), student)


def test_a_source_says_what_it_has():
    config = dataclasses.replace(TINY, held_out=0.2, excluded_frames=(3.0,))
    about = window_source([MonoWorld(14)], config).about
    assert about['data'].startswith('2 windows of 4 stereo frames of mono_world') and '3' in about['data'][-3:]
