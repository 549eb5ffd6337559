# SPDX-License-Identifier: Apache-2.0
"""Samples of stereo pairs: images, scene flow and ego motion change together."""

import dataclasses

import numpy as np
import pytest
from stereo_world import CAMERA, PLAIN, TINY, StereoWorld

torch = pytest.importorskip('torch', reason='training needs torch')
pytest.importorskip('cv2', reason='camera images need OpenCV')

from training.learning.stereo_samples import StereoSamples, collate_stereo, network_target  # noqa: E402
from training.learning.stereo_sources import DatasetSource  # noqa: E402
from training.students import build_student  # noqa: E402
from zeroflow_ros.camera.network_images import NetworkImages  # noqa: E402
from zeroflow_ros.camera.static_scene import UNKNOWN_MOTION  # noqa: E402
from zeroflow_ros.errors import ConfigError, DataError  # noqa: E402


@pytest.fixture(scope='module')
def student():
    with torch.device('meta'):
        return build_student('stereo_lite')


def samples(student, dataset=None, **changes):
    augmentation = dataclasses.replace(PLAIN, **changes.pop('augmentation', {}))
    config = dataclasses.replace(TINY, augmentation=augmentation, **changes)
    dataset = dataset or StereoWorld()
    return StereoSamples(config, DatasetSource(dataset, range(len(dataset))), student)


def assert_images_agree(sample, tolerance):
    """Pixels of the first left image are found where the scene flow says, within a grey value tolerance of 1."""
    disparity, other, u, v = np.round(sample.target[16, 32]).astype(int)
    left0, right0, left1, right1 = sample.images
    y, x = np.mgrid[10:20, 25:40]
    for image, dx, dy in ((right0, -disparity, 0), (left1, u, v), (right1, u - other, v)):
        assert np.abs(left0[y, x] - image[y + dy, x + dx]).mean() < tolerance


def test_a_crop_keeps_the_scene_flow(student):
    sample = samples(student)[0, 0]
    assert sample.images.shape == (4, 32, 64, 3) and sample.images.dtype == np.float32
    assert sample.target.shape == (32, 64, 4) and sample.ego_motion.shape == (3, 4)
    assert_images_agree(sample, 1e-6)


def test_zoom_multiplies_the_scene_flow_and_the_camera(student):
    sample = samples(student, augmentation={'zoom': 1.0, 'max_zoom': 2.0})[0, 0]
    zoom = sample.target[0, 0, 2] / 2
    assert 1 < zoom <= 2
    index = sample.target[0, 0, 0] / zoom - 4
    np.testing.assert_allclose(sample.target[0, 0], np.array([4 + index, 6 + index, 2, -1]) * zoom, rtol=0.05)
    np.testing.assert_allclose(sample.ego_motion, UNKNOWN_MOTION, atol=1e-5)  # the camera does not move


def test_every_pair_comes_once_per_pass_and_samples_depend_on_their_number_only(student):
    first, again = samples(student), samples(student)
    seen = [first[step, i].target[0, 0, 0] for step in range(2) for i in range(2)]
    assert sorted(seen) == [4, 5, 6, 7]
    np.testing.assert_array_equal(first[1, 1].images, again[1, 1].images)
    assert not np.array_equal(first[0, 0].images, first[2, 0].images)


def test_ego_motion_is_left_out_as_often_as_configured(student):
    known = samples(student, augmentation={'ego_translation': 0.1})
    assert not np.array_equal(known[0, 0].ego_motion, UNKNOWN_MOTION)
    unknown = samples(student, augmentation={'ego_translation': 0.1, 'no_ego_motion': 1.0})
    assert np.array_equal(unknown[0, 0].ego_motion, UNKNOWN_MOTION)


def test_colours_change_the_images_alike_or_each_by_itself(student):
    shared = samples(student, augmentation={'colour': 1.0})[0, 0]
    assert_images_agree(shared, 1e-6)
    apart = samples(student, augmentation={'colour': 1.0, 'colour_shared': False})[0, 0]
    with pytest.raises(AssertionError):
        assert_images_agree(apart, 1e-6)
    assert apart.images.min() >= 0 and apart.images.max() <= 1


def test_grey_images_have_equal_channels(student):
    images = samples(student, augmentation={'grey': 1.0})[0, 0].images
    assert (images == images[..., :1]).all() and images.std() > 0.05


def test_only_the_right_images_are_shifted(student):
    plain, shifted = samples(student)[0, 0], samples(student, augmentation={'right_shift': 2.0})[0, 0]
    same = [np.array_equal(one, other) for one, other in zip(plain.images, shifted.images, strict=True)]
    assert same == [True, False, True, False]


def test_targets_of_padded_images_are_unknown_in_the_borders():
    values = np.full((48, 96, 4), 3, np.float32)
    padded = network_target(values, CAMERA, NetworkImages(128, 64, 'pad'))
    assert (padded[8:56, 16:112] == 3).all() and np.isnan(padded).sum() == 4 * (128 * 64 - 96 * 48)


def test_targets_of_scaled_images_are_in_their_pixels():
    values = np.full((48, 96, 4), 4, np.float32)
    values[:, :48, 0] = np.nan
    scaled = network_target(values, CAMERA, NetworkImages(48, 12, 'scale'))
    assert scaled.shape == (12, 48, 4) and np.isnan(scaled[:, :24, 0]).all()
    assert (scaled[:, 24:] == [2, 2, 2, 1]).all()


def test_a_batch_holds_the_four_images_apart(student):
    batch = collate_stereo([samples(student)[0, i] for i in range(2)])
    assert [tuple(part.shape) for part in batch.images] == [(2, 3, 32, 64)] * 4
    assert batch.target.shape == (2, 4, 32, 64) and batch.ego_motion.shape == (2, 3, 4)
    assert torch.equal(batch.images[1][0], torch.from_numpy(samples(student)[0, 0].images[1]).permute(2, 0, 1))


def test_batches_continue_where_a_training_stopped(student):
    wanted = samples(student, accumulate=2)
    batches = wanted.batches(5)
    assert [next(batches) for _ in range(3)] == [[(5, 0)], [(5, 1)], [(6, 0)]]
    assert next(wanted.batches(0, rank=0, world=1)) == [(0, 0)]
    with pytest.raises(ConfigError, match='does not divide among 3 processes'):
        wanted.batches(0, world=3)


def test_crops_that_do_not_fit_the_student_or_have_no_labels_are_refused(student):
    with pytest.raises(ConfigError, match='multiples of 16 px, not 60 x 32'):
        samples(student, crop_width=60)

    class Unlabelled(StereoWorld):
        def truth(self, index):
            known = super().truth(index)
            nothing, unknown = np.full_like(known.disparity, np.nan), np.zeros((48, 96), bool)
            flow = np.full_like(known.flow, np.nan)
            return dataclasses.replace(
                known, disparity=nothing, other_disparity=nothing, flow=flow, is_disparity_noc=unknown,
                is_other_disparity_noc=unknown, is_flow_noc=unknown,
            )  # fmt: skip

    with pytest.raises(DataError, match='fewer than 100 labels'):
        samples(student, Unlabelled())[0, 0]
