# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tf_bag
from processes import run, started
from tiny_bag import CLOUD_TOPIC, ODOMETRY_TOPIC, PERIOD_NS, START_NS, write_bag

from zeroflow_ros import demo
from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.demo import Source, _dropped, examine, make_report, make_summary
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.runtime.offline import FLOW_TOPIC
from zeroflow_ros.transforms import yaw_translation

pytest.importorskip('rclpy', reason='needs rclpy')
pytest.importorskip('matplotlib', reason='needs matplotlib')

STAGES = {'decode', 'ego_motion', 'pillars', 'inference', 'objects', 'publish', 'node', 'overhead', 'end_to_end'}


def processes_that_mention(text):
    """Return the command lines of living processes with `text` in them, ours left out."""
    found = []
    for entry in Path('/proc').iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / 'cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace')
            except OSError:
                continue
            if str(text) in command:
                found.append(command)
    return found


def test_from_a_bag_to_a_report_a_recording_and_a_picture(tmp_path):
    out = tmp_path / 'out'
    bag_path = write_bag(tmp_path / 'drive', num_sweeps=12)
    code, text = run('demo', '--bag', bag_path, '--out', out, '--rate', 0.5, timeout=120)
    assert code == 0, text
    report = json.loads((out / 'report.json').read_text())
    assert (report['sweeps_played'], report['ego_motion']) == (12, 'odometry')
    assert report['flow_published'] > 0
    assert report['flow_published'] + sum(report['dropped'].values()) == 12, report['dropped']
    assert report['dropped']['first_sweep'] == 1
    assert report['latency_ms'].keys() == STAGES
    for stage in STAGES:
        figures = report['latency_ms'][stage]
        assert figures['count'] == report['flow_published']
        assert 0 <= figures['p50'] <= figures['p95'] <= figures['p99'] <= figures['max']
    assert report['latency_ms']['end_to_end']['p50'] > report['latency_ms']['node']['p50'] > 0
    assert report['node_memory_mb']['max'] >= report['node_memory_mb']['first'] > 10
    assert isinstance(report['moving_points'], int) and report['hardware']['cores'] >= 1
    with Bag(out / 'flow.mcap') as bag:
        counts = {topic.name: topic.num_messages for topic in bag.topics}
    assert counts[FLOW_TOPIC] == report['flow_published']
    assert counts[ODOMETRY_TOPIC] > 0 and counts['/flow_node/debug/processing_time/total_ms'] > 0
    assert (out / 'flow.png').read_bytes().startswith(b'\x89PNG')
    assert f'12 sweeps played, {report["flow_published"]} flow published' in text and 'end_to_end' in text
    assert sorted(p.name for p in out.iterdir()) == ['flow.mcap', 'flow.png', 'log', 'report.json']
    assert processes_that_mention(tmp_path) == []


def test_a_bag_with_a_message_at_time_0_and_a_pause_is_recorded_to_its_end(tmp_path):
    out, path = tmp_path / 'out', tmp_path / 'pause'
    with Bag(write_bag(tmp_path / 'drive', num_sweeps=8, num_points=1000)) as bag, BagWriter(path) as writer:
        for k, m in enumerate(bag.messages([ODOMETRY_TOPIC, CLOUD_TOPIC])):
            writer.write(m.topic, m.msgtype, m.time_ns + (k >= 8) * 2_000_000_000 if k else 0, m.cdr)
    code, text = run('demo', '--bag', path, '--out', out, '--rate', 0.5, timeout=120)  # a pause of 4 s
    assert code == 0, text
    assert '1 of 16 messages are recorded 53.9 years before the others' in text
    report = json.loads((out / 'report.json').read_text())
    assert report['sweeps_played'] == 8
    with Bag(out / 'flow.mcap') as bag:
        last = max(m.stamp_ns for m in bag.messages([FLOW_TOPIC]))
    assert last >= START_NS + 4 * PERIOD_NS  # behind the pause


def test_a_node_that_dies_is_an_error_with_its_log(tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'report.json').write_text('of an older run')
    code, text = run('demo', '--bag', write_bag(tmp_path / 'drive'), '--out', out, '--model', tmp_path / 'none.onnx')
    assert code == 1, text
    assert 'The node ended with status 1' in text and 'No model file at' in text and 'Traceback' not in text
    assert not (out / 'report.json').exists()
    assert processes_that_mention(tmp_path) == []


