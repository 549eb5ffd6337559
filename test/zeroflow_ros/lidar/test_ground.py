# SPDX-License-Identifier: Apache-2.0
import sys

import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.errors import ModelError
from zeroflow_ros.lidar.ground import above_ground, ground_height, is_ground
from zeroflow_ros.lidar.level import SensorLevel
from zeroflow_ros.lidar.point_cloud import decode_cloud

HEIGHT = 1.73  # m, of the sensor above the ground
LEVEL_T_POINTS = transforms.yaw_translation(0, 0, 0, HEIGHT)


def rings(slope_x=0.0, slope_y=0.0, height=HEIGHT, noise=0.02, beams=64, seed=0):
    """What a spinning LiDAR at the origin sees of the plane z = slope_x x + slope_y y - height, (N, 3) float32."""
    rng = np.random.default_rng(seed)
    elevation = np.radians(np.linspace(-25, 2, beams))[:, None]
    azimuth = np.linspace(-np.pi, np.pi, 900)[None]
    with np.errstate(divide='ignore'):
        radius = height / (slope_x * np.cos(azimuth) + slope_y * np.sin(azimuth) - np.tan(elevation))
    radius = np.where((radius > 0) & (radius < 80), radius + rng.normal(0, noise, radius.shape), np.nan)
    points = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), radius * np.tan(elevation)], axis=-1)
    return points.reshape(-1, 3).astype(np.float32)


def boxes(points, rng, num_boxes=25):
    """Put cars and hedges on the ground: what is inside their footprints rises by up to their height."""
    points = points.copy()
    for _ in range(num_boxes):
        centre, side = rng.uniform(-25, 25, 2), rng.uniform(1.5, 6, 2)
        inside = (np.abs(points[:, :2] - centre) < side / 2).all(axis=1)
        points[inside, 2] += rng.uniform(0, rng.uniform(0.8, 3.0), inside.sum()).astype(np.float32)
    return points


def walls(rng, distance):
    """Sides of trucks around the vehicle, from 1 m above the ground upwards; no ground at all."""
    along, up = rng.uniform(-8, 8, 20_000), rng.uniform(-0.7, 2.5, 20_000)
    side = np.where(rng.random(20_000) < 0.5, -distance, distance)
    return np.stack([along, side, up], axis=1).astype(np.float32)


