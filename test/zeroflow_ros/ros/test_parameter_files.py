# SPDX-License-Identifier: Apache-2.0
"""A parameter file for another node: the node ran on defaults, and nobody was told."""

import re

import pytest
from processes import run, started
from tiny_bag import write_bag

from zeroflow_ros.ros.parameter_files import is_for, refusal_hint, sections, unused_parameters

NODES = ['/flow_node', '/ns/flow_node', '/a/b/flow_node']
# Which of NODES a section is for; ROS itself is asked in test_ros_agrees.
SECTIONS = [
    ('/**', 'YYY'),
    ('**', 'YYY'),
    ('/*', 'Y--'),
    ('flow_node', 'Y--'),
    ('/flow_node', 'Y--'),
    ('ns/flow_node', '-Y-'),
    ('/ns/flow_node', '-Y-'),
    ('/ns/**', '-Y-'),
    ('/ns/*', '-Y-'),
    ('/*/flow_node', '-Y-'),
    ('/**/flow_node', 'YYY'),
    ('/a/**', '--Y'),
    ('/a/*', '---'),
    ('/a/*/flow_node', '--Y'),
    ('/**/b/flow_node', '--Y'),
    ('/ns/**/flow_node', '-Y-'),
    ('/**/*', 'YYY'),
    ('Flow_Node', '---'),
    ('flow', '---'),
    ('flow_node_2', '---'),
    ('object_tracker', '---'),
]


@pytest.mark.parametrize('section, expected', SECTIONS)
def test_a_section_is_matched_as_ros_does(section, expected):
    assert ''.join('Y' if is_for(section, node) else '-' for node in NODES) == expected


def test_ros_agrees(tmp_path):
    rclpy = pytest.importorskip('rclpy', reason='needs rclpy')
    path = tmp_path / 'p.yaml'
    for section, expected in SECTIONS:
        path.write_text(f"'{section}':\n  ros__parameters:\n    a: 1\n")
        context = rclpy.Context()
        rclpy.init(args=['--ros-args', '--params-file', str(path)], context=context)
        found = ''
        for node in NODES:
            space, _, name = node.rpartition('/')
            made = rclpy.create_node(
                name, namespace=space or '/', context=context, start_parameter_services=False, enable_rosout=False,
                automatically_declare_parameters_from_overrides=True,
            )  # fmt: skip
            found += 'Y' if made.has_parameter('a') else '-'
            made.destroy_node()
        rclpy.shutdown(context=context)
        assert found == expected, section


TWO = 'other:\n  ros__parameters:\n    a: 1\n/ns/flow_node:\n  ros__parameters:\n    a: 1\n'
NESTED = (
    'a:\n  b:\n    flow_node:\n      ros__parameters:\n        a: 1\n    other:\n      ros__parameters: {b: {c: 1}}\n'
)


@pytest.mark.parametrize(
    'text, expected',
    [
        ('', []),
        ('# a comment\n', []),
        ('flow_node:\n  ros__parameters: {}\n', ['/flow_node']),
        (TWO, ['/other', '/ns/flow_node']),
        (NESTED, ['/a/b/flow_node', '/a/b/other']),
        ('/**:\n  flow_node:\n    ros__parameters:\n      a: 1\n', ['/**/flow_node']),
        ('flow_node:\n  ros_parameters:\n    a: 1\n', []),
        ('- a\n', None),
        ('a: [\n', None),
    ],
)
def test_sections_of_a_file(tmp_path, text, expected):
    (tmp_path / 'p.yaml').write_text(text)
    assert sections(tmp_path / 'p.yaml') == expected
    assert sections(tmp_path / 'none.yaml') is None


def test_a_file_for_another_node_is_named_with_its_sections(tmp_path):
    path, empty, right = (tmp_path / name for name in ('two.yaml', 'empty.yaml', 'right.yaml'))
    path.write_text(TWO)
    empty.write_text('')
    right.write_text('/**:\n  ros__parameters:\n    a: 1\n')
    argv = ['node', '--ros-args', '--params-file', str(path), '--params-file', str(right)]
    (text,) = unused_parameters(argv, '/flow_node')
    assert f'No section of {path} is for this node (/flow_node)' in text
    assert 'its sections are /other, /ns/flow_node. Name the section /flow_node, or /**' in text
    assert unused_parameters(argv, '/ns/flow_node') == []  # as with -r __ns:=/ns
    (text,) = unused_parameters(['node', '--ros-args', '--params-file', str(empty)], '/flow_node')
    assert 'has no section' in text
    assert unused_parameters(['node', '--params-file', str(path)], '/flow_node') == []  # not for ROS
    assert unused_parameters(['node', '--ros-args', '-p', 'a:=1', '--', '-x'], '/flow_node') == []
    several = ['n', '--ros-args', '--params-file', str(path), '--', '--ros-args', '--params-file', str(empty)]
    assert len(unused_parameters(several, '/flow_node')) == 2


