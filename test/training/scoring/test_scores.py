# SPDX-License-Identifier: Apache-2.0
"""Sums over pairs give the same figures as the pure metrics over all points at once."""

import dataclasses
import math

import numpy as np
import pytest

from training.datasets.pairs import DatasetPair, GroundTruthFlow, MetaClass
from training.scoring import metrics
from training.scoring.score_picture import draw_scores
from training.scoring.score_text import score_text
from training.scoring.scores import FlowScores, Scope
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import SweepPair


def pair_of(rows, key='p', dt=0.1) -> DatasetPair:
    """Return a pair whose sweep 0 has rows of (x [m], class, true flow along x [m], valid, ground)."""
    n = len(rows)
    x, kind, speed, valid, ground = (np.array([row[k] for row in rows]) for k in range(5))
    points, flow = np.zeros((n, 3), np.float32), np.zeros((n, 3), np.float32)
    points[:, 0], flow[:, 0] = x, speed
    truth = GroundTruthFlow(flow, kind.astype(np.uint8), valid.astype(bool))
    pair = SweepPair(points, np.zeros((2, 3), np.float32), np.eye(4), dt)
    return DatasetPair(key, pair, ground.astype(bool), np.zeros(2, bool), truth)


STREET = [
    (1, MetaClass.BACKGROUND, 0.0, 1, 0),
    (2, MetaClass.BACKGROUND, 0.0, 1, 1),
    (3, MetaClass.CAR, 1.0, 1, 0),
    (60, MetaClass.CAR, 0.0, 1, 0),
    (4, MetaClass.PEDESTRIAN, 0.1, 1, 0),
    (5, MetaClass.IGNORED, 0.5, 1, 0),
    (6, MetaClass.WHEELED_VRU, np.nan, 0, 0),
]


EMPTY = DatasetPair(
    'empty',
    SweepPair(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), np.eye(4), 0.1),
    np.zeros(0, bool),
    np.zeros(0, bool),
    GroundTruthFlow(np.zeros((0, 3), np.float32), np.zeros(0, np.uint8), np.zeros(0, bool)),
)


def random_pair(rng, k, num=500) -> tuple[DatasetPair, np.ndarray]:
    points = rng.uniform(-120, 120, (num, 3)).astype(np.float32)
    flow = (rng.normal(0, 0.5, (num, 3)) * (rng.random((num, 1)) < 0.5)).astype(np.float32)
    truth = GroundTruthFlow(flow, rng.integers(0, 6, num).astype(np.uint8), np.ones(num, bool))
    pair = SweepPair(points, points[:1], np.eye(4), 0.1)
    item = DatasetPair(f'random/{k}', pair, np.zeros(num, bool), np.zeros(1, bool), truth)
    return item, flow + rng.normal(0, 0.1, (num, 3)).astype(np.float32)


def test_by_hand():
    scores, item = FlowScores(), pair_of(STREET)
    flow = np.zeros((7, 3), np.float32)
    flow[:4, 0] = [0.06, 9.0, 0.8, 0.02]  # the second is on the ground
    flow[4] = np.nan  # no flow counts as zero
    scores.add(item, flow)
    report = scores.report()
    assert (report['pairs'], report['points']) == (1, 4)
    assert report['three_way'] == pytest.approx({'FD': 0.15, 'FS': 0.02, 'BS': 0.06, 'mean': 0.23 / 3})
    assert report['dynamic_normalised_epe'] == pytest.approx(0.3 / 1.1)
    assert (report['dynamic_epe_mps'], report['dynamic_speed_mps']) == pytest.approx((1.5, 5.5))
    assert report['static_epe_mps'] == pytest.approx(0.4)
    assert report['dynamic_iou'] == pytest.approx(1 / 3)  # the car; not the wall, which is found; not the pedestrian
    assert report['acc_strict'] == 0.25 and report['acc_relaxed'] == 0.5  # 0.1 is not below 0.1
    assert report['moving_share'] == pytest.approx(3 / 7)  # of all rows, ground as well
    assert report['by_class']['car'] == pytest.approx(
        {'points': 2, 'dynamic_points': 1, 'normalised_epe': 0.2, 'static_epe': 0.02}
    )
    assert set(report['by_class']) == {'background', 'car', 'pedestrian'}
    assert report['bucketed_35m']['dynamic']['car'] == pytest.approx(0.2)
    assert math.isnan(report['bucketed_35m']['static']['car'])  # the one that stands is 60 m away
    assert report['bucketed']['static']['car'] == pytest.approx(0.02)
    assert [part['points'] for part in report['by_range']] == [3, 0, 1, 0, 0]
    assert report['by_range'][0]['dynamic_epe'] == pytest.approx(0.2)
    assert [group['points'] for group in report['by_speed']] == [2, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    'label, scope, num_points',
    [
        ('known and off the ground', Scope(), 4),
        ('with the ground', Scope(with_ground=True), 5),
        ('near', Scope(half_extent=51.2), 3),
        ('an extent is outside', Scope(half_extent=4.0), 2),
    ],
)
def test_scope(label, scope, num_points):
    scores = FlowScores(scope)
    scores.add(pair_of(STREET), np.zeros((7, 3), np.float32))
    assert scores.report()['points'] == num_points


