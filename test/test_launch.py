# SPDX-License-Identifier: Apache-2.0
"""The launch files: what they name exists; and, where ROS's launch is installed, what they start works.

PyPI has no launch, so there the files are only read.
"""

import ast
import dataclasses
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import types

import pytest
from tiny_bag import CLOUD_TOPIC, write_bag
from workspace import ROOT, Workspace

from zeroflow_ros.errors import DataError

LAUNCH_FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
FLOW, REPLAY, CAMERA = (ROOT / 'launch' / f'{name}.launch.py' for name in ('flow', 'replay', 'camera'))
FLOW_ARGUMENTS = {
    'input_topic', 'odometry_topic', 'namespace', 'node_name', 'params_file', 'model_path', 'ego_motion', 'num_threads',
    'odometry_T_lidar', 'autostart', 'engine', 'use_sim_time', 'log_level', 'prefix', 'shm_profile', 'rviz',
    'rviz_config', 'fixed_frame', 'objects', 'objects_params_file', 'required',
}  # fmt: skip
BY_NAME = (
    'model_path',
    'ego_motion',
    'engine',
    'odometry_T_lidar',
    'num_threads',
    'autostart',
)  # parameters of the node


def _calls(path, function: str) -> list[ast.Call]:
    tree = ast.parse(path.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == function]


def _arguments(path) -> dict[str, dict]:
    """Return {launch argument: its keywords}, as they stand in the file."""
    declared = _calls(path, 'DeclareLaunchArgument')
    return {call.args[0].value: {k.arg: k.value for k in call.keywords} for call in declared}


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=lambda path: path.name)
def test_launch_file_compiles_and_describes_its_arguments(path):
    code = compile(path.read_text(), path, 'exec')
    assert 'generate_launch_description' in code.co_names
    arguments = _arguments(path)
    assert arguments
    for name, keywords in arguments.items():
        assert 'description' in keywords, name
        if ast.unparse(keywords.get('default_value', ast.Constant(''))) in ("'true'", "'false'"):
            assert ast.literal_eval(keywords['choices']) == ['true', 'false'], name


def test_flow_uses_the_arguments_that_it_declares():
    arguments = set(_arguments(FLOW))
    assert arguments == FLOW_ARGUMENTS
    used = re.findall(r"given\['(\w+)'\]|LaunchConfiguration\('(\w+)'\)", FLOW.read_text())
    used = {name for pair in used for name in pair if name}
    assert used <= arguments
    assert arguments - used == {'model_path', 'engine', 'num_threads', 'autostart'} < set(BY_NAME)


def test_flow_overrides_parameters_that_the_node_has():
    parameters = pytest.importorskip('zeroflow_ros.ros.parameters', reason='needs rclpy')
    names = {field.name for field in dataclasses.fields(parameters.Parameters)}
    assert set(BY_NAME) <= names
    tracker = pytest.importorskip('zeroflow_ros.object_tracker', reason='needs rclpy')
    assert {'ego_motion', 'odometry_T_lidar'} <= {field.name for field in dataclasses.fields(tracker.ObjectParameters)}
    choices = ast.literal_eval(_arguments(FLOW)['ego_motion']['choices'])
    assert choices == ['', *parameters.EGO_MOTION]
    assert ast.literal_eval(_arguments(FLOW)['engine']['choices']) == ['', *parameters.ENGINES]


def test_camera_uses_the_arguments_that_it_declares_for_parameters_that_the_node_has():
    arguments = set(_arguments(CAMERA))
    used = re.findall(r"given\['(\w+)'\]|LaunchConfiguration\('(\w+)'\)", CAMERA.read_text())
    used = {name for pair in used for name in pair if name}
    by_name = {'image_transport', 'images_are_rectified', 'ego_motion', 'odometry_T_camera', 'output_frame',
               'output_T_camera', 'num_threads', 'autostart', 'sensor', 'model_path', 'scale',
               'camera_height'}  # fmt: skip
    assert used | by_name | {'left', 'right', 'camera', 'image', 'info'} == arguments
    parameters = pytest.importorskip('zeroflow_ros.ros.camera_parameters', reason='needs rclpy')
    assert by_name <= {field.name for field in dataclasses.fields(parameters.CameraParameters)}
    choices = {
        name: ast.literal_eval(_arguments(CAMERA)[name]['choices'])
        for name in ('ego_motion', 'image_transport', 'sensor', 'scale')
    }
    assert choices == {
        'ego_motion': ['', *parameters.EGO_MOTION], 'image_transport': ['', *parameters.IMAGE_TRANSPORT],
        'sensor': ['', *parameters.SENSORS], 'scale': ['', *parameters.SCALES],
    }  # fmt: skip


