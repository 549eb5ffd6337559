# SPDX-License-Identifier: Apache-2.0
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.lidar import pillars
from zeroflow_ros.lidar.pillars import PillarEncoder, PillarGrid

GRID = PillarGrid(cells=8, cell=0.5, z_min=-1.0, z_max=3.0)
IDENTITY = np.eye(4)
NAN = float('nan')


@pytest.mark.parametrize(
    'label, point, cell',
    [
        ('centre goes up', (0.0, 0.0, 0.0), 4 * 8 + 4),
        ('just below the centre', (-1e-3, -1e-3, 0.0), 3 * 8 + 3),
        ('lowest corner is inside', (-2.0, -2.0, -1.0), 0),
        ('highest corner is outside', (2.0, 0.0, 0.0), -1),
        ('highest row is outside', (0.0, 2.0, 0.0), -1),
        ('below the lowest z', (0.0, 0.0, -1.001), -1),
        ('z_max is outside', (0.0, 0.0, 3.0), -1),
        ('x is the column', (0.6, 0.0, 0.0), 4 * 8 + 5),
        ('NaN x', (NAN, 0.0, 0.0), -1),
        ('NaN z', (0.0, 0.0, NAN), -1),
        ('infinite', (float('inf'), 0.0, 0.0), -1),
        ('far beyond int32', (3e38, 0.0, 0.0), -1),
    ],
)
def test_assign(label, point, cell):
    assert GRID.assign(np.array([point], np.float32)).tolist() == [cell]


def test_every_cell_border_of_the_real_grids_falls_in_the_cell_above_it():
    for cells, cell in ((256, 0.4), (512, 0.2), (1024, 0.1)):
        grid = PillarGrid(cells, cell, -3.0, 3.0)
        line = ((np.arange(cells) - cells / 2) * cell).astype(np.float32)
        points = np.stack([line, np.zeros(cells, np.float32), np.zeros(cells, np.float32)], axis=1)
        np.testing.assert_array_equal(grid.assign(points) % cells, np.arange(cells))


def test_offset_is_from_the_centre_of_the_pillar():
    points = np.array([[0.1, -0.2, 0.5]], np.float32)
    offsets = GRID.centre_offsets(points, GRID.assign(points))
    np.testing.assert_allclose(offsets, [[0.1 - 0.25, -0.2 + 0.25, 0.5 - 1.0]], atol=1e-6)


@pytest.mark.parametrize('wrong', [{'cells': 7}, {'cells': 0}, {'cell': 0.0}, {'z_min': 3.0}, {'cells': 4098},
                                   {'cells': 8.0}, {'cell': 1e-320}, {'cell': np.inf}, {'z_max': np.inf}])  # fmt: skip
def test_a_grid_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match='pillar grid'):
        PillarGrid(**{'cells': 8, 'cell': 0.5, 'z_min': -1.0, 'z_max': 3.0, **wrong})


def encoder(grid, num_channels=5):
    rng = np.random.default_rng(1)
    return PillarEncoder(
        grid, rng.normal(size=(num_channels, 9)).astype(np.float32), rng.normal(size=num_channels).astype(np.float32)
    )


def written(encoder_, points, network_T_points=IDENTITY):
    """Return the image that PillarImage writes, and the cells."""
    image = np.zeros((len(encoder_.weight), encoder_.grid.cells, encoder_.grid.cells), np.float32)
    cells = pillars.PillarImage(encoder_, image).update(points, network_T_points)
    return image, cells


def test_one_pillar_by_hand(compiled_or_not):
    # Two points of one pillar; weights that pick x, and x minus the mean.
    weight = np.zeros((2, 9), np.float32)
    weight[0, 0], weight[1, 3] = 1, 1
    points = np.array([[0.1, 0.1, 0.0], [0.3, 0.1, 0.0]], np.float32)
    by_hand = PillarEncoder(GRID, weight, np.zeros(2, np.float32))
    for image in (by_hand.encode_plain(points, GRID.assign(points)), written(by_hand, points)[0]):
        assert image.shape == (2, 8, 8)
        np.testing.assert_allclose(image[:, 4, 4], [0.2, 0.05], atol=1e-6)  # mean of x; mean of relu(-0.1), relu(0.1)
        image[:, 4, 4] = 0
        assert not image.any()