def test_static_points_that_come_into_view_while_driving_and_seem_to_move_are_counted():
    street = pair_of([(x, MetaClass.BACKGROUND, 0.0, 1, 0) for x in (1, 5, 9, 13)] + [STREET[2]])
    seen = np.float32([[1.3, 0, 0], [5, 0, 0.4], [np.nan] * 3])  # of the points at 1 and 5 m
    flow = np.zeros((5, 3), np.float32)
    flow[[1, 2, 4], 1] = 0.06  # of a point that was seen, of one at 9 m that was not, and of the car
    reports = {}
    for metres in (0.79, 0.81):  # in 0.1 s
        pose = np.eye(4)
        pose[0, 3] = metres
        scores = FlowScores()
        pair = SweepPair(street.pair.points0, seen - pose[:3, 3].astype(np.float32), pose, 0.1)
        scores.add(dataclasses.replace(street, pair=pair, is_ground1=np.zeros(3, bool)), flow)
        reports[metres] = scores.report()
    assert reports[0.79]['came_into_view_points'] == 0 and math.isnan(reports[0.79]['came_into_view_moving_share'])
    assert reports[0.81]['came_into_view_points'] == 2 and reports[0.81]['came_into_view_moving_share'] == 0.5


def test_true_flow_scores_0_and_zero_flow_1():
    rng = np.random.default_rng(3)
    true, zero = FlowScores(), FlowScores()
    for k in range(3):
        item, _ = random_pair(rng, k)
        true.add(item, item.truth.flow)
        zero.add(item, np.full_like(item.truth.flow, np.nan))
    true, zero = true.report(), zero.report()
    assert true['three_way']['mean'] == true['dynamic_normalised_epe'] == true['bucketed']['mean_dynamic'] == 0
    assert true['acc_strict'] == true['dynamic_iou'] == 1
    assert zero['dynamic_normalised_epe'] == pytest.approx(1) and zero['bucketed']['mean_dynamic'] == pytest.approx(1)
    assert zero['bucketed']['mean_static'] < 0.04 and zero['moving_share'] == zero['dynamic_iou'] == 0
    assert zero['dynamic_epe_mps'] == pytest.approx(zero['dynamic_speed_mps'])


def test_sums_over_pairs_equal_the_metrics_of_all_points():
    rng = np.random.default_rng(4)
    scores, items = FlowScores(), [random_pair(rng, k, num=300 + 200 * k) for k in range(3)]
    for item, flow in items:
        scores.add(item, flow)
    report = scores.report()
    flow, truth, points = (
        np.concatenate(part).astype(np.float64)
        for part in zip(*((flow, item.truth.flow, item.pair.points0) for item, flow in items), strict=True)
    )
    kind = np.concatenate([item.truth.meta_class for item, _ in items])
    scored = kind != MetaClass.IGNORED
    ranges = metrics.range_epe(flow[scored], truth[scored], points[scored], 0.1)
    bucketed = metrics.bucketed_epe(flow, truth, kind)
    np.testing.assert_allclose([part['static_epe'] for part in report['by_range']], ranges.static)
    np.testing.assert_allclose([part['dynamic_epe'] for part in report['by_range']], ranges.dynamic)
    assert report['range_mean_static'] == pytest.approx(ranges.mean_static)
    assert report['range_mean_dynamic'] == pytest.approx(ranges.mean_dynamic)
    np.testing.assert_allclose(list(report['bucketed']['buckets'].values()), bucketed.buckets)
    dynamic = np.linalg.norm(truth, axis=1) >= metrics.DYNAMIC
    args = flow[scored], truth[scored], kind[scored] != MetaClass.BACKGROUND, dynamic[scored]
    assert report['three_way']['mean'] == pytest.approx(metrics.three_way_epe(*args)['three_way'])
    moves = scored & dynamic
    assert report['dynamic_normalised_epe'] == pytest.approx(metrics.normalised_epe(flow[moves], truth[moves]))


@pytest.mark.parametrize('label, items', [('no pairs', []), ('a pair without points', [EMPTY])])
def test_nothing_to_score_is_nan_and_not_zero(label, items, tmp_path):
    scores = FlowScores()
    for item in items:
        scores.add(item, np.zeros((0, 3), np.float32))
    report = scores.report()
    assert (report['pairs'], report['points']) == (len(items), 0)
    assert all(math.isnan(report[name]) for name in ('epe', 'dynamic_normalised_epe', 'moving_share', 'dynamic_iou'))
    assert ' -' in score_text('empty', {'zero': report})
    draw_scores({'empty': {'zero': report}}, tmp_path / 'empty.png')
    assert (tmp_path / 'empty.png').stat().st_size > 0


def test_flow_of_another_length_is_refused():
    with pytest.raises(DataError, match='7 points, its flow has the shape'):
        FlowScores().add(pair_of(STREET), np.zeros((6, 3), np.float32))


def test_known_flow_that_is_nan_is_refused():
    rows = [*STREET[:-1], (6, MetaClass.CAR, np.nan, 1, 0)]
    with pytest.raises(DataError, match='not finite'):
        FlowScores().add(pair_of(rows), np.zeros((7, 3), np.float32))
