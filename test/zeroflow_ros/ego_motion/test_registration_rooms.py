# SPDX-License-Identifier: Apache-2.0
"""Registration in rooms, in corridors, and of sensors of few beams."""

from itertools import pairwise

import numpy as np
import pytest
from rooms import PLACES, drive, sweep

from zeroflow_ros.ego_motion.lidar_odometry import LidarOdometry
from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import invert, rotation_vector, yaw_translation

pytest.importorskip('small_gicp', reason='registration needs small_gicp')

AHEAD, TURNING = yaw_translation(0, 0.1, 0), yaw_translation(np.radians(3), 0.08, 0)
MOTIONS = [
    ('bare room of 4 x 5 m', 8, TURNING),
    ('bare room of 4 x 5 m', 16, AHEAD),
    ('office of 4 x 5 m', 8, AHEAD),
    ('office of 4 x 5 m', 16, yaw_translation(np.radians(8), 0, 0)),
    ('hall of 15 x 10 m', 8, TURNING),
    ('closed corridor of 20 x 6 m', 8, AHEAD),
    ('closed corridor of 20 x 6 m', 16, TURNING),
    ('street', 8, yaw_translation(np.radians(1), 1, 0)),
]


def sweeps_of(place, num_beams, step, count, seed=0):
    poses = drive(step, count, height=1.8 if place == 'street' else 0.6)
    points = [sweep(PLACES[place], pose, num_beams, seed + k) for k, pose in enumerate(poses)]
    return [Sweep(one, 10**9 + k * 10**8, 'lidar') for k, one in enumerate(points)]


@pytest.mark.parametrize(('place', 'num_beams', 'step'), MOTIONS, ids=[f'{row[0]}, {row[1]} beams' for row in MOTIONS])
def test_a_room_or_few_beams_are_enough(place, num_beams, step):
    odometry = LidarOdometry()
    for sweep0, sweep1 in pairwise(sweeps_of(place, num_beams, step, 2 if place == 'street' else 3)):
        off = invert(step) @ odometry.between(sweep0, sweep1)
        # 2.5 cm per pair are 0.25 m/s on a static point, below what counts as moving; most are below 1 cm.
        assert np.linalg.norm(off[:3, 3]) < 0.025
        assert np.degrees(np.linalg.norm(rotation_vector(off))) < 0.6  # 4 cm at the walls of a room


@pytest.mark.parametrize('num_beams', [8, 16])
@pytest.mark.parametrize('step', [np.eye(4), yaw_translation(0, 0.1, 0), yaw_translation(0, 0.5, 0.02)])
def test_a_corridor_without_ends_is_refused_instead_of_guessed(num_beams, step):
    odometry = LidarOdometry()
    for sweep0, sweep1 in pairwise(sweeps_of('endless corridor', num_beams, step, 3)):
        with pytest.raises(EgoMotionError, match='constrain one horizontal direction'):
            odometry.between(sweep0, sweep1)


def test_normals_across_a_corridor_do_not_constrain_the_motion_along_it():
    """Where rings are sparse, neighbours lie on both walls; such points stay where they are in the sensor's frame."""
    step = yaw_translation(0, 0.1, 0)
    sparse = [Sweep(one.points[::4], one.stamp_ns, 'lidar') for one in sweeps_of('endless corridor', 8, step, 3)]
    odometry = LidarOdometry()
    for sweep0, sweep1 in pairwise(sparse):
        with pytest.raises(EgoMotionError, match='constrain one horizontal direction'):
            odometry.between(sweep0, sweep1)


@pytest.mark.parametrize(('place', 'num_beams'), [('endless narrow corridor', 32), ('endless corridor', 64)])
def test_a_slow_robot_in_a_corridor_is_not_found_to_stand(place, num_beams):
    """The symptom: 2 cm a pair were accepted as no motion, by points far along the corridor."""
    odometry = LidarOdometry()
    with pytest.raises(EgoMotionError, match='constrain one horizontal direction'):
        odometry.between(*sweeps_of(place, num_beams, yaw_translation(0, 0.02, 0), 2))
