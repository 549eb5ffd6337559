# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.spatial import cKDTree

from training.teachers.forward_backward_check import keep_consistent_motion

RNG = np.random.default_rng(0)
CAR = RNG.uniform([0, 0, 0], [4, 2, 1.5], (200, 3))
STEP = np.array([1.0, 0.2, 0.0])


def case(flow=STEP, back=-STEP, share=1.0):
    """Return the arguments for a car beside a wall that stands; share: of the car that the other sweep flows back."""
    wall = RNG.uniform([0, 5, 0], [10, 5.1, 2], (100, 3))
    points = np.concatenate([CAR, wall])
    piece = np.repeat([0, -1], [len(CAR), len(wall)])
    flows = np.where(piece[:, None] == 0, flow, 0.0)
    other = np.concatenate([CAR + STEP, wall])
    flow_back = np.zeros_like(other)
    flow_back[: round(share * len(CAR))] = back
    return points, flows, piece, cKDTree(other), flow_back


@pytest.mark.parametrize(
    'label, changes, is_kept',
    [
        ('both found it', {}, True),
        ('the other one found nothing', {'back': (0, 0, 0)}, False),
        ('the other one found another way', {'back': (-1, 0.8, 0)}, False),
        ('the same within a third', {'back': (-0.8, -0.2, 0)}, True),
        ('most of the piece', {'share': 0.6}, True),
        ('little of the piece', {'share': 0.4}, False),
        ('it lands where nobody is', {'flow': (0, 0, 3.0), 'back': (0, 0, -3.0)}, False),
    ],
)
def test_a_piece_moves_when_both_directions_agree(label, changes, is_kept):
    points, flow, piece, other, flow_back = case(**changes)
    before = flow.copy()
    found = keep_consistent_motion(points, flow, piece, other, flow_back)
    np.testing.assert_array_equal(found, before if is_kept else np.zeros_like(before))
    np.testing.assert_array_equal(flow, before)  # the caller needs it for the other direction


def test_slow_motion_may_differ_by_a_decimetre():
    """A person walks 0.1 m in a tenth of a second, which is what points say of it."""
    points, flow, piece, other, flow_back = case(flow=STEP * 0.1, back=-STEP * 0.18)
    other = cKDTree(other.data - np.repeat([[0.9], [0.0]], [len(CAR), len(points) - len(CAR)], axis=0) * STEP)
    assert keep_consistent_motion(points, flow, piece, other, flow_back)[piece == 0].any()


def test_each_piece_is_judged_by_itself():
    points, flow, piece, other, flow_back = case()
    piece = np.where(np.arange(len(points)) < 100, 0, np.where(piece == 0, 1, -1))
    flow_back[100:200] = 0
    found = keep_consistent_motion(points, flow, piece, other, flow_back)
    np.testing.assert_array_equal(found[:100], flow[:100])
    assert not found[100:].any()


def test_where_nothing_moves_there_is_nothing_to_agree_on():
    none = np.zeros((5, 3))
    assert keep_consistent_motion(CAR[:5], none, np.full(5, -1), cKDTree(CAR), np.zeros_like(CAR)) is none
