# SPDX-License-Identifier: Apache-2.0
"""Students by name."""

from training.students.deflow import deflow, deflow_2, deflow_lite
from training.students.fastflow3d import fastflow3d, fastflow3d_xl
from training.students.fastflow3d_lite import fastflow3d_lite, fastflow3d_lite_5
from training.students.pillar_net import PillarStudent
from zeroflow_ros.errors import ConfigError

_BUILDERS = (
    fastflow3d, fastflow3d_xl, fastflow3d_lite, fastflow3d_lite_5,
    deflow, deflow_2, deflow_lite,
)  # fmt: skip
STUDENTS = {build.__name__: build for build in _BUILDERS}


def build_student(name: str) -> PillarStudent:
    """Return a freshly initialised student.

    Raises: ConfigError for an unknown name.
    """
    if name not in STUDENTS:
        raise ConfigError(f'Unknown student {name!r}; expected one of {sorted(STUDENTS)}.')
    return STUDENTS[name]()
