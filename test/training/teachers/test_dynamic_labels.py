# SPDX-License-Identifier: Apache-2.0
"""Which points move, and in which body."""

import numpy as np
import pytest

from training.teachers.dynamic_labels import GROUND, NOT_LABELLED, STATIC, UNCLUSTERED, from_flow, from_motion

DT = 0.1


def scene():
    """Return points, flow and ground: 30 ground, 30 wall, two boxes of 40 and 30 points, 5 of a stray, 3 unknown."""
    rng = np.random.default_rng(0)
    sizes = (30, 30, 40, 30, 5, 3)
    corners = ([0, 0, 0], [0, 10, 1], [5, 0, 1], [5, 0.6, 1], [20, 20, 1], [30, 0, 1])
    boxes = zip(sizes, corners, strict=True)
    points = np.concatenate([rng.uniform(corner, np.add(corner, 0.3), (n, 3)) for n, corner in boxes])
    speed = ([0, 0, 0], [0.3, 0, 0], [5, 0, 0], [-5, 0, 0], [2, 0, 0], [np.nan] * 3)  # m/s; 0.3 is no motion
    flow = np.repeat(np.array(speed) * DT, sizes, axis=0)
    return points.astype(np.float32), flow.astype(np.float32), np.arange(len(points)) < 30, np.repeat(range(6), sizes)


def test_labels_from_flow():
    points, flow, is_ground, part = scene()
    labels = from_flow(points, flow, is_ground, DT)
    expected = {0: GROUND, 1: STATIC, 2: 2, 3: 3, 4: UNCLUSTERED, 5: NOT_LABELLED}  # the larger body comes first
    for number, label in expected.items():
        assert set(labels[part == number]) == {label}
    assert labels.dtype == np.int32


def test_without_velocities_neighbours_are_one_body():
    points, _, is_ground, part = scene()
    labels = from_motion(points, part >= 2, is_ground)
    assert set(labels[(part == 2) | (part == 3)]) == {2} and set(labels[part == 4]) == {UNCLUSTERED}


@pytest.mark.parametrize('moving', [False, True])
@pytest.mark.parametrize('num_points', [0, 1])
def test_hardly_a_point(num_points, moving):
    points = np.zeros((num_points, 3), np.float32)
    flow = points + np.float32(moving)
    labels = from_flow(points, flow, np.zeros(num_points, bool), DT)
    assert labels.tolist() == [UNCLUSTERED if moving else STATIC] * num_points


def test_ground_and_points_without_a_place_do_not_move():
    points = np.full((30, 3), np.nan, np.float32)
    assert (from_motion(points, np.ones(30, bool), np.ones(30, bool)) == GROUND).all()
    assert (from_motion(points, np.ones(30, bool), np.zeros(30, bool)) == UNCLUSTERED).all()
