# SPDX-License-Identifier: Apache-2.0
"""Students by name."""

from training.students.camera_student import CameraStudent
from training.students.deflow import deflow, deflow_2, deflow_lite
from training.students.dwarf import dwarf
from training.students.fastflow3d import fastflow3d, fastflow3d_xl
from training.students.fastflow3d_lite import fastflow3d_lite, fastflow3d_lite_5
from training.students.mono_lite import MonoLite, mono_lite
from training.students.multi_mono_sf import MultiMonoSf, multi_mono_sf, multi_mono_sf_corrected
from training.students.pillar_net import PillarStudent
from training.students.self_mono_sf import SelfMonoSf, self_mono_sf
from training.students.stereo_lite import stereo_lite
from zeroflow_ros.errors import ConfigError

_BUILDERS = (
    fastflow3d, fastflow3d_xl, fastflow3d_lite, fastflow3d_lite_5,
    deflow, deflow_2, deflow_lite,
)  # fmt: skip
STUDENTS = {build.__name__: build for build in _BUILDERS}  # of point clouds
CAMERA_STUDENTS = {build.__name__: build for build in (dwarf, stereo_lite)}  # of stereo images
MONO_STUDENTS = {  # of one camera's images
    build.__name__: build for build in (multi_mono_sf, multi_mono_sf_corrected, mono_lite)
}
SCORED_STUDENTS = {'self_mono_sf': self_mono_sf}  # of one camera's images; neither trained nor exported here


def build_student(name: str) -> PillarStudent | CameraStudent | MultiMonoSf | MonoLite | SelfMonoSf:
    """Return a freshly initialised student.

    Raises: ConfigError for an unknown name.
    """
    builders = STUDENTS | CAMERA_STUDENTS | MONO_STUDENTS | SCORED_STUDENTS
    if name not in builders:
        raise ConfigError(f'Unknown student {name!r}; expected one of {sorted(builders)}.')
    return builders[name]()
