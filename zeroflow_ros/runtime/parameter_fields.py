# SPDX-License-Identifier: Apache-2.0
"""Parameters as fields of a frozen dataclass: default, description, range and validation. Independent of ROS."""

import dataclasses
import math
from dataclasses import field

from zeroflow_ros.errors import ConfigError

# Python type to its ROS name and an example in YAML.
ROS_TYPE_NAMES = {
    bool: ('a bool', 'true'),
    int: ('an integer', '10'),
    float: ('a double', '10.0'),
    str: ('a string', "'text'"),
    tuple: ('a list of doubles', '[0.0, 1.0]'),
}


def parameter(default, doc: str, *, low=None, high=None, choices: tuple = (), live: bool = False):
    """Describe one parameter; give both low and high or neither. live: it may change while the node runs."""
    return field(default=default, metadata={'doc': doc, 'low': low, 'high': high, 'choices': choices, 'live': live})


def same_parameter(kind: type, name: str):
    """Return a copy of a field of another dataclass, for a program that has the same parameter."""
    (found,) = (f for f in dataclasses.fields(kind) if f.name == name)
    return field(default=found.default, metadata=found.metadata)


def check_fields(parameters) -> None:
    """Raise ConfigError unless every value is of the type and in the range of its parameter."""
    for f in dataclasses.fields(parameters):
        _check(f, getattr(parameters, f.name))


def _check(f: dataclasses.Field, value) -> None:
    expected, example = ROS_TYPE_NAMES[f.type]
    if f.type is float and type(value) is int:
        example = str(float(value))
    if type(value) is not f.type or (f.type is tuple and any(type(number) is not float for number in value)):
        raise ConfigError(
            f"Parameter '{f.name}' must be {expected}, got {_with_type(value)}. In YAML write it like {example}, on "
            f'the command line like -p {f.name}:={example.replace(" ", "")}.'
        )
    low, high, choices = f.metadata['low'], f.metadata['high'], f.metadata['choices']
    if low is not None and not low <= value <= high:
        raise ConfigError(f"Parameter '{f.name}' must be from {low} to {high}, got {value}.")
    if choices and value not in choices:
        raise ConfigError(f"Parameter '{f.name}' must be one of {', '.join(choices)}, got {short_repr(value)}.")
    if f.type is float and math.isinf(value):
        raise ConfigError(f"Parameter '{f.name}' must be finite, got {value}.")


def _with_type(value) -> str:
    names = {bool: 'the bool', int: 'the integer', float: 'the double', str: 'the string', tuple: 'the list'}
    text = short_repr(list(value) if isinstance(value, tuple) else value)
    return f'{names.get(type(value), type(value).__name__)} {text}'


def short_repr(value) -> str:
    """Return a value as text, shortened for the log."""
    text = repr(value)
    return text if len(text) <= 200 else f'{text[:200]}...'
