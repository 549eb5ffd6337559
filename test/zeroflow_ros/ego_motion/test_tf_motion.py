# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tf_bag
from tf_bag import Tf, constant
from tiny_bag import EGO_SPEED, START_NS, street

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.ego_motion.motion_checks import ImplausibleMotionError
from zeroflow_ros.ego_motion.tf_motion import TfMotion
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import yaw_translation


def sweep(k):
    return Sweep(street(k, num_points=20_000)[:, :3], START_NS + k * 100_000_000, 'lidar')


def opened(tmp_path, pose=None, **options):
    tf = [Tf('odom', 'lidar', **({'pose': pose} if pose else {}))]
    with Bag(tf_bag.write(tmp_path / 'bag', tf, num_sweeps=1)) as bag:
        return TfMotion(bag, 'lidar', **options)


def test_the_motion_between_and_within_sweeps(tmp_path):
    motion = opened(tmp_path)
    np.testing.assert_allclose(motion.between(sweep(0), sweep(1))[:3, 3], [EGO_SPEED * 0.1, 0, 0], atol=1e-6)
    found = motion.poses_at_offsets(sweep(1), np.array([-100_000_000, 0, 50_000_000]))
    np.testing.assert_allclose(found[:, 0, 3], np.array([-0.1, 0, 0.05]) * EGO_SPEED, atol=1e-6)
    motion.reset_checks()


def test_the_offset_is_added_to_the_stamps(tmp_path):
    motion = opened(tmp_path, offset_ns=300_000_000, pose=lambda s: yaw_translation(0, s * s, 0))
    found = motion.poses_at_offsets(sweep(0), np.array([100_000_000]))
    np.testing.assert_allclose(found[0, 0, 3], 0.4**2 - 0.3**2, atol=1e-3)


def test_a_vehicle_that_stands_on_tf_while_the_clouds_move_is_refused(tmp_path):
    """The symptom: odom -> base_link is published by a node that never gets wheel speeds."""
    motion = opened(tmp_path, constant(np.eye(4)))
    with pytest.raises(ImplausibleMotionError, match='tf'):
        for k in range(8):
            motion.between(sweep(k), sweep(k + 1))
