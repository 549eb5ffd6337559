# SPDX-License-Identifier: Apache-2.0
"""The README tells the truth: tests run its commands, its tables are those of the code, its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()

# Every command of the README, and the tests that run it (or the same program with the same options).
RUN_BY = {
    'make demo': 'test_demo.py::test_without_a_bag_it_simulates_one',
    'make demo BAG=path/to/bag': 'test_demo.py::test_from_a_bag_to_a_report_a_recording_and_a_picture',
    '.venv/bin/python -m zeroflow_ros.replay path/to/bag --offline --out out/offline': (
        'test_offline.py::test_every_pair_gets_flow_and_every_row_stays'
    ),
    'pip install onnxruntime numba': 'test_packaging.py::test_a_vehicle_without_onnxruntime_is_told_how_to_get_it',
    'colcon build --packages-select zeroflow_ros': (
        'test_packaging.py::test_colcon_installs_executables_launch_files_and_configuration'
    ),
    'ros2 launch zeroflow_ros flow.launch.py input_topic:=/lidar/points odometry_topic:=/odom': (
        'test_launch.py::test_two_nodes_run_in_two_namespaces'
    ),
    'ros2 launch zeroflow_ros flow.launch.py engine:=tensorrt model_path:=model.onnx input_topic:=/lidar/points '
    'odometry_topic:=/odom': 'test_tensorrt_node.py::test_flow_comes_from_the_gpu',
    'ros2 launch zeroflow_ros replay.launch.py bag:=path/to/bag': (
        'test_launch.py::test_replay_plays_a_bag_through_the_node'
    ),
    'ros2 lifecycle set /flow_node configure': 'test_lifecycle.py::test_a_manager_takes_it_through_its_states',
    'ros2 lifecycle set /flow_node activate': 'test_lifecycle.py::test_a_manager_takes_it_through_its_states',
    '.venv/bin/python -m training.distill drives/*.mcap --out model.onnx': (
        'test_distill.py::test_a_recorded_drive_becomes_models_by_the_programs_themselves'
    ),
    '.venv/bin/python -m training.distill simulation:0-399 --out model.onnx --processes 2': (
        'test_distill.py::test_a_recorded_drive_becomes_models_by_the_programs_themselves'
    ),
    '.venv/bin/python -m training.evaluate --estimator zero model.onnx --dataset simulation:1000000-1000019': (
        'test_evaluate.py::test_program_scores_the_simulation_and_writes_json_and_a_picture'
    ),
}


def commands() -> list[str]:
    """Return the lines of all code blocks."""
    blocks = re.findall(r'^```\n(.*?)^```', README, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command_is_run_by_a_test_that_exists():
    assert sorted(commands()) == sorted(RUN_BY)
    for name in RUN_BY.values():
        file, test = name.split('::')
        assert re.search(rf'^def {test}\(', (ROOT / 'test' / file).read_text(), re.MULTILINE), name


def test_every_module_and_file_in_a_command_exists():
    for command in commands():
        if module := re.search(r'-m ([\w.]+)', command):
            assert (ROOT / (module[1].replace('.', '/') + '.py')).is_file(), command
        for path in re.findall(r'config/\S+', command):
            assert (ROOT / path).is_file(), command


def test_parameter_table_is_that_of_the_node():
    parameters = pytest.importorskip('zeroflow_ros.ros.parameters', reason='needs rclpy')
    assert parameters.parameter_table() in README


def test_topics_and_fields_are_those_of_the_node():
    outputs = pytest.importorskip('zeroflow_ros.ros.publishers', reason='needs rclpy')
    published = (outputs.FLOW, outputs.DYNAMIC_POINTS, outputs.MARKERS, '/diagnostics')
    for topic in (*published, '~/input/pointcloud', '~/input/odometry'):
        assert f'`{topic}`' in README
    assert ', '.join(outputs.STAGES) in README


@pytest.mark.parametrize('page', ['README.md', *(f'docs/{p.name}' for p in sorted((ROOT / 'docs').glob('*.md')))])
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r'\]\(([^)#]+)', path.read_text()):
        if '://' not in target:
            assert (path.parent / target).exists(), f'{page}: {target}'