def with_rows(points, rows):
    return np.concatenate([points, np.tile(np.float32(rows), (len(points) // 4, 1))])


RNG = np.random.default_rng(7)
KNOWN = [
    ('flat', rings(), 0.01),
    ('flat, 16 beams', rings(beams=16), 0.02),
    ('flat, noise of 5 cm', rings(noise=0.05), 0.03),
    ('5 % uphill', rings(slope_x=0.05), 0.04),
    ('8 % downhill', rings(slope_x=-0.08), 0.06),
    ('3 % to the side', rings(slope_y=0.03), 0.03),
    ('cars and hedges', boxes(rings(), RNG), 0.03),
    ('cars and hedges on a slope', boxes(rings(slope_x=0.04, slope_y=-0.02), RNG, 40), 0.06),
    ('a quarter NaN', with_rows(rings(), [np.nan] * 3), 0.01),
    ('a quarter inf', with_rows(rings(), [4, 4, -np.inf]), 0.01),
    ('NaN in z alone', with_rows(rings(), [4, 4, np.nan]), 0.01),
    ('ghosts below the ground', with_rows(rings(), [9, 9, -4]), 0.02),
    ('float64', rings().astype(np.float64), 0.01),
]


@pytest.mark.parametrize(('points', 'tolerance'), [row[1:] for row in KNOWN], ids=[row[0] for row in KNOWN])
def test_ground_height(points, tolerance):
    before = points.copy()
    assert ground_height(points) == pytest.approx(-HEIGHT, abs=tolerance)
    np.testing.assert_array_equal(points, before)


def test_ground_height_follows_the_frame():
    points = rings()
    for height in (0.0, 0.35, 3.2):  # base_footprint, a rear axle, a truck's roof
        shifted = points + np.float32([0, 0, HEIGHT - height])
        assert ground_height(shifted) == pytest.approx(-height, abs=0.01)


FLAT = rings()
UNKNOWN = [
    ('empty', FLAT[:0]),
    ('one point', np.float32([[5, 5, -1.7]])),
    ('all NaN', np.full_like(FLAT, np.nan)),
    ('all at the origin', np.zeros_like(FLAT)),
    ('all too far', FLAT[np.linalg.norm(FLAT, axis=1) > 26]),
    ('a patch of 5 x 5 m', FLAT[(np.abs(FLAT[:, :2] - [8, 8]) < 2.5).all(axis=1)]),
    ('between trucks', walls(RNG, 3.5)),
    ('points everywhere', RNG.uniform([-25, -25, -2], [25, 25, 20], (2000, 3)).astype(np.float32)),
]


@pytest.mark.parametrize('points', [row[1] for row in UNKNOWN], ids=[row[0] for row in UNKNOWN])
def test_no_ground_height_where_no_ground_is_seen(points):
    assert np.isnan(ground_height(points))


# Against RANSAC over all points within 10 m: KITTI -1.80 to -1.70, Apollo -1.92 to -1.94, AV2 (rear axle) -0.35.
REAL = [('kitti_0005_a', -1.75, 0.1), ('kitti_braking', -1.75, 0.05), ('apollo_columbia_park', -1.93, 0.06)]


@pytest.mark.parametrize(('name', 'height', 'tolerance'), REAL, ids=[row[0] for row in REAL])
def test_ground_height_of_real_sweeps(shared_data, name, height, tolerance):
    highlevel = pytest.importorskip('rosbags.highlevel')
    from zeroflow_ros.lidar.point_cloud import decode_cloud

    with highlevel.AnyReader([shared_data / 'bags' / name]) as reader:
        connections = [c for c in reader.connections if c.msgtype == 'sensor_msgs/msg/PointCloud2']
        for index, (connection, _, raw) in enumerate(reader.messages(connections)):
            if index % 5 == 0:
                sweep = decode_cloud(reader.deserialize(raw, connection.msgtype))
                assert ground_height(sweep.points) == pytest.approx(height, abs=tolerance)


def test_ground_height_of_argoverse(shared_data):
    feather = pytest.importorskip('pyarrow.feather')
    sweeps = sorted((shared_data / 'av2').glob('val/*/sensors/lidar/*.feather'))
    assert sweeps
    for path in sweeps:
        table = feather.read_table(path)
        points = np.stack([table[axis].to_numpy() for axis in 'xyz'], axis=1).astype(np.float32)
        assert ground_height(points) == pytest.approx(-0.34, abs=0.05)


def test_is_ground():
    pytest.importorskip('pypatchworkpp')
    points = np.concatenate([FLAT, walls(RNG, 6.0), np.full((50, 3), np.nan, np.float32)])
    ground = is_ground(points, LEVEL_T_POINTS)
    assert ground.shape == (len(points),) and ground.dtype == bool
    on_plane = np.abs(points[:, 2] + HEIGHT) < 0.1
    near = np.linalg.norm(points[:, :2], axis=1) < 20
    assert ground[on_plane & near].mean() > 0.9
    assert ground[(points[:, 2] > -0.5)].mean() < 0.05
    assert not ground[-50:].any()


@pytest.mark.parametrize('pitch', [0, 15])
@pytest.mark.parametrize('height', [0.0, 0.34, 1.73, 3.0])  # z = 0 on the road; AV2's rear axle; KITTI; a roof
def test_what_is_ground_does_not_depend_on_the_frame_of_the_cloud(shared_data, height, pitch):
    pytest.importorskip('pypatchworkpp')
    with Bag(shared_data / 'bags' / 'kitti_0005_a') as bag:
        points = decode_cloud(decode_message(bag.first('/velodyne_points').cdr, POINT_CLOUD)).points
    expected = is_ground(points, transforms.yaw_translation(0, 0, 0, 1.75))
    sensor_T_level = np.eye(4)
    sensor_T_level[:3, :3] = transforms.rotation_matrix([0, np.radians(pitch), 0])
    level_T_velodyne = transforms.yaw_translation(0, 0, 0, 1.75 - height)
    seen = transforms.apply(sensor_T_level @ level_T_velodyne, points)
    found = is_ground(seen, SensorLevel().update(seen).level_T_sensor)
    # Patchwork++ draws its cells anew: a few points at their borders change sides. Road points of KITTI with z = 0 on
    # the road: 3,000 of 78,000 are left, and 29,500 were before clouds were shifted.
    assert np.count_nonzero(found != expected) < 0.01 * len(points)
    road = points[:, 2] < -1.5
    assert np.count_nonzero(road & ~found) < 0.05 * np.count_nonzero(road)


def test_is_ground_without_patchwork_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pypatchworkpp', None)
    with pytest.raises(ModelError, match='pip install pypatchworkpp'):
        is_ground(FLAT, LEVEL_T_POINTS)


FEW = np.array([[0.5, 0.5, -1.7], [0.6, 0.4, -1.69], [3.5, 0.5, -1.72]], np.float32)


@pytest.mark.parametrize(
    'label, points, above',
    [
        ('no points', np.zeros((0, 3), np.float32), []),
        ('one point is the lowest', FEW[:1], [False]),
        ('flat', FEW, [False] * 3),
        ('a foot and a knee', np.append(FEW, [[0.5, 0.4, -1.5], [0.5, 0.4, -1.3]], axis=0), [False] * 4 + [True]),
        ('a slope of 8 %', [[k, 0.5, 0.08 * k] for k in range(40)], [False] * 40),
        ('a step of 1 m two cells on is seen', [[0.5, 0.5, 0], [1.5, 0.5, 1]], [False, True]),
        ('farther it is other ground', [[0.5, 0.5, 0], [2.5, 0.5, 1]], [False, False]),
        ('without a place', [[np.nan] * 3, [0, 0, np.inf], [0, np.inf, 0], [500, 0, 9], [0, 0, -1e30]], [False] * 5),
        ('at the edge', [[-127.9, 127.9, 0], [-127.9, 127.9, 1], [127.9, -127.9, 5]], [False, True, False]),
    ],
)
def test_above_ground_is_relative_to_the_lowest_around(label, points, above):
    found = above_ground(np.array(points, np.float32).reshape(-1, 3), 0.3)
    assert found.dtype == bool and found.tolist() == above


def test_above_ground_on_a_street():
    """What a LiDAR sees of a sloped street with cars: nearly all of the ground is found to be ground."""
    ground = rings(slope_x=0.05)
    assert above_ground(ground, 0.3).mean() < 0.01
    risen = boxes(ground, np.random.default_rng(3))
    tall = risen[:, 2] - ground[:, 2] > 0.5
    assert above_ground(risen, 0.3)[tall].mean() > 0.9
