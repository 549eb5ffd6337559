# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.lidar import level as level_module
from zeroflow_ros.lidar.level import Level, SensorLevel, find_ground, level_rotation
from zeroflow_ros.lidar.point_cloud import decode_cloud

EIGHT_BEAMS = np.linspace(-15, 6, 8)  # degrees; one of them is level
MANY_BEAMS = np.linspace(-25, 2, 64)


def turned(roll=0.0, pitch=0.0):
    """Return sensor_R_level, (3, 3), of angles in degrees."""
    roll, pitch = np.radians([roll, pitch])
    return transforms.rotation_matrix([0, pitch, 0]) @ transforms.rotation_matrix([roll, 0, 0])


def scan(height=1.73, beams=MANY_BEAMS, sensor_R_level=None, *, cut=None, azimuths=900, seed=0):
    """Return what a spinning LiDAR sees of a street 21 m wide, with parked cars, between two houses; (N, 3) float32.

    beams: elevations [degrees]. cut: height [m] below which a filter removes points.
    """
    sensor_R_level = np.eye(3) if sensor_R_level is None else sensor_R_level
    rng = np.random.default_rng(seed)
    elevation, azimuth = np.radians(beams)[:, None], np.linspace(-np.pi, np.pi, azimuths, endpoint=False)[None]
    flat = np.cos(elevation)
    rays = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation) + 0 * azimuth], axis=-1)
    rays = rays.reshape(-1, 3) @ sensor_R_level  # in the level frame
    with np.errstate(divide='ignore', invalid='ignore'):
        ranges = np.where(rays[:, 2] < 0, -height / rays[:, 2], np.inf)
        for axis, place in ((1, 9.0), (1, -12.0), (0, 40.0), (0, -35.0)):
            wall = place / rays[:, axis]
            up = wall * rays[:, 2] + height
            ranges = np.where((wall > 0) & (up > 0) & (up < 6) & (wall < ranges), wall, ranges)
        for _ in range(8):
            centre = np.array([rng.uniform(-25, 25), rng.choice([-6.0, 6.0]), 0.75 - height])
            faces = np.stack([(centre - [2.2, 0.9, 0.75]) / rays, (centre + [2.2, 0.9, 0.75]) / rays])
            into, out = faces.min(axis=0).max(axis=1), faces.max(axis=0).min(axis=1)
            ranges = np.where((into > 0) & (into < out) & (into < ranges), into, ranges)
    seen = ranges < 80
    points = rays[seen] * (ranges[seen] + rng.normal(0, 0.02, seen.sum()))[:, None]
    if cut is not None:
        points = points[points[:, 2] + height > cut]
    return (points @ sensor_R_level.T).astype(np.float32)


def tilt_error(level, sensor_R_level):
    """Return the angle [degrees] between the level's up and the true one."""
    return np.degrees(np.arccos(np.clip(level.up @ sensor_R_level @ [0, 0, 1], -1, 1)))


@pytest.fixture(scope='module')
def street(shared_data):
    """Return four sweeps of KITTI, 1.75 m above the ground and level within a degree."""
    with Bag(shared_data / 'bags' / 'kitti_0005_a') as bag:
        messages = [m for k, m in enumerate(bag.messages(['/velodyne_points'])) if k % 15 == 0]
        return [decode_cloud(decode_message(m.cdr, POINT_CLOUD)).points for m in messages]


UNTOLD = [(0, 0), (0, 5), (0, 10), (0, -15), (10, 0), (-8, 8)]
TOLD = [(0, 10), (0, 20), (0, 30), (0, -45), (10, 0), (45, 0), (20, -30), (180, 0), (160, 20), (0, 180)]


@pytest.mark.parametrize(('roll', 'pitch'), UNTOLD)
@pytest.mark.parametrize('height', [0.4, 1.73, 3.0])
def test_a_level_is_found_from_the_ground_alone(height, roll, pitch):
    sensor_R_level = turned(roll, pitch)
    level = SensorLevel().update(scan(height, sensor_R_level=sensor_R_level))
    assert level.height == pytest.approx(height, abs=0.02) and level.reason == ''
    assert tilt_error(level, sensor_R_level) < 0.2  # degrees: 2 cm of noise over 10 m
    assert level.tilt_from == ('ground' if roll or pitch else 'nothing')


