# SPDX-License-Identifier: Apache-2.0
"""Loads the weights of DWARF from a .npz file of its TensorFlow variables."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.students.dwarf import Dwarf
from zeroflow_ros.errors import ModelError

_PREFIX = 'dwarf/'
_NOT_WEIGHTS = ('/Adam', '/Adam_1', '/Momentum')  # ends of the optimiser's variables
_STEPS = ('global_step', 'beta1_power', 'beta2_power')
_NUM_SHOWN = 5


def variable_name(key: str) -> str:
    """Return the name of the TensorFlow variable of a weight of `Dwarf`."""
    *scopes, kind = key.split('.')
    return _PREFIX + '/'.join([*scopes, {'weight': 'weights', 'bias': 'biases'}[kind]])


def variable_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of each TensorFlow variable by its name: height, width, channels in and out of a convolution.

    A transposed convolution has its channels out before those in.
    """
    with torch.device('meta'):
        student = Dwarf()
    shapes = {variable_name(key): tuple(value.shape) for key, value in student.state_dict().items()}
    return {name: shape[2:] + shape[1::-1] if len(shape) == 4 else shape for name, shape in shapes.items()}


def load_variables(path: Path) -> dict[str, Tensor]:
    """Return the weights of `Dwarf` (state_dict) from a .npz file of its TensorFlow variables.

    Variables of the optimiser and step counters are ignored.
    Raises: ModelError that lists missing, unexpected and wrongly shaped variables, or says why the file is unreadable.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name.removesuffix(':0'): file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(
            f'{path} is no .npz file of TensorFlow variables: {error}. docs/stereo_training.md shows how to write one.'
        ) from error
    found = {
        name: value
        for name, value in found.items()
        if not name.endswith(_NOT_WEIGHTS) and name.split('/')[-1] not in _STEPS
    }
    shapes = variable_shapes()
    wrong = [
        f'{name} {np.shape(found[name])} instead of {shape}'
        for name, shape in shapes.items()
        if name in found and np.shape(found[name]) != shape
    ]
    differences = {
        'missing': sorted(shapes.keys() - found.keys()),
        'unexpected': sorted(found.keys() - shapes.keys()),
        'wrong shape': wrong,
    }
    if any(differences.values()):
        listed = '; '.join(f'{what}: {_listed(names)}' for what, names in differences.items() if names)
        raise ModelError(f'{path} does not hold the {len(shapes)} variables of DWARF. {listed}.')
    if broken := [name for name in shapes if not np.isfinite(found[name]).all()]:
        raise ModelError(f'{path} has values that are not finite: {_listed(broken)}.')
    with torch.device('meta'):
        keys = list(Dwarf().state_dict())
    return {key: _to_torch(found[variable_name(key)]) for key in keys}


def _to_torch(values: np.ndarray) -> Tensor:
    # (h, w, in, out) -> (out, in, h, w); a transposed convolution has (h, w, out, in) -> (in, out, h, w)
    values = np.asarray(values, np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(3, 2, 0, 1) if values.ndim == 4 else values))


def _listed(names: list[str]) -> str:
    more = len(names) - _NUM_SHOWN
    return ', '.join(names[:_NUM_SHOWN]) + (f' and {more} more' if more > 0 else '')
