# SPDX-License-Identifier: Apache-2.0
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tf_bag
from processes import ROOT, started
from tiny_bag import (
    CLOUD_TOPIC,
    EGO_SPEED,
    ODOMETRY_TOPIC,
    PERIOD_NS,
    SENSOR_HEIGHT,
    START_NS,
    street,
    write_bag,
)

from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, TRANSFORMS, decode_message, encode_message
from zeroflow_ros.ego_motion.bag_motion import BagMotion, static_transform
from zeroflow_ros.engines.selection import load_engine
from zeroflow_ros.errors import ConfigError, DataError, EgoMotionError
from zeroflow_ros.lidar.point_cloud import decode_cloud
from zeroflow_ros.lidar.sweep import DropReason
from zeroflow_ros.lidar.sweep_history import SweepHistory
from zeroflow_ros.pipeline import FlowPipeline
from zeroflow_ros.replay import main
from zeroflow_ros.runtime.offline import FLOW_TOPIC, OfflineFlow, estimate_flow
from zeroflow_ros.transforms import apply, invert, rotation_matrix, to_quaternion, yaw_translation

NUM_SWEEPS = 5


@pytest.fixture(scope='module')
def engine():
    return load_engine()


@pytest.fixture(scope='module')
def bag_path(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp('bag') / 'bag', num_sweeps=NUM_SWEEPS)


def rewrite(source, target, change):
    """Copy a bag; change(topic, index in the topic, message) edits a message, returns a list in its place, or None."""
    seen = {}
    with Bag(source) as bag, BagWriter(target) as writer:
        for m in bag.messages([topic.name for topic in bag.topics]):
            message, index = decode_message(m.cdr, m.msgtype), seen.get(m.topic, 0)
            seen[m.topic] = index + 1
            changed = change(m.topic, index, message)
            for topic, msgtype, one in [(m.topic, m.msgtype, message)] if changed is None else changed:
                writer.write(topic, msgtype, m.time_ns, encode_message(one, msgtype))
    return target


def flow_clouds(path):
    with Bag(path) as bag:
        return [decode_message(m.cdr, POINT_CLOUD) for m in bag.messages([FLOW_TOPIC])]


def columns(cloud):
    formats = {7: '<f4', 2: 'u1'}
    dtype = np.dtype({
        'names': [f.name for f in cloud.fields],
        'formats': [formats[f.datatype] for f in cloud.fields],
        'offsets': [f.offset for f in cloud.fields],
        'itemsize': cloud.point_step,
    })  # fmt: skip
    return cloud.data.view(dtype)


@pytest.mark.parametrize('storage', ['mcap', 'rosbag1'])
def test_every_pair_gets_flow_and_every_row_stays(tmp_path, storage, capsys):
    path = write_bag(tmp_path / 'bag', storage, NUM_SWEEPS)
    out, report_path = tmp_path / 'flow', tmp_path / 'report.json'
    assert main([str(path), '--offline', '--out', str(out), '--report', str(report_path)]) == 0
    clouds = flow_clouds(out)
    stamps = [cloud.header.stamp.sec * 10**9 + cloud.header.stamp.nanosec for cloud in clouds]
    assert stamps == [START_NS + k * PERIOD_NS for k in range(1, NUM_SWEEPS)]
    for k, cloud in enumerate(clouds, start=1):
        rows = columns(cloud)
        for i, name in enumerate(['x', 'y', 'z', 'intensity']):
            np.testing.assert_array_equal(rows[name], street(k)[:, i])
        assert (cloud.header.frame_id, cloud.height, cloud.width) == ('lidar', 1, 4000)
        without_return = np.arange(4000) % 50 == 0
        assert np.isnan(rows['vx'][without_return]).all() and not rows['flow_valid'][without_return].any()
        assert (rows['flow_valid'][~without_return] == 3).mean() > 0.99
    with Bag(out) as bag:
        counts = {topic.name: topic.num_messages for topic in bag.topics}
    assert counts == {FLOW_TOPIC: NUM_SWEEPS - 1, ODOMETRY_TOPIC: NUM_SWEEPS, '/tf': NUM_SWEEPS}
    report = json.loads(report_path.read_text())
    assert (report['sweeps_played'], report['flow_published']) == (NUM_SWEEPS, NUM_SWEEPS - 1)
    assert (report['dropped'], report['ego_motion']) == ({'first_sweep': 1}, 'odometry')
    assert report['latency_ms']['inference']['count'] == NUM_SWEEPS - 1
    said = capsys.readouterr().out
    assert 'sweeps 5, flow 4, dropped: 1 first_sweep' in said and 'points per second' in said


