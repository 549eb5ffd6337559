# SPDX-License-Identifier: Apache-2.0
"""The README tells the truth: tests run its commands, its tables are those of the code, its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]

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
    'ros2 launch zeroflow_ros flow.launch.py engine:=tensorrt input_topic:=/lidar/points '
    'odometry_topic:=/odom': 'test_tensorrt_node.py::test_flow_comes_from_the_gpu',
    'ros2 launch zeroflow_ros replay.launch.py bag:=path/to/bag': (
        'test_launch.py::test_replay_plays_a_bag_through_the_node'
    ),
    'ros2 lifecycle set /flow_node configure': 'test_lifecycle.py::test_a_manager_takes_it_through_its_states',
    'ros2 lifecycle set /flow_node activate': 'test_lifecycle.py::test_a_manager_takes_it_through_its_states',
    '.venv/bin/python -m training.distill drives/*.mcap --out model.onnx': (
        'test_distill.py::test_a_recorded_drive_becomes_models_by_the_programs_themselves'
    ),
    '.venv/bin/python -m training.distill drives/*.mcap --start embedded --out mine.onnx': (
        'test_distill.py::test_the_embedded_model_is_adapted_to_a_recorded_drive_by_the_programs_themselves'
    ),
    '.venv/bin/python -m training.distill simulation:0-399 --out model.onnx --processes 2': (
        'test_distill.py::test_a_recorded_drive_becomes_models_by_the_programs_themselves'
    ),
    '.venv/bin/python -m training.evaluate --estimator zero model.onnx --dataset simulation:1000000-1000019': (
        'test_evaluate.py::test_program_scores_the_simulation_and_writes_json_and_a_picture'
    ),
}


def commands(text: str) -> list[str]:
    """Return the lines of all code blocks of a page."""
    blocks = re.findall(r'^```\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command_is_run_by_a_test_that_exists():
    assert set(commands(README)) <= set(RUN_BY)
    on_pages = {command for page in PAGES for command in commands(page.read_text())}
    assert set(RUN_BY) <= on_pages, 'commands that no page has any more'
    for name in RUN_BY.values():
        file, test = name.split('::')
        [path] = (ROOT / 'test').rglob(file)
        assert re.search(rf'^def {test}\(', path.read_text(), re.MULTILINE), name


def test_every_module_and_file_in_a_command_exists():
    for command in RUN_BY:
        if module := re.search(r'-m ([\w.]+)', command):
            assert (ROOT / (module[1].replace('.', '/') + '.py')).is_file(), command
        for path in re.findall(r'config/\S+', command):
            assert (ROOT / path).is_file(), command


def test_parameter_table_is_that_of_the_node():
    parameters = pytest.importorskip('zeroflow_ros.ros.parameters', reason='needs rclpy')
    assert parameters.parameter_table() in (ROOT / 'docs' / 'parameters.md').read_text()


def test_topics_and_fields_are_those_of_the_node():
    outputs = pytest.importorskip('zeroflow_ros.ros.publishers', reason='needs rclpy')
    published = (outputs.FLOW, outputs.DYNAMIC_POINTS, outputs.STATIC_POINTS, outputs.MARKERS, '/diagnostics')
    for topic in (*published, '~/input/pointcloud', '~/input/odometry'):
        assert f'`{topic}`' in README
    assert ', '.join(outputs.STAGES) in README


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r'^#+ (.+)$', page.read_text(), re.MULTILINE)
    plain = (re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).lower() for heading in headings)
    return {re.sub(r'[^\w\- ]', '', heading).strip().replace(' ', '-') for heading in plain}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r'\]\(([^)#\s]*)#?([^)\s]*)\)', page.read_text()):
        if '://' in target:
            continue
        path = page.parent / target if target else page
        assert path.exists(), f'{page}: {target}'
        assert not anchor or path.suffix != '.md' or anchor in anchors(path), f'{page}: {target}#{anchor}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_source_files_that_a_page_names_exist(page):
    named = re.findall(
        r'\b(?:zeroflow_ros|training|export|test|launch|config)/[\w/.]+\.(?:py|cu|yaml)\b', page.read_text()
    )
    missing = {name for name in named if not (ROOT / name).is_file()}
    assert not missing, f'{page.name} names {missing}'


def test_the_readme_is_for_the_first_ten_minutes_and_every_page_is_reached_from_the_start_page():
    assert len(README.splitlines()) <= 160
    start = (ROOT / 'docs' / 'README.md').read_text()
    names = {page.name for page in (ROOT / 'docs').glob('*.md')} - {'README.md'}
    missing = {name for name in names if name not in start}
    assert not missing, f'docs/README.md does not lead to {missing}'
