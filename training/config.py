# SPDX-License-Identifier: Apache-2.0
"""Reads YAML files into frozen dataclasses; fields that a file leaves out keep their defaults."""

import dataclasses
import difflib
import os
import reprlib
import typing
from pathlib import Path

import yaml

from zeroflow_ros.errors import ConfigError

_MOST_ALIASES = 16  # nested aliases then expand a file at most 324 times
_LARGEST = 2**63  # larger integers do not fit other programs or a float


class _Loader(yaml.SafeLoader):
    """Limits the number of aliases: nested ones let a kilobyte of YAML expand to gigabytes."""

    num_aliases = 0

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            self.num_aliases += 1
            if self.num_aliases > _MOST_ALIASES:
                event = self.peek_event()
                raise yaml.YAMLError(
                    f'it has more than {_MOST_ALIASES} aliases; write out what *{event.anchor[:40]} stands for'
                    f'{event.start_mark}'
                )
        return super().compose_node(parent, index)


def read_yaml(path: Path):
    """Return the content of a YAML file.

    Raises: ConfigError when the file is missing, or is not YAML.
    """
    if not os.path.isfile(path):
        raise ConfigError(f'No configuration file at {path}.')
    try:
        return yaml.load(Path(path).read_text(), _Loader)
    except (yaml.YAMLError, OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # Not only YAMLError: 2024-13-01 raises ValueError, `!!bool maybe` KeyError, deep nesting RecursionError.
        raise ConfigError(f'{path} is not YAML: {str(error)[:500]}') from error


def load_config(kind: type, path: Path | None):
    """Return `kind` with the fields that a YAML file sets; None means all defaults.

    Raises: ConfigError for a missing or broken file, an unknown field (with the nearest known one), a wrong type.
    """
    if path is None:
        return kind()
    values = read_yaml(path)
    return build_config(kind, {} if values is None else values, str(path))


def build_config(kind: type, values, where: str):
    """Return `kind` with the fields that a mapping sets; `where` names the mapping in errors.

    Raises: ConfigError as load_config does.
    """
    if not isinstance(values, dict):
        raise ConfigError(f'{where} should be a mapping of fields, got {type(values).__name__}.')
    hints = typing.get_type_hints(kind)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(kind)}
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            name = str(name)[:80]
            near = difflib.get_close_matches(name, fields, n=1)
            raise ConfigError(f'{where}: unknown field {name!r}' + (f'; did you mean {near[0]!r}?' if near else '.'))
        expected = fields[name]
        if type(value) is int and abs(value) >= _LARGEST:
            raise ConfigError(f'{where}: {name} is an integer of {value.bit_length()} bits; at most 63 are allowed.')
        if dataclasses.is_dataclass(expected):
            value = build_config(expected, value, f'{where}: {name}')
        elif expected is float and type(value) is int:
            value = float(value)
        elif typing.get_origin(expected) is tuple:
            value = _numbers(value, f'{where}: {name}')
        elif isinstance(expected, type) and type(value) is not expected:
            raise ConfigError(f'{where}: {name} should be a {expected.__name__}, got {reprlib.repr(value)}.')
        arguments[name] = value
    return kind(**arguments)


def _numbers(value, where: str) -> tuple[float, ...]:
    """Return a list of numbers as a tuple. Raises: ConfigError when it is not a list of numbers."""
    if not isinstance(value, list | tuple) or any(type(n) not in (int, float) or abs(n) >= _LARGEST for n in value):
        raise ConfigError(f'{where} should be a list of numbers, got {reprlib.repr(value)}.')
    return tuple(map(float, value))
