# SPDX-License-Identifier: Apache-2.0
"""The pages for operators quote what the node says, and name what it has."""

import ast
import re
import shlex
import shutil
import subprocess

import pytest
from processes import ROOT

from zeroflow_ros.lidar.sweep import DropReason

PAGES = {
    name: (ROOT / 'docs' / f'{name}.md').read_text()
    for name in ('on_the_vehicle', 'gpu', 'deployment', 'troubleshooting')
}
TROUBLES = PAGES['troubleshooting']
UNIT = (ROOT / 'config' / 'zeroflow_ros.service').read_text()
QUOTE = re.compile(r'(?:^|\| )> (.+?)(?= \||$)', re.MULTILINE)  # a line of its own, or the cell of a table
GAP = '\0'  # stands where a value goes


def sentences(source: str) -> list[str]:
    """Return every text of a Python source, with a GAP for each value that is filled in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            found.append(''.join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values))
    return found


def says(quote: str, texts: list[str]) -> bool:
    """Return whether a text has the pieces of a quote in their order; '...' stands for anything."""
    pattern = re.compile('.*?'.join(map(re.escape, quote.split('...'))), re.DOTALL)
    return any(pattern.search(text) for text in texts)


QUOTES = QUOTE.findall(TROUBLES)
MODULES = sorted((ROOT / 'zeroflow_ros').rglob('*.py'))
SAID = [text for path in MODULES for text in sentences(path.read_text())]
# What a page may name: the words of the package, its launch files and its parameters.
KNOWN = '\n'.join(path.read_text() for path in [*MODULES, *(ROOT / 'launch').glob('*.py')])
OF_ROS = {'use_sim_time', 'parameter_events', 'transition_event', 'rtps_protection_kind'}


@pytest.mark.parametrize(
    ('quote', 'source', 'expected'),
    [
        ('nothing', '', False),
        ('all of it', "x = 'all of it'", True),
        ('took ... ms', "f'It took {ms:.0f} ms.'", True),
        ('took 5 ms', "f'It took {ms:.0f} ms.'", False),
        ('one ... two', "f'two {x} one'", False),
        ('in two lines', "x = ('in two '\n 'lines')", True),
        ('Parameter ... must', '"Parameter \'{name}\' must"', True),
    ],
)
def test_a_quote_is_found_in_what_a_source_says(quote, source, expected):
    assert says(quote, sentences(source)) == expected


def test_there_are_quotes():
    assert len(QUOTES) > 30


@pytest.mark.parametrize('quote', QUOTES)
def test_the_node_says_what_is_quoted(quote):
    assert len(quote.replace('...', '')) > 8, 'too short to be found by'
    assert says(quote, SAID), f'Nothing in zeroflow_ros says: {quote}'


def test_every_reason_to_drop_a_sweep_is_explained():
    explained = set(re.findall(r'`(\w+)`', TROUBLES))
    unexplained = {drop.value for drop in DropReason} - explained - {DropReason.FIRST.value, DropReason.EMPTY.value}
    assert not unexplained
    assert 'The first sweep waits' in TROUBLES and 'A cloud without a point' in TROUBLES  # those two, in words


@pytest.mark.parametrize('page', PAGES)
def test_names_are_those_of_the_package(page):
    text = re.sub(r'```.*?```', '', PAGES[page], flags=re.DOTALL)  # commands have a test of their own
    named = set(re.findall(r'\b[a-z]+_[a-zA-Z_]+\b', ' '.join(re.findall(r'`([^`]+)`', text))))
    unknown = {name for name in named - OF_ROS if name not in KNOWN and not (ROOT / 'config' / f'{name}.xml').exists()}
    assert named and unknown <= {'zeroflow_ros'}, unknown


@pytest.mark.parametrize('page', PAGES)
def test_anchors_are_headings(page):
    for name, anchor in re.findall(r'\]\((\w*)(?:\.md)?#([\w-]+)\)', PAGES[page]):
        target = (ROOT / 'docs' / f'{name or page}.md').read_text()
        headings = re.findall(r'^#+ (.+)$', target, re.MULTILINE)
        slugs = {re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings}
        assert anchor in slugs


@pytest.mark.parametrize('page', PAGES)
def test_launch_arguments_and_files_exist(page):
    launch = (ROOT / 'launch' / 'flow.launch.py').read_text()
    arguments = re.findall(r'(?<!-p )\b(\w+):=', PAGES[page])
    assert all(f"'{argument}'" in launch for argument in arguments), arguments
    parameters = (ROOT / 'zeroflow_ros' / 'ros' / 'parameters.py').read_text()
    assert all(f'    {name}: ' in parameters for name in re.findall(r'-p (\w+):=', PAGES[page]))
    for path in re.findall(r'config/[\w.]+\w', PAGES[page]):
        assert (ROOT / path).is_file(), path


def settings(name: str) -> list[str]:
    """Return the values of a setting of the systemd unit, lines joined."""
    return re.findall(rf'^{name}=(.*)$', re.sub(r'\\\n\s*', '', UNIT), re.MULTILINE)


def test_the_unit_starts_the_launch_file_with_arguments_that_it_has():
    [start] = settings('ExecStart')
    shell, option, line = shlex.split(start)
    assert (shell, option) == ('/bin/bash', '-c')
    words = shlex.split(line)
    launched = words[words.index('ros2') :]
    assert launched[:4] == ['ros2', 'launch', 'zeroflow_ros', 'flow.launch.py']
    launch = (ROOT / 'launch' / 'flow.launch.py').read_text()
    assert len(launched) > 4 and all(f"'{word.split(':=')[0]}'" in launch for word in launched[4:])
    assert 'prefix:=taskset -c 2,3' in launched


def test_the_unit_restarts_and_is_not_root():
    assert settings('Restart') == ['always'] and int(settings('RestartSec')[0]) > 0
    within, times, pause = (
        int(settings(name)[0]) for name in ('StartLimitIntervalSec', 'StartLimitBurst', 'RestartSec')
    )
    assert within > times * pause, 'else a node that refuses its parameters is started for ever'
    assert settings('User') not in ([], ['root']) and settings('KillSignal') == ['SIGINT']


def test_systemd_accepts_the_unit(tmp_path):
    if shutil.which('systemd-analyze') is None:
        pytest.skip('needs systemd-analyze')
    shutil.copy(ROOT / 'config' / 'zeroflow_ros.service', tmp_path)
    done = subprocess.run(['systemd-analyze', 'verify', tmp_path / 'zeroflow_ros.service'],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0 and 'zeroflow_ros.service' not in done.stderr, done.stderr
