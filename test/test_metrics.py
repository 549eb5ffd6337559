# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from training.metrics import epe, normalised_epe, three_way_epe

TRUTH = np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 2.0, 0]])
FLOW = np.array([[0.0, 0, 0], [0, 0.3, 0.4], [0.1, 0, 0], [0, 2.0, 0]])
FOREGROUND = np.array([True, True, False, True])
DYNAMIC = np.array([True, False, False, True])


def test_epe_by_hand():
    np.testing.assert_allclose(epe(FLOW, TRUTH), [1.0, 0.5, 0.1, 0.0])


def test_three_way_by_hand():
    found = three_way_epe(FLOW, TRUTH, FOREGROUND, DYNAMIC)
    assert found == pytest.approx({'FD': 0.5, 'FS': 0.5, 'BS': 0.1, 'three_way': (0.5 + 0.5 + 0.1) / 3})


def test_a_group_without_points_is_nan_not_zero():
    found = three_way_epe(FLOW[:1], TRUTH[:1], FOREGROUND[:1], DYNAMIC[:1])
    assert found['FD'] == 1.0 and math.isnan(found['BS']) and math.isnan(found['three_way'])


@pytest.mark.parametrize(
    'label, flow, truth, expected',
    [
        ('perfect', TRUTH, TRUTH, 0.0),
        ('zero flow', 0 * TRUTH, TRUTH, 1.0),
        ('half', 0.5 * TRUTH, TRUTH, 0.5),
        ('no points', TRUTH[:0], TRUTH[:0], math.nan),
        ('nothing moves', TRUTH[1:3], 0 * TRUTH[1:3], math.nan),
    ],
)
def test_normalised_epe(label, flow, truth, expected):
    assert normalised_epe(flow, truth) == pytest.approx(expected, nan_ok=True)
