# SPDX-License-Identifier: Apache-2.0
"""Outlier rates of one camera: as published by a constant, by true pixels, and by image."""

import math

import numpy as np
import pytest

from training.datasets.stereo_pairs import StereoTruth
from training.scoring.mono_metrics import PUBLISHED_PIXELS, MonoScores
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow

NAN = np.nan
CAMERA = StereoCamera(4, 1, 100.0, 100.0, 1.5, 0.0, 0.5)


def truth(disparity, known_flow=(True, True, True, True)):
    disparity = np.array([disparity], np.float32)
    flow = np.where(np.array([known_flow])[..., None], np.float32([1, 0]), np.float32(NAN)).astype(np.float32)
    mask = np.zeros(disparity.shape, bool)
    return StereoTruth(disparity, disparity, flow, mask, mask, mask, mask)


def estimate(disparity, other_disparity=(10, 10, 10, 10)):
    disparity, other = (np.array([part], np.float32) for part in (disparity, other_disparity))
    flow, ones = np.tile(np.float32([1, 0]), (1, 4, 1)), np.ones_like(disparity)
    return StereoFlow(disparity, other, flow, ones, ones, ones, np.ones((1, 4), bool))


def test_the_three_ways_of_counting():
    scores = MonoScores()
    # 1 of 4 pixels is wrong in D1, a missing value in D2; flow is known at 3 pixels, where one is wrong in D1.
    scores.add(
        truth([10, 10, 10, 10], (True, True, True, False)), estimate([10, 20, 10, 10], [10, 10, 10, NAN]), CAMERA
    )
    scores.add(truth([10, NAN, NAN, NAN]), estimate([20, 10, 10, 10]), CAMERA)  # 1 of 1
    report = scores.report()
    assert report['pooled_percent'] == {'D1': 40, 'D2': 20, 'Fl': 0, 'SF': 50}
    assert report['per_image_percent'] == pytest.approx({'D1': 62.5, 'D2': 12.5, 'Fl': 0, 'SF': 100 * 2 / 3})
    expected = {'D1': 1 / 91875.68, 'D2': 0.5 / 91875.68, 'Fl': 0, 'SF': 1 / 91873.4}
    assert report['published_percent'] == pytest.approx({name: 100 * value for name, value in expected.items()})
    assert report['images'] == 2 and PUBLISHED_PIXELS['SF'] < PUBLISHED_PIXELS['D1']


def test_depth_errors_are_with_a_baseline_of_54_cm_and_the_estimate_is_clipped():
    scores = MonoScores()
    scores.add(truth([10, NAN, NAN, NAN]), estimate([5, 1, 1, 1]), CAMERA)  # 10.8 m instead of 5.4 m
    scores.add(truth([0.9, NAN, NAN, NAN]), estimate([0.5, 1, 1, 1]), CAMERA)  # 108 m, clipped to 80, instead of 60 m
    report = scores.report()
    assert report['published_abs_rel'] == pytest.approx((1 + 1 / 3) / 2, rel=1e-3)
    assert report['published_sq_rel'] == pytest.approx((5.4 + 20 * 20 / 60) / 2, rel=1e-3)


def test_without_an_image_nothing_is_known():
    report = MonoScores().report()
    assert report['images'] == 0 and math.isnan(report['published_abs_rel'])
    assert all(math.isnan(rate) for rate in report['pooled_percent'].values())


def test_relative_errors_are_the_sigmas_of_a_model_card():
    scores = MonoScores()
    # All depths are 10 % too far, at both times: the motion along z is 10 % too long, and there is none.
    scores.add(truth([10, 10, 10, 10]), estimate([10 / 1.1] * 4, [10 / 1.1] * 4), CAMERA)
    found = scores.report()['relative_sigma']
    assert found['depth'] == pytest.approx(0.1 * 1.4826, rel=1e-4)
    # True motion along x is 1 px, depth / fx; estimated a tenth longer: 0.001 of the depth on one axis of three.
    assert found['motion'] == pytest.approx(0, abs=1e-6)
