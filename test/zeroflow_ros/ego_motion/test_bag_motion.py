# SPDX-License-Identifier: Apache-2.0
"""Which source of ego motion a bag has, and what is said of it."""

import re
import sys

import numpy as np
import pytest
import tf_bag
from tf_bag import Tf, constant, driving
from tiny_bag import CLOUD_TOPIC, START_NS

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.ego_motion.bag_motion import BagMotion, static_transforms
from zeroflow_ros.errors import ConfigError, EgoMotionError
from zeroflow_ros.lidar.point_cloud import decode_cloud
from zeroflow_ros.transforms import invert, yaw_translation

MOUNT = yaw_translation(0.1, 1.2, 0, 1.8)
UPTIME = 123.4 - START_NS * 1e-9
CHAIN = [Tf('odom', 'base_link')]
MOUNTED = [('base_link', 'lidar', np.eye(4))]


def opened(tmp_path, source='auto', *, stamp_offset=None, fixed_frame='', **options):
    """Return (BagMotion, the motion of the fifth pair or the error text)."""
    path = tf_bag.write(tmp_path / 'bag', **options)
    with Bag(path) as bag:
        motion = BagMotion(
            bag, source, frame_id=options.get('frame', 'lidar').lstrip('/'), cloud_topic=CLOUD_TOPIC,
            stamp_offset=stamp_offset, fixed_frame=fixed_frame,
        )  # fmt: skip
        sweeps = []
        for message in bag.messages([CLOUD_TOPIC, motion.topic]):
            if message.topic == CLOUD_TOPIC:
                sweeps.append(decode_cloud(decode_message(message.cdr, POINT_CLOUD)))
            else:
                motion.add_odometry(message.cdr)
    return motion, sweeps


AUTO = [
    ('odometry in the frame of the clouds', {'odometry_clock': 0.0}, 'odometry', ''),
    ('only tf', {'tf': [Tf('odom', 'lidar')]}, 'tf', 'has no topic of nav_msgs/msg/Odometry'),
    ('only tf with a mount on /tf', {'tf': [*CHAIN, Tf('base_link', 'lidar', constant())]}, 'tf', 'no topic'),
    ('odometry, with the mount on /tf',
     {'odometry_clock': 0.0, 'child_frame': 'base_link', 'tf': [Tf('base_link', 'lidar', constant())]}, 'odometry', ''),
    ('clouds stamped since the start of the sensor', {'odometry_clock': 0.0, 'cloud_clock': UPTIME},
     'registration', 'stamps of the clouds look like seconds since a start'),
    ('the same with tf', {'tf': [Tf('odom', 'lidar')], 'cloud_clock': UPTIME}, 'registration', 'Clouds and /tf have'),
    ('odometry stamped since its start, tf on the clock of the clouds',
     {'odometry_clock': UPTIME, 'tf': [Tf('odom', 'lidar')]}, 'tf', 'stamps of odometry /odometry look like'),
    ('clouds 37 s ahead: TAI and UTC', {'odometry_clock': 0.0, 'cloud_clock': 37.0}, 'registration',
     'difference of 37.0'),
    ('clouds 2 s behind', {'odometry_clock': 0.0, 'cloud_clock': -2.0}, 'registration', 'difference of 2.0'),
    ('everything since a start', {'odometry_clock': UPTIME, 'cloud_clock': UPTIME}, 'odometry', ''),
    ('clouds stamped a little late', {'odometry_clock': 0.0, 'cloud_clock': 0.1}, 'odometry', ''),
    ('a LiDAR that turns on the vehicle',
     {'odometry_clock': 0.0, 'child_frame': 'base_link',
      'tf': [*CHAIN, Tf('base_link', 'lidar', lambda s: yaw_translation(0.3 * s, 0, 0))]}, 'tf',
     'connected on /tf, but the transform from .lidar. to .base_link. on /tf changes'),
    ('clouds without a frame', {'tf': [Tf('odom', 'lidar')], 'frame': ''}, 'registration', 'have no frame_id'),
    ('clouds in the world', {'tf': CHAIN, 'frame': 'odom'}, 'registration', "are in 'odom', a frame that is fixed"),
    ('nothing', {}, 'registration', 'has no topic of nav_msgs/msg/Odometry'),
]  # fmt: skip


