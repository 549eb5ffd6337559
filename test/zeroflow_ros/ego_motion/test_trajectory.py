# SPDX-License-Identifier: Apache-2.0
import threading

import numpy as np
import pytest

from zeroflow_ros.ego_motion.trajectory import Trajectory, check_plausible
from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.transforms import invert, yaw_translation

MS = 1_000_000
START = 1_700_000_000_000_000_000


def straight(stamp_ms):
    """10 m/s along x."""
    return yaw_translation(0.0, 0.01 * stamp_ms, 0.0)


def driven(stamps_ms, pose=straight, capacity=1000):
    trajectory = Trajectory(capacity)
    for ms in stamps_ms:
        trajectory.add(START + ms * MS, pose(ms))
    return trajectory


def between(trajectory, ms0, ms1):
    return trajectory.between(START + int(ms0 * MS), START + int(ms1 * MS))


# label, stamps of the poses [ms], sweep 0, sweep 1, expected metres along x or a part of the error
BETWEEN = [
    ('no poses', [], 0, 100, 'no pose has arrived'),
    ('one pose, on both', [0], 0, 0, 0.0),
    ('one pose, off it', [0], 0, 10, 'the 1 known poses'),
    ('on poses', [0, 100], 0, 100, 1.0),
    ('between poses', [0, 100, 200], 25, 150, 1.25),
    ('backwards in time', [0, 100, 200], 150, 25, -1.25),
    ('50 ms ahead', [0, 100, 200], 150, 250, 1.0),
    ('51 ms ahead', [0, 100, 200], 150, 251, 'reach from 1700000000.000000000 s to 1700000000.200000000 s'),
    ('50 ms before', [0, 100, 200], -50, 100, 1.5),
    ('51 ms before', [0, 100, 200], -51, 100, 'needs a pose at 1699999999.949000000 s'),
    ('gap of 0.5 s', [0, 500], 200, 300, 1.0),
    ('gap of 0.6 s', [0, 600], 200, 300, 'largest gap is 0.600 s'),
    ('ahead of a gap of 0.6 s', [0, 600], 600, 620, 'largest gap is 0.600 s'),
    ('out of order', [100, 0, 200, 150], 50, 175, 1.25),
    ('another clock', [0, 100], 5_000_000, 5_000_100, 'use_sim_time'),
    ('200 Hz ahead', list(range(0, 101, 5)), 100, 140, 0.4),
    ('200 Hz before', list(range(0, 101, 5)), -40, 0, 0.4),
]


@pytest.mark.parametrize(('stamps', 'ms0', 'ms1', 'expected'), [r[1:] for r in BETWEEN], ids=[r[0] for r in BETWEEN])
def test_between(stamps, ms0, ms1, expected):
    trajectory = driven(stamps)
    if isinstance(expected, str):
        with pytest.raises(EgoMotionError, match=expected) as error:
            between(trajectory, ms0, ms1)
        for ms in (ms0, ms1):  # both stamps are named
            assert f'{(START + ms * MS) / 1e9:.3f}' in str(error.value)
    else:
        motion = between(trajectory, ms0, ms1)
        np.testing.assert_allclose(motion[:3, 3], [expected, 0, 0], atol=1e-9)
        np.testing.assert_allclose(motion[:3, :3], np.eye(3), atol=1e-12)


def test_a_world_point_lands_on_itself():
    def turning(ms):
        return yaw_translation(0.001 * ms, 0.01 * ms, 0.002 * ms)

    trajectory = driven(range(0, 300, 100), turning)
    point = np.array([20.0, -7.0, 1.0, 1.0])  # in odom
    ego0_T_ego1 = between(trajectory, 50, 150)
    pose0, pose1 = turning(50), turning(150)
    np.testing.assert_allclose(ego0_T_ego1 @ invert(pose1) @ point, invert(pose0) @ point, atol=1e-9)


