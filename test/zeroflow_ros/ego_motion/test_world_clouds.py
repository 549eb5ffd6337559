# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from odometry_drive import T0, street, sweep

from zeroflow_ros.ego_motion.world_clouds import (
    WorldFrame,
    in_cloud_axes,
    in_sensor_frame,
    measured_points,
    mount_of,
)
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import apply, from_quaternion, rotation_matrix, yaw_translation

# label, frame of the clouds, header.frame_id, child_frame_id, whether clouds are in the fixed frame
NAMES = [
    ('sensor', 'lidar', 'odom', 'lidar', False),
    ('vehicle', 'lidar', 'odom', 'base_link', False),
    ('no child', 'lidar', 'odom', '', False),
    ('FAST-LIO', 'camera_init', 'camera_init', 'body', True),
    ('FAST-LIO without a child', 'odom', 'odom', '', True),
    ('one name everywhere', 'odom', 'odom', 'odom', False),
    ('no names', '', '', '', False),
    ('no frame_id of the clouds', '', 'odom', '', False),
    ('another fixed frame', 'map', 'odom', 'base_link', False),
]


@pytest.mark.parametrize(('names', 'expected'), [(row[1:4], row[4]) for row in NAMES], ids=[row[0] for row in NAMES])
def test_the_names_of_the_frames_decide(names, expected):
    assert WorldFrame().holds(*names) is expected


@pytest.mark.parametrize('child_frame', ['', 'lidar'])
@pytest.mark.parametrize('in_world', [True, False])
def test_drivers_that_write_one_name_everywhere_are_judged_by_their_points(child_frame, in_world):
    world, frame = street(length=200.0), WorldFrame()
    names = 'lidar', 'lidar', child_frame
    for x in (0.0, 30.0, 90.0):
        pose = yaw_translation(0.3, x, 2.0)
        points = sweep(0, pose, world).points
        distance = np.linalg.norm(points, axis=1)  # a LiDAR sees most points near itself, but none within 3 m
        kept = np.random.default_rng(1).random(len(points)) < np.where(distance < 3, 0, (10 / distance) ** 2)
        points = points[kept]
        frame.holds(*names)
        frame.look_at(apply(pose, points) if in_world else points, pose)
        if x:
            assert frame.holds(*names) is in_world and not frame.is_uncertain()
        else:  # both are the same place; the names decide
            assert frame.holds(*names) is (child_frame == '') and frame.is_uncertain()


def test_points_go_to_the_sensor_and_back_also_in_utm():
    pose = yaw_translation(0.7, 500_000.0, 5_000_000.0, 120.0)
    points = np.array([[1, 2, -1], [40, -9, 3], [np.nan, np.nan, np.nan]])
    in_utm = (points @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32)  # steps of 0.5 m: what the sender lost
    seen = in_sensor_frame(Sweep(in_utm, T0, 'utm', np.zeros(3, np.float32)), pose)
    exact = (in_utm.astype(np.float64) - pose[:3, 3]) @ pose[:3, :3]
    np.testing.assert_allclose(seen.points, exact, atol=1e-5)
    assert seen.times is None and seen.frame_id == 'utm' and np.isnan(seen.points[2]).all()
    near = yaw_translation(0.7, 50.0, -30.0)
    sent = Sweep(apply(near, points.astype(np.float32)), T0, 'odom')
    np.testing.assert_allclose(measured_points(in_sensor_frame(sent, near)), sent.points, atol=1e-4)
    assert measured_points(sent) is sent.points


def test_velocities_turn_back_into_the_axes_of_the_cloud():
    velocity = np.array([[2, 0, 0], [0, 1, 0], [np.nan] * 3], np.float32)
    seen = in_sensor_frame(Sweep(np.zeros((3, 3), np.float32), T0, 'odom'), yaw_translation(np.pi / 2, 100, 0))
    expected = [[0, 2, 0], [-1, 0, 0], [np.nan] * 3]
    np.testing.assert_allclose(in_cloud_axes(velocity, seen), expected, atol=1e-6)
    assert in_cloud_axes(velocity, Sweep(velocity, T0)) is velocity


def test_a_tilted_sensor_is_levelled_by_its_pose_in_the_fixed_frame():
    level, tilted = np.eye(4), np.eye(4)
    tilted[:3, :3] = rotation_matrix([np.pi, 0, 0])  # upside down
    points = np.zeros((1, 3), np.float32)
    for yaw in (0.0, 1.3):
        turned = yaw_translation(yaw, 5, 0) @ tilted
        mount = mount_of(in_sensor_frame(Sweep(points, T0, 'odom'), turned), None)
        np.testing.assert_allclose(mount[2, :3], [0, 0, -1], atol=1e-6)
        np.testing.assert_allclose(mount[:3, :3] @ mount[:3, :3].T, np.eye(3), atol=1e-9)
    pitched = from_quaternion((0, 0, 0), (0, np.sin(0.02), 0, np.cos(0.02)))
    assert mount_of(in_sensor_frame(Sweep(points, T0, 'odom'), pitched), None) is None  # 2 degrees: a slope
    assert mount_of(in_sensor_frame(Sweep(points, T0, 'odom'), tilted), level) is level  # as configured
    assert mount_of(Sweep(points, T0, 'lidar'), None) is None
