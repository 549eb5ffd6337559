# SPDX-License-Identifier: Apache-2.0
"""Odometry that contradicts itself or the clouds, through `CheckedOdometry`."""

import itertools

import numpy as np
import pytest
from odometry_drive import DT_NS, T0, odometry, poses, street, sweep, traffic

from zeroflow_ros.ego_motion.checked_odometry import CheckedOdometry
from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.transforms import invert, rotation_vector, yaw_translation

WORLD = street()
NUM = 16
TRUE = poses(NUM, speed=6.0, turn=0.1)
SWEEPS = [sweep(k, pose, WORLD) for k, pose in enumerate(TRUE)]


def twists_of(drive):
    steps = [invert(a) @ b for a, b in itertools.pairwise(drive)]
    found = [np.concatenate([step[:3, 3], rotation_vector(step)]) / 0.1 for step in steps]
    return [found[0], *found]


def judged(claimed, twists=None, sweeps=SWEEPS):
    """Return for each pair '' where its motion is used, else the reason why not."""
    checked, found = CheckedOdometry(), []
    for k, seen in enumerate(sweeps):
        twist = np.zeros(6) if twists is None else twists[k]
        checked.add(odometry(T0 + k * DT_NS, claimed[k], twist))
        if k:
            try:
                motion = checked.between(sweeps[k - 1], seen, np.eye(4))
                np.testing.assert_allclose(motion, invert(claimed[k - 1]) @ claimed[k], atol=1e-9)
                found.append('')
            except EgoMotionError as error:
                found.append(str(error))
    return found


def scaled(factor):
    found = [pose.copy() for pose in TRUE]
    for pose in found:
        pose[:3, 3] *= factor
    return found


def mirrored():
    flip = np.diag([1.0, -1, 1, 1])
    return [flip @ pose @ flip for pose in TRUE]


