# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.objects.occupancy_memory import OccupancyMemory

RNG = np.random.default_rng(0)
WALL = np.column_stack([RNG.uniform(-20, 20, 20000), np.full(20000, 6.05), RNG.uniform(-1, 2, 20000)])
NONE = np.zeros((0, 3))


def moved(points, x=0.0, y=0.0, z=0.0):
    return points + [x, y, z]


@pytest.mark.parametrize(
    'label, points, share',
    [
        ('no points', NONE, 0),
        ('the wall', WALL, 1),
        ('beside the wall', moved(WALL, y=-2), 0),
        ('above the wall', moved(WALL, z=3.5), 0),
        ('half of it was there', np.concatenate([WALL, moved(WALL, y=-2)]), 0.5),
        ('outside of what is remembered', moved(WALL, x=500), 0),
        ('above and below of what is remembered', moved(WALL, z=500), 0),
    ],
)
@pytest.mark.parametrize('sensor', [np.eye(4), transforms.yaw_translation(1.0, 8, -3)])
def test_places_are_those_of_the_world(label, points, share, sensor):
    places = OccupancyMemory(1.0)
    places.add(5.0, sensor, transforms.apply(transforms.invert(sensor), WALL))
    found, then = places.occupied_fraction(points, 4.2)
    assert found == pytest.approx(share, abs=0.03) and then == 5.0


def test_the_sweep_nearest_to_the_time_is_asked():
    places = OccupancyMemory(1.0)
    assert places.occupied_fraction(WALL, 0.0) == (0.0, np.inf)
    for k in range(5):
        places.add(0.1 * k, np.eye(4), moved(WALL, y=2.0 * k))
    assert places.occupied_fraction(moved(WALL, y=4.0), 0.22) == (pytest.approx(1, abs=0.01), pytest.approx(0.2))
    assert places.occupied_fraction(moved(WALL, y=4.0), 0.38) == (0.0, pytest.approx(0.4))
    places.add(9.0, np.eye(4), NONE)
    assert places.occupied_fraction(WALL, 0.0) == (0.0, 9.0)  # what is older than a second is forgotten
    places.reset()
    assert places.occupied_fraction(WALL, 9.0) == (0.0, np.inf)
