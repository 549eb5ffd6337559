# SPDX-License-Identifier: Apache-2.0
"""Conversion of Lightning checkpoints of ZeroFlow and OpenSceneFlow: keys, shapes and coordinate frames."""

import zipfile
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from training.learning.unsupported_checkpoints import (
    SUPPORTED,
    WeightsError,
    published_model,
    summary,
    unknown_model,
    unsupported_model,
)
from training.students import build_student
from zeroflow_ros.errors import ModelError

_PREFIX = 'model.'
# What wrappers put into the keys: torch.compile, FSDP and activation checkpoints anywhere, DistributedDataParallel in
# front.
_WRAPPERS = {'_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'}
_WRAPPER_IN_FRONT = 'module'
_ENTRIES = ('state_dict', 'model_state_dict', 'model_state', 'model')  # of a file, which may hold the weights
_PARTS = ('embedder.', 'backbone.', 'head.')  # of the students
_OPENSCENEFLOW = 'head.offset_encoder.'  # ZeroFlow's head has no offset encoder
_DATA_ONLY = ('omegaconf.', 'typing.Any', 'pathlib.', 'argparse.Namespace', 'numpy.')  # classes of stored settings
_GRU_STEPS = {4: 'deflow', 2: 'deflow_2'}
_REACH = [-51.2, -51.2, -3.0, 51.2, 51.2, 3.0]  # m: low x, y, z, high x, y, z
_VOXEL = [0.2, 0.2, 6.0]  # m
# Both: clouds without ground, flow forward in time. They differ in the frame.
_ZEROFLOW_POLICIES = {'direction': 'forward', 'ground': 'remove', 'z_origin': 'ground', 'network_frame': 'source'}
_OPENSCENEFLOW_POLICIES = _ZEROFLOW_POLICIES | {'z_origin': 'sensor', 'network_frame': 'target'}


class OmegaConfPlaceholder:
    """Placeholder for an omegaconf object in a checkpoint: stores its state, runs no omegaconf code."""

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        if isinstance(state, dict):  # else the state of a NumPy value, which is not used
            vars(self).update(state)


def find_weights(content: object) -> dict[str, Tensor] | None:
    """Return the weights of a loaded file without the prefixes of wrappers; None when it has none.

    They are under `state_dict` or a similar name, or the file is nothing else. Wrappers are torch.compile
    (`_orig_mod.`), DistributedDataParallel (`module.`), FSDP and activation checkpoints.
    """
    if not isinstance(content, dict):
        return None
    named = [content.get(name) for name in _ENTRIES]
    entries = next((found for found in (*named, content) if _is_state_dict(found)), None) or _nested(content)
    return None if entries is None else {_without_wrappers(str(key)): value for key, value in entries.items()}


def _is_state_dict(entries: object) -> bool:
    return isinstance(entries, dict) and any(isinstance(value, Tensor) for value in entries.values())


def _nested(content: dict) -> dict | None:
    """Return the only weights under other names, up to two levels down; None for none or several."""
    one = [(key, value) for key, value in content.items() if isinstance(value, dict)]
    two = [(key, value) for _, inner in one for key, value in inner.items() if isinstance(value, dict)]
    found = [value for key, value in one + two if _is_state_dict(value) and key != 'state']  # of an optimizer
    return found[0] if len(found) == 1 else None


def _without_wrappers(key: str) -> str:
    parts = [part for part in key.split('.') if part not in _WRAPPERS]
    k = parts[0] == _PREFIX[:-1]  # module.model.x and model.module.x
    while len(parts) > k + 1 and parts[k] == _WRAPPER_IN_FRONT:
        del parts[k]
        k = parts[0] == _PREFIX[:-1]
    return '.'.join(parts)


