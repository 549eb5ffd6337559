# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: ours, and the import of official ZeroFlow ones."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from training.students import PillarStudent, build_student
from zeroflow_ros.errors import ModelError


@dataclass(frozen=True)
class Checkpoint:
    """A student on disk, with all that is needed to go on training it.

    student: name. state_dict: of the student. provenance: what it was trained on, how far, with which code.
    optimizer: its state, None in a checkpoint that is only for use.
    lightning: what else pytorch-lightning needs to go on.
    """

    student: str
    state_dict: dict
    provenance: dict
    optimizer: dict | None = None
    lightning: dict | None = None

    def save(self, path: Path) -> None:
        """Write atomically: a reader sees the old file or the new one, never half of one."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
        torch.save({'zeroflow_ros_checkpoint': 1, **vars(self)}, temporary)
        os.replace(temporary, path)

    def build(self) -> PillarStudent:
        """Return the student with the checkpoint's weights, in eval mode.

        Raises: ModelError with the list of differences when keys or shapes do not fit.
        """
        student = build_student(self.student)
        _check_state_dict(self.state_dict, student.state_dict(), self.student)
        student.load_state_dict(self.state_dict)
        return student.eval()


def load_checkpoint(path: Path, *, student: str | None = None) -> Checkpoint:
    """Read a checkpoint of ours, or an official ZeroFlow (Lightning) one; nothing in the file is executed.

    student: for a Lightning file, which student it holds; None to tell by its number of entries.
    Raises: ModelError when it is neither, or its keys and shapes do not fit the student.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(
            f'No checkpoint at {path}. Train one with: python3 -m training.train --config CONFIG --out DIR'
        )
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # pickle, zip and torch errors alike
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f'{path} is not a checkpoint that can be read safely: {first_line}') from error
    if isinstance(content, dict) and 'zeroflow_ros_checkpoint' in content:
        fields = {name: content.get(name) for name in Checkpoint.__dataclass_fields__}
        checkpoint = Checkpoint(**fields)
    elif isinstance(content, dict) and isinstance(content.get('state_dict'), dict):
        checkpoint = _from_zeroflow(path, content, student)
    else:
        raise ModelError(f'{path} holds neither a checkpoint of this project nor a Lightning one with a state_dict.')
    checkpoint.build()
    return checkpoint


def _from_zeroflow(path: Path, content: dict, student: str | None) -> Checkpoint:
    """Read a Lightning checkpoint of ZeroFlow: model keys carry the prefix `model.`."""
    entries = content['state_dict']
    foreign = sorted(key for key in entries if not key.startswith('model.'))
    if foreign or not entries:
        raise ModelError(
            f'{path}: a ZeroFlow checkpoint has keys that start with "model.", found {foreign[:5]} among '
            f'{len(entries)} keys.'
        )
    state_dict = {key.removeprefix('model.'): value for key, value in entries.items()}
    if student is None:
        student = (
            'fastflow3d_xl' if any(key.startswith('backbone.encoder_step_4') for key in state_dict) else 'fastflow3d'
        )
    provenance = {
        'source': f'ZeroFlow checkpoint {path.name}',
        'epoch': content.get('epoch'),
        'step': content.get('global_step'),
        # ZeroFlow trained forward in time, on ground-free clouds in the vehicle frame on the ground.
        'direction': 'forward',
        'ground': 'remove',
        'z_origin': 'ground',
        'licence': 'MIT',
    }
    return Checkpoint(student, state_dict, provenance)


def _check_state_dict(found: dict, expected: dict, student: str) -> None:
    differences = [f'missing {key} {tuple(expected[key].shape)}' for key in expected if key not in found]
    differences += [f'unknown {key}' for key in found if key not in expected]
    differences += [
        f'{key} is {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}'
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    if differences:
        listed = '\n  '.join(differences)
        raise ModelError(f'The weights do not fit {student}; {len(differences)} differences:\n  {listed}')