@pytest.mark.parametrize(('roll', 'pitch'), UNTOLD)
def test_a_real_sensor_is_levelled_from_the_ground_alone(street, roll, pitch):
    sensor_R_level, sensor = turned(roll, pitch), SensorLevel()
    for points in street:
        level = sensor.update(points @ sensor_R_level.T.astype(np.float32))
    assert level.height == pytest.approx(1.76, abs=0.05)
    assert tilt_error(level, sensor_R_level) < 1.2  # degrees: the road itself is 0.8 degrees off
    levelled = transforms.apply(level.level_T_sensor, points @ sensor_R_level.T.astype(np.float32))
    as_recorded = transforms.apply(transforms.yaw_translation(0, 0, 0, 1.76), points)
    near = np.hypot(*points[:, :2].T) < 20
    assert np.abs(levelled - as_recorded)[near].max() < 0.5  # m: 1.2 degrees at 20 m


@pytest.mark.parametrize(('roll', 'pitch'), TOLD)
def test_a_real_sensor_is_levelled_by_its_mount(street, roll, pitch):
    sensor_R_level = turned(roll, pitch)
    base_R_sensor = transforms.rotation_matrix([0, 0, 2.0]) @ sensor_R_level.T  # the heading of a mount plays no part
    sensor = SensorLevel(base_R_sensor)
    for points in street:
        level = sensor.update(points @ sensor_R_level.T.astype(np.float32))
    assert (level.tilt_from, level.reason) == ('mount', '')
    assert level.height == pytest.approx(1.76, abs=0.05)
    np.testing.assert_allclose(level.up, sensor_R_level @ [0, 0, 1], atol=1e-9)  # residual tilt in the dead band
    heading = level.level_T_sensor[:3, 0]
    assert heading[1] == pytest.approx(0, abs=1e-9) and heading[0] > -1e-9  # no yaw


def test_a_mount_that_is_off_by_more_than_the_slope_of_roads_is_corrected():
    sensor_R_level = turned(30, 0)
    points = scan(sensor_R_level=sensor_R_level)
    told = SensorLevel(turned(26, 0).T).update(points)
    assert tilt_error(told, sensor_R_level) < 0.2 and told.tilt_from == 'ground'
    nearly = SensorLevel(turned(29, 0).T).update(points)
    assert nearly.tilt_from == 'mount' and tilt_error(nearly, sensor_R_level) == pytest.approx(1.0, abs=1e-6)


def test_a_tilt_beyond_what_is_corrected_is_not_found_but_said():
    points = scan(sensor_R_level=turned(0, 20))
    level = SensorLevel().update(points)
    assert np.isnan(level.height) and level.reason == 'the ground is tilted by 20 degrees'
    np.testing.assert_array_equal(level.level_T_sensor, np.eye(4))
    assert SensorLevel(turned(0, 20).T).update(points).height == pytest.approx(1.73, abs=0.02)


RNG = np.random.default_rng(7)
FLAT = scan()
UPSIDE_DOWN = scan(sensor_R_level=turned(180))
UNKNOWN = [
    ('empty', FLAT[:0], 'few points'),
    ('one point', FLAT[:1], 'few points'),
    ('all NaN', np.full_like(FLAT, np.nan), 'few points'),
    ('infinite', np.full_like(FLAT, np.inf), 'few points'),
    ('far too large for float32', np.full_like(FLAT, 1e30), 'few points'),
    ('all at the origin', np.zeros_like(FLAT), 'few points'),
    ('ground removed', scan(cut=0.3), 'near the lowest ones lie on a plane'),
    ('points everywhere', RNG.uniform([-25, -25, -2], [25, 25, 20], (20_000, 3)).astype(np.float32), 'plane'),
    ('ground above the sensor', FLAT + np.float32([0, 0, 4]), 'plane'),
    ('upside down, not told', UPSIDE_DOWN, 'plane'),
]


@pytest.mark.parametrize(('points', 'reason'), [row[1:] for row in UNKNOWN], ids=[row[0] for row in UNKNOWN])
@pytest.mark.parametrize('mount', [None, np.eye(4)], ids=['untold', 'told'])
def test_what_is_not_found_is_not_zero(points, reason, mount):
    up, height, why, _ = find_ground(points)
    assert up is None and np.isnan(height) and reason in why
    level = SensorLevel(mount).update(points)
    assert np.isnan(level.height) and level.reason == why
    assert level.tilt_from == ('nothing' if mount is None else 'mount')
    np.testing.assert_array_equal(level.level_T_sensor[:3, :3], np.eye(3))
    assert level.level_T_sensor[2, 3] == 0 or reason.startswith('near')  # the lowest surface that a filter left


def test_without_ground_the_tilt_is_that_of_the_mount(street):
    sensor_R_level = turned(0, 20)
    level = SensorLevel(sensor_R_level.T).update(scan(cut=0.3, sensor_R_level=sensor_R_level))
    assert np.isnan(level.height) and tilt_error(level, sensor_R_level) < 1e-5
    for points in street:  # a filter that removes the ground of a real sweep
        filtered = SensorLevel().update(points[points[:, 2] > -1.4])
        assert np.isnan(filtered.height) and filtered.lowest == pytest.approx(1.35, abs=0.05)
        assert filtered.level_T_sensor[2, 3] == filtered.lowest
        assert np.isnan(SensorLevel(height=1.75).update(points[points[:, 2] > -1.4]).lowest)


