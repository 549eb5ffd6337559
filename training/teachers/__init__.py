# SPDX-License-Identifier: Apache-2.0
"""Teachers by name: slow methods that label sweep pairs from the points alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from training.config import build_config
from zeroflow_ros.errors import ConfigError

if TYPE_CHECKING:
    from training.teachers.teacher import Teacher

# name -> (module in training.teachers, class in it); the dataclass of its settings is <class>Config
TEACHERS = {
    'nsfp': ('nsfp', 'NSFP'),
    'fast_nsf': ('fast_nsf', 'FastNSF'),
    'rigid': ('rigid', 'Rigid'),
    'dufomap': ('dufomap', 'Dufomap'),
    'stereo': ('stereo', 'StereoTeacher'),
}


def build_teacher(name: str, config: dict | None = None) -> Teacher:
    """Return a teacher; config: the fields of its settings that differ from their defaults.

    Raises: ConfigError for an unknown name, an unknown field, an invalid value.
    """
    if name not in TEACHERS:
        raise ConfigError(f'There is no teacher {name!r}; the teachers are {", ".join(TEACHERS)}.')
    module_name, class_name = TEACHERS[name]
    module = importlib.import_module(f'training.teachers.{module_name}')
    settings = build_config(getattr(module, f'{class_name}Config'), config or {}, f'settings of teacher {name}')
    return getattr(module, class_name)(settings)