def test_velocities_are_those_of_the_pipeline(engine, bag_path):
    with Bag(bag_path) as bag:
        found = list(estimate_flow(bag, engine))
        sweeps = [decode_cloud(decode_message(m.cdr, POINT_CLOUD)) for m in bag.messages([CLOUD_TOPIC])]
    pipeline, history = FlowPipeline(engine), SweepHistory(engine.card.num_sweeps)
    ego0_T_ego1 = yaw_translation(0, EGO_SPEED * 0.1, 0)
    for (message, estimate), before, after in zip(found, sweeps, sweeps[1:], strict=False):
        expected = pipeline.estimate(history.pair(before, after, ego0_T_ego1))
        assert estimate.num_sweeps == expected.num_sweeps
        assert decode_cloud(message).stamp_ns == after.stamp_ns
        np.testing.assert_allclose(estimate.velocity, expected.velocity, atol=1e-3)  # m/s; poses are float64 of 0.1 s
        np.testing.assert_array_equal(estimate.flow_valid, expected.flow_valid)


def test_flow_on_the_previous_sweep_goes_with_the_rows_of_that_sweep(engine, bag_path):
    with Bag(bag_path) as bag:
        results = list(OfflineFlow(bag, engine, output_on='previous'))
    assert [r.drop for r in results] == [DropReason.FIRST] + [None] * (NUM_SWEEPS - 1)
    for k, result in enumerate(results[1:]):
        assert result.time_ns == START_NS + k * PERIOD_NS
        assert decode_cloud(result.message).stamp_ns == START_NS + k * PERIOD_NS


def test_refinements_are_asked_for_on_the_command_line(engine, bag_path, tmp_path):
    assert main([str(bag_path), '--offline', '--refinements', '1', '--out', str(tmp_path / 'flow')]) == 0
    with Bag(bag_path) as bag:
        refined, once = (next(estimate_flow(bag, engine, refinements=count))[1] for count in (1, 0))
    velocity = np.stack([columns(flow_clouds(tmp_path / 'flow')[0])[name] for name in ('vx', 'vy', 'vz')], 1)
    np.testing.assert_array_equal(velocity, refined.velocity)
    assert np.nanmax(np.abs(refined.velocity - once.velocity)) > 1e-3  # m/s


def test_without_ego_motion_velocities_say_so(engine, bag_path):
    with Bag(bag_path) as bag:
        _, estimate = next(estimate_flow(bag, engine, ego_motion='none'))
    assert set(np.unique(estimate.flow_valid)) == {0, 1}


