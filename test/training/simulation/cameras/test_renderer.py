# SPDX-License-Identifier: Apache-2.0
"""From light to pixels. What the renderer draws is tested with the drive."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('embreex', reason='ray casting needs embreex: pip install embreex')
pytest.importorskip('cv2', reason='images need OpenCV')

from training.simulation.cameras.renderer import develop, exposure_of
from training.simulation.cameras.stereo_rig import CameraFaults

PERFECT = CameraFaults.none()


def image(light, faults=PERFECT, side=0, exposure=1.0):
    return develop(np.asarray(light, np.float32), exposure, faults, side, np.random.default_rng(0))


def test_more_light_is_brighter_up_to_white():
    levels = np.linspace(0, 1.5, 64, dtype=np.float32)
    row = image(np.repeat(levels[None, :, None], 3, axis=2))[0, :, 0].astype(int)
    assert row[0] == 0 and row[-1] == 255 and (np.diff(row) >= 0).all() and (row[levels >= 1] == 255).all()


def test_exposure_brings_any_light_to_the_same_brightness():
    light = np.random.default_rng(1).gamma(2, 1, (60, 80, 3)).astype(np.float32)
    first, second = (image(light * k, exposure=exposure_of(light * k, PERFECT)) for k in (1, 37))
    # One grey level: rounding
    assert np.abs(first.astype(int) - second).max() <= 1 and 60 < first.mean() < 190


def test_corners_are_darker_by_vignetting():
    flat = np.full((60, 200, 3), 0.5)
    found = image(flat, replace(PERFECT, vignetting=0.3)).astype(int)
    assert found[30, 100, 0] == image(flat)[30, 100, 0] and found[0, 0, 0] < found[30, 100, 0] - 15


def test_noise_grows_with_the_light_and_blur_smooths():
    faults = replace(PERFECT, read_noise=0.001, shot_noise=0.02, gamma=1.0)
    dark, bright = (image(np.full((80, 80, 3), level), faults).std() for level in (0.1, 0.9))
    assert 0 < dark < bright
    edge = np.zeros((40, 1242, 3))
    edge[:, 600:] = 0.8
    steps = [np.abs(np.diff(image(edge, replace(PERFECT, blur=b))[20, :, 0].astype(int))).max() for b in (0, 0.7)]
    assert steps[1] < 0.7 * steps[0]


def test_cameras_differ_by_their_gains():
    faults = replace(PERFECT, gains=np.array([[1, 1, 1], [0.9, 1, 1.1]]))
    left, right = (image(np.full((8, 8, 3), 0.4), faults, side)[0, 0].astype(int) for side in (0, 1))
    assert right[0] < left[0] and right[1] == left[1] and right[2] > left[2]
