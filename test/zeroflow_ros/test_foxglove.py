# SPDX-License-Identifier: Apache-2.0
"""The Foxglove layout names what the recordings hold, and those say all that Foxglove must know.

Foxglove itself is not run: recordings are read by its own libraries, the layout by its structure.
"""

import json
import re
import signal

import pytest
from processes import ROOT, run, started
from tiny_bag import CLOUD_TOPIC, ODOMETRY_TOPIC, write_bag

from zeroflow_ros.replay import main
from zeroflow_ros.runtime.offline import FLOW_TOPIC
from zeroflow_ros.views.recorded_flow import RECORDING_STARTED

MARKERS_TOPIC = '/flow_node/output/markers'
LAYOUT = json.loads((ROOT / 'config' / 'foxglove_layout.json').read_text())
PANELS = LAYOUT['configById']
[VIEW] = [config for name, config in PANELS.items() if name.startswith('3D!')]
SERIES = [path['value'] for name, config in PANELS.items() if name.startswith('Plot!') for path in config['paths']]
DIAGNOSTICS = [config['topicToRender'] for config in PANELS.values() if 'topicToRender' in config]


def read(path) -> dict[str, tuple[str, list]]:
    """Return {topic: (schema, messages)} of an mcap, decoded by the definitions that are in it."""
    reader = pytest.importorskip('mcap.reader', reason='needs mcap-ros2-support')
    decoder = pytest.importorskip('mcap_ros2.decoder', reason='needs mcap-ros2-support')
    found: dict[str, tuple[str, list]] = {}
    with path.open('rb') as file:
        mcap = reader.make_reader(file, decoder_factories=[decoder.DecoderFactory()])
        assert mcap.get_header().profile == 'ros2'
        for schema, channel, _, message in mcap.iter_decoded_messages():
            assert (schema.encoding, channel.message_encoding) == ('ros2msg', 'cdr')
            found.setdefault(channel.topic, (schema.name, []))[1].append(message)
    return found


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    """Return what player, node and recorder leave, with the arrows."""
    pytest.importorskip('rclpy', reason='needs rclpy')
    folder = tmp_path_factory.mktemp('recorded')
    bag, out = write_bag(folder / 'bag', num_sweeps=25), folder / 'flow.mcap'
    remaps = ['-r', f'~/input/pointcloud:={CLOUD_TOPIC}', '-r', f'~/input/odometry:={ODOMETRY_TOPIC}']
    with (
        started('node', '--ros-args', *remaps, '-p', 'use_sim_time:=true', '-p', 'min_speed:=0.0'),
        started('recorder', '--out', out, '--markers', '--odometry-topic', ODOMETRY_TOPIC) as recorder,
    ):
        for line in recorder.stdout:
            if RECORDING_STARTED in line:
                break
        assert run('replay', bag, '--rate', 0.5, '--wait-for-subscribers', 1)[0] == 0
        recorder.send_signal(signal.SIGINT)
        text, _ = recorder.communicate(timeout=20)
        assert recorder.returncode == 0, text
    return read(out)


@pytest.fixture(scope='module')
def computed(tmp_path_factory):
    """Return what replay --offline leaves."""
    folder = tmp_path_factory.mktemp('computed')
    assert main([str(write_bag(folder / 'bag')), '--offline', '--out', str(folder / 'flow.mcap')]) == 0
    return read(folder / 'flow.mcap')


def panels_of(tree) -> list[str]:
    """Return the panels of a layout tree, which splits into two until there is a name."""
    if isinstance(tree, str):
        return [tree]
    assert tree['direction'] in ('row', 'column') and 0 < tree['splitPercentage'] < 100
    return panels_of(tree['first']) + panels_of(tree['second'])


def test_every_panel_is_shown_once_and_has_its_settings():
    shown = panels_of(LAYOUT['layout'])
    assert sorted(shown) == sorted(PANELS) and len(set(shown)) == len(shown)
    assert all(re.fullmatch(r'[A-Za-z0-9]+!\w+', name) for name in PANELS)
    assert {name.split('!')[0] for name in PANELS} == {'3D', 'Plot', 'DiagnosticSummary'}
    assert LAYOUT.keys() == {'configById', 'globalVariables', 'userNodes', 'playbackConfig', 'layout'}
    assert all(layer['instanceId'] == name for name, layer in VIEW['layers'].items())


def test_every_topic_of_the_layout_is_recorded(recorded):
    assert set(VIEW['topics']) == {FLOW_TOPIC, MARKERS_TOPIC} <= recorded.keys()
    assert DIAGNOSTICS == ['/diagnostics']
    assert recorded['/diagnostics'][0] == 'diagnostic_msgs/msg/DiagnosticArray'
    assert recorded[MARKERS_TOPIC][0] == 'visualization_msgs/msg/Marker'
    for series in SERIES:
        topic, field = series.split('.')
        assert all(isinstance(getattr(message, field), float) for message in recorded[topic][1])
    assert len(SERIES) >= 3


@pytest.mark.parametrize('recording', ['recorded', 'computed'])
def test_the_cloud_is_coloured_by_a_field_that_it_has(recording, request):
    schema, clouds = request.getfixturevalue(recording)[FLOW_TOPIC]
    settings = VIEW['topics'][FLOW_TOPIC]
    assert schema == 'sensor_msgs/msg/PointCloud2' and clouds
    assert all(settings['colorField'] in [field.name for field in cloud.fields] for cloud in clouds)
    assert settings['minValue'] < settings['maxValue'] and len(settings['gradient']) == 2


def test_a_live_recording_is_in_one_frame(recorded):
    """No transform is needed then: the frame of the clouds is the display frame, whatever its name."""
    frames = {message.header.frame_id for topic in VIEW['topics'] for message in recorded[topic][1]}
    assert frames == {'lidar'} == {VIEW['followTf']}
    assert not {'/tf', '/tf_static'} & recorded.keys()


def test_what_was_computed_is_connected_to_a_fixed_frame(computed):
    transforms = [transform for message in computed['/tf'][1] for transform in message.transforms]
    parents = {transform.child_frame_id: transform.header.frame_id for transform in transforms}
    assert parents['lidar'] == 'odom'
    assert {cloud.header.frame_id for cloud in computed[FLOW_TOPIC][1]} == {'lidar'}