def allowed_globals(path: Path) -> list[tuple[type, str]]:
    """Return the arguments of torch.serialization.safe_globals for reading the settings in OpenSceneFlow checkpoints.

    omegaconf classes, paths and NumPy values map to `OmegaConfPlaceholder`, plain Python types to themselves.
    """
    # Only files from before torch 1.6 are not zip files; OpenSceneFlow has none that old.
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    allowed = [(OmegaConfPlaceholder, name) for name in names if name.startswith(_DATA_ONLY)]
    plain = {'builtins.dict': dict, 'builtins.list': list, 'builtins.int': int, 'builtins.float': float,
             'builtins.str': str, 'builtins.bool': bool, 'collections.defaultdict': defaultdict}  # fmt: skip
    return allowed + [(plain[name], name) for name in names if name in plain]


def import_lightning(path: Path, content: dict, student: str | None) -> tuple[str, dict, dict]:
    """Return (student, state_dict, provenance) of a Lightning checkpoint, whose model keys start with `model.`.

    content: the loaded file. student: name of its student; None derives it from keys and settings.
    Raises: ModelError that names the model when it is neither ZeroFlow's nor OpenSceneFlow's.
    """
    entries = find_weights(content) or {}
    foreign = sorted(key for key in entries if not key.startswith(_PREFIX))
    if entries and len(foreign) == len(entries):
        state_dict = entries  # saved without Lightning's module
    elif foreign or not entries:
        raise ModelError(
            f'{path}: a checkpoint of ZeroFlow or OpenSceneFlow has keys that start with "{_PREFIX}", found '
            f'{foreign[:5]} among {len(entries)} keys.'
        )
    else:
        state_dict = {key.removeprefix(_PREFIX): value for key, value in entries.items()}
    shapes = {key: tuple(getattr(value, 'shape', ())) for key, value in state_dict.items()}
    if model := published_model(_settings(content), shapes):
        raise unsupported_model(path, model, shapes)
    if not any(key.startswith(_PARTS) for key in state_dict):
        raise unknown_model(path, shapes)
    is_openscene = any(key.startswith(_OPENSCENEFLOW) for key in state_dict)
    if is_openscene:
        student = _openscene_student(path, content, state_dict, student)
        state_dict = _from_openscene(state_dict, student)
    elif student is None:
        is_xl = any(key.startswith('backbone.encoder_step_4') for key in state_dict)
        student = 'fastflow3d_xl' if is_xl else 'fastflow3d'
    provenance = {
        'source': f'{"OpenSceneFlow" if is_openscene else "ZeroFlow"} checkpoint {path.name}',
        'epoch': content.get('epoch'),
        'step': content.get('global_step'),
        'licence': 'BSD-3-Clause' if is_openscene else 'MIT',
        **(_OPENSCENEFLOW_POLICIES if is_openscene else _ZEROFLOW_POLICIES),
    }
    return student, state_dict, provenance


def check_state_dict(found: dict[str, Tensor], shapes: dict[str, tuple], student: str) -> None:
    """Check that weights match the keys and shapes of a student.

    Raises: WeightsError with the number of differences and the first three, or where weights are not finite; its
    details have all.
    """
    differences = [f'missing {key} {shape}' for key, shape in shapes.items() if key not in found]
    differences += [f'unknown {key}' for key in found if key not in shapes]
    differences += [
        f'{key} is {tuple(found[key].shape)}, expected {shape}'
        for key, shape in shapes.items()
        if key in found and tuple(found[key].shape) != shape
    ]
    unusable = [] if differences else [key for key, value in found.items() if not value.isfinite().all()]
    if unusable:
        raise WeightsError(
            f'{len(unusable)} of {len(found)} weights are NaN or infinite: {summary(unusable)}. The training diverged, '
            'or the file is damaged. Give an earlier checkpoint.', unusable,
        )  # fmt: skip
    if differences:
        text = f'The weights do not fit {student}; {len(differences)} differences: {summary(differences)}. {SUPPORTED}.'
        raise WeightsError(text, differences)


