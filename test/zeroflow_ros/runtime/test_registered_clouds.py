# SPDX-License-Identifier: Apache-2.0
"""Clouds in a fixed frame, and odometry that is wrong, through the worker of the node and offline."""

from functools import partial

import numpy as np
import pytest
from tiny_bag import CLOUD_TOPIC, EGO_SPEED, ODOMETRY_TOPIC, write_bag

from training.datasets.rosbag import open_pairs
from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.cdr import decode_message, encode_message
from zeroflow_ros.ego_motion.checked_odometry import CheckedOdometry
from zeroflow_ros.engines.selection import DEFAULT_MODELS, load_engine
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import DropReason
from zeroflow_ros.pipeline import FlowPipeline
from zeroflow_ros.replay import main
from zeroflow_ros.runtime.flow_worker import FlowWorker
from zeroflow_ros.runtime.health import Health
from zeroflow_ros.runtime.offline import OfflineFlow
from zeroflow_ros.transforms import apply, from_quaternion, to_quaternion, yaw_translation

NUM = 8
PLACE = yaw_translation(2.0, 300.0, -40.0)  # where the drive begins, far from the origin of odom


@pytest.fixture(scope='module')
def engine():
    return load_engine(DEFAULT_MODELS['tensorrt'])  # float: 8 bits round what is nearly the same to something else


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp('clean') / 'bag', num_sweeps=NUM, num_points=8_000)


