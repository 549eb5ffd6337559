# SPDX-License-Identifier: Apache-2.0
"""Errors of depth against rows computed by hand; crops, caps, scaling."""

import math

import numpy as np
import pytest

from training.scoring.depth_metrics import CAPS, CROPS, SCALINGS, DepthScores, crop_mask, depth_errors, scored_depths
from zeroflow_ros.errors import DataError

NAN = np.nan


@pytest.mark.parametrize(
    'label, found, true, expected',
    [
        ('no pixel', [], [], [NAN] * 7),
        ('exact', [3.0, 40.0], [3.0, 40.0], [0, 0, 0, 0, 1, 1, 1]),
        # |1| / 4, 1 / 4, 1, ln 1.25; the ratio of exactly 1.25 is not below it
        ('a quarter too far', [5.0], [4.0], [0.25, 0.25, 1.0, math.log(1.25), 0, 1, 1]),
        # errors -4 and +2: means of 0.5 and 0.2, of 2 and 0.4; ratios 2 and 1.2
        ('one too near, one too far', [4.0, 12.0], [8.0, 10.0],
         [0.35, 1.2, math.sqrt(10), math.sqrt((math.log(2) ** 2 + math.log(1.2) ** 2) / 2), 0.5, 0.5, 0.5]),
    ],
)  # fmt: skip
def test_errors_by_hand(label, found, true, expected):
    np.testing.assert_allclose(list(depth_errors(np.array(found), np.array(true)).values()), expected, rtol=1e-12)


def test_crops_are_those_of_the_literature():
    # Of 375 rows and 1242 columns: 153.04 to 371.9 and 44.6 to 1197.4 (Garg), 124.7 to 342.6 (Eigen).
    for crop, rows, columns in (('garg', (153, 370), (44, 1196)), ('eigen', (124, 341), (44, 1196))):
        inside = crop_mask(crop, 375, 1242)
        assert tuple(np.flatnonzero(inside.any(1))[[0, -1]]) == rows and inside.any(0).nonzero()[0][0] == columns[0]
        assert inside.any(0).nonzero()[0][-1] == columns[1]
    assert crop_mask('none', 3, 4).all()


def test_what_counts_and_how_estimates_are_clipped_and_scaled():
    true = np.array([[NAN, 0.0, 10.0, 60.0, 90.0, 20.0]])
    found = np.array([[5.0, 5.0, 20.0, 200.0, 80.0, NAN]])
    depths = scored_depths(found, true, crop='none', cap=80.0, scaling='none')
    np.testing.assert_array_equal(depths, [[20, 80], [10, 60]])
    np.testing.assert_array_equal(scored_depths(found, true, crop='none', cap=50.0, scaling='none'), [[20], [10]])
    # Medians 110 and 35: 20 and 200 become 6.36 and 63.6.
    scaled, _ = scored_depths(found, true, crop='none', cap=80.0, scaling='median')
    np.testing.assert_allclose(scaled, [20 * 35 / 110, 200 * 35 / 110])


def test_a_report_says_crop_cap_and_scaling_of_each_row_and_counts_images_alike():
    scores = DepthScores()
    scores.add(np.full((10, 10), 20.0), np.full((10, 10), 10.0))  # twice as far
    true = np.full((10, 10), NAN)
    true[6, 5] = 10.0
    scores.add(np.full((10, 10), 10.0), true)  # one pixel, exact
    scores.add(np.full((10, 10), 10.0), np.full((10, 10), NAN))  # nothing known
    report = scores.report()
    assert (report['images'], report['pixels'], report['density']) == (2, 101, 1)
    rows = {(row['crop'], row['cap'], row['scaling']): row for row in report['rows']}
    assert set(rows) == {(crop, cap, scaling) for crop in CROPS for cap in CAPS for scaling in SCALINGS}
    assert rows['garg', 80.0, 'none']['abs_rel'] == 0.5 and rows['garg', 80.0, 'none']['images'] == 2
    assert rows['garg', 80.0, 'median']['abs_rel'] == 0


def test_no_image_and_other_sizes():
    report = DepthScores().report()
    assert report['images'] == 0 and math.isnan(report['density'])
    assert all(math.isnan(row['abs_rel']) for row in report['rows'])
    with pytest.raises(DataError, match=r'true depth is \(1, 2\), the estimate is \(1, 3\)'):
        DepthScores().add(np.ones((1, 3)), np.ones((1, 2)))
