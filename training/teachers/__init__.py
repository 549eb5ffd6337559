# SPDX-License-Identifier: Apache-2.0
"""Teachers by name: slow methods that label sweep pairs or stereo pairs without labels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from training.config import build_config
from zeroflow_ros.errors import ConfigError

if TYPE_CHECKING:
    from training.teachers.teacher import StereoPairTeacher, Teacher

# name -> (module in training.teachers, class in it); the dataclass of its settings is <class>Config. Of sweep pairs:
TEACHERS = {
    'nsfp': ('nsfp', 'NSFP'),
    'fast_nsf': ('fast_nsf', 'FastNSF'),
    'rigid': ('rigid', 'Rigid'),
    'dufomap': ('dufomap', 'Dufomap'),
}
STEREO_TEACHERS = {'stereo': ('stereo', 'StereoTeacher'), 'lidar': ('lidar', 'LidarTeacher')}


def build_teacher(name: str, config: dict | None = None) -> Teacher | StereoPairTeacher:
    """Return a teacher; config: the fields of its settings that differ from their defaults.

    Raises: ConfigError for an unknown name, an unknown field, an invalid value.
    """
    teachers = TEACHERS | STEREO_TEACHERS
    if name not in teachers:
        raise ConfigError(
            f'There is no teacher {name!r}; the teachers are {", ".join(TEACHERS)}, and of stereo pairs '
            f'{", ".join(STEREO_TEACHERS)}.'
        )
    module_name, class_name = teachers[name]
    module = importlib.import_module(f'training.teachers.{module_name}')
    settings = build_config(getattr(module, f'{class_name}Config'), config or {}, f'settings of teacher {name}')
    return getattr(module, class_name)(settings)