def test_a_part_of_the_bag(engine, bag_path):
    with Bag(bag_path) as bag:
        results = list(OfflineFlow(bag, engine, start=0.05, duration=0.3))
    assert [(r.time_ns - START_NS) // PERIOD_NS for r in results] == [1, 2, 3]
    assert [r.drop for r in results] == [DropReason.FIRST, None, None]


def test_without_odometry_sweeps_are_registered(engine, tmp_path):
    pytest.importorskip('small_gicp', reason='needs small_gicp')
    with Bag(write_bag(tmp_path / 'bag', num_sweeps=3, odometry=False, num_points=20000)) as bag:
        flow = OfflineFlow(bag, engine)
        results = list(flow)
    assert flow.motion.source == 'registration' and 'no topic of nav_msgs/msg/Odometry' in flow.motion.note
    assert [r.drop for r in results] == [DropReason.FIRST, None, None], [r.reason for r in results]
    for result in results[1:]:
        # 5 cm: the points of the walls are 0.3 m apart, and the driving box takes part.
        np.testing.assert_allclose(result.ego0_T_ego1[:3, 3], [EGO_SPEED * 0.1, 0, 0], atol=0.05)


def test_every_reason_to_drop_is_counted_and_nothing_else_is_lost(engine, bag_path, tmp_path):
    def spoil(topic, index, message):
        if topic == CLOUD_TOPIC and index == 1:
            message.fields[0].name = 'a'
        if topic == CLOUD_TOPIC and index == 3:
            message.header.stamp.nanosec -= PERIOD_NS  # that of the sweep before
        return [] if topic == CLOUD_TOPIC and index == 5 else None

    path = rewrite(write_bag(tmp_path / 'long', num_sweeps=11), tmp_path / 'spoiled', spoil)
    with Bag(path) as bag:
        results = list(OfflineFlow(bag, engine))
    drops = [None if r.drop is None else r.drop.value for r in results]
    # Sweep 2 pairs with 0 and sweep 4 with 2: 0.2 s, which the model still takes.
    assert drops == ['first_sweep', 'malformed_cloud', None, 'duplicate_stamp', None, None, None, None, None, None]
    assert 'x is missing' in results[1].reason


def test_odometry_that_ends_early_drops_what_it_does_not_reach(engine, tmp_path):
    path = rewrite(
        write_bag(tmp_path / 'whole', num_sweeps=5),
        tmp_path / 'bag',
        lambda topic, index, _: [] if topic == ODOMETRY_TOPIC and index > 2 else None,
    )
    with Bag(path) as bag:
        results = list(OfflineFlow(bag, engine))
    assert [r.drop for r in results] == [DropReason.FIRST, None, None, DropReason.EGO_MOTION, DropReason.EGO_MOTION]
    assert 'needs a pose at' in results[-1].reason


def mounted(tmp_path, *, static: bool):
    """Return a bag whose odometry moves base_link, with the LiDAR turned by 90 degrees on it."""

    def change(topic, index, message):
        if topic == ODOMETRY_TOPIC:
            message.child_frame_id = 'base_link'
        if topic == CLOUD_TOPIC:  # the clouds show the motion that the mount says
            rows = message.data.view(np.float32).reshape(-1, 4).copy()
            rows[:, 0], rows[:, 1] = rows[:, 1].copy(), -rows[:, 0]
            message.data = rows.view(np.uint8).reshape(-1)
        if topic != '/tf' or not static:
            return None
        transform = message.transforms[0]
        transform.header.frame_id, transform.child_frame_id = '/base_link', 'mast'
        transform.transform.translation.x, transform.transform.translation.z = 1.0, 1.0
        second = decode_message(encode_message(message, TRANSFORMS), TRANSFORMS)
        transform = second.transforms[0]
        transform.header.frame_id, transform.child_frame_id = 'mast', 'lidar'
        transform.transform.rotation.z = transform.transform.rotation.w = 0.5**0.5
        return [('/tf_static', TRANSFORMS, message), ('/tf_static', TRANSFORMS, second)] if index == 0 else []

    return rewrite(write_bag(tmp_path / 'plain', num_sweeps=3), tmp_path / 'mounted', change)


def test_odometry_of_another_frame_goes_through_static_transforms(engine, tmp_path):
    path = mounted(tmp_path, static=True)
    with Bag(path) as bag:
        expected = yaw_translation(np.pi / 2, 2.0, 0.0, 2.0)
        np.testing.assert_allclose(static_transform(bag, 'base_link', 'lidar'), expected, atol=1e-12)
        results = list(OfflineFlow(bag, engine, ego_motion='odometry'))
    # The vehicle drives along its x, which is -y of a LiDAR that looks to the left.
    np.testing.assert_allclose(results[1].ego0_T_ego1[:3, 3], [0, -EGO_SPEED * 0.1, 0], atol=1e-6)
    assert main([str(path), '--offline', '--out', str(tmp_path / 'flow.mcap')]) == 0
    with Bag(tmp_path / 'flow.mcap') as bag:
        assert len(list(bag.messages(['/tf_static']))) == 2


def tilted(path, pitch, mount=None):
    """Write a bag of a sensor that is pitched [degrees]; mount: pitch on /tf_static, None: none."""
    sensor_T_level, base_T_sensor = np.eye(4), np.eye(4)
    sensor_T_level[:3, :3] = rotation_matrix([0, np.radians(pitch), 0])
    base_T_sensor[:3, :3] = rotation_matrix([0, -np.radians(mount or 0), 0])

    def change(topic, index, message):
        if topic == ODOMETRY_TOPIC:
            x = message.pose.pose.position.x
            pose = yaw_translation(0, x, 0) @ invert(sensor_T_level)
            q = message.pose.pose.orientation
            q.x, q.y, q.z, q.w = to_quaternion(pose).tolist()
        if topic == CLOUD_TOPIC:
            rows = message.data.view(np.float32).reshape(-1, 4).copy()
            rows[:, :3] = apply(sensor_T_level, rows[:, :3])
            message.data = rows.view(np.uint8).reshape(-1)
        if topic == '/tf':
            if mount is None or index:
                return []
            transform = message.transforms[0]
            transform.header.frame_id = 'base_link'
            q = transform.transform.rotation
            q.x, q.y, q.z, q.w = to_quaternion(base_T_sensor).tolist()
            return [('/tf_static', TRANSFORMS, message)]
        return None

    return rewrite(write_bag(path / 'plain', num_sweeps=4), path / 'tilted', change), sensor_T_level


@pytest.mark.parametrize(
    ('pitch', 'mount', 'tilt_from'),
    [(12, None, 'ground'), (30, 30, 'mount'), (180, 180, 'mount'), (25, 20, 'ground'), (1, None, 'nothing')],
)
def test_a_tilted_sensor_gives_the_flow_of_a_level_one(engine, bag_path, tmp_path, pitch, mount, tilt_from):
    path, sensor_T_level = tilted(tmp_path, pitch, mount)
    with Bag(bag_path) as bag:
        expected = [estimate.velocity for _, estimate in estimate_flow(bag, engine)]
    with Bag(path) as bag:
        estimates = [estimate for _, estimate in estimate_flow(bag, engine)]
    assert len(estimates) == 3 and estimates[-1].level.tilt_from == tilt_from
    assert estimates[-1].sensor_height == pytest.approx(1.8, abs=0.03)
    for estimate, level in zip(estimates, expected, strict=False):
        velocity = apply(invert(sensor_T_level), estimate.velocity)
        both = np.isfinite(velocity).all(1) & np.isfinite(level).all(1)
        assert both.mean() > 0.9
        # m/s, 5 cm a pair; pitched by 180 degrees, the network sees the street from the other end
        assert np.linalg.norm(velocity - level, axis=1)[both].mean() < 0.5


def test_a_tilt_that_is_not_told_is_said(tmp_path, capsys):
    path, _ = tilted(tmp_path, 22, 22)
    command = [str(path), '--offline', '--out', str(tmp_path / 'flow.mcap'), '--report', str(tmp_path / 'report.json')]
    assert main([*command, '--base-frame', '']) == 0
    said = capsys.readouterr().err
    assert 'tilted by 22 degrees' in said and 'set --base-T-lidar to 0.000 0.000 1.8' in said
    report = json.loads((tmp_path / 'report.json').read_text())
    [warning] = report['warnings']
    assert (warning['kind'], warning['count'], warning['level']) == ('tilt', 3, 'WARN') and warning['text'] in said
    assert report['points_with_velocity'] / report['points'] == pytest.approx(report['share_with_velocity'], abs=1e-4)
    assert (report['sensor_height'], report['tilt_from']) == (None, 'nothing')
    quaternion = ['0', str(np.sin(np.radians(-11))), '0', str(np.cos(np.radians(-11)))]
    assert main([*command, '--replace', '--base-T-lidar', '0', '0', '0', *quaternion]) == 0
    assert 'tilted' not in capsys.readouterr().err
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['sensor_height'] == pytest.approx(1.8, abs=0.03) and report['pitch_deg'] == pytest.approx(-22)


def test_no_point_with_a_velocity_is_a_failure_with_the_reason_and_no_output(bag_path, tmp_path, capsys):
    def lift(topic, index, message):
        if topic == CLOUD_TOPIC:
            rows = message.data.view(np.float32).reshape(-1, 4).copy()
            rows[:, 0] += 5000  # as in the frame of a map
            message.data = rows.view(np.uint8).reshape(-1)

    path, out, report_path = rewrite(bag_path, tmp_path / 'far', lift), tmp_path / 'flow', tmp_path / 'report.json'
    command = [str(path), '--offline', '--out', str(out), '--report', str(report_path), '--ego-motion', 'none']
    assert main(command) == 1
    said = capsys.readouterr().err
    assert f'No sweep of {CLOUD_TOPIC} got flow (5 empty_cloud). A cloud without a point within 51 m' in said
    report = json.loads(report_path.read_text())
    assert report['dropped'] == {'empty_cloud': 5} and 'within 51 m' in report['dropped_because']['empty_cloud']
    assert not out.exists()


def test_dropped_sweeps_end_with_an_example_of_each_reason(bag_path, tmp_path, capsys):
    def spoil(topic, index, message):
        if topic == CLOUD_TOPIC and index == 2:
            message.fields[0].name = 'a'

    path = rewrite(bag_path, tmp_path / 'spoiled', spoil)
    assert main([str(path), '--offline', '--out', str(tmp_path / 'flow')]) == 0
    said = capsys.readouterr().out
    assert 'dropped: 1 first_sweep, 1 malformed_cloud' in said and '  malformed_cloud: A cloud must have x, y' in said
    assert re.search(r'velocities for (9\d\.\d|100\.0) % of [\d,]+ points', said)


def test_odometry_of_an_unknown_frame_is_refused_and_auto_does_without(engine, tmp_path):
    with Bag(mounted(tmp_path, static=False)) as bag:
        with pytest.raises(EgoMotionError, match=r"'base_link'.*'lidar'.*--odometry-T-lidar"):
            OfflineFlow(bag, engine, ego_motion='odometry')
        flow = OfflineFlow(bag, engine, odometry_T_lidar=np.eye(4))
        assert flow.motion.source == 'odometry'
        pytest.importorskip('small_gicp', reason='needs small_gicp')
        assert BagMotion(bag, 'auto', frame_id='lidar').source == 'tf'


def test_odometry_that_is_no_number_is_left_out(engine, tmp_path):
    def spoil(topic, index, message):
        if topic == ODOMETRY_TOPIC and index == 2:
            message.pose.pose.position.x = float('nan')

    with Bag(rewrite(write_bag(tmp_path / 'bag', num_sweeps=5), tmp_path / 'nan', spoil)) as bag:
        motions = [r.ego0_T_ego1 for r in OfflineFlow(bag, engine)]
    np.testing.assert_allclose(motions[2][0, 3], EGO_SPEED * 0.1, atol=1e-6)  # interpolated


def test_it_runs_where_there_is_no_ros(bag_path, tmp_path):
    program = (
        "import sys; sys.modules['rclpy'] = None\n"
        'from zeroflow_ros.replay import main\n'
        f"code = main(['{bag_path}', '--offline', '--out', '{tmp_path}/flow'])\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('torch', 'matplotlib')]\n"
        'sys.exit(code)'
    )
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(flow_clouds(tmp_path / 'flow')) == NUM_SWEEPS - 1


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    path = write_bag(tmp_path / 'bag', num_sweeps=200)
    with started('replay', path, '--offline', '--out', tmp_path / 'out' / 'flow') as replay:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob('out/.flow*')) and time.monotonic() < deadline:
            time.sleep(0.02)
        replay.send_signal(signal.SIGINT)
        text, _ = replay.communicate(timeout=20)
    assert (replay.returncode, 'Traceback' in text) == (130, False), text
    assert list((tmp_path / 'out').iterdir()) == []


