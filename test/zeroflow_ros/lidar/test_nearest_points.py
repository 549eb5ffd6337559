# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.lidar import nearest_points
from zeroflow_ros.lidar.nearest_points import CELL, CELLS, NONE, NearestPoints, cell_of, cells_around

EVERYWHERE = np.ones(CELLS * CELLS, bool)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=['compiled', 'numpy'], autouse=True)
def arithmetic(request, monkeypatch):
    if request.param == 'numpy':
        monkeypatch.setattr(nearest_points, 'numba_kernels', None)


def test_the_nearest_point_is_the_one_that_a_search_over_all_finds(rng):
    points = rng.uniform(-5, 5, (2000, 3)).astype(np.float32)
    points[::50] = np.nan
    places = rng.uniform(-6, 6, (200, 3)).astype(np.float32)
    near = NearestPoints(points, EVERYWHERE, np.eye(4))
    rows, distances = near.query(places)
    all_distances = np.linalg.norm(points[None] - places[:, None], axis=2)
    nearest = np.nanmin(all_distances, axis=1)
    found = nearest < CELL
    assert 20 < found.sum() < 200
    np.testing.assert_allclose(distances, np.where(found, nearest, CELL), atol=1e-6)
    assert (rows[~found] == NONE).all()
    np.testing.assert_array_equal(near.points[rows[found]], points[np.nanargmin(all_distances, axis=1)[found]])
    if (kernels := nearest_points.numba_kernels) is not None:  # as the fit of object motion searches
        grid = np.float32(1 / CELL), CELLS, np.float32(CELL)
        again = [kernels.nearest_point(near.points, near.starts, *place, *grid) for place in places]
        assert [row for row, _ in again] == rows.tolist()
        np.testing.assert_allclose([away for _, away in again], distances, atol=1e-6)


def test_points_are_mapped_into_the_frame_of_the_queries():
    turned = transforms.yaw_translation(np.pi / 2, 1.0, 2.0)
    near = NearestPoints(np.float32([[3, 0, 0.5]]), EVERYWHERE, turned)
    np.testing.assert_allclose(near.points, [[1, 5, 0.5]], atol=1e-6)
    assert near.query(np.float32([[1, 5.1, 0.5]]))[1] == pytest.approx(0.1, abs=1e-5)


def test_only_points_in_wanted_cells_are_used():
    points = np.float32([[0.1, 0.1, 0], [10.1, 0.1, 0]])
    near = NearestPoints(points, cells_around(cell_of(points[:1]), 1), np.eye(4))
    np.testing.assert_array_equal(near.points, points[:1])


def test_wanted_cells_are_a_square_around_each():
    wanted = cells_around(np.array([5 * CELLS + 7, NONE]), 2).reshape(CELLS, CELLS)
    assert wanted[3:8, 5:10].all() and wanted.sum() == 25


@pytest.mark.parametrize('place', [(1e9, 0, 0), (0, -64.1, 0), (np.nan, 0, 0), (np.inf, 0, 0)])
def test_a_place_outside_has_no_nearest_point(place):
    near = NearestPoints(np.float32([place, (0, 0, 0)]), EVERYWHERE, np.eye(4))
    rows, distances = near.query(np.float32([place]))
    assert len(near.points) == 1 and rows == [NONE] and distances == [CELL]


def test_a_cloud_without_points_has_no_nearest_point():
    rows, _ = NearestPoints(np.empty((0, 3), np.float32), EVERYWHERE, np.eye(4)).query(np.zeros((3, 3), np.float32))
    assert (rows == NONE).all()
