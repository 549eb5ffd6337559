# SPDX-License-Identifier: Apache-2.0
"""Searches in the grid find what a search through all points finds."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from training.teachers.point_grid import ALL, PointGrid, nearest, numbers_in_box

LIMIT = 0.5


def cloud(seed, size=(4.0, 3.0, 1.0, 0.2), num_points=800):
    return np.random.default_rng(seed).uniform(0, 1, (num_points, 4)) * size


@pytest.mark.parametrize('size', [(4.0, 3.0, 1.0, 0.2), (40.0, 0.1, 0.0, 0.0), (2e4, 2e4, 2.0, 0.1)])
def test_the_nearest_point_of_a_grid_is_that_of_a_tree(size):
    points, places = cloud(0, size), cloud(1, size) * 1.2 - np.multiply(0.1, size)
    places[:50] = points[:50] + 0.02
    grid = PointGrid(points)
    expected, _ = cKDTree(points).query(places, distance_upper_bound=LIMIT)
    none = np.empty(0, np.int64)
    for guess in (-1, 5):
        found = [nearest(grid.arrays, *place, LIMIT, guess, none, ALL) for place in places]
        rows = np.array([row for row, _ in found])
        assert ((rows >= 0) == np.isfinite(expected)).all() and (rows >= 0).sum() >= 50
        np.testing.assert_allclose(np.sqrt([squared for _, squared in found]), np.minimum(expected, LIMIT), atol=1e-12)
        hit = rows >= 0
        distance = np.linalg.norm(points[grid.rows[rows[hit]]] - places[hit], axis=1)
        np.testing.assert_allclose(distance, expected[hit], atol=1e-12)


def test_only_points_with_the_wanted_label_are_found():
    points, places = cloud(0), cloud(1)
    grid, labels = PointGrid(points), np.arange(800) % 3
    expected, _ = cKDTree(points[labels == 2]).query(places, distance_upper_bound=LIMIT)
    squared = [nearest(grid.arrays, *place, LIMIT, -1, labels[grid.rows], 2)[1] for place in places]
    np.testing.assert_allclose(np.sqrt(squared), np.minimum(expected, LIMIT), atol=1e-12)


def test_the_nearest_points_of_all_ignore_times():
    points, places = cloud(0), cloud(1, (8.0, 3.0, 1.0, 5.0))
    distances, rows = PointGrid(points).nearest(PointGrid(places), LIMIT)
    expected, expected_rows = cKDTree(points[:, :3]).query(places[:, :3], distance_upper_bound=LIMIT)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(distances, np.minimum(expected, LIMIT), atol=1e-12)
    assert (rows == len(points)).any()


def test_points_in_a_box_come_in_order():
    points, labels = cloud(0), np.arange(800) % 4 - 1
    grid, low, high = PointGrid(points), np.array([1.0, -5.0, 0.2]), np.array([2.5, 1.7, 0.9])
    rows = numbers_in_box(grid.arrays, grid.rows, low, high, labels[grid.rows], 1)
    inside = ((points[:, :3] > low) & (points[:, :3] < high)).all(1)
    np.testing.assert_array_equal(rows, np.flatnonzero(inside & ((labels < 0) | (labels == 1))))
    assert len(rows) > 20
    ranks = numbers_in_box(grid.arrays, grid.ranks, low, high, labels[grid.rows], 1)
    np.testing.assert_array_equal(np.sort(grid.ranked[ranks], axis=0), np.sort(points[rows], axis=0))
    assert len(numbers_in_box(grid.arrays, grid.rows, low + 100, high + 100, labels, 1)) == 0
