# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, and what every file looks like."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ('zeroflow_ros', 'training', 'export')
# From the bottom to the top; a room imports only rooms below it, and itself.
ROOMS = (
    'zeroflow_ros.errors', 'zeroflow_ros.transforms', 'zeroflow_ros.bags', 'zeroflow_ros.lidar',
    'zeroflow_ros.camera', 'zeroflow_ros.ego_motion', 'zeroflow_ros.views', 'zeroflow_ros.engines',
    'zeroflow_ros.pipeline', 'zeroflow_ros.camera_pipeline', 'zeroflow_ros.runtime', 'zeroflow_ros.objects',
    'zeroflow_ros.ros',
    'training.provenance', 'training.config', 'training.simulation.shapes', 'training.simulation.sensors',
    'training.simulation.streets', 'training.simulation.cameras', 'training.simulation', 'training.students',
    'training.datasets',
    'training.teachers', 'training.labels', 'training.learning', 'training.scoring', 'export',
)  # fmt: skip
PROGRAMS = len(ROOMS)  # above all rooms
ROS = {
    'ament_index_python', 'builtin_interfaces', 'diagnostic_msgs', 'diagnostic_updater', 'geometry_msgs', 'launch',
    'launch_ros', 'lifecycle_msgs', 'message_filters', 'nav_msgs', 'rcl_interfaces', 'rclpy', 'rosgraph_msgs',
    'sensor_msgs', 'sensor_msgs_py', 'std_msgs', 'stereo_msgs', 'tf2_msgs', 'tf2_py', 'tf2_ros',
    'visualization_msgs',
}  # fmt: skip
OFFLINE_ONLY = {
    'torch', 'scipy', 'matplotlib', 'trimesh', 'embreex', 'onnx', 'onnxscript', 'pyarrow', 'pandas', 'rerun', 'h5py',
}  # fmt: skip
HIDES_A_NOUN = {'utils', 'util', 'common', 'core', 'helpers', 'helper', 'misc'}
NOT_OURS = {'.git', '.venv', 'build', 'install', 'log', 'out', 'runs', '__pycache__', '.pytest_cache', '.ruff_cache'}


def _files(*suffixes: str) -> list[Path]:
    found = (path for path in ROOT.rglob('*') if path.suffix in suffixes or path.name in suffixes)
    return sorted(path for path in found if not NOT_OURS & set(path.relative_to(ROOT).parts[:-1]))


PYTHON_FILES = _files('.py')


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _modules(package: str) -> list[Path]:
    return [path for path in PYTHON_FILES if path.relative_to(ROOT).parts[0] == package]


