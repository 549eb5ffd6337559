# SPDX-License-Identifier: Apache-2.0
"""KITTI's outlier rates and errors in 3-D of stereo scene flow, against values computed by hand."""

import numpy as np
import pytest

from training.datasets.stereo_pairs import StereoTruth
from training.scoring.stereo_metrics import StereoScores, fill_background, is_outlier, moved_points
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow
from zeroflow_ros.errors import DataError

NAN = np.nan


@pytest.mark.parametrize(
    'label, values, expected',
    [
        ('nothing known', [[NAN, NAN]], [[NAN, NAN]]),
        ('all known', [[1, 2]], [[1, 2]]),
        ('a gap gets the smaller end', [[5, NAN, NAN, 3]], [[5, 3, 3, 3]]),
        ('of two gaps each has its own ends', [[5, NAN, 3, NAN, 9]], [[5, 3, 3, 3, 9]]),
        ('the ends of a row repeat', [[NAN, 4, NAN, NAN]], [[4, 4, 4, 4]]),
        ('rows above and below repeat', [[NAN, NAN], [NAN, 7], [2, 1], [NAN, NAN], [NAN, NAN]],
         [[7, 7], [7, 7], [2, 1], [2, 1], [2, 1]]),
        ('an empty row between two others stays empty', [[1, 2], [NAN, NAN], [3, 4]], [[1, 2], [NAN, NAN], [3, 4]]),
    ],
)  # fmt: skip
def test_missing_pixels_are_filled_as_the_development_kit_does(label, values, expected):
    values = np.array(values, np.float32)
    np.testing.assert_array_equal(fill_background(values), np.array(expected, np.float32))


def test_each_component_of_flow_is_filled_with_its_own_minimum():
    flow = np.array([[[5, -2], [NAN, NAN], [3, 4]]], np.float32)
    np.testing.assert_array_equal(fill_background(flow)[0, 1], [3, -2])
    flow[0, 1] = 9, NAN  # half a vector is none
    np.testing.assert_array_equal(fill_background(flow)[0, 1], [3, -2])


@pytest.mark.parametrize(
    'label, estimate, truth, expected',
    [
        ('no pixel', np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3))),
        ('exactly 3 px is no outlier', [[13]], [[10]], [[False]]),
        ('more than 3 px and than 5 %', [[13.1]], [[10]], [[True]]),
        ('more than 3 px, up to 5 %', [[104.9]], [[100]], [[False]]),
        ('more than 5 %, up to 3 px', [[2]], [[1]], [[False]]),
        ('a missing estimate', [[NAN]], [[10]], [[True]]),
        ('flow by the length of its error', [[[3, 0.5]]], [[[0, 0]]], [[True]]),
        ('flow by the length of the truth', [[[63, 80]]], [[[60, 80]]], [[False]]),
        ('of no flow 5 % is nothing', [[[3.1, 0]]], [[[0, 0]]], [[True]]),
    ],
)
def test_an_outlier_is_off_by_more_than_3_px_and_5_percent(label, estimate, truth, expected):
    found = is_outlier(np.array(estimate, np.float32), np.array(truth, np.float32))
    assert found.tolist() == np.asarray(expected, bool).tolist()


# Four pixels: background, foreground, occluded background, without known flow.
DISPARITY = np.array([[20, 20, 20, 20]], np.float32)
FLOW = np.array([[[1, 0], [1, 0], [1, 0], [NAN, NAN]]], np.float32)
VISIBLE = np.array([[True, True, False, False]])
TRUTH = StereoTruth(
    DISPARITY, DISPARITY, FLOW, VISIBLE, VISIBLE, VISIBLE, is_foreground=np.array([[False, True, False, False]])
)
CAMERA = StereoCamera(4, 1, 100.0, 100.0, 1.5, 0.0, 1.0)  # depth 5 m at 20 px


def estimate(disparity=DISPARITY, other_disparity=DISPARITY, flow=FLOW, is_measured=None) -> StereoFlow:
    disparity, other_disparity, flow = (np.asarray(part, np.float32) for part in (disparity, other_disparity, flow))
    sigma = np.ones_like(disparity)
    measured = np.ones(disparity.shape, bool) if is_measured is None else np.asarray(is_measured)
    return StereoFlow(disparity, other_disparity, flow, sigma, sigma, sigma, measured)


def report_of(found: StereoFlow) -> dict:
    scores = StereoScores()
    scores.add(TRUTH, found, CAMERA)
    return scores.report()