CAMERA = np.eye(4)
CAMERA[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
TWISTS = twists_of(TRUE)
RNG = np.random.default_rng(0)
NOISY = [pose @ yaw_translation(0.001 * RNG.normal(), *RNG.normal(0, 0.018, 2)) for pose in TRUE]

GOOD = {
    'without a twist': (TRUE, None),
    'with its twist': (TRUE, TWISTS),
    'noise of 2.5 cm a pair': (NOISY, None),
    'twist in the axes of odom': (
        TRUE, [np.r_[pose[:3, :3] @ twist[:3], twist[3:]] for pose, twist in zip(TRUE, TWISTS, strict=True)],
    ),
    'twist 20 % too high': (TRUE, [1.2 * twist for twist in TWISTS]),
    'twist in a camera frame': (TRUE, [np.r_[CAMERA[:3, :3].T @ twist[:3], 0, 0, 0] for twist in TWISTS]),
}  # fmt: skip


@pytest.mark.parametrize('name', GOOD)
def test_right_odometry_is_used_at_every_sweep(name):
    assert judged(*GOOD[name]) == [''] * (NUM - 1)


def test_a_wrong_twist_beside_a_right_pose_costs_a_few_pairs_at_most():
    found = judged(TRUE, [np.r_[3.0 * twist[:3], twist[3:]] for twist in TWISTS])
    assert sum(map(bool, found)) <= 2 and not any(found[4:])


BAD = {
    'identity pose with a twist': (
        [np.eye(4)] * NUM,
        TWISTS,
        'Pose and twist of the odometry contradict each other',
        0,
    ),
    'identity pose without a twist': ([np.eye(4)] * NUM, None, 'The clouds show the sensor moving by about 0.', 1),
    'centimetres as metres': (scaled(100.0), None, 'The clouds show', 1),
    'millimetres for metres, with a twist': (scaled(0.001), TWISTS, 'contradict each other', 0),
    'feet': (scaled(3.28), None, 'The clouds show', 1),
    'feet, with a twist': (scaled(3.28), TWISTS, 'contradict each other', 0),
    'left-handed': (mirrored(), None, 'The clouds show', 6),
    'axes of a camera': ([invert(CAMERA) @ pose @ CAMERA for pose in TRUE], None, 'The clouds show', 3),
    'pose of odom in the vehicle': ([invert(pose) for pose in TRUE], None, 'The clouds show', 1),
}


@pytest.mark.parametrize('name', BAD)
def test_wrong_odometry_is_not_used_and_the_reason_is_said(name):
    claimed, twists, text, passed = BAD[name]
    found = judged(claimed, twists)
    assert all(found[passed:]), found  # the first pairs are too short to show slow errors
    assert text in found[-1]
    assert 'jumps' in found[-1] or 'registration or tf' in found[-1]


@pytest.mark.parametrize('with_twist', [False, True])
def test_a_pose_that_freezes_while_the_clouds_move_on_is_not_used(with_twist):
    claimed = [pose if k < 8 else TRUE[7] for k, pose in enumerate(TRUE)]
    found = judged(claimed, TWISTS if with_twist else None)
    assert not any(found[:7]) and all(found[7:])
    assert 'jumps by 0.6' in found[7] and 'the sensor moving as before' in found[8]


@pytest.mark.parametrize('jump', [(0, 0.5, 0), (0, 0, 0.5), (0, 1, 0), (0, -3, 0), (0, 0, 10), (5, 0, 0), (3, 0.3, 0)])
def test_a_jump_costs_one_pair_and_says_so(jump):
    moved = TRUE[8] @ yaw_translation(np.radians(jump[0]), *jump[1:]) @ invert(TRUE[8])
    found = judged([pose if k < 8 else moved @ pose for k, pose in enumerate(TRUE)])
    assert [k for k, text in enumerate(found) if text] == [7]
    assert 'The odometry jumps by' in found[7] and 'This pair of sweeps is not used' in found[7]


def test_a_single_stray_pose_costs_the_two_pairs_beside_it():
    found = judged([yaw_translation(0, 0, 9) @ pose if k == 8 else pose for k, pose in enumerate(TRUE)])
    assert [k for k, text in enumerate(found) if text] == [7, 8]


def test_odometry_recovers_when_its_poses_are_right_again():
    step = invert(TRUE[0]) @ TRUE[1]
    claimed = [np.eye(4)] * 6
    while len(claimed) < NUM:
        claimed.append(claimed[-1] @ step)
    found = judged(claimed)
    assert all(found[2:5]) and not found[-1]


def brakes(k):
    """Return the distance [m] of a vehicle that brakes with 9 m/s^2 from 9 m/s in sweep 4."""
    t = np.clip(0.1 * (k - 4), 0, 1)
    return 0.9 * min(k, 4) + 9 * t - 4.5 * t * t


@pytest.mark.parametrize('twisted', [False, True])
def test_hard_braking_and_a_start_are_used(twisted):
    for places in ([brakes(k) for k in range(NUM)], [brakes(NUM - 1) - brakes(NUM - 1 - k) for k in range(NUM)]):
        drive = [yaw_translation(0, x, 0) for x in places]
        sweeps = [sweep(k, pose, WORLD) for k, pose in enumerate(drive)]
        assert judged(drive, twists_of(drive) if twisted else None, sweeps) == [''] * (NUM - 1)


@pytest.mark.parametrize('ego_speed, speed', [(0.0, 0.0), (0.0, 14.0), (12.0, 12.0)])
def test_traffic_around_a_sensor_raises_no_alarm(ego_speed, speed):
    drive = poses(NUM, ego_speed, turn=0.0)
    sweeps = [sweep(k, pose, np.r_[WORLD, traffic(k, speed, (-3.5, 3.5), 5)]) for k, pose in enumerate(drive)]
    assert judged(drive, None, sweeps) == [''] * (NUM - 1)


def test_an_empty_place_raises_no_alarm():
    plane = np.c_[np.random.default_rng(0).uniform(-40, 60, (9000, 2)), np.full(9000, -1.8)]
    sweeps = [sweep(k, pose, plane) for k, pose in enumerate(TRUE)]
    assert judged(TRUE, TWISTS, sweeps) == judged(TRUE, None, sweeps) == [''] * (NUM - 1)


def test_a_jump_in_an_empty_place_is_told_by_the_speed_alone():
    plane = np.c_[np.random.default_rng(0).uniform(-40, 60, (9000, 2)), np.full(9000, -1.8)]
    sweeps = [sweep(k, pose, plane) for k, pose in enumerate(TRUE)]
    found = judged([pose if k < 8 else yaw_translation(0, 1, 0) @ pose for k, pose in enumerate(TRUE)], None, sweeps)
    assert [k for k, text in enumerate(found) if text] == [7]


def test_slow_robots_with_a_twist_only_are_told_after_some_pairs():
    drive = poses(NUM, speed=0.9, turn=0.0)
    sweeps = [sweep(k, pose, WORLD) for k, pose in enumerate(drive)]
    found = judged([np.eye(4)] * NUM, twists_of(drive), sweeps)
    assert all(found) and any('The clouds agree with the twist.' in text for text in found)


def test_looking_at_clouds_is_rare_once_the_odometry_is_known_to_be_right(monkeypatch):
    from zeroflow_ros.ego_motion import motion_checks

    looks = []
    structure = motion_checks.UprightStructure
    monkeypatch.setattr(motion_checks, 'UprightStructure', lambda points: looks.append(1) or structure(points))
    drive = [TRUE[0]] * 100
    judged(drive, None, [sweep(k, pose, WORLD[::10]) for k, pose in enumerate(drive)])
    assert len(looks) <= 14  # 8 in the first 20 pairs, then two every 30
