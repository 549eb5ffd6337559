# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest

from zeroflow_ros.ego_motion.lidar_odometry import LidarOdometry
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import apply, invert, rotation_matrix, yaw_translation

pytest.importorskip('small_gicp', reason='needs small_gicp')

MOTION = yaw_translation(0.01, 0.8, 0.0)  # ego0_T_ego1 of a level sensor


def street(number):
    """Return sweep `number` of a level sensor that drives between two walls with columns, (N, 3)."""
    rng = np.random.default_rng(0)
    ground = np.c_[rng.uniform(-40, 40, (9000, 2)), np.full(9000, -1.8)]
    walls = np.c_[rng.uniform(-40, 40, 6000), rng.choice([-9.0, 9.0], 6000), rng.uniform(-1.8, 4, 6000)]
    across = np.c_[rng.choice([-30.0, -12.0, 8.0, 25.0], 4000), rng.uniform(-9, -5, 4000), rng.uniform(-1.8, 3, 4000)]
    points = np.concatenate([ground, walls, across])
    for _ in range(number):
        points = apply(invert(MOTION), points)
    return points


@pytest.mark.parametrize('rotation', [
    [np.pi, 0, 0], [0, np.radians(30), 0], [np.pi / 2, 0, 0], [0, 0, 0],
], ids=['upside down', 'pitched', 'on its side', 'level'])  # fmt: skip
def test_a_sensor_whose_mount_is_known_is_registered_in_its_own_frame(rotation):
    sensor_T_level = np.eye(4)
    sensor_T_level[:3, :3] = rotation_matrix(rotation)
    odometry = LidarOdometry()
    sweeps = [Sweep(apply(sensor_T_level, street(k)).astype(np.float32), k * 10**8) for k in range(3)]
    expected = sensor_T_level @ MOTION @ invert(sensor_T_level)
    for sweep0, sweep1 in itertools.pairwise(sweeps):
        odometry.set_mount(invert(sensor_T_level))
        np.testing.assert_allclose(odometry.between(sweep0, sweep1), expected, atol=0.01)  # m, rad
    then = odometry.poses_at_offsets(sweeps[2], sweeps[1], np.array([10**8]))[0]
    np.testing.assert_allclose(then, expected, atol=0.01)