@pytest.mark.parametrize('height', [0.4, 1.73, 3.0])
@pytest.mark.parametrize('pitch', [0, 5, -10])
def test_the_ring_of_a_level_beam_is_not_ground(height, pitch):
    """Eight beams put three rings on the ground, and one through the sensor itself: a plane with the most points."""
    sensor_R_level = turned(0, pitch)
    points = scan(height, EIGHT_BEAMS, sensor_R_level, azimuths=1800)
    level = SensorLevel().update(points)
    assert level.height == pytest.approx(height, abs=0.2)  # m; three rings on the ground, and as many on the walls
    assert tilt_error(level, sensor_R_level) < 2.5
    ring = points[np.abs(points[:, 2]) < 0.01]  # nothing but that ring
    assert len(ring) > 500 and np.isnan(SensorLevel().update(ring).height)


@pytest.mark.parametrize('beams', [EIGHT_BEAMS, MANY_BEAMS], ids=['8 beams', '64 beams'])
def test_a_frame_whose_origin_lies_on_the_ground(beams):
    points = scan(1.73, beams, azimuths=1800) + np.float32([1.2, 0, 1.73])
    level = SensorLevel().update(points)
    assert level.height == pytest.approx(0, abs=0.03) and level.reason == ''


def test_a_level_is_a_median_that_one_sweep_cannot_move():
    sensor_R_level, sensor = turned(0, 10), SensorLevel()
    for seed in range(5):
        sensor.update(scan(sensor_R_level=sensor_R_level, seed=seed))
    for points in (scan(3.0, sensor_R_level=turned(0, -5)), FLAT[:0], scan(cut=0.3)):
        level = sensor.update(points)
        assert level.height == pytest.approx(1.73, abs=0.02) and tilt_error(level, sensor_R_level) < 0.3
    sensor.reset()
    assert np.isnan(sensor.update(FLAT[:0]).height)


def test_a_level_forgets_what_is_long_ago():
    sensor = SensorLevel(memory=3)
    for _ in range(3):
        sensor.update(FLAT)
    for _ in range(30):  # once its memory is full it looks at one sweep in ten
        sensor.update(FLAT + np.float32([0, 0, 0.5]))
    assert sensor.update(FLAT).height == pytest.approx(1.23, abs=0.02)


def test_another_mount_starts_over():
    sensor = SensorLevel(np.eye(4))
    assert np.isfinite(sensor.update(FLAT).height)
    sensor.set_mount(np.eye(4))  # looked up again, the same
    assert np.isfinite(sensor.update(FLAT[:0]).height)
    sensor.set_mount(None)
    assert np.isnan(sensor.update(FLAT[:0]).height)


@pytest.mark.parametrize('height', [2.1, 0.0])
def test_a_height_that_is_given(height):
    sensor_R_level = turned(0, 10)
    level = SensorLevel(height=height).update(scan(sensor_R_level=sensor_R_level))
    assert level.height == height and tilt_error(level, sensor_R_level) < 0.2
    without = SensorLevel(height=height).update(FLAT[:0])
    assert without.height == height and 'few points' in without.reason


def test_roll_and_pitch_are_those_of_the_sensor():
    level_R_sensor = turned(10, -20)  # R_y(pitch) R_x(roll)
    level = Level(level_R_sensor[2], 1.5, 'ground')
    assert np.degrees([level.roll, level.pitch]) == pytest.approx([10, -20])
    np.testing.assert_allclose(level.level_T_sensor[:3, :3], level_R_sensor, atol=1e-12)
    assert level.level_T_sensor[2, 3] == 1.5


@pytest.mark.parametrize('up', [[1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1], [0, 1, 0]])
def test_every_direction_can_be_up(up):
    rotation = level_rotation(np.array(up, np.float64))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotation @ up, [0, 0, 1], atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_a_ground_that_never_comes_is_not_searched_in_every_sweep(monkeypatch):
    """The search takes 5 ms; a node over water or with a ground filter must not pay it in every sweep."""
    searched = []
    monkeypatch.setattr(
        level_module, 'find_ground', lambda points, up: searched.append(len(points)) or find_ground(points, up)
    )
    sensor = SensorLevel(memory=5)
    for _ in range(100):
        sensor.update(FLAT[:0])
    assert len(searched) < 30
    found = [np.isfinite(sensor.update(FLAT).height) for _ in range(10)]
    assert any(found)  # and it is found when it comes