@pytest.mark.parametrize(
    'option, value, node, num',
    [
        ('-p', 'a:=1', '/flow_node', 0),
        ('-p', 'flow_node:a:=1', '/flow_node', 0),
        ('-p', 'flow_node:a:=1', '/ns/flow_node', 1),  # as ROS does
        ('--param', 'flow:a.b:=1', '/flow_node', 1),
        ('-p', 'a:=x:y', '/flow_node', 0),
        ('-p', 'url:=tcp://a:=1', '/flow_node', 0),
        ('-r', '~/input/pointcloud:=/points', '/flow_node', 0),
        ('-r', 'flow_node:~/input/pointcloud:=/points', '/ns/flow_node', 0),
        ('--remap', 'flow:~/input/pointcloud:=/points', '/flow_node', 1),
        ('-r', 'flow_node:__node:=x', '/x', 0),
        ('-r', '__ns:=/x', '/x/flow_node', 0),
        ('-r', 'rostopic://a:=b', '/flow_node', 0),
    ],
)
def test_a_parameter_or_remapping_for_another_node_is_named(option, value, node, num):
    texts = unused_parameters(['node', '--ros-args', option, value], node)
    assert len(texts) == num and all(f'({node})' in text and value in text for text in texts)


@pytest.mark.parametrize(
    'text, says',
    [
        ('flow_node:\n  ros_parameters:\n    a: 1\n', r"has 'ros_parameters' in the section '/flow_node'\. Expected"),
        ('ns:\n  flow_node:\n    ros__parameter:\n      a: 1\n', "'ros__parameter' in the section"),
        ('flow_node:\n  a: 1\n', "has no ros__parameters in the section '/flow_node'"),
        ('a: 1\n', "has no ros__parameters in the section '/a'"),
        ('ros__parameters:\n  a: 1\n', 'without a node above it'),
    ],
)
def test_a_refused_file_says_what_is_wrong_with_its_structure(tmp_path, text, says):
    (tmp_path / 'p.yaml').write_text(text)
    assert re.search(says, refusal_hint(['node', '--ros-args', '--params-file', str(tmp_path / 'p.yaml')]))


def test_a_file_with_the_right_structure_gets_no_hint(tmp_path):
    (tmp_path / 'p.yaml').write_text(NESTED)
    assert refusal_hint(['node', '--ros-args', '--params-file', str(tmp_path / 'p.yaml')]) == ''
    assert 'no parameter file at' in refusal_hint(['node', '--ros-args', '--params-file', '/nowhere.yaml'])


def test_a_node_on_defaults_warns_in_its_log_and_diagnostics(tmp_path):
    pytest.importorskip('rclpy', reason='needs rclpy')
    from flow_node import NodeProcess, Vehicle

    (tmp_path / 'p.yaml').write_text('/front/flow_node:\n  ros__parameters:\n    ego_motion: none\n')
    file = ('--params-file', str(tmp_path / 'p.yaml'))
    with NodeProcess(*file, '-r', '__ns:=/rear') as node, Vehicle('/rear') as vehicle:
        text = 'is for this node (/rear/flow_node), so the file has no effect; its sections are /front/flow_node.'
        assert vehicle.status('inference', lambda status, _: status.level == b'\x01' and text in status.message, 30)
        assert sum(text in line for line in node.lines) == 1 and '[WARN]' in node.log


@pytest.mark.parametrize(
    'program, more', [('object_tracker', ()), ('recorder', ('--out', 'x.mcap')), ('replay', ('drive',))]
)
def test_the_other_programs_warn_too(tmp_path, program, more):
    pytest.importorskip('rclpy', reason='needs rclpy')
    (tmp_path / 'p.yaml').write_text('flow_node:\n  ros__parameters:\n    a: 1\n')
    more = [str(tmp_path / word) if word[0] != '-' else word for word in more]
    if program == 'replay':
        write_bag(tmp_path / 'drive', num_sweeps=3)
    with started(program, *more, '--ros-args', '--params-file', tmp_path / 'p.yaml') as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if f'is for this node (/{program})' in line:
                break
        else:
            raise AssertionError(''.join(lines))


def test_a_refused_file_ends_the_node_with_its_fault(tmp_path):
    pytest.importorskip('rclpy', reason='needs rclpy')
    (tmp_path / 'p.yaml').write_text('object_tracker:\n  ros_parameters:\n    ego_motion: none\n')
    status, text = run('object_tracker', '--ros-args', '--params-file', tmp_path / 'p.yaml')
    assert status == 1 and 'Traceback' not in text
    assert "has 'ros_parameters' in the section '/object_tracker'. Expected a node, then ros__parameters" in text
