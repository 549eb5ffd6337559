# SPDX-License-Identifier: Apache-2.0
"""Loads the weights of multi_mono_sf, and of self_mono_sf, from a checkpoint of their authors' code."""

import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from training.students.multi_mono_sf import MultiMonoSf
from zeroflow_ros.errors import ModelError

_PREFIX = '_model.'
_MARK = '.featprop_softsplat.'  # in names of multi_mono_sf only
_OLDER_MARK = 'context_networks.'  # begins names of self_mono_sf only
_NUM_SHOWN = 5


def weight_shapes(network: type[nn.Module] = MultiMonoSf) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight by its name, in the order of the network, MultiMonoSf or SelfMonoSf."""
    with torch.device('meta'):
        student = network()
    return {name: tuple(value.shape) for name, value in student.state_dict().items()}


def load_weights(path: Path, *, trusted: bool = False, network: type[nn.Module] = MultiMonoSf) -> dict[str, Tensor]:
    """Return the weights of a network, `MultiMonoSf` or `SelfMonoSf` (state_dict, float32), from a checkpoint.

    The checkpoint is a file of torch.save: a dict with `state_dict`, or the state_dict itself; names may begin with
    `_model.`. Nothing is resized.
    trusted: also read files that need pickle, which runs what the file says; only for files whose source you trust.
    Raises: ModelError that lists missing, unexpected and wrongly shaped weights, or says why the file is unreadable.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location='cpu', weights_only=not trusted)
    except pickle.UnpicklingError as error:
        remedy = '' if trusted else ' If you trust its source, read it with trusted=True.'
        raise ModelError(f'{path} is no checkpoint that can be read safely: {_first_line(error)}.{remedy}') from error
    except (OSError, ValueError, RuntimeError, EOFError, AttributeError, ImportError, zipfile.BadZipFile) as error:
        raise ModelError(
            f'{path} is no readable checkpoint: {_first_line(error)}. Expected a file of torch.save, as kitti_selfsup '
            'of multi-mono-sf; load it again if the download broke off.'
        ) from error
    return weights_of(content, path, network)


def is_multi_mono_sf(content: object) -> bool:
    """Return whether a loaded file seems to hold weights of multi_mono_sf."""
    return any(_MARK in name or name.startswith(_PREFIX) for name in _names(content)) and not is_self_mono_sf(content)


def is_self_mono_sf(content: object) -> bool:
    """Return whether a loaded file seems to hold weights of self_mono_sf, the predecessor of multi_mono_sf."""
    names = [name.removeprefix(_PREFIX) for name in _names(content)]
    return any(name.startswith(_OLDER_MARK) for name in names) and not any(_MARK in name for name in names)


def _names(content: object) -> list[str]:
    found = content.get('state_dict', content) if isinstance(content, dict) else None
    return [str(name) for name in found] if isinstance(found, dict) else []


def weights_of(content: object, path: Path, network: type[nn.Module] = MultiMonoSf) -> dict[str, Tensor]:
    """Return what `load_weights` returns, from the loaded file; path: of the file, for messages."""
    found = content.get('state_dict', content) if isinstance(content, dict) else content
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ModelError(
            f'{path} holds {type(found).__name__}, expected a dict of weights by name, or one under state_dict.'
        )
    if found and all(name.startswith(_PREFIX) for name in found):
        found = {name.removeprefix(_PREFIX): value for name, value in found.items()}
    shapes = weight_shapes(network)
    wrong = [
        f'{name} {_shape(found[name])} instead of {shape}'
        for name, shape in shapes.items()
        if name in found and _shape(found[name]) != shape
    ]
    differences = {
        'missing': [name for name in shapes if name not in found],
        'unexpected': sorted(found.keys() - shapes.keys()),
        'wrong shape': wrong,
    }
    if any(differences.values()):
        listed = '; '.join(f'{what}: {_listed(names)}' for what, names in differences.items() if names)
        hint = ''
        if network is MultiMonoSf and any(name.startswith(_OLDER_MARK) for name in found):
            hint = ' It seems to be of self_mono_sf, the predecessor, which is another network.'
        raise ModelError(
            f'{path} does not hold the {len(shapes)} weights of {network.name}. {listed}.{hint} Nothing was loaded; '
            f'use a checkpoint of {network.name.replace("_", "-")}.'
        )
    if broken := [name for name in shapes if not torch.isfinite(found[name]).all()]:
        raise ModelError(f'{path} has weights that are not finite: {_listed(broken)}. Use another checkpoint.')
    return {name: found[name].to(torch.float32) for name in shapes}


def _shape(value) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip('.')


def _listed(names: list[str]) -> str:
    more = len(names) - _NUM_SHOWN
    return ', '.join(names[:_NUM_SHOWN]) + (f' and {more} more' if more > 0 else '')
