# SPDX-License-Identifier: Apache-2.0
"""What the parts of `export.gpu_report` return, and the model files that they share."""

from dataclasses import dataclass, field
from pathlib import Path

from zeroflow_ros.errors import ZeroFlowError

# Reached and missed: a goal of docs/benchmarks.md. Done: no goal. Left: cannot run on this machine, with the reason.
REACHED, MISSED, DONE, FAILED, OUT_OF_TIME, LEFT = 'reached', 'missed', 'done', 'failed', 'out of time', 'left'
PRECISIONS = {'float32': '', 'float16': '_float16', 'int8': '_int8'}


class MissingModelError(ZeroFlowError):
    """A part needs the file of another one, which did not end."""


@dataclass(frozen=True)
class Result:
    """What a part found: its verdict, one sentence, and figures for the JSON file."""

    verdict: str
    text: str
    figures: dict = field(default_factory=dict)


def model_path(folder: Path, student: str, precision: str = 'float32') -> Path:
    """Return where a part writes the model file of a student."""
    return folder / 'models' / f'{student}{PRECISIONS[precision]}.onnx'


def checkpoint_path(folder: Path, student: str) -> Path:
    """Return where a part writes the checkpoint of a student."""
    return folder / 'models' / f'{student}.pt'


def existing(path: Path) -> Path:
    """Return a path. Raises: MissingModelError when there is no such file."""
    if not path.is_file():
        raise MissingModelError(f'{path.name} is missing: the part that writes it did not end. Run the report again.')
    return path


def existing_model(folder: Path, student: str, precision: str = 'float32') -> Path:
    """Return the model file of a student. Raises: MissingModelError when there is none."""
    return existing(model_path(folder, student, precision))
