# SPDX-License-Identifier: Apache-2.0
"""Odometry that is late, early or scaled, measured by the clouds of a drive."""

import itertools

import numpy as np
import pytest
from odometry_drive import DT_NS, T0, odometry, street, sweep

from zeroflow_ros.ego_motion.checked_odometry import CheckedOdometry
from zeroflow_ros.ego_motion.motion_bias import MotionBias
from zeroflow_ros.ego_motion.trajectory import Trajectory
from zeroflow_ros.transforms import yaw_translation

NUM, STEPS, SPAN = 40, 10, 5  # sweeps, poses of the odometry from one to the next, and pairs of a measurement
WORLD = street()


def drive(speed, turn):
    """Return the poses of every STEPS-th part of a sweep, for functions of the time [s]: m/s and rad/s."""
    found = [np.eye(4)]
    for k in range(1, STEPS * NUM):
        dt = 0.1 / STEPS
        found.append(found[-1] @ yaw_translation(turn(k * dt) * dt, speed(k * dt) * dt, 0))
    return found


CURVES = drive(lambda t: 6.0, lambda t: 0.25 * np.sin(2.0 * t))
STRAIGHT = drive(lambda t: 8.0, lambda t: 0.0)
SLOW = drive(lambda t: 5.0, lambda t: 0.0)  # 0.75 m in 1 s at 15 % more: too little to be refused
POINTS = {id(path): {k: sweep(k, path[STEPS * k], WORLD).points for k in range(0, NUM, SPAN)}
          for path in (CURVES, STRAIGHT)}  # fmt: skip


def claimed(path, late=0.0, scale=1.0):
    """Return what an odometry says that is late [s] or too long."""
    found = Trajectory(capacity=STEPS * NUM)
    for k, pose in enumerate(path):
        scaled = pose.copy()
        scaled[:3, 3] *= scale
        found.add(T0 + k * DT_NS // STEPS + round(late * 1e9), scaled)
    return found


TRUTH = {id(path): claimed(path) for path in (CURVES, STRAIGHT)}


def problem(path, late=0.0, scale=1.0):
    """Return what is said at the end of a drive."""
    bias, poses = MotionBias('odometry'), claimed(path, late, scale)
    stamps = [k for k in range(NUM) if poses.pose(T0 + k * DT_NS) is not None]
    for k in stamps[1:]:
        stamp0_ns, stamp1_ns = T0 + (k - 1) * DT_NS, T0 + k * DT_NS
        bias.add_claim(stamp0_ns, stamp1_ns, poses.between(stamp0_ns, stamp1_ns))
        if k % SPAN == 0 and k - SPAN in stamps:
            key_ns = stamp1_ns - SPAN * DT_NS
            points = POINTS[id(path)]
            # The second start is near the truth, as the coarse search finds it where the claim is far off.
            starts = [poses.between(key_ns, stamp1_ns), TRUTH[id(path)].between(key_ns, stamp1_ns)]
            bias.measure(points[k - SPAN], points[k], (key_ns, stamp1_ns), starts)
    return bias.problem


@pytest.mark.parametrize('path', [CURVES, STRAIGHT])
def test_odometry_that_is_right_raises_no_alarm(path):
    assert problem(path) == ''


@pytest.mark.parametrize('late, says', [(0.3, '0.30 s too late'), (-0.3, '0.30 s too early'), (0.15, '0.15 s too la')])
def test_odometry_with_late_stamps_is_told_with_the_value_to_set(late, says):
    text = problem(CURVES, late)
    assert says in text
    assert f'{"Add" if late > 0 else "Subtract"} {abs(late):.2f} {"to" if late > 0 else "from"} stamp_offset_s' in text


@pytest.mark.parametrize('scale', [1.08, 0.85, 1.15])
def test_odometry_with_a_wrong_scale_is_told_beyond_twelve_percent(scale):
    text = problem(STRAIGHT, scale=scale)
    assert (text == '') if scale == 1.08 else text.startswith(f'The odometry moves {scale:.2f} times as far'), text


def test_late_stamps_at_constant_speed_do_no_harm_and_raise_no_alarm():
    assert problem(STRAIGHT, 0.3) == ''


def test_a_scale_is_told_by_the_checks_of_odometry_until_another_offset_is_set():
    checked, poses = CheckedOdometry(), claimed(SLOW, scale=1.15)
    sweeps = [sweep(k, SLOW[STEPS * k], WORLD) for k in range(18)]
    for k in range(STEPS * NUM):
        stamp_ns = T0 + k * DT_NS // STEPS
        checked.add(odometry(stamp_ns, poses.pose(stamp_ns)))
    for before, after in itertools.pairwise(sweeps):
        checked.between(before, after, np.eye(4))
    assert 'The odometry moves 1.1' in checked.warning
    checked.between(sweeps[-2], sweeps[-1], np.eye(4), offset_ns=DT_NS // 2)
    assert checked.warning == ''


def test_nothing_is_measured_where_there_is_nothing_upright():
    bias = MotionBias('odometry')
    plane = np.random.default_rng(0).uniform(-30, 30, (4000, 3)).astype(np.float32) * [1, 1, 0] - [0, 0, 1.8]
    for k in range(20):
        bias.add_claim(T0 + k * DT_NS, T0 + (k + 1) * DT_NS, yaw_translation(0.01 * k, 0.5, 0))
        bias.measure(plane, plane, (T0 + k * DT_NS, T0 + (k + 1) * DT_NS), [yaw_translation(0, 0.5, 0)])
    assert bias.problem == ''