ERRORS = {
    'no out': (lambda tmp, bag: [], r'--offline needs --out'),
    'missing bag': (lambda tmp, bag: [tmp / 'none', '--out', tmp / 'o'], r'no bag at'),
    'out exists': (lambda tmp, bag: [bag, '--out', bag], r'exists already'),
    'no such topic': (lambda tmp, bag: [bag, '--out', tmp / 'o', '--topic', '/a'], r'named /a.*\n  /lidar/points'),
    'two topics': (lambda tmp, bag: [bag, '--out', tmp / 'o', '--topic', '/a', '--topic', '/b'], r'takes one --topic'),
    'no such odometry': (lambda tmp, bag: [bag, '--out', tmp / 'o', '--odometry-topic', '/o'], r'named /o'),
    'no model': (lambda tmp, bag: [bag, '--out', tmp / 'o', '--model', tmp / 'm.onnx'], r'No model file at'),
    'one sweep': (lambda tmp, bag: [bag, '--out', tmp / 'o', '--duration', '0.05'], r'got flow \(1 first_sweep\)'),
}


@pytest.mark.parametrize('label', ERRORS)
def test_an_error_leaves_nothing_behind(bag_path, tmp_path, capsys, label):
    make, expected = ERRORS[label]
    arguments = list(map(str, make(tmp_path, bag_path))) or [str(bag_path)]
    assert main([*arguments, '--offline']) == 1
    said = capsys.readouterr().err
    assert re.search(expected, said), said
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_source_of_ego_motion_is_refused(engine, bag_path):
    with Bag(bag_path) as bag, pytest.raises(ConfigError, match='must be one of auto, odometry'):
        OfflineFlow(bag, engine, ego_motion='gps')


