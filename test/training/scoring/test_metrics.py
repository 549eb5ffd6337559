# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from training.datasets.pairs import MetaClass
from training.scoring.metrics import (
    angle_error,
    bucketed_epe,
    dynamic_iou,
    epe,
    is_accurate,
    normalised_epe,
    range_epe,
    speed_bucket,
    three_way_epe,
)

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


@pytest.mark.parametrize(
    'label, flow, truth, strict, relaxed',
    [
        ('perfect', [1, 0, 0], [1, 0, 0], True, True),
        ('4 cm off what stands', [0.04, 0, 0], [0, 0, 0], True, True),
        ('9 cm off what stands', [0, 0.09, 0], [0, 0, 0], False, True),
        ('20 cm off what stands', [0, 0, 0.2], [0, 0, 0], False, False),
        ('8 cm off 2 m is 4 %', [2.08, 0, 0], [2, 0, 0], True, True),
        ('16 cm off 2 m is 8 %', [2.16, 0, 0], [2, 0, 0], False, True),
        ('a limit is outside', [0.05, 0, 0], [0, 0, 0], False, True),
        ('no flow', [np.nan] * 3, [0, 0, 0], False, False),
    ],
)
def test_accuracy(label, flow, truth, strict, relaxed):
    flow, truth = np.array([flow]), np.array([truth])
    assert (is_accurate(flow, truth, 0.05)[0], is_accurate(flow, truth, 0.10)[0]) == (strict, relaxed)


@pytest.mark.parametrize(
    'label, flow, truth, degrees',
    [
        ('perfect', [1, 2, 3], [1, 2, 3], 0.0),
        ('0.1 m in 0.1 s is 45 degrees from standing', [0.1, 0, 0], [0, 0, 0], 45.0),
        ('there instead of back', [0.1, 0, 0], [-0.1, 0, 0], 90.0),
    ],
)
def test_angle_error(label, flow, truth, degrees):
    # 1e-5 degrees: the arc cosine of 1 - 1e-16.
    assert np.degrees(angle_error(np.array([flow]), np.array([truth])))[0] == pytest.approx(degrees, abs=1e-5)


@pytest.mark.parametrize(
    'found, truth, expected',
    [
        ([], [], math.nan),
        ([0], [0], math.nan),
        ([1], [1], 1.0),
        ([0, 1], [1, 0], 0.0),
        ([1, 1, 1, 0], [1, 0, 1, 1], 0.5),
    ],
)
def test_dynamic_iou(found, truth, expected):
    assert dynamic_iou(np.array(found, bool), np.array(truth, bool)) == pytest.approx(expected, nan_ok=True)


def test_speed_buckets_are_4_cm_wide_and_the_last_has_no_end():
    speed = np.array([0, 0.0399, 0.0401, 1.99, 2.0, 30.0])
    assert speed_bucket(speed).tolist() == [0, 0, 1, 49, 50, 50]


def test_bucketed_epe_by_hand():
    car, walker = MetaClass.CAR, MetaClass.PEDESTRIAN
    rows = [  # class, true flow along x, predicted flow along x [m]
        (MetaClass.BACKGROUND, 0.0, 0.1),
        (MetaClass.BACKGROUND, 0.0, 0.3),
        (car, 0.0, 0.02),
        (car, 0.05, 0.0),  # bucket 1: two points with the errors 0.05 and 0.0 and the speeds 0.05 and 0.07
        (car, 0.07, 0.07),
        (car, 3.0, 0.0),  # the bucket without end
        (walker, 0.10, 0.05),
        (MetaClass.IGNORED, 1.0, 9.0),
    ]
    kind = np.array([row[0] for row in rows], np.uint8)
    truth, flow = (np.array([[row[k], 0, 0] for row in rows]) for k in (1, 2))
    found = bucketed_epe(flow, truth, kind)
    nan = math.nan
    assert found.static.tolist() == pytest.approx([0.2, 0.02, nan, nan, nan], nan_ok=True)
    assert found.dynamic.tolist() == pytest.approx([nan, (0.05 / 0.12 + 1) / 2, nan, 0.5, nan], nan_ok=True)
    assert found.mean_static == pytest.approx(0.11)
    assert found.mean_dynamic == pytest.approx(((0.05 / 0.12 + 1) / 2 + 0.5) / 2)


def test_bucketed_epe_without_points_is_nan():
    found = bucketed_epe(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0, np.uint8))
    assert np.isnan(found.buckets).all() and math.isnan(found.mean_static) and math.isnan(found.mean_dynamic)


def test_range_epe_by_hand():
    points = np.array([[0, 0, 0], [0, 34, 0], [30, 30, 0], [0, 50, 0], [200, 0, 0]])  # 0, 34, 42.4, 50, 200 m
    truth = np.array([[0, 0, 0], [0.2, 0, 0], [0.1, 0, 0], [0.15, 0, 0], [0, 0, 0]])  # 0.1 m in 0.1 s is 1 m/s
    found = range_epe(0 * truth + [0.1, 0, 0], truth, points, 0.1)
    nan = math.nan
    assert found.static.tolist() == pytest.approx([0.1, 0, nan, nan, 0.1], nan_ok=True)
    assert found.dynamic.tolist() == pytest.approx([0.1, nan, 0.05, nan, nan], nan_ok=True)
    assert (found.mean_static, found.mean_dynamic) == pytest.approx((0.2 / 3, 0.075))
    # Over twice the time nothing is faster than 1.4 m/s.
    assert np.isnan(range_epe(truth, truth, points, 0.2).dynamic).all()
