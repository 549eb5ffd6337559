# SPDX-License-Identifier: Apache-2.0
"""Items of stereo datasets check themselves."""

from dataclasses import replace

import numpy as np
import pytest

from training.datasets.stereo_pairs import StereoDatasetPair, StereoTruth
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame

NAN = np.nan
KNOWN = np.array([[True, True, False]])
TRUTH = StereoTruth(
    disparity=np.array([[5, 6, NAN]], np.float32),
    other_disparity=np.array([[5, NAN, NAN]], np.float32),
    flow=np.array([[[1, 2], [NAN, NAN], [3, 4]]], np.float32),
    is_disparity_noc=KNOWN,
    is_other_disparity_noc=np.array([[True, False, False]]),
    is_flow_noc=np.array([[False, False, True]]),
    is_foreground=KNOWN,
)


def frame(width: int) -> StereoFrame:
    image = np.zeros((1, width), np.uint8)
    return StereoFrame(image, image, StereoCamera(width, 1, 1.0, 1.0, 0.0, 0.0, 1.0))


def test_known_values_are_those_that_are_finite():
    assert TRUTH.has_disparity.tolist() == [[True, True, False]]
    assert TRUTH.has_other_disparity.tolist() == [[True, False, False]]
    assert TRUTH.has_flow.tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    'name, value, text',
    [
        ('flow', np.zeros((1, 3), np.float32), r'flow must be \(1, 3, 2\) float32'),
        ('other_disparity', np.zeros((1, 3)), 'other_disparity must be .* float32, got .* float64'),
        ('is_foreground', np.zeros((1, 2), bool), 'is_foreground must be'),
        ('is_moving', np.zeros((1, 3), np.uint8), 'is_moving must be .* bool'),
        ('flow', np.array([[[1, NAN], [1, 1], [1, 1]]], np.float32), 'both components or none'),
        ('is_flow_noc', np.ones((1, 3), bool), 'is_flow_noc marks pixels whose flow is not known'),
    ],
)
def test_wrong_truth_is_refused(name, value, text):
    with pytest.raises(ValueError, match=text):
        replace(TRUTH, **{name: value})


@pytest.mark.parametrize(
    'change, text',
    [
        ({'other': frame(4)}, r'same size, got \(1, 3\) and \(1, 4\)'),
        ({'other_T_reference': np.eye(3)}, r'must be \(4, 4\)'),
        ({'dt': 0.0}, 'finite and not 0'),
        ({'dt': NAN}, 'finite and not 0'),
        ({'reference': frame(2), 'other': frame(2), 'truth': TRUTH}, r'\(1, 2\) have ground truth of \(1, 3\)'),
    ],
)
def test_wrong_pairs_are_refused(change, text):
    pair = StereoDatasetPair('000000_10', frame(3), frame(3), None, 0.1, TRUTH)
    with pytest.raises(ValueError, match=text):
        replace(pair, **change)
