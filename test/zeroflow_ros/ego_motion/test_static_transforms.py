# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest

from zeroflow_ros.ego_motion.static_transforms import StaticTransforms
from zeroflow_ros.transforms import invert, to_quaternion, yaw_translation

MAST, LIDAR = yaw_translation(0.5, 1, 2, 3), yaw_translation(-1, 0, 0, 1)


def message(*transforms):
    """Return a TFMessage of (parent, child, parent_T_child)."""
    made = []
    for parent, child, pose in transforms:
        t = SimpleNamespace(**dict(zip('xyz', pose[:3, 3], strict=True)))
        q = SimpleNamespace(**dict(zip('xyzw', to_quaternion(pose), strict=True)))
        transform = SimpleNamespace(translation=t, rotation=q)
        header = SimpleNamespace(frame_id=parent, stamp=SimpleNamespace(sec=0, nanosec=0))
        made.append(SimpleNamespace(header=header, child_frame_id=child, transform=transform))
    return SimpleNamespace(transforms=made)


@pytest.mark.parametrize(
    ('target', 'source', 'expected'),
    [
        ('base_link', 'lidar', MAST @ LIDAR),
        ('lidar', 'base_link', invert(MAST @ LIDAR)),
        ('mast', 'lidar', LIDAR),
        ('lidar', 'lidar', np.eye(4)),
        ('camera', 'camera', np.eye(4)),
        ('base_link', 'camera', None),
        ('', 'lidar', None),
    ],
)
def test_lookup(target, source, expected):
    transforms = StaticTransforms()
    transforms.add(message(('/base_link', 'mast', MAST)))
    transforms.add(message(('mast', '/lidar', LIDAR), ('world', 'map', np.eye(4))))
    found = transforms.lookup(target, source)
    if expected is None:
        assert found is None
    else:
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_transform_that_comes_later_is_found():
    transforms = StaticTransforms()
    assert transforms.lookup('base_link', 'lidar') is None and transforms.frames == []
    transforms.add(message(('base_link', 'lidar', LIDAR)))
    np.testing.assert_allclose(transforms.lookup('base_link', 'lidar'), LIDAR, atol=1e-12)
    transforms.add(message(('base_link', 'lidar', MAST)))  # sent again, corrected
    np.testing.assert_allclose(transforms.lookup('base_link', 'lidar'), MAST, atol=1e-12)
    assert transforms.frames == ['base_link', 'lidar']


def test_a_transform_that_is_no_pose_connects_nothing():
    transforms, bad = StaticTransforms(), message(('base_link', 'lidar', LIDAR))
    bad.transforms[0].transform.rotation = SimpleNamespace(x=0.0, y=0.0, z=0.0, w=0.0)
    transforms.add(bad)
    assert transforms.lookup('base_link', 'lidar') is None


def observed(poses, min_seconds=0.0, period_ms=100):
    transforms = StaticTransforms(min_seconds)
    for k, pose in enumerate(poses):
        stamped = message(('base_link', 'lidar', pose))
        stamped.transforms[0].header.stamp = SimpleNamespace(sec=5, nanosec=k * period_ms * 1_000_000)
        transforms.observe(stamped)
    return transforms


OBSERVED = [
    ('nothing', [], 0.0, None, ''),
    ('too few', [LIDAR] * 2, 0.0, None, 'was seen 2 times'),
    ('some', [LIDAR] * 3, 0.0, LIDAR, ''),
    ('too short', [LIDAR] * 6, 1.0, None, 'was seen 6 times'),
    ('long enough', [LIDAR] * 11, 1.0, LIDAR, ''),
    ('numbers that differ a little', [LIDAR, yaw_translation(-1.0005, 0.001, 0, 1.001), LIDAR], 0.0, LIDAR, ''),
    (
        'a sensor that turns',
        [LIDAR, LIDAR, LIDAR, yaw_translation(-0.9, 0, 0, 1)],
        0.0,
        None,
        'changes (by 0.000 m, 5.7 deg',
    ),
    ('a sensor that turned once', [LIDAR] * 5 + [MAST] + [LIDAR] * 9, 0.0, None, 'changes'),
]


@pytest.mark.parametrize(
    ('poses', 'seconds', 'expected', 'says'), [r[1:] for r in OBSERVED], ids=[r[0] for r in OBSERVED]
)
def test_what_never_changes_on_tf_is_static(poses, seconds, expected, says):
    transforms = observed(poses, seconds)
    found = transforms.lookup('base_link', 'lidar')
    assert found is None if expected is None else np.allclose(found, expected)
    assert says in transforms.obstacle('base_link', 'lidar')


def test_a_mount_that_begins_to_move_is_no_longer_static():
    transforms = observed([LIDAR] * 5)
    assert transforms.lookup('base_link', 'lidar') is not None
    moved = message(('base_link', 'lidar', MAST))
    moved.transforms[0].header.stamp = SimpleNamespace(sec=6, nanosec=0)
    transforms.observe(moved)
    assert transforms.lookup('base_link', 'lidar') is None
    transforms.add(message(('base_link', 'lidar', LIDAR)))  # /tf_static is believed
    np.testing.assert_allclose(transforms.lookup('base_link', 'lidar'), LIDAR, atol=1e-12)
