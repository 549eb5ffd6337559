# SPDX-License-Identifier: Apache-2.0
"""Which parameter files, parameters and remappings on a command line are for a node; ROS ignores others silently."""

import difflib
import re
from itertools import pairwise
from pathlib import Path

from zeroflow_ros.runtime.command_line import split_ros_args

_PARAMETERS = 'ros__parameters'
_NUM_SHOWN = 5
_RULE = re.compile(r'(\w+):(?!//|=)(.*?):=')  # NODE:NAME:=VALUE
_WILDCARDS = {'**': r'(/\w+)*', '*': r'/\w+'}  # as a step of a section's name


def unused_parameters(argv: list[str], node: str) -> list[str]:
    """Return one sentence for each parameter file of which nothing is for a node.

    The same for -p NODE:NAME:=VALUE and -r NODE:FROM:=TO with the name of another node.
    argv: the command line. node: fully qualified name, as /front/flow_node. Files that ROS refuses are left out.
    """
    texts = []
    for option, value in _ros_options(argv):
        if option == '--params-file':
            names = sections(Path(value))
            if names is not None and not any(is_for(name, node) for name in names):
                texts.append(_file_text(value, names, node))
        elif rule := _RULE.match(value):
            # ROS compares parameters with the full name of a node, remappings with the name alone.
            is_ours = is_for(rule[1], node) if option == '-p' else rule[1] == node.rpartition('/')[2]
            if not is_ours and not rule[2].startswith('__'):  # __node and __ns are for the name before them
                texts.append(
                    f'{option} {value} is for a node {rule[1]}, so it has no effect on this node ({node}). Leave out '
                    f'{rule[1]}: there.'
                )
    return texts


def is_for(section: str, node: str) -> bool:
    """Return whether ROS applies a section of a parameter file to a node.

    The name of a section is absolute, with or without the first slash; ** stands for any number of names, * for one.
    """
    steps = [_WILDCARDS.get(step, '/' + re.escape(step)) for step in _absolute(section).split('/')[1:]]
    return re.fullmatch(''.join(steps), node) is not None


def sections(path: Path) -> list[str] | None:
    """Return the names of a file's sections, nested names joined by a slash; None for a file that cannot be read."""
    content = _content(path)
    return None if content is None else [name for name, keys in _nodes(content) if _PARAMETERS in keys]


def refusal_hint(argv: list[str]) -> str:
    """Return why ROS refuses one of the parameter files, where its structure shows it; else ''."""
    for option, value in _ros_options(argv):
        if option != '--params-file':
            continue
        if not Path(value).is_file():
            return f'There is no parameter file at {value}.'
        content = _content(Path(value))
        if content is None:
            continue
        expected = f'Expected a node, then {_PARAMETERS} (two underscores), then the parameters.'
        if _PARAMETERS in content:
            return f'{value} has {_PARAMETERS} without a node above it. {expected}'
        for name, keys in _nodes(content):
            if _PARAMETERS not in keys:
                found = f"'{close[0]}'" if (close := _misspelt(keys)) else f'no {_PARAMETERS}'
                return f"{value} has {found} in the section '{name}'. {expected}"
    return ''


def _ros_options(argv: list[str]) -> list[tuple[str, str]]:
    """Return (option, value) of the parameter files, parameters and remappings on a command line."""
    names = {'--params-file': '--params-file', '-p': '-p', '--param': '-p', '-r': '-r', '--remap': '-r'}
    rest, found = list(argv), []
    while '--ros-args' in rest:
        rest, words = split_ros_args(rest)
        for option, value in pairwise(words):
            if option in names:
                found.append((names[option], value))
    return found


def _content(path: Path) -> dict | None:
    try:
        import yaml  # with every ROS; elsewhere it may be missing
    except ImportError:
        return None
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return {} if content is None else content if isinstance(content, dict) else None


def _nodes(content: dict, above: str = '') -> list[tuple[str, dict]]:
    """Return (name, what is below it) of every section; a section ends where its keys are not sections themselves."""
    found = []
    for key, below in content.items():
        name = f'{above}/{str(key).strip("/")}'
        keys = below if isinstance(below, dict) else {}
        is_namespace = keys and all(isinstance(value, dict) for value in keys.values()) and not _misspelt(keys)
        found += _nodes(keys, name) if is_namespace and _PARAMETERS not in keys else [(name, keys)]
    return found


def _misspelt(keys: dict) -> list[str]:
    return difflib.get_close_matches(_PARAMETERS, [str(key) for key in keys], n=1, cutoff=0.8)


def _absolute(name: str) -> str:
    return '/' + name.strip('/')


def _file_text(path: str, names: list[str], node: str) -> str:
    if not names:
        return f'The parameter file {path} has no section, so it has no effect. Write a section {node}, or /**.'
    shown = ', '.join(names[:_NUM_SHOWN]) + (', ...' if len(names) > _NUM_SHOWN else '')
    return (
        f'No section of {path} is for this node ({node}), so the file has no effect; its sections are {shown}. Name '
        f'the section {node}, or /** for every node.'
    )
