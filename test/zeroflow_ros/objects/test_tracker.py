# SPDX-License-Identifier: Apache-2.0
"""A street in which velocities are known: what moves becomes an object, what only seems to move does not."""

import dataclasses

import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.objects.tracker import Tracker, TrackerOptions

DT = 0.1
HEIGHT = 1.7  # m, of the sensor above the ground
STILL = np.eye(4)


def fill(rng, center, size, num_points):
    """Return points evenly in a box that stands on the ground, (num_points, 3) in the world."""
    low = np.array([center[0] - size[0] / 2, center[1] - size[1] / 2, -HEIGHT])
    return rng.uniform(low, low + size, (num_points, 3))


class Street:
    """Ground, a wall whose flow is wrong, and bodies that drive straight on; the vehicle drives and turns.

    bodies: (x, y, vx, vy, size, number of points) each, at the start, in the world. wall_flow: [m/s].
    """

    def __init__(self, bodies, *, wall_flow=0.0, noise=0.3, speed=0.0, turn=0.0, seed=0):
        self.bodies, self.wall_flow, self.noise = bodies, wall_flow, noise
        self.speed, self.turn, self.rng = speed, turn, np.random.default_rng(seed)
        self.num_sweeps, self.world_T_ego = 0, np.eye(4)

    def sweep(self, *, hidden=()):
        """Return (points, velocity, ego0_T_ego1, dt) of the next sweep; hidden: numbers of bodies that are not seen."""
        ego0_T_ego1 = transforms.yaw_translation(self.turn * DT, self.speed * DT, 0)
        if self.num_sweeps:
            self.world_T_ego = self.world_T_ego @ ego0_T_ego1
        time, rng = self.num_sweeps * DT, self.rng
        self.num_sweeps += 1
        parts = [np.c_[rng.uniform(-40, 40, (20_000, 2)), rng.normal(-HEIGHT, 0.02, 20_000)]]
        velocities = [np.zeros((20_000, 3))]
        wall = np.c_[rng.uniform(-30, 30, 8000), rng.normal(-8, 0.02, 8000), rng.uniform(-HEIGHT, 1, 8000)]
        parts.append(wall)
        velocities.append(np.where(np.sin(wall[:, :1] * 2) > 0.7, [[self.wall_flow, 0, 0]], 0.0))
        for number, (x, y, vx, vy, size, num_points) in enumerate(self.bodies):
            if number not in hidden:
                parts.append(fill(rng, (x + vx * time, y + vy * time), np.array(size), num_points))
                velocities.append(np.tile([vx, vy, 0.0], (num_points, 1)))
        ego_T_world = transforms.invert(self.world_T_ego)
        velocity = np.concatenate(velocities) @ ego_T_world[:3, :3].T
        velocity += rng.normal(0, self.noise, velocity.shape) * (np.linalg.norm(velocity, axis=1) > 0)[:, None]
        points = transforms.apply(ego_T_world, np.concatenate(parts))
        return points.astype(np.float32), velocity.astype(np.float32), ego0_T_ego1, DT


CAR = (-10, 5, 8, 0, (4.2, 1.8, 1.5), 600)
WALKER = (6, 2, 0, 1.4, (0.5, 0.5, 1.7), 150)
BUS = (20, -3, -6, 0, (12, 2.5, 3), 2500)


def drive(street, num_sweeps=10, tracker=None, **hidden):
    tracker = tracker or Tracker()
    return [tracker.update(*street.sweep(**hidden)) for _ in range(num_sweeps)]


@pytest.mark.parametrize('ego', [{}, {'speed': 12.0}, {'speed': 8.0, 'turn': 0.4}])
@pytest.mark.parametrize('bodies', [[], [CAR], [WALKER], [BUS], [CAR, WALKER, BUS]])
def test_what_moves_is_an_object_and_nothing_else(bodies, ego):
    street = Street(bodies, **ego)
    objects = drive(street)
    assert [len(found) for found in objects[:3]] == [0, 0, 0]
    assert len(objects[-1]) == len(bodies)
    ids = {each.track_id for found in objects for each in found}
    assert len(ids) == len(bodies), 'numbers stay'
    time = (street.num_sweeps - 1) * DT
    ego_T_world = transforms.invert(street.world_T_ego)
    for x, y, vx, vy, size, _ in bodies:
        center = ego_T_world @ [x + vx * time, y + vy * time, -HEIGHT + size[2] / 2, 1]
        velocity = ego_T_world[:3, :3] @ [vx, vy, 0]
        found = min(objects[-1], key=lambda each: np.hypot(*(each.center - center[:3])[:2]))
        np.testing.assert_allclose(found.center[:2], center[:2], atol=0.25)
        np.testing.assert_allclose(found.velocity[:2], velocity[:2], atol=0.4)
        assert found.yaw == pytest.approx(np.arctan2(found.velocity[1], found.velocity[0]))
        heading = np.array([max(size[:2]), min(size[:2])])
        np.testing.assert_allclose(found.size[:2], heading, atol=0.3, rtol=0.05)
        assert size[2] - 0.5 < found.size[2] < size[2], 'without its lowest 0.3 m'
        assert found.unseen_s == 0 and found.num_hits >= 4