def state_shapes(student: str) -> dict[str, tuple]:
    """Return the shape of every entry of a student's state_dict."""
    with torch.device('meta'):
        return {key: tuple(value.shape) for key, value in build_student(student).state_dict().items()}


def _openscene_student(path: Path, content: dict, state_dict: dict, student: str | None) -> str:
    """Return the student of an OpenSceneFlow checkpoint; weights alone show neither GRU steps nor pillar size."""
    is_deflow = any(key.startswith('head.gru.') for key in state_dict)
    known = tuple(_GRU_STEPS.values()) if is_deflow else ('fastflow3d',)
    settings = _settings(content)
    if not settings:
        if student is None:
            raise ModelError(
                f'{path} comes without its settings, and its weights do not show them. Say --student '
                f'{" or ".join(known)} if it was trained on pillars of 0.2 m within 51.2 m'
                f'{", with 4 or 2 iterations" if is_deflow else ""}.'
            )
    else:
        target = settings.get('model', {}).get('target', {})
        for name, expected in (('voxel_size', _VOXEL), ('point_cloud_range', _REACH)):
            # The model's value may be the reference '${voxel_size}' to the top-level one.
            found = target.get(name) if isinstance(target.get(name), list) else settings.get(name)
            if found != expected:
                raise ModelError(f'{path} was trained with {name} {found}, expected {expected}.')
        steps = target.get('num_iters')
        if is_deflow and steps not in _GRU_STEPS:
            raise ModelError(f'{path} was trained with num_iters {steps}, expected one of {sorted(_GRU_STEPS)}.')
        named = _GRU_STEPS[steps] if is_deflow else 'fastflow3d'
        if student not in (None, named):
            raise ModelError(f'{path} holds {named} by its settings, not {student}.')
        return named
    if student not in known:
        raise ModelError(f'{path} holds {" or ".join(known)} by its keys, not {student}.')
    return student


def _settings(content: dict) -> dict:
    """Return the settings that OpenSceneFlow stores in a checkpoint; {} without."""
    parameters = _plain(content.get('hyper_parameters'))
    settings = parameters.get('cfg') if isinstance(parameters, dict) else None
    return settings if isinstance(settings, dict) else {}


def _plain(node):
    """Return omegaconf settings as dictionaries and lists."""
    if isinstance(node, OmegaConfPlaceholder):
        node = vars(node).get('_content', vars(node).get('_val'))
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, list) else node


def _from_openscene(found: dict[str, Tensor], student: str) -> dict[str, Tensor]:
    """Convert OpenSceneFlow weights to our state_dict.

    Its GRU uses convolutions of width 1; ours uses linear layers. Its FastFlow3D encodes the offsets with a
    Linear(3, 128) directly before the two-layer head, without an activation; we merge it into the first head layer.
    """
    shapes = state_shapes(student)
    if student == 'fastflow3d':
        published = shapes | {
            'head.offset_encoder.weight': (128, 3), 'head.offset_encoder.bias': (128,),
            'head.decoder.0.weight': (32, 64 + 64 + 128),
        }  # fmt: skip
        check_state_dict(found, published, f"OpenSceneFlow's {student}")
        weight = found['head.decoder.0.weight'].double()
        encoder_weight, encoder_bias = (found[f'head.offset_encoder.{name}'].double() for name in ('weight', 'bias'))
        converted = {key: found[key] for key in shapes}
        converted['head.decoder.0.weight'] = torch.cat([weight[:, :128], weight[:, 128:] @ encoder_weight], 1).float()
        bias = found['head.decoder.0.bias'].double() + weight[:, 128:] @ encoder_bias
        return converted | {'head.decoder.0.bias': bias.float()}
    gates = {key: shape for key, shape in shapes.items() if key.startswith('head.gru.') and key.endswith('weight')}
    check_state_dict(found, shapes | {key: (*shape, 1) for key, shape in gates.items()}, f"OpenSceneFlow's {student}")
    return found | {key: found[key].squeeze(2) for key in gates}
