# SPDX-License-Identifier: Apache-2.0
"""Pictures of stereo pairs: colours by hand, one panel per kind, with and without truth."""

from dataclasses import replace

import numpy as np
import pytest

from training.datasets.stereo_pairs import StereoBox, StereoDatasetPair, StereoTruth
from training.scoring.stereo_picture import draw_stereo, error_ratio, flow_colors
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow, StereoFrame

NAN = np.nan
SIZE = 12, 32
KNOWN = np.ones(SIZE, bool)
DISPARITY, FLOW = np.full(SIZE, 10, np.float32), np.full((*SIZE, 2), 4, np.float32)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
FRAME = StereoFrame(IMAGE, IMAGE, StereoCamera(32, 12, 30.0, 30.0, 16.0, 6.0, 0.5))
TRUTH = StereoTruth(DISPARITY, DISPARITY, FLOW, KNOWN, KNOWN, KNOWN, ~KNOWN)
ITEM = StereoDatasetPair('000000_10', FRAME, FRAME, np.eye(4), 0.1, TRUTH)
SIGMA = np.ones(SIZE, np.float32)
FOUND = StereoFlow(DISPARITY, DISPARITY, FLOW, SIGMA, SIGMA, SIGMA, KNOWN)


def test_flow_is_white_at_rest_red_to_the_right_and_black_where_unknown():
    flow = np.array([[[0, 0], [2, 0], [-9, 0], [NAN, 0]]], np.float32)
    np.testing.assert_allclose(flow_colors(flow, 2.0)[0], [[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0]], atol=1e-9)


def test_an_error_is_measured_by_the_limits_of_an_outlier():
    disparity, flow = DISPARITY.copy(), FLOW.copy()
    disparity[0, :4] = 13, 16, NAN, 10
    flow[1, 0] += (3, 4)
    truth = replace(TRUTH, disparity=np.where(np.arange(32) == 9, NAN, DISPARITY).astype(np.float32),
                    is_disparity_noc=np.zeros(SIZE, bool))  # fmt: skip
    ratio = error_ratio(replace(ITEM, truth=truth), replace(FOUND, disparity=disparity, flow=flow))
    assert ratio[0, 0] == 1 and ratio[0, 1] == 2 and ratio[0, 2] == 0  # the gap is filled by the smaller, 10
    assert ratio[1, 0] == pytest.approx(5 / 3) and np.isnan(ratio[0, 9]) and ratio[5, 5] == 0
    # 3.5 px of 100 are less than 5 %.
    large = replace(ITEM, truth=replace(TRUTH, disparity=DISPARITY * 10))
    assert error_ratio(large, replace(FOUND, disparity=DISPARITY * 10 + 3.5))[0, 0] == pytest.approx(0.7)


@pytest.mark.parametrize('truth, ego', [(TRUTH, np.eye(4)), (None, np.eye(4)), (None, None)])
def test_a_picture_has_one_row_for_each_estimate(tmp_path, truth, ego):
    import matplotlib.image

    item = replace(ITEM, truth=truth, other_T_reference=ego)
    wrong = replace(FOUND, flow=FLOW + 9, disparity=np.full(SIZE, NAN, np.float32))
    sizes = []
    for estimates in ({'one': FOUND}, {'one': FOUND, 'two': wrong}):
        draw_stereo(item, estimates, tmp_path / 'new' / 'pair.png', title='pair')
        picture = matplotlib.image.imread(tmp_path / 'new' / 'pair.png')
        sizes.append(picture.shape[0])
    assert picture.shape[1] == 2016 and 1.3 < sizes[1] / sizes[0] < 1.6
    left = picture[60:200, 20:480, :3].reshape(-1, 3)
    assert left.std(0).min() > 0.1  # the left image
    second = picture[-100:-20, 20:480, :3]
    assert second.max() < 0.01  # no depth at all


def test_boxes_are_drawn_into_the_left_image(tmp_path):
    import matplotlib.image

    ahead = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 6], [0, 0, 0, 1]], float)
    behind = ahead.copy()
    behind[2, 3] = -6
    yellow = []
    for poses in ((), (behind,), (ahead, behind)):
        boxes = tuple(StereoBox('Car', np.array([1.0, 1.0, 1.0]), pose, pose) for pose in poses)
        item = replace(ITEM, truth=None, boxes=boxes)
        draw_stereo(item, {'one': FOUND}, tmp_path / 'pair.png', title='pair')
        picture = matplotlib.image.imread(tmp_path / 'pair.png')[:240, :504]
        yellow.append(np.abs(picture[..., :3] - [1, 212 / 255, 0]).max(-1) < 0.01)
    assert [found.sum() > 50 for found in yellow] == [False, False, True]
    # 1 m at 5.5 m and 30 px of focal length are 5.5 of 32 px, in the middle of the panel.
    columns = np.flatnonzero(yellow[2].sum(0) > 20)
    assert np.ptp(columns) == pytest.approx(504 * 5.5 / 32, abs=6) and columns.mean() == pytest.approx(258, abs=6)
