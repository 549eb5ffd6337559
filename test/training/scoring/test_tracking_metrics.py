# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from training.datasets.ground_truth_objects import GroundTruthObject
from training.scoring.tracking_metrics import TrackingMetrics
from zeroflow_ros.objects.tracker import MovingObject


def true(track_id=1, x=10.0, speed=8.0, num_points=50, category='Car'):
    center, size, velocity = np.array([x, 0.0, 0]), np.array([4.0, 2, 1.5]), np.array([speed, 0.0, 0])
    return GroundTruthObject(track_id, category, center, size, 0.0, velocity, num_points)


def found(track_id=1, x=10.0, y=0.0, speed=8.0):
    return MovingObject(track_id, np.array([x, y, 0]), np.ones(3), 0.0, np.array([speed, 0.0, 0]), 0.0, 5)


@pytest.mark.parametrize(
    'label, objects, truths, due, recall, false, fragments',
    [
        ('nothing', [], [], 0, np.nan, 0, 0),
        ('found', [found()], [true()], 1, 1, 0, 0),
        ('missed', [], [true()], 1, 0, 0, 0),
        ('false', [found()], [], 0, np.nan, 1, 0),
        ('beside it', [found(y=1.6)], [true()], 1, 0, 1, 0),
        ('just inside its outline and half a metre', [found(x=12.4, y=1.4)], [true()], 1, 1, 0, 0),
        ('two on one', [found(1), found(2, 11)], [true()], 1, 1, 0, 1),
        ('one on two', [found()], [true(), true(2, x=11)], 2, 0.5, 0, 0),
        ('two on two that overlap', [found(1, 10.4), found(2, 10.6)], [true(), true(2, x=11)], 2, 1, 0, 0),
        ('on what stands', [found()], [true(speed=0.0)], 0, np.nan, 1, 0),
        ('on what hardly moves: neither asked for nor false', [found()], [true(speed=0.4)], 0, np.nan, 0, 0),
        ('too few points', [], [true(num_points=9)], 0, np.nan, 0, 0),
        ('too far', [], [true(x=60)], 0, np.nan, 0, 0),
    ],
)
def test_one_sweep(label, objects, truths, due, recall, false, fragments):
    scores = TrackingMetrics()
    scores.add('a', 0.0, objects, truths)
    report = scores.report()
    assert (report['sweeps'], report['due']) == (1, due)
    assert report['recall'] == pytest.approx(recall, nan_ok=True)
    assert (report['false_per_sweep'], report['fragments_per_sweep']) == (false, fragments)


def test_errors_are_those_of_what_was_found():
    scores = TrackingMetrics()
    for k, error in enumerate((0.0, 1.0, 5.0)):
        scores.add('a', 0.1 * k, [found(x=10 + 0.1 * k, speed=8 + error), found(9, 40)], [true()])
    report = scores.report()
    assert report['velocity_error_median'] == 1 and report['velocity_error_mean'] == pytest.approx(2)
    assert report['center_error_median'] == pytest.approx(0.1) and report['false_per_sweep'] == 1


def test_settled_is_what_has_been_in_sight_for_half_a_second_and_without_a_break():
    scores = TrackingMetrics()
    for k in range(8):
        scores.add('a', 0.1 * k, [found()] if k >= 6 else [], [true()])
    report = scores.report()
    assert (report['recall'], report['settled_recall']) == (pytest.approx(2 / 8), pytest.approx(2 / 3))
    scores.add('a', 0.8, [], [])
    scores.add('a', 0.9, [], [true()])
    scores.add('b', 0.9, [], [true()])
    assert scores.report()['settled_recall'] == pytest.approx(2 / 3)


def test_switches_and_categories():
    scores = TrackingMetrics()
    for number in (1, 1, 2, 2):
        scores.add('a', 0.0, [found(number)], [true(), true(2, x=30, category='Van')])
    scores.add('b', 0.0, [found(3)], [true()])  # another drive
    report = scores.report()
    assert report['switches'] == 1
    assert report['recall_by_category'] == {'Car': 1, 'Van': 0} and report['due_by_category'] == {'Car': 5, 'Van': 4}
