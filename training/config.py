# SPDX-License-Identifier: Apache-2.0
"""YAML on top of the defaults of a frozen dataclass."""

import dataclasses
import difflib
import typing
from pathlib import Path

import yaml

from zeroflow_ros.errors import ConfigError


def load_config(kind: type, path: Path | None):
    """Return `kind` with the fields that a YAML file sets; None means all defaults.

    Raises: ConfigError for a missing or broken file, an unknown field (with the nearest known one), a wrong type.
    """
    if path is None:
        return kind()
    if not Path(path).is_file():
        raise ConfigError(f'No configuration file at {path}.')
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path} is not YAML: {error}') from error
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
            near = difflib.get_close_matches(str(name), fields, n=1)
            raise ConfigError(f'{where}: unknown field {name!r}' + (f'; did you mean {near[0]!r}?' if near else '.'))
        expected = fields[name]
        if dataclasses.is_dataclass(expected):
            value = build_config(expected, value, f'{where}: {name}')
        elif expected is float and type(value) is int:
            value = float(value)
        elif isinstance(expected, type) and type(value) is not expected:
            raise ConfigError(f'{where}: {name} should be a {expected.__name__}, got {value!r}.')
        arguments[name] = value
    return kind(**arguments)