@pytest.mark.parametrize('num_points', [0, 1, 2, 333, 50_000])
def test_image_equals_the_plain_form(compiled_or_not, num_points):
    grid = PillarGrid(64, 0.4, -2.0, 4.0)
    points = np.random.default_rng(num_points).normal(0, 6, (num_points, 3)).astype(np.float32)  # many are outside
    points[::50] = np.nan
    image, cells = written(encoder(grid), points)
    np.testing.assert_array_equal(cells, grid.assign(points))
    inside = cells >= 0
    # 1e-4: float32 sums of up to 2,000 values of order 1 in different orders
    np.testing.assert_allclose(image, encoder(grid).encode_plain(points[inside], cells[inside]), atol=1e-4)


def test_nothing_of_the_cloud_before_stays_in_the_image(compiled_or_not):
    image = np.zeros((5, 8, 8), np.float32)
    pillar_image = pillars.PillarImage(encoder(GRID), image)
    rng = np.random.default_rng(0)
    for num_points in (100, 3, 0, 40):
        points = rng.uniform(-2, 2, (num_points, 3)).astype(np.float32)
        cells = pillar_image.update(points, np.eye(4))
        np.testing.assert_allclose(image, encoder(GRID).encode_plain(points[cells >= 0], cells[cells >= 0]), atol=1e-5)


def test_images_of_missing_sweeps_are_empty(compiled_or_not):
    rng, encoder_ = np.random.default_rng(0), encoder(GRID)
    images = pillars.PillarImages(encoder_, 4)
    with ThreadPoolExecutor(1) as other_core:
        for num_sweeps in (2, 4, 3, 2, 4):
            clouds = [rng.uniform(-2, 2, (50, 3)).astype(np.float32) for _ in range(num_sweeps)]
            cells = images.update([(points, IDENTITY) for points in clouds], other_core)
            np.testing.assert_array_equal(cells, GRID.assign(clouds[0]))
            for k, found in enumerate(images.images[0].reshape(4, 5, 8, 8)):
                expected = written(encoder_, clouds[k])[0] if k < num_sweeps else np.zeros((5, 8, 8))
                np.testing.assert_array_equal(found, expected)


def test_points_are_moved_into_the_frame_of_the_grid_first(compiled_or_not):
    points = np.random.default_rng(0).uniform(-3, 3, (500, 3)).astype(np.float32)
    network_T_points = transforms.yaw_translation(0.3, 1.0, -0.5, 0.7)
    image, cells = written(encoder(GRID), points, network_T_points)
    moved, expected = written(encoder(GRID), transforms.apply(network_T_points, points))
    np.testing.assert_array_equal(cells, expected)
    np.testing.assert_allclose(image, moved, atol=1e-5)


def test_cells_beyond_16_bit_are_sorted_right():
    grid = PillarGrid(512, 0.2, -3.0, 3.0)
    points = np.random.default_rng(0).uniform(-50, 50, (5000, 3)).astype(np.float32) * np.float32([1, 1, 0.05])
    cells = grid.assign(points)
    np.testing.assert_allclose(
        encoder(grid).encode(points, cells), encoder(grid).encode_plain(points, cells), atol=1e-4
    )


def test_the_mean_of_a_dense_pillar_far_away_does_not_lose_digits():
    grid = PillarGrid(cells=512, cell=0.2, z_min=-3.0, z_max=3.0)
    weight = np.zeros((5, 9), np.float32)
    weight[[0, 1, 2], [3, 4, 5]] = 1  # x, y, z minus the mean of the pillar
    dense = PillarEncoder(grid, weight, np.full(5, 0.5, np.float32))
    points = np.random.default_rng(0).uniform([45.01, -44.99, 0], [45.19, -44.81, 0.2], (500, 3)).astype(np.float32)
    image = np.zeros((5, 512, 512), np.float32)
    cell = pillars.PillarImage(dense, image).update(points, IDENTITY)[0]
    for found in (image, dense.encode(points, grid.assign(points))):
        # Sums of coordinates, instead of offsets from the centre, are off by 30 um.
        np.testing.assert_allclose(found.reshape(5, -1)[:, cell], 0.5, atol=4e-6)