def test_a_bag_without_pairs_is_an_error_and_no_report(tmp_path):
    code, text = run(
        'demo', '--bag', write_bag(tmp_path / 'drive', num_sweeps=1), '--out', tmp_path / 'out', timeout=90
    )
    assert code == 1, text
    assert f'No sweep of {CLOUD_TOPIC} got flow (1 first_sweep).' in text and 'use_sim_time' not in text
    assert not (tmp_path / 'out' / 'report.json').exists()


def test_ctrl_c_ends_everything(tmp_path):
    bag_path = write_bag(tmp_path / 'drive', num_sweeps=100, num_points=400)
    with started('demo', '--bag', bag_path, '--out', tmp_path / 'out') as demo:
        assert any('Playing' in line for line in demo.stdout)
        time.sleep(1.0)
        assert len(processes_that_mention(tmp_path)) >= 3
        demo.send_signal(signal.SIGINT)
        text, _ = demo.communicate(timeout=20)
    assert (demo.returncode, 'Traceback' in text) == (130, False), text
    assert processes_that_mention(tmp_path) == []


def test_a_bag_that_is_played_twice_is_recorded_once(tmp_path):
    out = tmp_path / 'out'
    bag_path = write_bag(tmp_path / 'drive', num_sweeps=8)
    code, text = run('demo', '--bag', bag_path, '--out', out, '--rate', 0.5, '--times', 2, timeout=120)
    assert code == 0, text
    report = json.loads((out / 'report.json').read_text())
    assert report['sweeps_played'] == 16 and report['dropped']['time_went_back'] == 1
    assert report['latency_ms']['end_to_end']['count'] == report['flow_published'] > 8
    assert report['latency_ms']['end_to_end']['max'] < 2_000
    with Bag(out / 'flow.mcap') as bag:
        assert {topic.name: topic.num_messages for topic in bag.topics}[FLOW_TOPIC] == 8


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        (['--bag', 'nowhere.mcap'], 'no bag at'),
        (['--bag', 'nowhere.mcap', '--times', '0'], '--times at least 1'),
        (['--bag', 'nowhere.mcap', '--rate', '0'], '--rate must be above 0'),
    ],
)
def test_a_bad_argument_is_an_error(tmp_path, options, expected):
    code, text = run('demo', *options, '--out', tmp_path / 'out')
    assert (code, expected in text, 'Traceback' in text) == (1, True, False), text


def test_without_a_bag_it_simulates_one(tmp_path):
    pytest.importorskip('embreex', reason='needs embreex')
    import threading

    from zeroflow_ros.demo import environment, simulate
    from zeroflow_ros.runtime.subprocesses import ProcessGroup

    with ProcessGroup(tmp_path / 'log', environment(1), time.monotonic() + 120, threading.Event()) as programs:
        for _ in range(2):  # the second replaces the first
            drive = simulate(tmp_path, programs, seed=1, sweeps=2)
    source = examine(drive)
    assert (source.ego_motion, source.topic) == ('odometry', '/lidar/points')


def test_the_transport_profile_is_found_where_colcon_installs_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip('ament_index_python', reason='needs ament_index_python')
    monkeypatch.setattr(demo, '_ROOT', tmp_path / 'no_checkout')
    monkeypatch.setattr(sys, 'prefix', str(tmp_path))
    monkeypatch.delenv('AMENT_PREFIX_PATH', raising=False)
    assert 'FASTDDS_DEFAULT_PROFILES_FILE' not in demo.environment(1)
    assert 'clouds may get lost' in capsys.readouterr().err
    index = tmp_path / 'install' / 'share' / 'ament_index' / 'resource_index' / 'packages'
    config = tmp_path / 'install' / 'share' / 'zeroflow_ros' / 'config'
    for folder in (index, config):
        folder.mkdir(parents=True)
    (index / 'zeroflow_ros').touch()
    (config / 'fastdds_shm.xml').touch()
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path / 'install'))
    assert demo.environment(1)['FASTDDS_DEFAULT_PROFILES_FILE'] == str(config / 'fastdds_shm.xml')
    assert not capsys.readouterr().err


def test_a_bag_is_examined(tmp_path):
    source = examine(write_bag(tmp_path / 'with', num_sweeps=2))
    assert (source.topic, source.odometry_topic, source.ego_motion) == (CLOUD_TOPIC, ODOMETRY_TOPIC, 'odometry')
    assert source.odometry_T_lidar == (0, 0, 0, 0, 0, 0, 1)
    assert source.seconds == pytest.approx(0.1)
    pytest.importorskip('small_gicp', reason='needs small_gicp')
    source = examine(write_bag(tmp_path / 'without', num_sweeps=2, odometry=False))
    assert (source.odometry_topic, source.ego_motion, source.odometry_T_lidar) == ('', 'registration', ())


