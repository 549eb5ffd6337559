# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip('cv2', reason='needs OpenCV')

import cv2

from training.scoring.stereo_estimators import build_stereo_estimator
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame

CAMERA = StereoCamera(320, 96, 200.0, 200.0, 160.0, 48.0, 0.5)


def frame(disparity, shift):
    """Return a frame of a textured plane, whose left image is moved to the right by `shift` px."""
    pattern = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, (96, 420)).astype(np.float32), (0, 0), 1.5)
    pattern = np.clip(128 + 160 * pattern, 0, 255).astype(np.uint8)
    left, right = (pattern[:, 40 - x : 360 - x] for x in (shift, shift - disparity))
    return StereoFrame(np.ascontiguousarray(left), np.ascontiguousarray(right), CAMERA)


def test_a_plane_that_comes_nearer_has_its_disparities_and_flow():
    estimate = build_stereo_estimator('opencv').estimate(frame(8, 0), frame(10, 3))
    inner = np.s_[20:-20, 60:-40]
    # 0.5 px: both methods find whole pixels of a random pattern better than that.
    assert np.nanmedian(np.abs(estimate.disparity[inner] - 8)) < 0.5 and estimate.is_measured[inner].mean() > 0.9
    assert np.median(np.abs(estimate.other_disparity[inner] - 10)) < 0.5
    assert np.median(np.abs(estimate.flow[inner] - [3, 0])) < 0.5


def test_colour_gives_what_grey_gives():
    grey, other = frame(8, 0), frame(8, 1)
    colour = [StereoFrame(*(np.repeat(i[..., None], 3, 2) for i in (f.left, f.right)), CAMERA) for f in (grey, other)]
    estimator = build_stereo_estimator('opencv')
    np.testing.assert_array_equal(estimator.estimate(*colour).flow, estimator.estimate(grey, other).flow)
