# SPDX-License-Identifier: Apache-2.0
"""The rigid teacher on streets small enough to know the answer."""

import numpy as np
import pytest

from training.teachers import build_teacher
from training.teachers.rigid import Rigid, RigidConfig
from zeroflow_ros import transforms
from zeroflow_ros.errors import ConfigError

DT = 0.1


def surface(size, centre, num_points, seed=0):
    """Return points on the faces of a box (N, 3) [m]."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-0.5, 0.5, (num_points, 3))
    axis = rng.integers(3, size=num_points)
    points[np.arange(num_points), axis] = np.sign(points[np.arange(num_points), axis]) / 2
    return points * size + centre


def street(seed):
    """Return what stands: a wall of 10 m and a parked car; seen in other points for each seed."""
    wall = surface([10, 0.2, 3], [4, 8, 1.5], 9000, seed)
    return np.concatenate([wall, surface([4.4, 1.8, 1.5], [-8, 5, 0.8], 5000, seed + 1)])


def mean_flow(flow, rows):
    return flow[rows].mean(0)


@pytest.mark.parametrize(
    'label, size, centre, motion, num_points',
    [
        ('car', [4.4, 1.8, 1.5], [6, 0, 0.8], [1.2, 0.1], 5000),
        ('fast car', [4.4, 1.8, 1.5], [6, -6, 0.8], [2.6, 0.0], 5000),
        ('cyclist', [1.7, 0.5, 1.7], [3, -4, 0.9], [-0.5, 0.1], 1500),
        ('pedestrian', [0.5, 0.5, 1.7], [4, 3, 0.9], [0.1, 0.1], 800),
        ('pedestrian at a wall', [0.5, 0.4, 1.7], [4, 7.45, 0.9], [0.15, 0.0], 800),
    ],
)
def test_what_moves_gets_its_motion_and_what_stands_gets_none(label, size, centre, motion, num_points):
    motion = np.array([*motion, 0.0])
    before = np.concatenate([street(0), surface(size, centre, num_points, 10)]).astype(np.float32)
    after = np.concatenate([street(5), surface(size, centre + motion, num_points, 20)]).astype(np.float32)
    flow0, flow1 = Rigid().label(before, after, DT)
    assert flow0.shape == before.shape and flow1.shape == after.shape and flow0.dtype == flow1.dtype == np.float32
    mover = slice(-num_points, None)
    for flow, expected in ((flow0, motion), (flow1, -motion)):
        # 3 cm: two samples of a surface, some points of it nearer to the wall
        assert np.linalg.norm(np.median(flow[mover], axis=0) - expected) < 0.03
        assert (np.linalg.norm(flow[:-num_points], axis=1) > 0).mean() < 0.01


@pytest.mark.parametrize('leaves', [True, False], ids=['leaves', 'arrives'])
def test_who_touches_a_wall_in_one_of_the_sweeps_moves(leaves):
    person, motion, num_points = [0.5, 0.5, 1.7], np.array([0.2, -0.5, 0.0]), 800
    before = np.concatenate([street(0), surface(person, [4, 7.55, 0.9], num_points, 10)]).astype(np.float32)
    after = np.concatenate([street(5), surface(person, [4, 7.55, 0.9] + motion, num_points, 20)]).astype(np.float32)
    flow0, flow1 = Rigid().label(*((before, after) if leaves else (after, before)), DT)
    if not leaves:
        flow0, flow1 = flow1, flow0
    for flow, expected in ((flow0, motion), (flow1, -motion)):
        assert np.linalg.norm(np.median(flow[-num_points:], axis=0) - expected) < 0.05
        assert (np.linalg.norm(flow[:-num_points], axis=1) > 0).mean() < 0.02  # of the wall, what touched it


def test_a_car_that_turns_has_the_flow_of_its_turn():
    turn = transforms.yaw_translation(0.08, 0.6, 0.1)
    car = surface([4.4, 1.8, 1.5], [0, 0, 0.8], 1500, 1)
    moved = transforms.apply(turn, surface([4.4, 1.8, 1.5], [0, 0, 0.8], 1500, 2))
    flow0, _ = Rigid().label(car.astype(np.float32), moved.astype(np.float32), DT)
    assert np.linalg.norm(flow0 - (transforms.apply(turn, car) - car), axis=1).mean() < 0.05  # m; 0.63 m of motion


# Height over length of a car that comes nose first [m].
PROFILE = np.array([[0, 0.3], [0, 0.75], [1.1, 1.0], [2.0, 1.45], [3.6, 1.45], [4.4, 0.9], [4.4, 0.3]])


def ringed_car(x, elevations):
    """Return the points (N, 3) of a car whose nose is at x, where beams from 1.9 m above the origin meet it [m]."""
    points = []
    for slope in np.tan(elevations):
        ways = []
        for (x0, z0), (x1, z1) in zip(PROFILE[:-1] + [x, -1.9], PROFILE[1:] + [x, -1.9], strict=True):
            share = (slope * x0 - z0) / ((z1 - z0) - slope * (x1 - x0))
            if 0 <= share <= 1:
                ways.append(x0 + share * (x1 - x0))
        if ways:
            points += [[min(ways), y, 1.9 + slope * min(ways)] for y in np.linspace(-0.9, 0.9, 40)]
    return np.array(points)


def test_the_rings_on_a_car_do_not_hold_it_back():
    rings, motion = np.radians(np.arange(-15, -1, 1.6)), 0.8
    before, after = (ringed_car(x, rings).astype(np.float32) for x in (6.0, 6.0 - motion))
    flow0, flow1 = Rigid().label(before, after, DT)
    for flow, expected in ((flow0, -motion), (flow1, motion)):
        assert np.linalg.norm(flow.mean(0) - [expected, 0, 0]) < 0.05


def two_lidars(x, speed):
    """Return two sweeps (N, 4) of a car that comes with its nose at x: points [m], and when they were measured [s]."""
    seen = [[], []]
    for first, time in ((-15, 0.08), (-13.8, 0.03)):
        for sweep, stamp in enumerate((0.0, DT)):
            points = ringed_car(x - speed * (stamp + time), np.radians(np.arange(first, -1, 2.4)))
            seen[sweep].append(np.column_stack([points, np.full(len(points), time)]))
    return [np.concatenate(parts).astype(np.float32) for parts in seen]


def test_two_lidars_that_see_a_car_at_different_times():
    speed, timed, blind = 8.0, [], []
    for x in (5.0, 5.5, 6.0, 6.5, 7.0):
        sweeps = two_lidars(x, speed)
        clouds, times = [sweep[:, :3] for sweep in sweeps], tuple(sweep[:, 3] for sweep in sweeps)
        for errors, given in ((timed, times), (blind, None)):
            for flow, sign in zip(Rigid().label(*clouds, DT, times=given), (-1, 1), strict=True):
                errors.append(np.linalg.norm(flow.mean(0) - [sign * speed * DT, 0, 0]))
    assert np.mean(timed) < 0.1  # m, of 0.8
    assert np.mean(blind) > 1.5 * np.mean(timed)  # the car of one LiDAR is taken for that of the other


def test_the_same_clouds_give_the_same_flow_and_stay_as_they_are():
    before, after = street(0).astype(np.float32), (street(5) + [0.4, 0, 0]).astype(np.float32)
    copies = before.copy(), after.copy()
    first, second = Rigid().label(before, after, DT), Rigid().label(before, after, DT)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(before, copies[0])
    np.testing.assert_array_equal(after, copies[1])


def test_a_building_does_not_move_as_a_whole():
    before = surface([30, 0.2, 3], [0, 8, 1.5], 6000, 0).astype(np.float32)
    after = (surface([30, 0.2, 3], [0, 8, 1.5], 6000, 1) + [0, -0.6, 0]).astype(np.float32)
    # Pieces of it may, where it falls apart into some: those could be people in front of it.
    assert not any(flow.any() for flow in Rigid(RigidConfig(voxels=(0.3,))).label(before, after, DT))


def test_one_far_point_is_no_trouble():
    lonely = np.float32([[50, 50, 1]])
    for clouds in ((lonely, street(0).astype(np.float32)), (lonely, -lonely)):
        flow0, flow1 = Rigid().label(*clouds, DT)
        assert np.isfinite(flow0).all() and np.isfinite(flow1).all() and not flow0.any()


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match='kernel'):
        RigidConfig(kernel=0.0)
    with pytest.raises(ConfigError, match='kernal'):
        build_teacher('rigid', {'kernal': 0.1})
    with pytest.raises(ConfigError, match='voxels'):
        RigidConfig(voxels=())
