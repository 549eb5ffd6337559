# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros.errors import ConfigError
from zeroflow_ros.lidar.own_vehicle import OwnVehicle
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import from_quaternion

NAN = np.nan
BOX = (-1.0, 3.0, -0.9, 0.9, 0.0, 2.0)
UP = from_quaternion((1.0, 0.0, 1.8), (0.0, 0.0, 0.0, 1.0))
UPSIDE_DOWN = from_quaternion((1.0, 0.0, 1.8), (1.0, 0.0, 0.0, 0.0))

# label, ego_box, min_range, base_T_sensor, points, rows of the own vehicle
TABLE = [
    ('no points', BOX, 1.0, None, np.zeros((0, 3)), []),
    ('off', (), 0.0, None, [[0.1, 0, 0], [5, 0, 0]], []),
    ('min_range', (), 1.0, None, [[0.5, 0.5, 0.5], [0.6, 0.6, 0.6], [0, 0, -0.9], [NAN, NAN, NAN]], [0, 2]),
    ('at min_range', (), 2.0, None, [[0, 2, 0]], []),
    ('box in the cloud frame', BOX, 0.0, None, [[2, 0, 1], [2, 0, -0.1], [-2, 0, 1], [2, 1, 1]], [0]),
    ('on its border', BOX, 0.0, None, [[3, 0.9, 2]], [0]),
    ('box in the base frame', BOX, 0.0, UP, [[0, 0, -1], [2.1, 0, -1], [0, 0, 1], [-1.9, 0.5, -1.7]], [0, 3]),
    ('sensor upside down', BOX, 0.0, UPSIDE_DOWN, [[0, 0, 1], [0, 0, -1], [0, 0.5, 1.7]], [0, 2]),
    ('both', BOX, 1.0, UP, [[0, 0, -1.5], [0, 0, 0.5], [0, 0, 5]], [0, 1]),
    ('beyond float32', BOX, 1.0, UP, [[3e38, 3e38, 3e38], [0, 0, -1]], [1]),
]


@pytest.mark.parametrize(
    ('box', 'min_range', 'mount', 'points', 'expected'), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_points_on_the_own_vehicle_have_no_return(box, min_range, mount, points, expected):
    points = np.array(points, np.float32)
    own = OwnVehicle(box, min_range)
    sweep = own.remove(Sweep(points.copy(), 1), mount)
    assert sweep.own_rows.tolist() == expected
    points[expected] = np.nan
    np.testing.assert_array_equal(sweep.points, points)
    assert bool(own) == (box != () or min_range > 0)


@pytest.mark.parametrize('box', [(1.0,), (0.0,) * 6, (1.0, 0.0, 0.0, 1.0, 0.0, 1.0), (0.0, 1.0, 0.0, NAN, 0.0, 1.0),
                                 (0.0, np.inf, 0.0, 1.0, 0.0, 1.0), (0.0,) * 7])  # fmt: skip
def test_a_box_that_is_none_is_refused(box):
    with pytest.raises(ConfigError, match=r'ego_box must be .x_min, x_max, .* For example'):
        OwnVehicle(box)


@pytest.mark.parametrize('min_range', [-0.1, NAN, np.inf])
def test_a_range_that_is_none_is_refused(min_range):
    with pytest.raises(ConfigError, match='min_range must be 0 or a distance'):
        OwnVehicle((), min_range)
