# SPDX-License-Identifier: Apache-2.0
"""What is smooth is predicted exactly, and jitter is an error."""

import json

import numpy as np
import pytest
from tiny_bag import EGO_SPEED, PERIOD_NS, write_bag

from training import box_jitter
from training.box_jitter import score, smooth_flow, three_cornered_hat
from training.datasets.rosbag import open_pairs
from training.scoring.estimators import build_estimator
from zeroflow_ros.errors import DataError

NUM_SWEEPS, MIDDLE = 10, 4
SPEED, TURN_RATE = 6.0, 0.4  # m/s over ground, rad/s


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp('bags') / 'bag', num_sweeps=NUM_SWEEPS)


def with_boxes(bag, jitter: float, num_sweeps: int = NUM_SWEEPS):
    """Return the pairs of the bag with a box that drives ahead of the vehicle and turns; it jitters in one sweep."""
    sweeps = []
    for number in range(NUM_SWEEPS):
        seconds = number * PERIOD_NS * 1e-9
        x = 10 + (SPEED - EGO_SPEED) * seconds + jitter * (number == MIDDLE)
        pose = {'center': [x, 0, 0], 'yaw': TURN_RATE * seconds}
        box = {'track_id': 7, 'category': 'Car', 'size_lwh': [12, 12, 8], **pose}
        sweeps.append([box] if number < num_sweeps else [])
    path = bag.parent / f'boxes_{jitter}_{num_sweeps}.json'
    path.write_text(json.dumps({'sweeps': sweeps}))
    return open_pairs(f'{bag}+{path}')


def test_smooth_motion_is_predicted_exactly(bag):
    pairs = with_boxes(bag, jitter=0.0)
    flows = smooth_flow(pairs)
    assert len(flows) == len(pairs) == NUM_SWEEPS - 1
    for flow, item in zip(flows, (pairs[index] for index in range(len(pairs))), strict=True):
        truth = item.truth
        assert truth.is_valid.sum() > 50 and np.linalg.norm(truth.flow[truth.is_valid], axis=1).mean() > 0.2
        np.testing.assert_allclose(flow[truth.is_valid], truth.flow[truth.is_valid], atol=1e-4)


def test_what_a_box_jitters_by_is_the_error_of_its_own_pairs(bag):
    pairs = with_boxes(bag, jitter=0.1)
    flows = smooth_flow(pairs)
    for index in (MIDDLE - 1, MIDDLE):  # into the sweep that jitters, and out of it
        truth = pairs[index].truth
        error = np.linalg.norm(flows[index] - truth.flow, axis=1)[truth.is_valid]
        assert error.mean() == pytest.approx(0.1, abs=0.01)


def test_a_box_that_is_seldom_seen_says_nothing(bag):
    pairs = with_boxes(bag, jitter=0.0, num_sweeps=4)
    assert not any(flow.any() for flow in smooth_flow(pairs))
    assert score(pairs, [build_estimator('zero')])[1] == {}  # nothing that moves by both


def test_three_that_err_apart_say_by_how_much_each():
    rng, wanted = np.random.default_rng(0), (0.05, 0.04, 0.03)
    truth = rng.uniform(-1, 1, (100_000, 3))
    flows = [truth + rng.normal(0, error / np.sqrt(3), truth.shape) for error in wanted]
    assert three_cornered_hat(*flows) == pytest.approx(wanted, rel=0.02)
    same = three_cornered_hat(flows[0], flows[0], flows[1])  # two that err alike seem to have no error
    assert same[:2] == (0, 0) and same[2] == pytest.approx(np.hypot(0.05, 0.04), rel=0.02)
    assert np.isnan(three_cornered_hat(truth, flows[0], 2 * truth - flows[0])[0])  # two that err in opposite ways


def test_an_estimator_is_compared_with_boxes_and_their_motion(bag, capsys):
    pairs = with_boxes(bag, jitter=0.1)
    reports, of_moving = score(pairs, [build_estimator('zero')])
    assert list(reports) == ['zero', 'smooth boxes'] and reports['zero']['dynamic_normalised_epe'] == 1
    normalised, of_zero, of_boxes, of_smooth = of_moving['zero']
    assert normalised == 1
    assert 0.4 < of_zero < 1 and not of_smooth > 0.02  # 6 m/s and a turn; the smooth motion is the true one: 0 or NaN
    assert of_boxes == pytest.approx(0.1 * np.sqrt(2 / len(pairs)), rel=0.25)  # two of its pairs err by 0.1 m
    assert box_jitter.main([f'{pairs.path}+{pairs.boxes.path}', '--estimator', 'zero']) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[0] == 'zero' and [float(word) for word in last[1:]] == pytest.approx(
        of_moving['zero'], abs=1e-4, nan_ok=True
    )


class WithoutOnePair:
    """The pairs of a bag but one, as when a sweep between is lost."""

    def __init__(self, pairs, missing: int):
        self._pairs, self.boxes = pairs, pairs.boxes
        self._indices = [index for index in range(len(pairs)) if index != missing]

    def __len__(self):
        return len(self._indices)

    def numbers(self, index):
        return self._pairs.numbers(self._indices[index])

    def motion(self, index):
        return self._pairs.motion(self._indices[index])

    def __getitem__(self, index):
        return self._pairs[self._indices[index]]


def test_lines_do_not_cross_a_gap(bag):
    """Four pairs on each side say too little; nine in a row say how the box moves."""
    pairs = with_boxes(bag, jitter=0.0)
    assert all(flow.any() for flow in smooth_flow(pairs))
    assert not any(flow.any() for flow in smooth_flow(WithoutOnePair(pairs, MIDDLE)))


def test_a_bag_without_boxes_is_refused(bag, capsys):
    with pytest.raises(DataError, match=r'has no boxes'):
        smooth_flow(open_pairs(str(bag)))
    assert box_jitter.main([str(bag)]) == 1
    assert 'BOXES.json' in capsys.readouterr().err


def test_the_boxes_of_kitti_jitter_by_more_than_a_tenth_of_their_motion(shared_data, capsys):
    bags = shared_data / 'bags'
    assert box_jitter.main([f'{bags / "kitti_0005_a"}+{bags / "kitti_0005_a_boxes.json"}']) == 0
    heading, zero, smooth = (
        line.split() for line in capsys.readouterr().out.split('dynamic points')[1].splitlines()[1:4]
    )
    assert heading[:2] == ['norm.', 'EPE'] and zero[:2] == ['zero', '1.0000']
    assert 0.1 < float(smooth[2]) < 0.15
