# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: our own format, and the foreign ones that `training.learning.lightning_import` converts."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from training.learning.lightning_import import allowed_globals, check_state_dict, find_weights, import_lightning
from training.learning.unsupported_checkpoints import WeightsError, unreadable_file, without_weights
from training.students import CameraStudent, PillarStudent, build_student
from training.students.dwarf_weights import load_variables
from training.students.multi_mono_sf_weights import is_multi_mono_sf, is_self_mono_sf, weights_of
from training.students.self_mono_sf import SelfMonoSf
from zeroflow_ros.errors import ConfigError, ModelError

POLICIES = ('ground', 'z_origin', 'network_frame', 'direction', 'licence')


@dataclass(frozen=True)
class Checkpoint:
    """A student on disk, with everything needed to resume its training.

    student: name. state_dict: the student's weights. provenance: training data, number of steps, version of the code.
    optimizer: optimiser state; None in a checkpoint for inference only.
    lightning: further state that pytorch-lightning needs to resume.
    """

    student: str
    state_dict: dict
    provenance: dict
    optimizer: dict | None = None
    lightning: dict | None = None

    def save(self, path: Path) -> None:
        """Write the file atomically: a reader sees the old file or the new one, never a partial one."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
        torch.save({'zeroflow_ros_checkpoint': 1, **vars(self)}, temporary)
        os.replace(temporary, path)

    @property
    def policies(self) -> dict:
        """Fields of the model card on frames, ground, direction and licence."""
        about = {'network_frame': 'source'} | self.provenance  # all our students'; old checkpoints lack it
        return {name: about[name] for name in POLICIES}

    def image_size(self, student: CameraStudent, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return width and height of the images of a student [px]: size, else those of its training, else its own.

        Raises: ConfigError for a size that the student cannot take.
        """
        config = self.provenance.get('config', {})
        of_training = config.get('width'), config.get('height')
        width, height = size or (of_training if all(of_training) else student.default_size)
        if width < 1 or height < 1 or width % student.multiple or height % student.multiple:
            raise ConfigError(
                f'The images of a {student.name} have a width and a height that are multiples of {student.multiple} '
                f'px, got {width} x {height}.'
            )
        return width, height

    def build(self) -> PillarStudent | CameraStudent:
        """Return the student with the checkpoint's weights, in eval mode.

        Raises: ModelError with the list of differences when keys or shapes do not match.
        """
        student = build_student(self.student)
        shapes = {key: tuple(value.shape) for key, value in student.state_dict().items()}
        check_state_dict(self.state_dict, shapes, self.student)
        student.load_state_dict(self.state_dict)
        return student.eval()


def load_checkpoint(path: Path, *, student: str | None = None) -> Checkpoint:
    """Read a checkpoint of ours, of ZeroFlow, OpenSceneFlow, multi-mono-sf or self-mono-sf; no code in it is executed.

    A .npz file holds the TensorFlow variables of DWARF.
    student: name of the student in a foreign file; None derives it from the file's keys and settings.
    Raises: ModelError for any other file, and when keys or shapes do not match the student.
    """
    path = Path(path)
    if not path.is_file():
        found = f'{path} is a folder, not a checkpoint file' if path.is_dir() else f'No checkpoint at {path}'
        raise ModelError(f'{found}. Train one with: python3 -m training.train --config CONFIG --out DIR')
    if path.suffix == '.npz':
        about = {
            'data': f'TensorFlow variables of DWARF in {path.name}',
            'supervision': 'unknown',
            'licence': 'unknown',
        }
        return Checkpoint('dwarf', load_variables(path), about)
    try:
        with torch.serialization.safe_globals(allowed_globals(path)):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # pickle, zip and torch errors alike
        raise unreadable_file(path, error) from error
    try:
        if isinstance(content, dict) and 'zeroflow_ros_checkpoint' in content:
            fields = {name: content.get(name) for name in Checkpoint.__dataclass_fields__}
            checkpoint = Checkpoint(**fields | {'state_dict': find_weights(content) or {}})
        elif is_multi_mono_sf(content):
            about = {
                'data': f'checkpoint of multi-mono-sf in {path.name}',
                'supervision': 'unknown',
                'licence': 'unknown',
            }
            checkpoint = Checkpoint('multi_mono_sf', weights_of(content, path), about)
        elif is_self_mono_sf(content):
            about = {
                'data': f'checkpoint of self-mono-sf in {path.name}',
                'supervision': 'unknown',
                'licence': 'unknown',
            }
            checkpoint = Checkpoint('self_mono_sf', weights_of(content, path, SelfMonoSf), about)
        elif find_weights(content):
            checkpoint = Checkpoint(*import_lightning(path, content, student))
        else:
            raise without_weights(path, content)
        checkpoint.build()
    except WeightsError as error:
        raise error.within(path) from error
    return checkpoint
