# SPDX-License-Identifier: Apache-2.0
"""The compiled fits of one segment, beside the same in numpy."""

import math

import numpy as np
import pytest
from scipy.spatial import cKDTree

from training.teachers.planar_motion import STILL, apply
from training.teachers.point_grid import PointGrid
from training.teachers.segment_motion import moved_box, polish_step, refine_starts, reverse_distance

LAG, CUT, KERNEL = 0.2, 0.5, 0.2
MOTION = math.cos(0.05), math.sin(0.05), 0.5, 0.2


@pytest.fixture(scope='module')
def sweeps():
    """The segment (N, 4), and the target: the segment after its motion beside other points."""
    rng = np.random.default_rng(0)
    segment = np.column_stack([rng.uniform(-1, 1, (200, 3)) * [2, 1, 0.8], np.zeros(200)])
    moved = segment.copy()
    moved[:, 0], moved[:, 1] = apply(MOTION, segment[:, 0], segment[:, 1])
    return segment, np.concatenate([moved, moved[:50] + [6, 0, 0, 0]])


def distance_at(motion, segment, target):
    moved = segment.copy()
    moved[:, 0], moved[:, 1] = apply(motion, segment[:, 0], segment[:, 1])
    return np.minimum(cKDTree(target).query(moved)[0], CUT).mean()


def test_the_refinement_finds_the_motion_from_a_start_near_it(sweeps):
    segment, target = sweeps
    starts, motions, (distances, ways) = np.array([[0.45, 0.25], [9, 9]]), np.empty((2, 4)), np.empty((2, 2))
    reaches = np.maximum(CUT * 0.8 ** np.arange(30), 0.3)
    grid = PointGrid(target).arrays
    still = refine_starts(grid, segment, starts, reaches, KERNEL, LAG, True, CUT, motions, distances, ways)
    np.testing.assert_allclose(motions[0], MOTION, atol=1e-6)
    np.testing.assert_allclose(motions[1], (1, 0, 9, 9))  # too few correspondences for a fit
    assert still == pytest.approx(distance_at(STILL, segment, target))
    assert distances == pytest.approx([distance_at(tuple(motion), segment, target) for motion in motions], abs=1e-9)
    moved = np.stack(apply(MOTION, segment[:, 0], segment[:, 1]), axis=1)
    assert ways[0] == pytest.approx(np.linalg.norm((moved - segment[:, :2]).mean(0)), abs=1e-6)


def test_the_reverse_distance_is_that_to_the_segment_alone(sweeps):
    segment, target = sweeps
    source = np.concatenate([segment, target])
    grid, labels = PointGrid(source), np.repeat([4, -1], (len(segment), len(target)))
    distance = reverse_distance(grid.arrays, labels[grid.rows], 4, target, STILL, CUT)
    assert distance == pytest.approx(distance_at(STILL, target, segment))
    moved_back = reverse_distance(grid.arrays, labels[grid.rows], 4, target[:200], MOTION, CUT)
    assert moved_back == pytest.approx(0, abs=1e-6)


def test_polishing_ends_at_the_motion_or_says_that_there_is_too_little(sweeps):
    segment, target = sweeps
    source_grid, target_grid = PointGrid(segment), PointGrid(target)
    labels, motion = np.zeros(len(segment), np.int64), (1.0, 0.0, 0.5, 0.2)
    for _ in range(30):
        is_enough, motion = polish_step(
            target_grid.arrays, source_grid.arrays, labels, 0, segment, target[:200], motion, 0.3, 0.1, LAG, True
        )
        assert is_enough
    np.testing.assert_allclose(motion, MOTION, atol=1e-6)
    for body, around in ((segment[:4], target), (segment, target[:4])):
        is_enough, same = polish_step(
            target_grid.arrays, source_grid.arrays, labels, 0, body, around, motion, 0.3, 0.1, LAG, True
        )
        assert not is_enough and same == motion


def test_the_box_holds_the_moved_points(sweeps):
    segment, target = sweeps
    low, high = moved_box(segment, MOTION, 0.3)
    np.testing.assert_allclose(low, target[:200, :3].min(0) - 0.3)
    np.testing.assert_allclose(high, target[:200, :3].max(0) + 0.3)
