# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest

from zeroflow_ros.lidar.level import Ground, SensorLevel, find_ground_anywhere
from zeroflow_ros.runtime.level_check import LevelCheck
from zeroflow_ros.transforms import from_quaternion, rotation_matrix

OPTICAL = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])  # optical_R_lidar
SENSOR_HEIGHT = 1.8


def street(rng):
    """Return points (N, 3) of a road between two walls, with boxes, from a level sensor."""
    ground = np.c_[rng.uniform(-40, 40, (8000, 2)), np.zeros(8000)]
    walls = np.c_[rng.uniform(-40, 40, 3000), rng.choice([-12.0, 12.0], 3000), rng.uniform(0, 5, 3000)]
    boxes = (rng.uniform([x, 3, 0], [x + 4, 5, 1.6], (200, 3)) for x in (-30, -15, 5, 20))
    points = np.concatenate([ground, walls, *boxes]) - [0, 0, SENSOR_HEIGHT]
    return (points + rng.normal(0, 0.01, points.shape)).astype(np.float32)


STREET = street(np.random.default_rng(0))


def turned(sensor_R_level, points=STREET):
    return (points @ np.asarray(sensor_R_level).T).astype(np.float32)


def roll(degrees):
    return rotation_matrix([np.radians(degrees), 0, 0])


def pitch(degrees):
    return rotation_matrix([0, np.radians(degrees), 0])


def said(points, mount=None, height=None, frame='lidar'):
    return LevelCheck().problem(SensorLevel(mount, height=height).update(points), frame, points)


UNTOLD = [
    ('upside down, rolled', roll(180), 'tilted by 180 degrees against the xy plane .* hangs upside down'),
    ('upside down, pitched', pitch(180), 'tilted by 180 degrees against the xy plane .* hangs upside down'),
    ('pitched', pitch(30), 'tilted by 30 degrees .* pitch -30 degrees by the ground'),
    ('rolled', roll(45), 'tilted by 45 degrees .* roll -45, pitch -?0 degrees by the ground'),
    ('on its side', roll(90), 'tilted by 90 degrees'),
    ('optical', OPTICAL, r"tilted by 90 degrees .* optical frame \(z forward, x right, y down\)"),
]  # fmt: skip


@pytest.mark.parametrize('height', [None, SENSOR_HEIGHT], ids=['no height', 'height set'])
@pytest.mark.parametrize(('sensor_R_level', 'text'), [row[1:] for row in UNTOLD], ids=[row[0] for row in UNTOLD])
def test_a_mount_that_is_not_told_is_named_with_a_value_that_cures_it(sensor_R_level, text, height):
    points = turned(sensor_R_level)
    kind, message = said(points, height=height)
    assert kind == 'tilt'
    assert re.search(text, message), message
    numbers = [float(number) for number in re.search(r'set base_T_lidar to \[(.*?)\]', message)[1].split(',')]
    assert numbers[2] == pytest.approx(SENSOR_HEIGHT, abs=0.1)
    assert said(points, from_quaternion(numbers[:3], numbers[3:]), height) == ('', '')


@pytest.mark.parametrize('sensor_R_level', [row[1] for row in UNTOLD], ids=[row[0] for row in UNTOLD])
def test_a_mount_that_is_told_gives_no_warning(sensor_R_level):
    assert said(turned(sensor_R_level), np.asarray(sensor_R_level).T) == ('', '')


def test_a_wrong_mount_is_named():
    kind, message = said(STREET, roll(180))
    assert kind == 'tilt' and 'against the mount of the sensor' in message and 'Correct the mount' in message


@pytest.mark.parametrize('height', [0.3, 0.6, 1.8, 3.0])
def test_a_level_sensor_of_any_height_gives_no_warning(height):
    assert said(STREET + np.float32([0, 0, SENSOR_HEIGHT - height])) == ('', '')


def test_a_ground_above_the_sensor_is_named():
    points = STREET + np.float32([0, 0, SENSOR_HEIGHT + 2])
    for height in (None, SENSOR_HEIGHT):
        kind, message = said(points, height=height)
        assert kind == 'ground above' and "2.0 m above the origin of 'lidar'" in message, message
    assert said(points, height=-2.0) == ('', '')


def test_a_removed_ground_is_named_until_the_height_is_set():
    points = STREET[STREET[:, 2] > -SENSOR_HEIGHT + 0.4]
    kind, message = said(points)
    assert kind == 'no ground' and "Set sensor_height to the height of 'lidar'" in message
    assert said(points, height=SENSOR_HEIGHT) == ('', '')


def test_a_sensor_height_that_the_ground_contradicts_is_named():
    kind, message = said(STREET + np.float32([0, 0, SENSOR_HEIGHT]), height=1.73)  # in base_link, on the road
    assert kind == 'height' and 'sensor_height is 1.73 m' in message
    assert said(STREET, height=SENSOR_HEIGHT + 0.3) == ('', '')


def test_the_search_is_not_repeated_for_every_sweep(monkeypatch):
    calls = []

    def counting(points):
        calls.append(len(points))
        return Ground()

    monkeypatch.setattr('zeroflow_ros.runtime.level_check.find_ground_anywhere', counting)
    check, level, points = LevelCheck(), SensorLevel(), turned(roll(180))
    for _ in range(50):
        check.problem(level.update(points), 'lidar', points)
    assert len(calls) == 1


def test_nothing_is_found_in_nothing():
    for points in (np.empty((0, 3), np.float32), np.full((5000, 3), np.nan, np.float32), np.zeros((9, 3), np.float32)):
        assert find_ground_anywhere(points).up is None
        assert said(points)[0] == 'no ground'
