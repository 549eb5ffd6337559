# SPDX-License-Identifier: Apache-2.0
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy')

from driving_car import CAR_SPEED, DT_NS, EGO_SPEED, S, car
from flow_node import cloud

from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.lidar.point_cloud import flow_cloud
from zeroflow_ros.lidar.sweep import DropReason
from zeroflow_ros.object_tracker import ObjectParameters
from zeroflow_ros.objects.object_worker import ObjectWorker
from zeroflow_ros.ros.messages import flow_message
from zeroflow_ros.runtime.health import Health
from zeroflow_ros.transforms import yaw_translation


class Ego:
    """Drives straight on; fails when told to."""

    is_incremental = False

    def __init__(self):
        self.fails, self.num_resets = False, 0

    def between(self, sweep0, sweep1, *, timeout, offset_ns):
        if self.fails:
            raise EgoMotionError('No pose.')
        return yaw_translation(0, EGO_SPEED * (sweep1.stamp_ns - sweep0.stamp_ns) * 1e-9, 0)

    def reset(self, stamp_ns):
        self.num_resets += 1


@pytest.fixture
def world():
    """Return a worker that is called directly, its ego motion, health, and what it publishes."""
    published, lines, ego = [], [], Ego()
    health = Health(lambda severity, text: lines.append((severity, text)))
    parameters = [ObjectParameters()]
    worker = ObjectWorker(
        ego, health, lambda msg, objects: published.append((msg, objects)), parameters=lambda: parameters[0]
    )
    worker.ego, worker.health, worker.published, worker.lines, worker.set = ego, health, published, lines, parameters
    return worker


def feed(world, *messages):
    for msg in messages:
        world.process(msg)
    return world.published[-1][1] if world.published else None


def test_a_car_that_drives_becomes_an_object(world):
    (found,) = feed(world, *(car(k) for k in range(8)))
    assert found.velocity[0] == pytest.approx(CAR_SPEED, abs=0.2) and found.center[0] == pytest.approx(14.1, abs=0.3)
    assert len(world.published) == 8 and world.health.published == 8
    assert [len(objects) for _, objects in world.published[:3]] == [0, 0, 0]


def test_a_sweep_in_which_nothing_moves_is_a_sweep(world):
    feed(world, *(car(k) for k in range(8)))
    empty = [flow_message(m, flow_cloud(m, np.zeros((0, 3), np.float32), np.zeros(0, np.uint8)))
             for m in (cloud(np.zeros((0, 3)), S + k * DT_NS) for k in range(8, 14))]  # fmt: skip
    feed(world, *empty)
    assert [len(objects) for _, objects in world.published[8:]] == [1, 1, 1, 0, 0, 0]
    assert world.published[8][1][0].unseen_s == pytest.approx(0.1)


def test_without_ego_motion_there_are_no_objects_and_it_goes_on_where_it_was(world):
    (before,) = feed(world, *(car(k) for k in range(8)))
    world.ego.fails = True
    feed(world, car(8))
    assert len(world.published) == 8 and world.health.drops[DropReason.EGO_MOTION] == 1
    world.ego.fails = False
    (after,) = feed(world, car(9))
    assert after.track_id == before.track_id


@pytest.mark.parametrize(
    'label, change, drop, num_resets',
    [
        ('a gap', {'stamp_ns': 9 * S}, DropReason.GAP, 0),
        ('a bag that loops', {'stamp_ns': S // 2}, DropReason.TIME_RESET, 1),
        ('another sensor', {'stamp_ns': S + 8 * DT_NS, 'frame_id': 'other'}, DropReason.FRAME_CHANGED, 0),
    ],
)
def test_it_starts_over(world, label, change, drop, num_resets):
    feed(world, *(car(k) for k in range(8)))
    world._buffer.reset_after = 0.2
    assert feed(world, car(8, **change)) == []
    assert world.health.drops[drop] == 1 and world.ego.num_resets == num_resets


@pytest.mark.parametrize(
    'label, stamp_ns, drop',
    [
        ('the same stamp', S + 7 * DT_NS, DropReason.DUPLICATE),
        ('an older one', S + 6 * DT_NS, DropReason.OUT_OF_ORDER),
        ('no stamp', 0, DropReason.ZERO_STAMP),
    ],
)
def test_a_cloud_that_does_not_follow_is_left_out(world, label, stamp_ns, drop):
    feed(world, *(car(k) for k in range(8)), car(8, stamp_ns=stamp_ns))
    assert len(world.published) == 8 and world.health.drops[drop] == 1
    assert len(feed(world, car(8))) == 1


def test_a_cloud_without_velocity_is_counted_and_said_once(world):
    feed(world, *(cloud(np.ones((5, 3)), S + k * DT_NS) for k in range(20)))
    assert world.health.drops[DropReason.MALFORMED] == 20 and not world.published
    (line,) = (text for severity, text in world.lines if severity == 'error')
    assert 'must have vx, vy and vz' in line and "'intensity'" in line


def test_registration_needs_what_stands(world):
    world.set[0] = ObjectParameters(ego_motion='registration')
    feed(world, car(0, with_ground=False), car(1, with_ground=False))
    assert world.health.drops[DropReason.EGO_MOTION] == 1 and 'flow_node/output/flow' in world.lines[-1][1]
    assert len(feed(world, *(car(k) for k in range(1, 8)))) == 1


def test_parameters_are_taken_as_they_are_now(world):
    feed(world, *(car(k) for k in range(8)))
    world.set[0] = ObjectParameters(min_speed=20.0, coast_s=0.0)
    assert feed(world, car(8)) == []


def test_whatever_fails_is_counted_and_the_next_sweep_is_served():
    published, ego = [], Ego()
    health = Health(lambda severity, text: None)

    def publish(msg, objects):
        if not published:
            published.append(None)
            raise OSError('the line is cut')
        published.append(objects)

    worker = ObjectWorker(ego, health, publish, parameters=ObjectParameters)
    worker.start()
    for k in range(3):
        worker.put(car(k))
        deadline = time.monotonic() + 10
        while health.published + health.drops[DropReason.ENGINE] <= k and time.monotonic() < deadline:
            time.sleep(0.005)
    worker.stop()
    assert health.drops[DropReason.ENGINE] == 1 and health.published == 2 and published == [None, [], []]