def test_camera_remaps_topics_that_the_node_has():
    sources = ''.join(path.read_text() for path in (ROOT / 'zeroflow_ros').rglob('*.py'))
    remapped = re.findall(r"\('(?:~|/camera_flow_node|/object_tracker)/((?:input|output)/[\w/]+)'", CAMERA.read_text())
    assert len(set(remapped)) == 13 and all(f"'~/{topic}'" in sources for topic in remapped)


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=lambda path: path.name)
def test_launch_file_starts_what_is_installed(path):
    text = path.read_text()
    for name in re.findall(r"\w+\.(?:yaml|rviz|xml)'", text):
        assert (ROOT / 'config' / name.rstrip("'")).is_file(), name
    scripts = re.findall(r"f'(\w+) = ", (ROOT / 'setup.py').read_text())
    for node in _calls(path, 'Node'):
        keywords = {k.arg: ast.unparse(k.value).strip("'") for k in node.keywords}
        assert keywords['package'] != 'zeroflow_ros' or keywords['executable'] in scripts


def test_flow_remaps_topics_that_the_node_has():
    sources = ''.join(path.read_text() for path in (ROOT / 'zeroflow_ros').rglob('*.py'))
    remapped = re.findall(r"\('(?:~|/flow_node|/object_tracker)/((?:input|output)/\w+)'", FLOW.read_text())
    assert set(remapped) == {
        'input/pointcloud', 'input/odometry', 'input/dynamic_points', 'output/flow', 'output/dynamic_points',
        'output/markers', 'output/objects',
    }  # fmt: skip
    assert all(f"'~/{topic}'" in sources for topic in remapped)


