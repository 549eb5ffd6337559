# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from cloud_messages import message

from zeroflow_ros.lidar.no_returns import remove_no_returns
from zeroflow_ros.lidar.point_cloud import decode_cloud


def scan(num_points: int = 8000) -> np.ndarray:
    """64 rings on level ground and on a wall, rounded to 2 mm as drivers do."""
    rng = np.random.default_rng(0)
    ring = np.radians(np.linspace(-25, -2, 64))[rng.integers(64, size=num_points)]
    azimuth = rng.uniform(-np.pi, np.pi, num_points)
    reach = np.minimum(1.8 / np.tan(-ring), 12 / np.maximum(np.abs(np.sin(azimuth)), 0.2))
    points = np.c_[reach * np.cos(azimuth), reach * np.sin(azimuth), reach * np.tan(ring)]
    return (np.round(points / 0.002) * 0.002).astype(np.float32)


def directions(number: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    azimuth, elevation = rng.uniform(-np.pi, np.pi, number), rng.uniform(-0.4, 0.2, number)
    flat = np.cos(elevation)
    return np.c_[flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]


@pytest.mark.parametrize('placeholder', [(-1, -1, -1), (0.3, 0.0, 1.73), (999.0, 999.0, 999.0)], ids=str)
@pytest.mark.parametrize('share', [0.03, 0.74])
def test_no_returns_written_as_one_placeholder_move_with_the_vehicle(placeholder, share):
    points = scan()
    number = round(share / (1 - share) * len(points))
    mixed = np.concatenate([points, np.tile(np.float32(placeholder), (number, 1))])
    order = np.random.default_rng(2).permutation(len(mixed))
    rows = np.c_[mixed[order], np.ones(len(order), np.float32)].astype(np.float32)
    sweep = decode_cloud(message(rows.tobytes()))
    is_placeholder = order >= len(points)
    assert np.isnan(sweep.points[is_placeholder]).all()
    assert np.array_equal(sweep.points[~is_placeholder], mixed[order][~is_placeholder])
    assert 'no returns' in sweep.no_return_note and f'{number} of' in sweep.no_return_note


def test_rays_without_a_return_at_the_maximum_range_look_like_a_wall_that_drives_along():
    points = scan()
    far = (70.0 * directions(2000)).astype(np.float32)
    mixed = np.concatenate([points, far])
    note = remove_no_returns(mixed)
    assert np.isnan(mixed[len(points) :]).all() and np.array_equal(mixed[: len(points)], points)
    assert '70.00 m' in note


def test_no_returns_that_rounding_moved_off_the_origin():
    points = scan()
    noise = np.random.default_rng(3).uniform(-1e-3, 1e-3, (2000, 3)).astype(np.float32)
    mixed = np.concatenate([points, noise])
    assert 'origin' in remove_no_returns(mixed)
    assert np.isnan(mixed[len(points) :]).all() and np.array_equal(mixed[: len(points)], points)


def test_rings_walls_and_small_clouds_are_returns():
    rows = np.tile(np.float32([5.0, 1.0, 0.0]), (2000, 1))
    one_beam = np.float32([[30 * np.cos(a), 30 * np.sin(a), -1.8] for a in np.linspace(0, 6.28, 2000)])
    cases = [scan(), scan()[:300], rows, one_beam, np.zeros((0, 3), np.float32), np.full((2000, 3), np.nan, np.float32)]
    for points in cases:
        before = points.copy()
        assert remove_no_returns(points) == ''
        assert np.array_equal(points, before, equal_nan=True)