def test_what_was_lost_between_processes_is_counted_too():
    status = {'received': '9', 'published': '6', 'dropped.first_sweep': '1', 'dropped.gap_too_long': '2',
              'dropped.empty_cloud': '0'}  # fmt: skip
    recorder = {'diagnostics': {'flow_node: input': {'values': status}}, 'flow_received': 5}
    assert _dropped(10, recorder) == {
        'first_sweep': 1, 'gap_too_long': 2, 'lost_before_the_node': 1, 'lost_after_the_node': 1
    }  # fmt: skip


def test_end_to_end_is_from_player_to_recorder(tmp_path):
    found = {
        'replay': {
            'sweeps_played': 2,
            # Played twice: the flow belongs to the sweep of the same stamp that was played last before it came in.
            'sweeps': [{'stamp_ns': k, 'published_wall_ns': k * 10**9 + n} for n in (-9, 0, 10**10) for k in (1, 2)],
        },
        'recorder': {
            'flow_received': 1,
            'flow': [{'stamp_ns': 2, 'received_wall_ns': 2_080_000_000}],
            'timings': {'total': [60.0], 'pillars': [10.0], 'inference': [45.0], 'objects': [0.0]},
            'diagnostics': {'a': {'values': {'received': '2', 'published': '1', 'dropped.first_sweep': '1'}}},
        },
        'memory': [100.0, 300.0, 200.0],
    }
    found['recorder']['diagnostics']['a']['values'] |= {
        'seen.tilt': 'WARN 3: Tilted. Set sensor_height.', 'seen.silence': 'WARN 2: No cloud for 2 s.',
    }  # fmt: skip
    source = Source(tmp_path, '/a', '', 'none', (), 2, 0.1)
    summary = make_summary(source, found, (10, 8)).with_names({'sensor_height': '--sensor-height'})
    report = make_report(source, found, summary, [5], 1.0, {})
    assert [w['text'] for w in report['warnings']] == ['Tilted. Set --sensor-height.']  # the bag ends: no silence
    assert (report['points'], report['share_with_velocity']) == (10, 0.8)
    assert report['latency_ms']['end_to_end']['p50'] == pytest.approx(80.0)
    assert report['latency_ms']['overhead']['p50'] == pytest.approx(5.0)
    assert report['latency_ms']['decode'] == {'count': 0}
    assert report['node_memory_mb'] == {
        'first': 100.0, 'last': 200.0, 'max': 300.0, 'by_quarter': [100.0, 300.0, 200.0]
    }  # fmt: skip
    assert report['dropped'] == {'first_sweep': 1} and report['moving_points'] == 5
    assert np.isfinite(report['rate'])


def test_a_bag_with_only_tf_is_played_with_tf_where_the_node_can_read_it(tmp_path, monkeypatch):
    bag = tf_bag.write(tmp_path / 'tf', [tf_bag.Tf('odom', 'lidar')], num_sweeps=2)
    monkeypatch.setattr(demo.importlib.util, 'find_spec', lambda name: object())
    source = examine(bag)
    assert (source.ego_motion, source.fixed_frame, source.odometry_topic) == ('tf', 'odom', '')
    assert 'no topic of nav_msgs/msg/Odometry' in source.note
    monkeypatch.setattr(demo.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match=r'tf2_ros.*--offline'):
        examine(bag, ego_motion='tf')
    pytest.importorskip('small_gicp', reason='registration needs small_gicp')
    source = examine(bag)
    assert (source.ego_motion, source.fixed_frame) == ('registration', '')
    assert 'The bag has ego motion on /tf, but tf2_ros is not installed.' in source.note


def test_the_base_frame_of_a_mount_has_any_name(tmp_path):
    mount = yaw_translation(np.pi, 0.5, 0, 1.8)
    bag = tf_bag.write(tmp_path / 'tf', static=[('chassis', 'lidar', mount)], num_sweeps=2, odometry_clock=0.0)
    options = argparse.Namespace(threads=1, base_T_lidar=None, sensor_height=None, model='')
    pose = (0.5, 0, 1.8, 0, 0, 1, 0)
    for base_frame, found, said in (
        ('base_link', (), None),
        ('', (), "base_frame:=''"),
        ('chassis', pose, 'base_frame:=chassis'),
    ):
        source = examine(bag, base_frame=base_frame)
        np.testing.assert_allclose(source.base_T_lidar, found, atol=1e-12)
        arguments = source.node_arguments(options)
        assert [word for word in arguments if word.startswith('base_frame')] == ([said] if said else [])
        assert any(word.startswith('base_T_lidar:=[0.5') for word in arguments) == bool(found)