def imports(source: str, package: str = '') -> list[tuple[str, bool]]:
    """Return (module, whether it is imported with the file) for every import of a source, lazy ones included."""
    found = []

    def visit(node, at_import):
        if isinstance(node, ast.Import):
            found.extend((alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(filter(None, [package if node.level else '', node.module]))
            found.append((base, at_import))
            found.extend((f'{base}.{alias.name}', at_import) for alias in node.names)
        is_type_only = isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test)
        is_lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_only
        for child in ast.iter_child_nodes(node):
            visit(child, at_import and not is_lazy)

    visit(ast.parse(source), True)
    return found


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {_module(path): path for package in PACKAGES for path in _modules(package)}
IS_PROGRAM = {module for module, path in MODULES.items() if "if __name__ == '__main__'" in path.read_text()}


def _level(module: str) -> int:
    """Return the place of a module in ROOMS; programs are above all, the packages themselves below all."""
    if module in PACKAGES:
        return -1
    if module in IS_PROGRAM:
        return PROGRAMS
    rooms = [room for room in ROOMS if module == room or module.startswith(f'{room}.')]
    assert rooms, f'{module} is in no room; the rooms are {ROOMS}'
    return ROOMS.index(max(rooms, key=len))


def _imported_modules(module: str) -> set[str]:
    """Return the modules of ours that a module imports, lazily or for types included."""
    return {name for name, _ in _imports(MODULES[module]) if name in MODULES} - {module}


def _imports(path: Path) -> list[tuple[str, bool]]:
    return imports(path.read_text(), '.'.join(path.relative_to(ROOT).parts[:-1]))


@pytest.mark.parametrize(
    'source, expected',
    [
        ('', []),
        ('import torch', [('torch', True)]),
        ('def f():\n    import torch', [('torch', False)]),
        ('try:\n    import torch\nexcept ImportError:\n    pass', [('torch', True)]),
        ('from . import pillars', [('zeroflow_ros', True), ('zeroflow_ros.pillars', True)]),
        ('class A:\n    from training import x', [('training', True), ('training.x', True)]),
    ],
)
def test_imports_are_found(source, expected):
    assert imports(source, 'zeroflow_ros') == expected


@pytest.mark.parametrize('package, forbidden', [('zeroflow_ros', {'training', 'export'}), ('training', {'export'})])
def test_dependencies_point_one_way(package, forbidden):
    modules = _modules(package)
    assert modules
    wrong = [
        f'{_id(path)} imports {name}'
        for path in modules
        for name, _ in _imports(path)
        if name.split('.')[0] in forbidden
    ]
    assert not wrong, f'zeroflow_ros <- training <- export, never the other way: {wrong}'


@pytest.mark.parametrize('module', sorted(MODULES))
def test_a_room_imports_only_rooms_below_it(module):
    level = _level(module)
    wrong = [
        name for name in _imported_modules(module) if _level(name) > level or (name in IS_PROGRAM and level == PROGRAMS)
    ]
    assert not wrong, f'{module} imports {wrong}; from the bottom to the top: {ROOMS}, programs'


def test_no_module_imports_itself_in_a_circle():
    unvisited, path = {module: _imported_modules(module) for module in MODULES}, []

    def visit(module):
        assert module not in path, ' -> '.join([*path[path.index(module) :], module])
        if module not in unvisited:
            return
        path.append(module)
        # `from package import module` names the package, too, which holds nothing that comes back
        for name in unvisited[module]:
            if not module.startswith(f'{name}.'):
                visit(name)
        path.pop()
        del unvisited[module]

    for module in MODULES:
        visit(module)


def test_the_tops_of_the_packages_hold_programs_only():
    tops = {
        package: {path.stem for path in (ROOT / package).glob('*.py') if path.name != '__init__.py'}
        for package in ('zeroflow_ros', 'training')
    }
    programs = {package: {m.split('.')[1] for m in IS_PROGRAM if m.startswith(f'{package}.')} for package in tops}
    assert tops['training'] - programs['training'] == {'config', 'provenance'}
    assert tops['zeroflow_ros'] - programs['zeroflow_ros'] == {'pipeline', 'camera_pipeline', 'transforms', 'errors'}
    assert len(tops['zeroflow_ros']) <= 12


@pytest.mark.parametrize('module', sorted(m for m in MODULES if m.startswith('zeroflow_ros')))
def test_only_the_room_of_ros_and_programs_know_ros(module):
    if module.startswith('zeroflow_ros.ros') or module in IS_PROGRAM:
        return
    wrong = [name for name, _ in _imports(MODULES[module]) if name.split('.')[0] in ROS]
    assert not wrong, f'{module} imports {wrong}; ROS belongs into zeroflow_ros/ros and the programs'


def test_the_tests_mirror_the_rooms():
    for path in (ROOT / 'test').rglob('test_*.py'):
        room = path.parent.relative_to(ROOT / 'test')
        assert (ROOT / room).is_dir(), f'{_id(path)}: there is no {room}'


@pytest.mark.parametrize('path', _modules('zeroflow_ros'), ids=_id)
def test_the_vehicle_never_needs_what_is_offline(path):
    wrong = [name for name, at_import in _imports(path) if at_import and name.split('.')[0] in OFFLINE_ONLY]
    assert not wrong, f'{_id(path)} imports {wrong} with the file'
    assert not [name for name, _ in _imports(path) if name.split('.')[0] == 'torch'], f'{_id(path)} imports torch'


def test_importing_the_vehicle_package_loads_no_ros_and_nothing_heavy():
    modules = [
        module for module in MODULES
        if module.startswith('zeroflow_ros') and not module.startswith('zeroflow_ros.ros')
        and module not in IS_PROGRAM and not module.endswith('numba_kernels')  # numba is optional, and loads scipy
    ]  # fmt: skip
    lines = ['import sys', "sys.modules['numba'] = None", *(f'import {module}' for module in modules)]
    lines += [f'print(*sorted({OFFLINE_ONLY | ROS!r} & set(sys.modules)))']
    found = subprocess.run(
        [sys.executable, '-c', '\n'.join(lines)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.split() == []


def test_every_import_is_ours_or_declared():
    """A package that setup.py does not name is missing on the next machine."""
    from distutils.core import run_setup

    setup = run_setup(str(ROOT / 'setup.py'), stop_after='init')
    requirements = setup.install_requires + [r for extra in setup.extras_require.values() for r in extra]
    named = {re.split(r'[^\w.-]', r)[0].lower().replace('-', '_') for r in requirements}
    declared = {re.sub(r'^ros_(jazzy_)?', '', name) for name in named}
    declared |= {'yaml', 'pytest', 'setuptools', 'distutils', 'catkin_pkg'}  # pyyaml; colcon brings catkin_pkg
    declared |= {'rerun', 'mcap_ros2', 'cv2'}  # of rerun-sdk, mcap-ros2-support, opencv-python-headless
    declared |= {'tf2_ros', 'tf2_msgs', 'launch', 'launch_ros'}  # not on PyPI: with ROS only
    ours = {*PACKAGES, *(path.stem for path in _modules('test'))}
    wrong = {
        f'{_id(path)} imports {name}'
        for path in PYTHON_FILES
        for name in {full.split('.')[0] for full, _ in _imports(path)}
        if name not in declared | ours and name not in sys.stdlib_module_names
    }
    assert not wrong, f'Add to an extra of setup.py: {sorted(wrong)}'


@pytest.mark.parametrize('path', PYTHON_FILES, ids=_id)
def test_file_is_short_and_says_its_licence(path):
    lines = path.read_text().splitlines()
    assert lines and lines[0] == '# SPDX-License-Identifier: Apache-2.0'
    assert len(lines) <= 500, f'{_id(path)} has {len(lines)} lines: look for the second noun'


@pytest.mark.parametrize('path', PYTHON_FILES, ids=_id)
def test_name_says_what_it_is(path):
    assert not HIDES_A_NOUN & {*path.relative_to(ROOT).parts[:-1], *path.stem.split('_')}


def test_text_holds_no_absolute_path_and_nothing_unfinished():
    unfinished = re.compile('|'.join(['TO' + 'DO', 'FIX' + 'ME', 'XX' + 'X']))
    absolute = re.compile(r'(?<![\w.~$}])/(home|root|work|Users)/')
    texts = _files('.py', '.md', '.rst', '.yaml', '.yml', '.xml', '.toml', '.cfg', '.rviz', 'Makefile', 'Dockerfile')
    wrong = [
        f'{_id(path)}:{number}: {line.strip()}'
        for path in texts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if path != Path(__file__) and (unfinished.search(line) or absolute.search(line))
    ]
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('folder', ['launch', 'test'])
def test_folder_is_no_package(folder):
    assert not (ROOT / folder / '__init__.py').exists(), f'{folder} would shadow another package of that name'