@pytest.mark.parametrize(('options', 'source', 'note'), [row[1:] for row in AUTO], ids=[row[0] for row in AUTO])
def test_auto_takes_the_first_source_that_works_and_says_why(tmp_path, options, source, note):
    if source == 'registration':
        pytest.importorskip('small_gicp', reason='registration needs small_gicp')
    motion, sweeps = opened(tmp_path, **options)
    assert motion.source == source
    assert re.search(note, motion.note, re.S) if note else motion.note == ''
    if source != 'registration':
        found = motion.between(sweeps[4], sweeps[5])
        assert np.linalg.norm(found[:3, 3]) == pytest.approx(0.5, abs=1e-6)  # m in 0.1 s


def test_a_mount_on_tf_turns_the_motion_of_the_odometry(tmp_path):
    tf = [Tf('base_link', 'lidar', constant(MOUNT), rate=10)]
    motion, _ = opened(tmp_path, 'odometry', odometry_clock=0.0, child_frame='base_link', tf=tf)
    np.testing.assert_allclose(motion.odometry_T_lidar, MOUNT, atol=1e-9)


def test_odometry_that_is_asked_for_but_has_another_clock_is_refused_unless_an_offset_is_given(tmp_path):
    with pytest.raises(
        EgoMotionError, match=r'different clocks.*difference of 37\.0.*PTP.*add -37\.0.. s.*--stamp-offset'
    ):
        opened(tmp_path, 'odometry', odometry_clock=0.0, cloud_clock=37.0)
    motion, sweeps = opened(tmp_path / '2', 'odometry', stamp_offset=-37.0, odometry_clock=0.0, cloud_clock=37.0)
    np.testing.assert_allclose(motion.between(sweeps[4], sweeps[5])[:3, 3], [0.5, 0, 0], atol=1e-6)


def test_tf_that_is_asked_for_takes_the_offset_too(tmp_path):
    options = {'tf': [Tf('odom', 'lidar')], 'cloud_clock': 5.0}
    with pytest.raises(EgoMotionError, match='Clouds and /tf have different clocks'):
        opened(tmp_path, 'tf', **options)
    motion, sweeps = opened(tmp_path / '2', 'tf', stamp_offset=-5.0, **options)
    np.testing.assert_allclose(motion.between(sweeps[4], sweeps[5])[:3, 3], [0.5, 0, 0], atol=1e-6)
    assert motion.describe() == "tf through 'odom'"


def test_sweeps_before_tf_begins_are_dropped_with_the_reason(tmp_path):
    motion, sweeps = opened(tmp_path, tf=[Tf('odom', 'lidar', start=0.35)])
    assert motion.source == 'tf'
    with pytest.raises(EgoMotionError, match=r"no transform from 'lidar' to 'odom'.*it is known from"):
        motion.between(sweeps[2], sweeps[3])
    np.testing.assert_allclose(motion.between(sweeps[4], sweeps[5])[:3, 3], [0.5, 0, 0], atol=1e-6)


def test_registration_that_fails_names_the_other_sources_of_the_bag(tmp_path):
    pytest.importorskip('small_gicp', reason='registration needs small_gicp')
    motion, sweeps = opened(tmp_path, 'registration', odometry_clock=0.0, tf=[Tf('odom', 'lidar')])
    plain = [one.points for one in sweeps[:2]]
    for points in plain:
        points[:] = points * [1, 1, 0] - [0, 0, 1.8]  # a bare plane
    with pytest.raises(EgoMotionError, match=r'has odometry on /odometry \(--ego-motion odometry\) and /tf \(--ego'):
        motion.between(*sweeps[:2])


def test_the_mount_of_the_sensor_is_found_on_tf(tmp_path):
    tf = [*CHAIN, Tf('base_link', 'lidar', constant(MOUNT))]
    with Bag(tf_bag.write(tmp_path / 'bag', tf, num_sweeps=1)) as bag:
        found = static_transforms(bag, 'base_link', 'lidar')
        assert static_transforms(bag).lookup('base_link', 'lidar') is None  # without names, /tf is not read
    np.testing.assert_allclose(found.lookup('base_link', 'lidar'), MOUNT, atol=1e-9)
    assert found.lookup('odom', 'lidar') is None


def test_leading_slashes_do_not_matter(tmp_path):
    motion, sweeps = opened(tmp_path, frame='/lidar', tf=[Tf('/odom', '/lidar')])
    assert motion.source == 'tf'
    expected = invert(driving(0.4)) @ driving(0.5)
    np.testing.assert_allclose(motion.between(sweeps[4], sweeps[5]), expected, atol=1e-6)


def test_without_small_gicp_the_reason_for_registration_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'small_gicp', None)
    with pytest.raises(ConfigError, match=r'pip install small_gicp.*different clocks.*--stamp-offset 0'):
        opened(tmp_path, odometry_clock=0.0, cloud_clock=37.0)
