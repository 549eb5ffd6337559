# SPDX-License-Identifier: Apache-2.0
"""What colcon and pip install, and what the package says of itself."""

import ast
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from catkin_pkg.package import parse_package
from workspace import ROOT, Workspace, copy_checkout

import zeroflow_ros

EXECUTABLES = {'flow_node', 'camera_flow_node', 'object_tracker', 'replay', 'recorder', 'demo'}
ROS_PACKAGE = re.compile(r'rclpy|tf2_ros|\w+_(msgs|interfaces)')
WHERE = """
import importlib.util
from zeroflow_ros.engines.selection import load_engine
print(load_engine().card.name)
for name in ('zeroflow_ros', 'training', 'export', 'test_packaging'):
    print(getattr(importlib.util.find_spec(name), 'origin', None))
"""


@pytest.fixture(scope='module', params=[(), ('--symlink-install',)], ids=['copied', 'linked'])
def workspace(request, tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp('workspace'), *request.param)


def test_colcon_installs_executables_launch_files_and_configuration(workspace):
    assert {path.name for path in workspace.executables.iterdir()} == EXECUTABLES
    launch_files = {path.name for path in (ROOT / 'launch').glob('*.launch.py')}
    assert {path.name for path in (workspace.share / 'launch').iterdir()} == launch_files
    vehicle_configs = {
        'node.yaml', 'camera_node.yaml', 'flow.rviz', 'camera.rviz', 'fastdds_shm.xml', 'foxglove_layout.json',
        'zeroflow_ros.service',
    }  # fmt: skip
    assert {path.name for path in (workspace.share / 'config').iterdir()} == vehicle_configs
    assert (workspace.share / 'package.xml').is_file()
    index = workspace.prefix / 'share' / 'ament_index' / 'resource_index' / 'packages'
    assert [path.name for path in index.iterdir()] == ['zeroflow_ros']


def test_colcon_installs_the_vehicle_package_and_no_other(workspace):
    done = workspace.run_sourced(f'python -c "{WHERE}"')
    assert done.returncode == 0, done.stderr
    model, *origins = done.stdout.split()
    assert model == 'fastflow3d_lite_5'
    assert Path(origins[0]).is_relative_to(workspace.path)
    assert origins[1:] == ['None', 'None', 'None']


def test_an_installed_executable_runs(workspace):
    done = workspace.run_sourced('install/zeroflow_ros/lib/zeroflow_ros/replay --help')
    assert done.returncode == 0 and 'usage: replay' in done.stdout, done.stderr
    done = workspace.run_sourced('install/zeroflow_ros/lib/zeroflow_ros/replay nowhere.mcap')
    assert done.returncode == 1 and 'There is no bag at nowhere.mcap' in done.stderr


def test_a_vehicle_without_onnxruntime_is_told_how_to_get_it(workspace):
    lines = "import sys; sys.modules['onnxruntime'] = None; "
    lines += 'from zeroflow_ros.engines.selection import load_engine; load_engine()'
    done = workspace.run_sourced(f'python -c "{lines}"')
    assert 'ModelError' in done.stderr and "Run 'pip install onnxruntime'" in done.stderr


def test_only_a_linked_workspace_follows_the_source(workspace):
    with (workspace.source / 'zeroflow_ros' / 'errors.py').open('a') as source:
        source.write('EDITED = True\n')
    done = workspace.run_sourced('python -c "import zeroflow_ros.errors as e; print(hasattr(e, \'EDITED\'))"')
    assert done.stdout.strip() == str('--symlink-install' in workspace.options), done.stderr


def test_wheel_names_every_extra_and_only_the_vehicle_package(tmp_path):
    source = copy_checkout(tmp_path / 'source')
    command = [
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '--quiet',
        '--no-deps',
        '--no-build-isolation',
        '-w',
        tmp_path,
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob('*.whl'))) as wheel:
        names = wheel.namelist()
        info = next(name for name in names if name.endswith('.dist-info/METADATA'))
        metadata = Parser().parsestr(wheel.read(info).decode())
    assert {name.split('/')[0] for name in names} == {
        'zeroflow_ros', 'zeroflow_ros-0.1.0.dist-info', 'zeroflow_ros-0.1.0.data'
    }  # fmt: skip
    assert {'zeroflow_ros/models/fastflow3d_lite_5.onnx', 'zeroflow_ros/engines/pillars.cu'} <= set(names)
    assert set(metadata.get_all('Provides-Extra')) == {
        'ros', 'speed', 'replay', 'registration', 'ground', 'simulation', 'training', 'export', 'tensorrt', 'ray',
        'test', 'view', 'dynamic', 'camera',
    }  # fmt: skip
    requirements = metadata.get_all('Requires-Dist')
    assert [r for r in requirements if r.startswith('torch=')] == ['torch==2.13.0; extra == "training"']
    always = {re.match(r'[\w-]+', r).group() for r in requirements if 'extra' not in r}
    assert always == {'numpy', 'onnxruntime', 'pyyaml'}


def test_package_xml_is_valid_and_agrees_with_the_rest():
    warnings = []
    package = parse_package(str(ROOT / 'package.xml'), warnings=warnings)
    assert not warnings
    assert (package.package_format, package.get_build_type()) == (3, 'ament_python')
    assert package.licenses == ['Apache-2.0'] and 'Apache License' in (ROOT / 'LICENSE').read_text()
    from distutils.core import run_setup

    setup = run_setup(str(ROOT / 'setup.py'), stop_after='init')
    assert package.name == setup.get_name() == 'zeroflow_ros'
    assert package.version == setup.get_version() == zeroflow_ros.__version__
    assert package.description == setup.get_description()
    newest = re.search(r'^(.+)\n-+$', (ROOT / 'CHANGELOG.rst').read_text(), re.MULTILINE).group(1)
    assert newest == 'Forthcoming' or re.fullmatch(rf'{re.escape(package.version)} \(\d{{4}}-\d\d-\d\d\)', newest)


def test_every_ros_package_in_use_is_a_dependency():
    used = set()
    for path in (ROOT / 'zeroflow_ros').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, 'module', '') or '']
            )
            used |= {name.split('.')[0] for name in names if ROS_PACKAGE.fullmatch(name.split('.')[0])}
    declared = {d.name for d in parse_package(str(ROOT / 'package.xml')).exec_depends}
    assert used and used - {'tf2_ros'} <= declared, f'package.xml lacks {used - declared}'
    assert 'tf2_ros_py' in declared  # what the distributions call Python's tf2_ros
    from distutils.core import run_setup

    wheels = run_setup(str(ROOT / 'setup.py'), stop_after='init').extras_require['ros']
    missing = {name for name in used if f'ros-jazzy-{name.replace("_", "-")}' not in wheels}
    assert missing <= {'tf2_ros', 'tf2_msgs'}, f'the extra ros of setup.py lacks {missing}'