def changed(source, target, change):
    """Copy clouds and odometry of a bag; change(topic, number, message, odom_T_lidar) edits a message in place."""
    poses = {}
    with Bag(source) as bag, BagWriter(target) as writer:
        for m in bag.messages([ODOMETRY_TOPIC, CLOUD_TOPIC]):
            message = decode_message(m.cdr, m.msgtype)
            if m.topic == ODOMETRY_TOPIC:
                p, q = message.pose.pose.position, message.pose.pose.orientation
                poses[m.stamp_ns] = from_quaternion((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
            change(m.topic, len(poses) - 1, message, poses[m.stamp_ns])
            writer.write(m.topic, m.msgtype, m.time_ns, encode_message(message, m.msgtype))
    return target


def set_pose(message, pose):
    p, q = message.pose.pose.position, message.pose.pose.orientation
    p.x, p.y, p.z = pose[:3, 3].tolist()
    q.x, q.y, q.z, q.w = to_quaternion(pose).tolist()


def register(topic, number, message, pose, *, place=PLACE, child=''):
    """Move a cloud into odom, as FAST-LIO does."""
    if topic == ODOMETRY_TOPIC:
        set_pose(message, place @ pose)
        message.child_frame_id = child
        return
    rows = message.data.view(np.float32).reshape(-1, 4).copy()
    rows[:, :3] = apply(place @ pose, rows[:, :3])
    message.header.frame_id, message.data = 'odom', rows.view(np.uint8).reshape(-1)


@pytest.fixture(scope='module')
def registered(clean, tmp_path_factory):
    return changed(clean, tmp_path_factory.mktemp('registered') / 'bag', register)


class Source:
    """The node's odometry without DDS."""

    is_incremental = False

    def __init__(self):
        self.odometry = CheckedOdometry()

    def to_sensor_frame(self, sweep, *, timeout, offset_ns):
        return self.odometry.to_sensor_frame(sweep, np.eye(4), offset_ns)

    def between(self, sweep0, sweep1, *, timeout, offset_ns):
        return self.odometry.between(sweep0, sweep1, np.eye(4), offset_ns)

    def poses_at_offsets(self, sweep, other, offsets_ns, *, timeout, offset_ns):
        return self.odometry.poses_at_offsets(sweep, offsets_ns, np.eye(4), offset_ns)


class Sink:
    """Keeps what a worker publishes."""

    def __init__(self):
        self.flows, self.dynamic, self.arrows = [], [], []

    def has_subscribers(self):
        return True

    ok = has_subscribers

    def publish_flow(self, msg, velocity, flow_valid):
        self.flows.append(velocity)

    def publish_dynamic_points(self, msg, points, velocity):
        self.dynamic.append(points)

    def publish_static_points(self, msg, velocity, own_rows):
        pass

    def publish_arrows(self, msg, points, velocity):
        self.arrows.append(points)

    def publish_debug(self, msg, stages_ms, dt):
        pass


def live(path, engine):
    """Return sink and health of a worker that gets the messages of a bag one by one."""
    from zeroflow_ros.ros.parameters import Parameters

    source, sink, health = Source(), Sink(), Health(lambda level, text: None)
    parameters = Parameters()
    worker = FlowWorker(FlowPipeline(engine), source, health, sink, parameters=lambda: parameters, now_ns=lambda: 0)
    worker.set_active(True)
    with Bag(path) as bag:
        for m in bag.messages([ODOMETRY_TOPIC, CLOUD_TOPIC]):
            message = decode_message(m.cdr, m.msgtype)
            if m.topic == ODOMETRY_TOPIC:
                source.odometry.add(message)
            else:
                worker.process(message, 0.0)
    return sink, health


def offline(path, engine, **options):
    with Bag(path) as bag:
        return list(OfflineFlow(bag, engine, **options))


def test_flow_of_registered_clouds_is_that_of_the_sensor_turned_into_odom(clean, registered, engine):
    expected, found = offline(clean, engine), offline(registered, engine)
    assert [r.drop for r in found] == [r.drop for r in expected] == [DropReason.FIRST] + [None] * (NUM - 1)
    for one, other in zip(expected[1:], found[1:], strict=True):
        turned = one.estimate.velocity @ PLACE[:3, :3].T.astype(np.float32)
        valid = (one.estimate.flow_valid > 0) & (other.estimate.flow_valid > 0)
        assert valid.mean() > 0.97 and set(np.unique(other.estimate.flow_valid)) == {0, 3}
        difference = np.linalg.norm(other.estimate.velocity - turned, axis=1)[valid]
        # m/s: float32 far from the origin moves a few points to other pillars
        assert np.median(difference) < 0.01 and np.percentile(difference, 95) < 0.1
        np.testing.assert_array_equal(other.ego0_T_ego1, np.eye(4))  # between the clouds as they are
        assert other.message.header.frame_id == 'odom'


@pytest.mark.parametrize('child', ['', 'body'])
def test_live_and_offline_agree_on_registered_clouds(clean, engine, tmp_path, child):
    pytest.importorskip('rclpy', reason='needs rclpy')
    path = changed(clean, tmp_path / 'bag', partial(register, child=child))
    sink, health = live(path, engine)
    assert health.drops == {DropReason.FIRST: 1} and health.published == NUM - 1
    for velocity, result in zip(sink.flows, offline(path, engine)[1:], strict=True):
        np.testing.assert_array_equal(velocity, result.estimate.velocity)
    # What is published beside the flow is where the cloud is, not around the sensor.
    for points in (sink.dynamic[-1], sink.arrows[-1]):
        assert np.linalg.norm(np.nanmedian(points[:, :2], axis=0) - PLACE[:2, 3]) < 20


def test_registered_clouds_make_the_training_pairs_of_the_sensor(clean, registered):
    expected, found = open_pairs(str(clean)), open_pairs(str(registered))
    assert len(found) == len(expected) == NUM - 1 and not found.skipped
    for index in (0, NUM - 2):
        one, other = expected[index].pair, found[index].pair
        np.testing.assert_allclose(other.points0, one.points0, atol=1e-4)  # m: float32 at 300 m
        np.testing.assert_allclose(other.ego0_T_ego1, one.ego0_T_ego1, atol=1e-9)
        assert len(other.history) == len(one.history)


@pytest.mark.parametrize('source', ['none', 'registration'])
def test_registered_clouds_far_from_the_origin_fail_without_odometry_and_name_it(registered, source, capsys):
    if source == 'registration':
        pytest.importorskip('small_gicp', reason='needs small_gicp')
    arguments = [str(registered), '--offline', '--ego-motion', source, '--out', f'{registered}_{source}']
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert 'm from the origin of its frame' in said and "header.frame_id is 'odom'" in said


def test_registered_clouds_that_leave_the_grid_get_a_warning_before(clean, engine, tmp_path):
    path = changed(clean, tmp_path / 'bag', partial(register, place=yaw_translation(0, 75, 0)))
    with Bag(path) as bag:
        flow = OfflineFlow(bag, engine, ego_motion='none')
        assert sum(result.drop is None for result in flow) == NUM - 1
        texts = [finding.text for finding in flow.summary().findings]
    assert any('m from the origin of their frame' in text and 'header.frame_id' in text for text in texts)


def still(topic, number, message, pose):
    """The pose stays at the identity; the twist is true."""
    if topic == ODOMETRY_TOPIC:
        set_pose(message, np.eye(4))


def test_a_twist_beside_an_identity_pose_is_refused_alike_live_and_offline(clean, engine, tmp_path):
    pytest.importorskip('rclpy', reason='needs rclpy')
    path = changed(clean, tmp_path / 'bag', still)
    results = offline(path, engine, ego_motion='odometry')
    assert [r.drop for r in results] == [DropReason.FIRST] + [DropReason.EGO_MOTION] * (NUM - 1)
    assert 'Pose and twist of the odometry contradict each other' in results[-1].reason
    sink, health = live(path, engine)
    assert health.drops == {DropReason.FIRST: 1, DropReason.EGO_MOTION: NUM - 1} and not sink.flows
    with pytest.raises(DataError, match='contradict each other'):
        open_pairs(f'{path}?ego_motion=odometry')


def test_auto_registers_instead_of_odometry_that_stays_still_and_says_so(clean, engine, tmp_path, capsys):
    pytest.importorskip('small_gicp', reason='needs small_gicp')
    path = changed(clean, tmp_path / 'bag', still)
    with Bag(path) as bag:
        flow = OfflineFlow(bag, engine)
        results = list(flow)
    assert flow.motion.source == 'registration' and 'contradict each other' in flow.motion.note
    used = [result.ego0_T_ego1 for result in results if result.drop is None]
    assert len(used) >= NUM - 4
    np.testing.assert_allclose(used[-1][:2, 3], [0.1 * EGO_SPEED, 0], atol=0.1)  # m
    pairs = open_pairs(str(path))
    assert pairs.ego_motion == 'registration' and 'contradict each other' in pairs.note


def test_a_jump_costs_one_pair_and_breaks_the_history_alike_live_and_offline(clean, engine, tmp_path):
    pytest.importorskip('rclpy', reason='needs rclpy')

    def jump(topic, number, message, pose):
        if topic == ODOMETRY_TOPIC and number >= 5:
            set_pose(message, yaw_translation(0, 0, 0.5) @ pose)

    path = changed(clean, tmp_path / 'bag', jump)
    results = offline(path, engine)
    assert [k for k, r in enumerate(results) if r.drop is DropReason.EGO_MOTION] == [5]
    assert 'The odometry jumps by' in results[5].reason
    seen = [None if r.estimate is None else r.estimate.num_sweeps for r in results]
    most = engine.card.num_sweeps
    assert seen == [None, *(min(k, most) for k in range(2, 6)), None, 2, min(3, most)]
    sink, health = live(path, engine)
    assert health.drops == {DropReason.FIRST: 1, DropReason.EGO_MOTION: 1}
    for velocity, result in zip(sink.flows, (r for r in results if r.estimate), strict=True):
        np.testing.assert_array_equal(velocity, result.estimate.velocity)
