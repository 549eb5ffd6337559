# SPDX-License-Identifier: Apache-2.0
"""The motion of the clouds' frame on /tf, in the ways in which people publish it."""

import numpy as np
import pytest
import tf_bag
from tf_bag import Tf, constant, driving
from tiny_bag import START_NS

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.ego_motion.tf_poses import TfPoses
from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.transforms import interpolate, invert, yaw_translation

MOUNT = yaw_translation(0.1, 1.2, 0, 1.8)
MOVED = yaw_translation(0, 0.5, 0)  # of the vehicle in 0.1 s


def poses(tmp_path, tf, static=(), frame='lidar', fixed_frame=''):
    path = tf_bag.write(tmp_path / 'bag', tf, static, frame=frame, num_sweeps=1)
    with Bag(path) as bag:
        return TfPoses(bag, frame, fixed_frame)


def motion(found, seconds=0.31):
    """Return the motion over 0.1 s of the frame of the clouds."""
    stamp_ns = START_NS + round(seconds * 1e9)
    return invert(found.pose(stamp_ns)) @ found.pose(stamp_ns + 100_000_000)


def correction(seconds):
    return yaw_translation(0, 0.1 * np.sin(seconds), 0)


def stepping(seconds):  # map -> odom of a localisation
    return yaw_translation(0, 3.0 * (seconds > 0.35), 0)


CHAINS = [
    ('odom to the LiDAR, as this is recorded most', [Tf('odom', 'lidar')], [], 'odom', MOVED),
    ('leading slashes', [Tf('/odom', '/base_link')], [('/base_link', '/lidar', MOUNT)], 'odom', None),
    ('10 Hz', [Tf('odom', 'base_link', rate=10)], [('base_link', 'lidar', MOUNT)], 'odom', None),
    ('200 Hz', [Tf('odom', 'base_link', rate=200)], [('base_link', 'lidar', MOUNT)], 'odom', None),
    ('the mount on /tf', [Tf('odom', 'base_link'), Tf('base_link', 'lidar', constant(MOUNT))], [], 'odom', None),
    ('the mount on /tf, seldom, stamped ahead',
     [Tf('odom', 'base_link'), Tf('base_link', 'lidar', constant(MOUNT), rate=2, clock=0.3)], [], 'odom', None),
    ('map jumps, odom does not', [Tf('map', 'odom', stepping), Tf('odom', 'base_link')],
     [('base_link', 'lidar', MOUNT)], 'odom', None),
    ('map alone', [Tf('map', 'base_link')], [('base_link', 'lidar', MOUNT)], 'map', None),
    ('odom that nobody measures', [Tf('map', 'odom'), Tf('odom', 'base_link', constant(np.eye(4)))],
     [('base_link', 'lidar', MOUNT)], 'map', None),
    ('a prefix', [Tf('robot1/odom', 'robot1/base_link')], [('robot1/base_link', 'lidar', MOUNT)], 'robot1/odom', None),
    ('another top that the frame moves in', [Tf('camera_init', 'lidar')], [], 'camera_init', MOVED),
    ('odom below the vehicle', [Tf('base_link', 'odom', lambda s: invert(driving(s)))],
     [('base_link', 'lidar', MOUNT)], 'odom', None),
    ('wheels turn beside the chain', [Tf('odom', 'base_link'), Tf('base_link', 'wheel', driving)],
     [('base_link', 'lidar', MOUNT)], 'odom', None),
    ('two parents of the vehicle', [Tf('map', 'base_link', lambda s: driving(s) @ correction(s)),
     Tf('odom', 'base_link')], [('base_link', 'lidar', MOUNT)], 'odom', None),
]  # fmt: skip


@pytest.mark.parametrize(('tf', 'static', 'fixed', 'expected'), [r[1:] for r in CHAINS], ids=[r[0] for r in CHAINS])
def test_the_motion_is_that_of_the_vehicle_seen_from_the_lidar(tmp_path, tf, static, fixed, expected):
    found = poses(tmp_path, tf, static)
    assert found.fixed_frame == fixed
    expected = invert(MOUNT) @ MOVED @ MOUNT if expected is None else expected
    np.testing.assert_allclose(motion(found), expected, atol=1e-6)


def test_turns_are_interpolated(tmp_path):
    found = poses(tmp_path, [Tf('odom', 'lidar', lambda s: yaw_translation(s, 0, 0), rate=10)])
    expected = interpolate(yaw_translation(0.3, 0, 0), yaw_translation(0.4, 0, 0), 0.5)
    np.testing.assert_allclose(found.pose(START_NS + 350_000_000), expected, atol=1e-9)


def test_the_fixed_frame_of_the_user_wins(tmp_path):
    tf = [Tf('map', 'odom', correction), Tf('odom', 'base_link')]
    found = poses(tmp_path, tf, [('base_link', 'lidar', np.eye(4))], fixed_frame='/map')
    seconds = 0.3
    np.testing.assert_allclose(
        found.pose(START_NS + 300_000_000), correction(seconds) @ driving(seconds), atol=1e-6
    )  # fmt: skip


SILENT = [
    ('odom begins later', [Tf('odom', 'lidar', start=0.5)], 'it is known from .* s to .* s'),
    ('odom ends', [Tf('odom', 'lidar', end=0.25)], 'it is known from'),
    ('a gap', [Tf('odom', 'lidar', end=0.1), Tf('odom', 'lidar', start=0.7)], 'there is a gap of 0.60 s'),
    ('a standing vehicle whose odometry ends', [Tf('odom', 'lidar', constant(), end=0.25)], 'it is known from'),
]


@pytest.mark.parametrize(('tf', 'says'), [row[1:] for row in SILENT], ids=[row[0] for row in SILENT])
def test_where_tf_is_silent_nothing_is_guessed(tmp_path, tf, says):
    found = poses(tmp_path, tf)
    with pytest.raises(EgoMotionError, match=says):
        motion(found)


REFUSED = [
    ('nothing', [], [], '', "'lidar'.*connected with no frame"),
    ('only a mount', [], [('base_link', 'lidar', MOUNT)], '', 'connected with base_link, but not'),
    ('the mount on /tf alone', [Tf('base_link', 'lidar', constant())], [], '', 'not through a transform that changes'),
    ('a sensor that turns on the vehicle', [Tf('base_link', 'lidar', lambda s: yaw_translation(s, 0, 0))], [], '',
     'Name such a frame with --fixed-frame'),
    ('another tree', [Tf('odom', 'base_link')], [], '', "'lidar'.*connected with no frame"),
    ('an unknown fixed frame', [Tf('odom', 'lidar')], [], 'utm', "'utm'.*connected with odom"),
    ('two publishers', [Tf('odom', 'lidar', rate=20), Tf('odom', 'lidar', lambda s: driving(s) @ yaw_translation(
        0, 1, 2), rate=20, start=-0.175)], [], '', 'jumps back and forth: it has two publishers'),
]  # fmt: skip


@pytest.mark.parametrize(('tf', 'static', 'fixed', 'says'), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_transforms_that_do_not_say_how_the_lidar_moves_are_refused(tmp_path, tf, static, fixed, says):
    with pytest.raises(EgoMotionError, match=says):
        poses(tmp_path, tf, static, fixed_frame=fixed)


def test_a_transform_that_is_no_pose_is_left_out(tmp_path):
    def broken(seconds):
        pose = driving(seconds)
        pose[0, 3] = np.nan if round(seconds * 50) % 5 == 0 else pose[0, 3]
        return pose

    np.testing.assert_allclose(motion(poses(tmp_path, [Tf('odom', 'lidar', broken)])), MOVED, atol=1e-6)