@pytest.mark.parametrize('speed', [0.0, 12.0])
def test_a_wall_that_seems_to_move_is_no_object(speed):
    for wall_flow in (0.8, 1.5, 4.0):
        assert not any(drive(Street([], wall_flow=wall_flow, speed=speed), 15)), wall_flow


def test_a_car_in_front_of_such_a_wall_is_one():
    objects = drive(Street([CAR], wall_flow=1.5, speed=8.0))
    assert len(objects[-1]) == 1 and objects[-1][0].velocity[0] == pytest.approx(8, abs=0.4)


def test_objects_coast_while_they_are_not_seen_and_keep_their_number():
    street, tracker = Street([CAR]), Tracker(TrackerOptions(coast_s=0.3))
    (before,) = drive(street, 8, tracker)[-1]
    unseen = drive(street, 3, tracker, hidden=(0,))
    assert [round(found[0].unseen_s, 6) for found in unseen] == [0.1, 0.2, 0.3]
    np.testing.assert_allclose(unseen[-1][0].center[0] - before.center[0], 0.3 * 8, atol=0.2)
    (after,) = drive(street, 1, tracker)[-1]
    assert (after.track_id, after.unseen_s, after.num_hits) == (before.track_id, 0, 9)
    assert drive(street, 4, tracker, hidden=(0,))[-1] == []


def test_who_stops_is_no_object_any_more():
    street, tracker = Street([CAR]), Tracker()
    drive(street, 8, tracker)
    x, y, _, _, size, num_points = CAR
    street.bodies = [(x + 8 * 0.7, y, 0, 0, size, num_points)]
    assert drive(street, 5, tracker)[-1] == []


def test_two_that_meet_keep_their_numbers():
    away = (10, 2.4, -8, 0, (4.2, 1.8, 1.5), 600)
    objects = drive(Street([CAR, away]), 25)
    for sign in (1, -1):
        ids = {each.track_id for found in objects for each in found if np.sign(each.velocity[0]) == sign}
        assert len(ids) == 1


def test_after_a_reset_nothing_is_known_but_the_numbers_used():
    street, tracker = Street([CAR]), Tracker()
    (before,) = drive(street, 8, tracker)[-1]
    tracker.reset()
    objects = drive(street, 8, tracker)
    assert not any(objects[:3]) and objects[-1][0].track_id > before.track_id


def test_only_points_that_move_are_enough_for_what_moves():
    street, tracker = Street([CAR]), Tracker()
    for _ in range(8):
        points, velocity, *motion = street.sweep()
        rows = np.linalg.norm(velocity, axis=1) > 0.5
        objects = tracker.update(points[rows], velocity[rows], *motion)
    assert len(objects) == 1


@pytest.mark.parametrize(
    'label, points, velocity',
    [
        ('nothing', np.zeros((0, 3)), np.zeros((0, 3))),
        ('one point', np.ones((1, 3)), np.ones((1, 3))),
        ('no place', np.full((50, 3), np.nan), np.ones((50, 3))),
        ('no velocity', np.ones((50, 3)), np.full((50, 3), np.nan)),
        ('far away', np.full((50, 3), 1e20), np.ones((50, 3))),
        ('too fast for float32', np.random.default_rng(0).uniform(0, 1, (50, 3)), np.full((50, 3), 3e38)),
    ],
)
def test_odd_sweeps_between_good_ones_do_no_harm(label, points, velocity):
    street, tracker = Street([CAR]), Tracker()
    drive(street, 6, tracker)
    tracker.update(points.astype(np.float32), velocity.astype(np.float32), STILL, 0.0)
    assert len(drive(street, 3, tracker)[-1]) == 1


def test_options_check_themselves():
    with pytest.raises(ConfigError, match='confirm_hits'):
        TrackerOptions(confirm_hits=1)
    for f in dataclasses.fields(TrackerOptions):
        assert f.metadata['doc'].endswith('.') and f.metadata['live'] and type(f.default) is f.type
