# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from odometry_drive import DT_NS, T0, odometry, poses, street, sweep

from zeroflow_ros.ego_motion.checked_odometry import CheckedOdometry
from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import apply, invert, yaw_translation

FAR = yaw_translation(2.0, 300.0, -40.0)  # where the drive begins in odom
DRIVE = [FAR @ pose for pose in poses(8, speed=8.0, turn=0.2)]
WORLD = apply(FAR, street())


def registered(k: int) -> Sweep:
    """Return sweep k as FAST-LIO publishes it: in odom."""
    seen = sweep(k, DRIVE[k], WORLD)
    return Sweep(apply(DRIVE[k], seen.points), seen.stamp_ns, 'odom')


def checked(child_frame_id='body', first=0, **odd):
    found = CheckedOdometry()
    for k in range(first, len(DRIVE)):
        found.add(odometry(T0 + k * DT_NS, DRIVE[k], child_frame_id=child_frame_id, **odd))
    return found


@pytest.mark.parametrize('child_frame_id', ['body', ''])
def test_registered_clouds_go_to_the_sensor_and_their_motion_is_that_of_the_sensor(child_frame_id):
    odometry_ = checked(child_frame_id)
    before = None
    for k in range(len(DRIVE)):
        seen = odometry_.to_sensor_frame(registered(k), np.eye(4))
        np.testing.assert_allclose(seen.points, sweep(k, DRIVE[k], WORLD).points, atol=1e-3)
        np.testing.assert_allclose(seen.frame_T_sensor, DRIVE[k], atol=1e-9)
        if before is not None:
            motion = odometry_.between(before, seen, np.eye(4))
            np.testing.assert_allclose(motion, invert(DRIVE[k - 1]) @ DRIVE[k], atol=1e-9)
        before = seen


def test_registered_clouds_of_a_sensor_beside_the_body():
    child_T_lidar = yaw_translation(0.5, 1.0, 0.3, 0.2)
    seen = checked().to_sensor_frame(registered(3), child_T_lidar)
    np.testing.assert_allclose(seen.frame_T_sensor, DRIVE[3] @ child_T_lidar, atol=1e-9)


def test_registered_clouds_without_a_pose_are_dropped_with_a_reason():
    with pytest.raises(EgoMotionError, match=r'needs a pose at 1700000000\.000000000 s'):
        checked(first=2).to_sensor_frame(registered(0), np.eye(4))


def test_a_cloud_from_before_the_first_pose_makes_no_pair():
    odometry_ = checked()
    seen = odometry_.to_sensor_frame(registered(1), np.eye(4))
    with pytest.raises(EgoMotionError, match='the fixed frame of the odometry'):
        odometry_.between(registered(0), seen, np.eye(4))


def test_clouds_of_the_sensor_stay_as_they_are():
    for child_frame_id in ('lidar', 'base_link', ''):
        seen = sweep(0, DRIVE[0], WORLD)
        assert checked(child_frame_id).to_sensor_frame(seen, np.eye(4)) is seen


def test_clouds_registered_by_a_slam_that_jumps_cost_one_pair():
    jump = yaw_translation(0, 0, 2)
    odometry_, failed, before = CheckedOdometry(), [], None
    for k, pose in enumerate(DRIVE):
        moved = jump if k >= 5 else np.eye(4)
        odometry_.add(odometry(T0 + k * DT_NS, moved @ pose, child_frame_id='body'))
        cloud = registered(k)
        seen = odometry_.to_sensor_frame(Sweep(apply(moved, cloud.points), cloud.stamp_ns, 'odom'), np.eye(4))
        if before is not None:
            try:
                odometry_.between(before, seen, np.eye(4))
            except EgoMotionError as error:
                failed.append((k, str(error)))
        before = seen
    assert [k for k, _ in failed] == [5] and 'jumps by 2.00 m' in failed[0][1]