def test_within_is_between_for_each_offset():
    trajectory = driven(range(0, 300, 100), lambda ms: yaw_translation(0.001 * ms, 0.01 * ms, 0.002 * ms))
    offsets_ms = [-80, -1, 0, 60, 120]
    found = trajectory.poses_at_offsets(START + 100 * MS, np.array(offsets_ms) * MS)
    np.testing.assert_array_equal(found, [between(trajectory, 100, 100 + ms) for ms in offsets_ms])
    with pytest.raises(
        EgoMotionError, match=r'from 1699999999\.900000000 s to 1700000000\.200000000 s needs a pose at'
    ):
        trajectory.poses_at_offsets(START + 100 * MS, np.array([0, -200, 100]) * MS)


def test_extrapolation_does_not_magnify_the_noise_of_fast_odometry():
    rng = np.random.default_rng(0)
    trajectory = driven(range(0, 101, 5), lambda ms: yaw_translation(0, 0.01 * ms + rng.normal(0, 0.001), 0))
    motion = between(trajectory, 100, 150)
    assert abs(motion[0, 3] - 0.5) < 0.006  # m: 1 mm of noise over a base of 50 ms; over 5 ms it would be 14 mm


def test_second_pose_for_a_stamp_replaces_the_first():
    trajectory = driven([0, 100])
    trajectory.add(START + 100 * MS, yaw_translation(0, 7, 0))
    assert len(trajectory) == 2
    assert between(trajectory, 0, 100)[0, 3] == 7


def test_capacity_forgets_the_oldest():
    trajectory = driven(range(0, 1000, 10), capacity=10)
    assert len(trajectory) == 10
    assert trajectory.latest_stamp_ns == START + 990 * MS
    np.testing.assert_allclose(between(trajectory, 900, 990)[0, 3], 0.9)
    with pytest.raises(EgoMotionError):
        between(trajectory, 800, 990)
    with pytest.raises(ValueError, match='at least 2'):
        Trajectory(1)


def test_time_that_goes_back_a_second_starts_anew():
    trajectory = driven([5000, 5100, 5200, 4900])  # late by less than a second: kept in its place
    assert len(trajectory) == 4
    trajectory.add(START, straight(0))  # a bag that loops
    assert len(trajectory) == 1 and trajectory.latest_stamp_ns == START


def test_clear():
    trajectory = driven([0, 100])
    trajectory.clear()
    assert len(trajectory) == 0 and trajectory.latest_stamp_ns is None


def test_one_thread_adds_while_another_asks():
    trajectory = driven(range(0, 100, 5), capacity=50)
    failures, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            newest = trajectory.latest_stamp_ns
            try:
                motion = trajectory.between(newest - 30 * MS, newest)
            except EgoMotionError:
                continue
            if abs(motion[0, 3] - 0.3) > 1e-6:
                failures.append(motion[0, 3])

    asker = threading.Thread(target=ask)
    asker.start()
    for ms in range(100, 10_000, 5):
        trajectory.add(START + ms * MS, straight(ms))
    stop.set()
    asker.join(10)
    assert not asker.is_alive() and not failures


PLAUSIBLE = [
    ('standing', yaw_translation(0, 0, 0), 0.1, None),
    ('49 m/s', yaw_translation(0, 4.9, 0), 0.1, None),
    ('51 m/s', yaw_translation(0, 5.1, 0), 0.1, '5.10 m and 0.0 deg in 0.100 s'),
    ('5.1 m in 0.2 s', yaw_translation(0, 5.1, 0), 0.2, None),
    ('19 deg', yaw_translation(np.radians(-19), 0, 0), 0.1, None),
    ('21 deg', yaw_translation(np.radians(-21), 0, 0), 0.1, '0.00 m and 21.0 deg'),
    ('half a turn', yaw_translation(np.pi, 0, 0), 0.1, '180.0 deg'),
    ('NaN', np.full((4, 4), np.nan), 0.1, 'must be finite'),
    ('no time', np.eye(4), 0.0, 'with dt above 0'),
    ('NaN time', np.eye(4), np.nan, 'with dt above 0'),
]


@pytest.mark.parametrize(('motion', 'dt', 'says'), [row[1:] for row in PLAUSIBLE], ids=[row[0] for row in PLAUSIBLE])
def test_check_plausible(motion, dt, says):
    if says is None:
        check_plausible(motion, dt)
    else:
        with pytest.raises(EgoMotionError, match=says):
            check_plausible(motion, dt)