@pytest.fixture
def replay(monkeypatch):
    """Return the module of replay.launch.py, with a launch that keeps what it is given where ROS has none."""

    class Kept:
        def __init__(self, *values, **named):
            self.values, self.named = values, named

    for name in ('launch', 'launch.actions', 'launch.launch_description_sources', 'launch.substitutions',
                 'launch_ros.actions', 'launch_ros.substitutions', 'zeroflow_ros.ros.required_nodes'):  # fmt: skip
        module = types.ModuleType(name)
        module.__getattr__ = lambda attribute: type(attribute, (Kept,), {})
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location('replay_launch', REPLAY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _read(replay, **given):
    """Return the arguments that replay sets for a bag, the launch file that it includes, and the player's arguments."""
    given = {'sensor': '', 'rate': '1.0', 'loop': 'false', 'rviz': 'false'} | given
    context = types.SimpleNamespace(launch_configurations=given)
    actions = replay.read_bag(context)
    found = {}
    for action in actions:
        if type(action).__name__ == 'SetLaunchConfiguration':
            found[action.values[0]] = action.values[1]
    given |= found
    watch = types.SimpleNamespace(watch=lambda node, reason: node)
    [player] = replay.play(context, watch)
    [file] = actions[-1].values[0].values
    return found, file is replay.CAMERA, player.named['arguments']


def test_replay_starts_the_camera_node_for_a_bag_with_a_stereo_camera(replay, tmp_path):
    from stereo_corridor import LEFT, RIGHT, write_world

    bag = write_world(tmp_path / 'stereo', 3)
    found, is_camera, player = _read(replay, bag=str(bag))
    assert is_camera and (found['left'], found['right'], found['image'], found['info']) == (
        LEFT, RIGHT, 'image_rect', 'camera_info',
    )  # fmt: skip
    assert found['image_transport'] == 'raw' and found['ego_motion'] == 'odometry'
    assert found['odometry_topic'] == '/odometry' and found['odometry_T_camera'].startswith('[0.3')
    assert player[:5] == [str(bag), '--topic', f'{LEFT}/image_rect', '--topic', f'{RIGHT}/image_rect']
    found, _, _ = _read(replay, bag=str(bag), ego_motion='visual')
    assert 'ego_motion' not in found and 'odometry_topic' not in found  # the user's choice stays


def test_replay_starts_the_flow_node_for_a_bag_with_clouds(replay, tmp_path):
    bag = write_bag(tmp_path / 'drive', num_sweeps=3)
    found, is_camera, player = _read(replay, bag=str(bag))
    assert not is_camera and found['input_topic'] == CLOUD_TOPIC and found['ego_motion'] == 'odometry'
    assert player[:3] == [str(bag), '--topic', CLOUD_TOPIC]
    with pytest.raises(DataError, match='lacks left and right images'):
        _read(replay, bag=str(bag), sensor='stereo')


def test_replay_only_sets_arguments_that_flow_has():
    text = REPLAY.read_text()
    assert set(_arguments(REPLAY)) == {'bag', 'sensor', 'rate', 'loop', 'rviz'}
    for kind, known, expected in (
        ('clouds', FLOW_ARGUMENTS, {'input_topic', 'odometry_T_lidar'}),
        ('stereo', set(_arguments(CAMERA)),
         {'left', 'right', 'image', 'info', 'image_transport', 'odometry_T_camera'}),
    ):  # fmt: skip
        part = text[text.index(f'def _of_{kind}') :].split('\n\n\n')[0]
        found = {name for pair in re.findall(r"'(\w+)': |found\['(\w+)'\] =", part) for name in pair if name}
        assert found - {'played'} == expected | {'fixed_frame', 'ego_motion', 'odometry_topic'} <= known


START = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

def include(line):
    file, *arguments = line.split()
    arguments = [argument.split(':=', 1) for argument in arguments]
    return GroupAction([IncludeLaunchDescription(PythonLaunchDescriptionSource(file), launch_arguments=arguments)])

service = LaunchService()
service.include_launch_description(LaunchDescription([include(line) for line in sys.argv[1:]]))
sys.exit(service.run())
"""


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    pytest.importorskip('launch_ros', reason='ROS launch is not on PyPI: source a ROS 2 installation')
    return Workspace(tmp_path_factory.mktemp('workspace'))


def _launch(workspace, *lines: str):
    """Start launch files of the workspace, one line of file and arguments each; SIGINT, as Ctrl-C, ends them."""
    started = [f'{workspace.share}/launch/{line}' for line in lines]
    quoted = ' '.join(f"'{line}'" for line in started)
    command = ['bash', '-c', f'. install/setup.bash && exec python3 -c "$0" {quoted}', START]
    return subprocess.Popen(
        command, cwd=workspace.path, env=workspace.environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def _finish(process, timeout: float = 60) -> str:
    try:
        text, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(process.communicate()[0])
    return text


def test_replay_plays_a_bag_through_the_node(workspace, tmp_path):
    from flow_node import Vehicle

    bag = write_bag(tmp_path / 'drive', num_sweeps=20)
    process = _launch(workspace, f'replay.launch.py bag:={bag} rate:=0.5 rviz:=false')
    with Vehicle() as vehicle:
        vehicle.wait_for(lambda: process.poll() is not None, 60)
        text = _finish(process)
        assert process.returncode == 0, text
        assert vehicle.flows, text
    assert f'input_topic:={CLOUD_TOPIC}' in text and 'ego_motion:=odometry' in text
    assert 'Played 20 sweeps' in text and 'was required: shutting down' in text
    assert len(re.findall('has finished cleanly', text)) == 2, text


def test_replay_plays_a_stereo_bag_through_the_camera_node(workspace, tmp_path):
    from camera_node import StereoVehicle
    from stereo_corridor import LEFT, write_world

    bag = write_world(tmp_path / 'stereo', 20)
    process = _launch(workspace, f'replay.launch.py bag:={bag} sensor:=stereo rate:=0.5 rviz:=false')
    with StereoVehicle() as vehicle:
        vehicle.wait_for(lambda: process.poll() is not None, 60)
        text = _finish(process)
        assert process.returncode == 0, text
        assert vehicle.flows, text
    assert f'left:={LEFT}' in text and 'ego_motion:=odometry' in text
    assert len(re.findall('has finished cleanly', text)) == 2, text


def test_objects_are_tracked_beside_the_node(workspace, tmp_path):
    from flow_node import Vehicle
    from visualization_msgs.msg import MarkerArray

    bag = write_bag(tmp_path / 'drive', num_sweeps=20)
    process = _launch(workspace, f'replay.launch.py bag:={bag} rate:=0.5 rviz:=false objects:=true')
    with Vehicle() as vehicle:
        arrays = []
        vehicle.node.create_subscription(MarkerArray, '/object_tracker/output/objects', arrays.append, 10)
        vehicle.wait_for(lambda: process.poll() is not None, 60)
        text = _finish(process)
        assert process.returncode == 0 and arrays, text
    assert 'Publishing the objects in /flow_node/output/dynamic_points on /object_tracker/output/objects' in text
    assert len(re.findall('has finished cleanly', text)) == 3, text


def test_two_nodes_run_in_two_namespaces(workspace):
    from flow_node import Vehicle

    lines = [f'flow.launch.py namespace:={name} num_threads:=1 ego_motion:=none' for name in ('front', 'rear')]
    process = _launch(workspace, *lines)
    with Vehicle() as vehicle:
        expected = {f'/{name}/flow_node' for name in ('front', 'rear')}

        def found():
            nodes = {f'{space}/{name}' for name, space in vehicle.node.get_node_names_and_namespaces()}
            return expected <= nodes and all(vehicle.node.count_subscribers(f'/{n}/points') for n in ('front', 'rear'))

        appeared = vehicle.wait_for(found, 40)
    os.killpg(process.pid, signal.SIGINT)
    text = _finish(process)
    assert appeared and process.returncode == 0, text
    assert len(re.findall('has finished cleanly', text)) == 2, text


def test_replay_ends_with_the_reason_of_a_node_whose_model_does_not_open(workspace, tmp_path):
    """The player waited a minute for a subscriber, and then told the user to start the node first."""
    bag = write_bag(tmp_path / 'drive', num_sweeps=20)
    start = time.monotonic()
    process = _launch(workspace, f'replay.launch.py bag:={bag} rviz:=false model_path:=nowhere.onnx')
    text = _finish(process)
    assert process.returncode == 1 and time.monotonic() - start < 45, text  # s; the machine may be slow
    last = text.strip().splitlines()[-1]
    assert 'flow_node' in last and 'has ended with exit status 1: No model file at nowhere.onnx' in last, text
    assert 'Start the node first' not in text and 'Traceback' not in text, text


def test_a_tracker_that_dies_ends_the_launch(workspace, tmp_path):
    file = tmp_path / 'objects.yaml'
    file.write_text('object_tracker:\n  ros__parameters:\n    nonsense: 1\n')
    text = _finish(
        _launch(workspace, f'flow.launch.py required:=true ego_motion:=none objects:=true objects_params_file:={file}')
    )
    last = text.strip().splitlines()[-1]
    assert re.search(r'object_tracker-\d+ has ended with exit status 1: Unknown parameter', last), text


def test_a_node_that_is_not_required_leaves_the_others_alone(workspace):
    lines = ['flow.launch.py model_path:=nowhere.onnx', 'flow.launch.py namespace:=b ego_motion:=none']
    process = _launch(workspace, *lines)
    from flow_node import Vehicle

    with Vehicle() as vehicle:
        assert vehicle.wait_for(lambda: vehicle.node.count_subscribers('/b/points'), 40)
        vehicle.spin(1.0)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    text = _finish(process)
    assert process.returncode == 0 and 'No model file at nowhere.onnx' in text, text


def test_a_player_that_fails_ends_the_launch(workspace, tmp_path):
    bag = write_bag(tmp_path / 'drive', num_sweeps=20)
    process = _launch(workspace, f'replay.launch.py bag:={bag} rviz:=false rate:=0')
    text = _finish(process)
    assert process.returncode == 1, text
    assert re.search(r'replay-\d+ has ended.*Expected a rate above 0', text.strip().splitlines()[-1]), text


@pytest.mark.parametrize(
    'line, message',
    [
        ('replay.launch.py bag:=nowhere.mcap', 'There is no bag at nowhere.mcap'),
        ('replay.launch.py', "required argument 'bag'"),
        ('flow.launch.py required:=true num_threads:=two', "'num_threads' must be an integer, got the string 'two'"),
        ('flow.launch.py required:=true model_path:=nowhere.onnx', 'No model file at nowhere.onnx'),
        ('flow.launch.py params_file:=nowhere.yaml', 'params_file: there is no file nowhere.yaml'),
    ],
)
def test_a_wrong_argument_is_named(workspace, line, message):
    process = _launch(workspace, line)
    text = _finish(process)
    assert message in text and process.returncode == 1, text
