# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from stereo_bag import LEFT, PERIOD_NS, RIGHT, START_NS, STEP, write_stereo_bag
from tiny_bag import write_bag

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import ODOMETRY
from zeroflow_ros.ego_motion.camera_bag import first_image, has_stereo, open_camera_motion, stereo_topics
from zeroflow_ros.errors import ConfigError, DataError, EgoMotionError
from zeroflow_ros.lidar.sweep import Sweep


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return write_stereo_bag(tmp_path_factory.mktemp('stereo') / 'drive')


def motion_of(bag, source='auto', **options):
    return open_camera_motion(bag, source, frame_id='left_optical', left_image=LEFT, **options)


def test_the_stereo_camera_of_a_bag_is_found(path, tmp_path):
    with Bag(path) as bag:
        topics = stereo_topics(bag)
        assert (topics.left_image, topics.right_image) == (LEFT, RIGHT) == stereo_topics(bag, RIGHT).names[::2]
        assert has_stereo(bag) and first_image(bag, topics).header.frame_id == 'left_optical'
        with pytest.raises(DataError, match='no stereo camera with left images on /other'):
            stereo_topics(bag, '/other')
    with Bag(write_bag(tmp_path / 'clouds', num_sweeps=2)) as bag:
        assert not has_stereo(bag)
        with pytest.raises(DataError, match='lacks left and right images'):
            stereo_topics(bag)
    with Bag(write_stereo_bag(tmp_path / 'no_infos', infos=False)) as bag:
        assert not has_stereo(bag)


def test_odometry_moves_the_optical_frame(path):
    """The vehicle drives forward, so the camera moves along its own z."""
    with Bag(path) as bag:
        motion, note = motion_of(bag)
        for message in bag.messages([motion.topic]):
            motion.add_odometry(message.cdr)
        before, after = (Sweep(np.empty((0, 3), np.float32), START_NS + k * PERIOD_NS, 'left_optical') for k in (0, 1))
        moved = motion.between(before, after)
    assert (motion.source, note) == ('odometry', '')
    np.testing.assert_allclose(moved[:3, 3], [0, 0, STEP], atol=1e-9)
    np.testing.assert_allclose(moved[:3, :3], np.eye(3), atol=1e-9)


@pytest.mark.parametrize(
    'options, source, said',
    [
        ({'mount': False}, 'odometry', 'does not connect them'),
        ({'odometry': False}, 'odometry', 'no topic of nav_msgs'),
        ({}, 'tf', '/tf'),
        ({}, 'registration', 'must be one of auto, odometry, tf, visual, none'),
    ],
)
def test_what_the_bag_lacks_is_said_and_auto_leaves_it_to_the_images(tmp_path, options, source, said):
    with Bag(write_stereo_bag(tmp_path / 'drive', **options)) as bag:
        with pytest.raises((DataError, EgoMotionError, ConfigError), match=said):
            motion_of(bag, source)
        if options:
            motion, note = motion_of(bag)
            assert motion is None and said in note
        assert motion_of(bag, 'visual') == motion_of(bag, 'none') == (None, '')


def test_a_frame_without_a_name_is_never_taken_for_that_of_the_camera(tmp_path):
    def without_child(topic, number, message):
        if message.__msgtype__ == ODOMETRY:
            message.child_frame_id = ''
        return message

    with Bag(write_stereo_bag(tmp_path / 'drive', spoil=without_child)) as bag:
        with pytest.raises(EgoMotionError, match=r'child_frame_id of the odometry is empty.*--odometry-T-camera'):
            motion_of(bag, 'odometry')
        assert motion_of(bag, 'odometry', odometry_T_camera=np.eye(4))[0].source == 'odometry'