def test_the_true_scene_flow_has_no_outlier_and_no_error():
    report = report_of(estimate(flow=np.nan_to_num(FLOW)))
    assert report['outliers_percent']['occ']['SF'] == {'bg': 0, 'fg': 0, 'all': 0}
    assert report['epe_3d'] == {'bg': 0, 'fg': 0, 'all': 0} and report['acc_strict_3d']['all'] == 1
    assert (report['pixels'], report['share_3d'], report['density']['SF']) == (3, 1, 1)


def test_outliers_are_counted_by_region_and_by_visibility():
    report = report_of(estimate(disparity=[[20, 26, 20, 26]], other_disparity=[[20, 20, 26, 20]]))
    occ, noc = report['outliers_percent']['occ'], report['outliers_percent']['noc']
    assert occ['D1'] == {'bg': pytest.approx(100 / 3), 'fg': 100, 'all': 50}
    assert occ['D2'] == {'bg': pytest.approx(100 / 3), 'fg': 0, 'all': 25}
    assert occ['Fl'] == {'bg': 0, 'fg': 0, 'all': 0}  # three pixels; the fourth has no truth
    # Of the three pixels whose truth is complete, the foreground is wrong in D1, the occluded one in D2.
    assert occ['SF'] == {'bg': 50, 'fg': 100, 'all': pytest.approx(200 / 3)}
    assert noc['D2'] == {'bg': 0, 'fg': 0, 'all': 0} and noc['SF'] == {'bg': 0, 'fg': 100, 'all': 50}


def test_a_missing_pixel_is_filled_and_scored_but_not_measured():
    found = report_of(estimate(disparity=[[26, NAN, 20, 20]], is_measured=[[True, True, False, True]]))
    assert found['outliers_percent']['occ']['D1'] == {'bg': pytest.approx(100 / 3), 'fg': 0, 'all': 25}
    measured = found['outliers_percent_measured']['occ']['D1']  # the first and the last pixel
    assert (measured['bg'], measured['all']) == (50, 50) and np.isnan(measured['fg'])
    assert found['density'] == {'D1': 0.5, 'D2': 0.75, 'Fl': pytest.approx(2 / 3), 'SF': pytest.approx(1 / 3)}


def test_an_estimate_of_nothing_is_wrong_everywhere_and_has_no_3d_error():
    nothing = np.full_like(DISPARITY, NAN)
    report = report_of(estimate(nothing, nothing, np.full_like(FLOW, NAN)))
    assert {k: v['all'] for k, v in report['outliers_percent']['occ'].items()} == dict.fromkeys(
        ('D1', 'D2', 'Fl', 'SF'), 100
    )
    assert report['share_3d'] == 0 and np.isnan(report['epe_3d']['all'])


def test_the_error_in_3d_is_of_the_motion():
    # At 5 m a pixel is 0.05 m wide: 2.4 px more flow on the foreground are 0.12 m, of a motion of 0.05 m.
    flow = np.nan_to_num(FLOW).copy()
    flow[0, 1] = 3.4, 0
    report = report_of(estimate(flow=flow))
    assert report['epe_3d'] == {'bg': 0, 'fg': pytest.approx(0.12), 'all': pytest.approx(0.04)}
    assert report['acc_strict_3d']['all'] == report['acc_relaxed_3d']['all'] == pytest.approx(2 / 3)


def test_pooled_over_images_a_larger_one_counts_more():
    scores = StereoScores()
    scores.add(TRUTH, estimate(disparity=DISPARITY + 9), CAMERA)
    row = slice(0, 1)
    one = StereoTruth(*(part[:, row] for part in (DISPARITY, DISPARITY, FLOW, VISIBLE, VISIBLE, VISIBLE, ~VISIBLE)))
    camera = StereoCamera(1, 1, 100.0, 100.0, 0.0, 0.0, 1.0)
    scores.add(one, estimate(DISPARITY[:, row], DISPARITY[:, row], FLOW[:, row]), camera)
    assert scores.report()['outliers_percent']['occ']['D1']['all'] == 80  # 4 of 5 pixels


def test_an_estimate_of_another_size_is_refused():
    with pytest.raises(DataError, match=r'\(1, 4\), the estimate is \(1, 3\)'):
        report_of(estimate(DISPARITY[:, :3], DISPARITY[:, :3], FLOW[:, :3]))


def test_a_point_moves_by_its_flow_and_its_new_disparity():
    points = moved_points(CAMERA, np.nan_to_num(FLOW), DISPARITY / 2)
    # Depth 10 m; pixel 0 is at -1.5 px and moves to -0.5 px; the last one does not move.
    np.testing.assert_allclose(points[0, 0], [-0.05, 0, 10], atol=1e-6)
    np.testing.assert_allclose(points[0, 3], [0.15, 0, 10], atol=1e-6)
