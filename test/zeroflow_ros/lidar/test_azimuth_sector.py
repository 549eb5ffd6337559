# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from sweep_parts import part_cloud

from zeroflow_ros.errors import CloudError
from zeroflow_ros.lidar.azimuth_sector import advance, azimuth_sector, joins_on, overlap, sector_of


def ring(start, width, number=1000, seed=0):
    """Azimuths [rad] of a sector given in degrees."""
    return np.radians((start + np.random.default_rng(seed).uniform(0, width, number) + 180) % 360 - 180)


@pytest.mark.parametrize(
    ('label', 'azimuths', 'width'),
    [
        ('empty', np.zeros(0), None),
        ('too few to tell', ring(0, 90, 49), None),
        ('half', ring(0, 180), 180),
        ('across the rear', ring(150, 60), 60),
        ('thirty degrees', ring(-170, 30), 30),
        ('one packet', ring(12.3, 1.2), 1.2),
        ('all around', ring(0, 360), 360),
        ('all but the rider', ring(-150, 300), 300),
        ('half with stray points', np.r_[ring(0, 180, 2000), ring(0, 360, 30)], 180),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_the_sector_is_what_the_points_cover(label, azimuths, width):
    sector = sector_of(azimuths)
    if width is None:
        assert sector is None
    else:
        assert np.degrees(sector.width) == pytest.approx(width, abs=5)  # bins of 2 degrees


def test_rows_without_a_return_are_not_seen():
    azimuth = ring(0, 90, 400)
    points = np.c_[10 * np.cos(azimuth), 10 * np.sin(azimuth), np.zeros((400, 2))]
    no_return = np.zeros((400, 4))
    no_return[::2] = np.nan
    sector = azimuth_sector(part_cloud(np.r_[points, no_return], 1))
    assert np.degrees(sector.width) == pytest.approx(90, abs=2)


def test_a_cloud_of_columns_is_sampled_in_all_of_them():
    azimuth = np.tile(np.radians(np.arange(1024) * 360 / 1024 - 180), 64)  # 64 rings of 1024 columns
    cloud = part_cloud(np.c_[np.cos(azimuth), np.sin(azimuth), np.zeros((len(azimuth), 2))], 1)
    cloud.height, cloud.width, cloud.row_step = 64, 1024, 1024 * 16
    assert azimuth_sector(cloud).width == pytest.approx(2 * np.pi)


def test_a_cloud_whose_header_lies_is_an_error():
    cloud = part_cloud(np.ones((100, 4)), 1)
    cloud.width = 200
    cloud.row_step = 200 * 16
    with pytest.raises(CloudError):
        azimuth_sector(cloud)


def test_neighbours_join_on_in_one_direction():
    left, front, far = (sector_of(ring(start, 60)) for start in (60, 0, 180))
    assert joins_on(front, left, 1) and not joins_on(front, left, -1)
    assert joins_on(left, front, -1) and not joins_on(left, front, 1)
    assert not joins_on(front, far, 1) and not joins_on(front, far, -1)
    assert overlap(front, front) == 1 and overlap(front, left) < 0.1
    assert np.degrees(advance(front.centre, left.centre)) == pytest.approx(60, abs=2)
