# SPDX-License-Identifier: Apache-2.0
"""YAML on top of the defaults of a dataclass: whatever the file holds, it is a configuration or a ConfigError."""

import time
from dataclasses import dataclass, field

import pytest

from training.config import build_config, load_config
from zeroflow_ros.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Settings:
    rate: float = 0.5
    steps: int = 10
    name: str = 'a'
    sizes: tuple[float, ...] = (1.0,)
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    'text, expected',
    [
        ('', Settings()),
        ('rate: 2', Settings(rate=2.0)),
        ('sizes: [1, 0.5]', Settings(sizes=(1.0, 0.5))),
        ('inner: {size: 3}\nname: b', Settings(name='b', inner=Inner(3))),
    ],
)
def test_yaml_sets_what_it_names(tmp_path, text, expected):
    (tmp_path / 'c.yaml').write_text(text)
    assert load_config(Settings, tmp_path / 'c.yaml') == expected


_BOMB = 'a0: &a0 []\n' + ''.join(f'a{k}: &a{k} [{", ".join([f"*a{k - 1}"] * 9)}]\n' for k in range(1, 30))
_MERGES = 'a0: &a0 {}\n' + ''.join(f'a{k}: &a{k} {{<<: [{", ".join([f"*a{k - 1}"] * 9)}]}}\n' for k in range(1, 30))


@pytest.mark.parametrize(
    'label, text, said',
    [
        ('a list', '- 1', 'should be a mapping'),
        ('unknown field', 'ratte: 1', "did you mean 'rate'"),
        ('another type', 'steps: 1.5', 'steps should be a int, got 1.5'),
        ('a megabyte of value', f'steps: {"x" * 10**6}', 'steps should be a int'),
        ('a megabyte of name', f'? {"x" * 10**6}\n: 1', 'unknown field'),
        ('unfinished', 'rate: [', 'is not YAML'),
        ('month 13', 'name: 2024-13-01', 'is not YAML: month'),
        ('a time that is none', 'name: !!timestamp x', 'is not YAML'),
        ('maybe', 'name: !!bool maybe', 'is not YAML'),
        ('binary without digits', 'steps: 0b_', 'is not YAML'),
        ('5000 digits', f'steps: {"9" * 5000}', 'is not YAML'),
        ('400 digits', f'rate: {"9" * 400}', 'at most 63'),
        ('brackets in brackets', '[' * 100_000, 'is not YAML'),
        ('a kilobyte that is gigabytes', f'{_BOMB}rate: *a29', 'more than 16 aliases'),
        ('merges that double', f'{_MERGES}rate: *a29', 'more than 16 aliases'),
        ('sizes that are words', 'sizes: [a]', 'should be a list of numbers'),
        ('sizes that are a number', 'sizes: 3', 'should be a list of numbers'),
    ],
)
def test_what_is_no_configuration_is_refused_at_once(tmp_path, label, text, said):
    (tmp_path / 'c.yaml').write_text(text)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=said) as error:
        load_config(Settings, tmp_path / 'c.yaml')
    assert time.monotonic() - start < 10 and len(str(error.value)) < 2000  # s: the expanded ones never end


def test_bytes_that_are_no_text_and_paths_that_are_no_file_are_refused(tmp_path):
    (tmp_path / 'c.yaml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ConfigError, match='is not YAML'):
        load_config(Settings, tmp_path / 'c.yaml')
    with pytest.raises(ConfigError, match='No configuration file'):
        load_config(Settings, tmp_path)


def test_fields_of_fields_are_named_in_errors():
    with pytest.raises(ConfigError, match="here: inner: unknown field 'sise'; did you mean 'size'"):
        build_config(Settings, {'inner': {'sise': 1}}, 'here')