def test_a_bag_without_odometry_is_an_error_when_odometry_is_asked_for(engine, tmp_path):
    with (
        Bag(write_bag(tmp_path / 'bag', num_sweeps=2, odometry=False)) as bag,
        pytest.raises(DataError, match=ODOMETRY),
    ):
        OfflineFlow(bag, engine, ego_motion='odometry')


def test_a_bag_with_only_tf_gets_flow_and_says_why_not_by_odometry(tmp_path, capsys):
    mount = tf_bag.constant(yaw_translation(0, 1, 0, SENSOR_HEIGHT))
    tf = [tf_bag.Tf('odom', 'base_link'), tf_bag.Tf('base_link', 'lidar', mount)]
    bag, out = tf_bag.write(tmp_path / 'bag', tf, num_sweeps=3), tmp_path / 'flow'
    report = tmp_path / 'report.json'
    assert main([str(bag), '--offline', '--out', str(out), '--report', str(report)]) == 0
    said = capsys.readouterr()
    assert "Ego motion by tf through 'odom':" in said.err and 'no topic of nav_msgs/msg/Odometry' in said.err
    found = json.loads(report.read_text())
    assert (found['ego_motion'], found['flow_published'], found['tilt_from']) == ('tf', 2, 'mount')
    assert main([str(bag), '--offline', '--fixed-frame', 'utm', '--ego-motion', 'tf', '--out', str(out)]) == 1
    assert "'utm'" in capsys.readouterr().err


def test_stamps_since_the_start_of_the_sensor_are_refused_or_shifted(tmp_path, capsys):
    clock = 123.4 - START_NS * 1e-9
    bag, out = tf_bag.write(tmp_path / 'bag', num_sweeps=4, odometry_clock=0.0, cloud_clock=clock), tmp_path / 'flow'
    command = [str(bag), '--offline', '--ego-motion', 'odometry', '--out', str(out)]
    assert main(command) == 1
    assert 'different clocks' in capsys.readouterr().err
    assert main([*command, '--stamp-offset', f'{-clock:.6f}']) == 0
    assert 'ego motion by odometry' in capsys.readouterr().out
