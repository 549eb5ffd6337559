# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros.lidar.spin_axis import SpinAxis, azimuth_about


def scan(azimuths, elevations=(-25, 15), number=2000) -> np.ndarray:
    rng = np.random.default_rng(0)
    azimuth, elevation = (np.radians(rng.uniform(*limits, number)) for limits in (azimuths, elevations))
    reach, flat = rng.uniform(3, 40, number), np.cos(elevation)
    return reach[:, None] * np.c_[flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]


# label, points of each message about z, axis of rotation where z of the sensor becomes y
CASES = [
    ('whole revolutions', [scan((-180, 180))] * 2, 1),
    ('halves', [scan((-180, 0)), scan((0, 180))], 1),
    ('segments', [scan((k, k + 30)) for k in range(-180, 180, 30)], 1),
    ('hemisphere', [scan((-180, 180), (0, 90))], 2),
]


@pytest.mark.parametrize(('messages', 'expected'), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_axis_of_rotation(messages, expected):
    upright, optical = SpinAxis(), SpinAxis()
    for points in messages:
        assert not upright.look(points)
        optical.look(np.c_[-points[:, 1], -points[:, 2], points[:, 0]])
    assert (upright.axis, optical.axis) == (2, expected)


def test_azimuth_about_each_axis():
    points = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    for axis in range(3):
        around = points[[(axis + 1) % 3, (axis + 2) % 3]]
        np.testing.assert_allclose(azimuth_about(around, axis), [0, np.pi / 2], atol=1e-12)
    np.testing.assert_allclose(azimuth_about(points[:2], 2), np.arctan2(points[:2, 1], points[:2, 0]))
