# SPDX-License-Identifier: Apache-2.0
"""The model that a training starts from: a checkpoint, or a model file, whose weights are recovered."""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.config import load_config
from training.learning.batch import Batch
from training.learning.checkpoint import Checkpoint, load_checkpoint
from training.learning.stereo_train_config import StereoTrainConfig, load_train_config
from training.learning.train_config import TrainConfig
from training.students import CAMERA_STUDENTS, MONO_STUDENTS, STUDENTS, PillarStudent, build_student
from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.onnxruntime_engine import OnnxRuntimeEngine
from zeroflow_ros.engines.selection import DEFAULT_MODELS
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import ConfigError, ModelError

EMBEDDED = 'embedded'
FINETUNE = Path(__file__).parents[2] / 'config' / 'finetune.yaml'
_LARGEST_DIFFERENCE = 1e-4  # m, between the flow of a model file and that of the recovered student
_NORMS = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class StartModel:
    """A model to start a training from.

    path: of the file. sha256: of a checkpoint file, or of a model file as its card has it. checkpoint: its weights.
    """

    path: Path
    sha256: str
    checkpoint: Checkpoint

    @property
    def about(self) -> dict:
        """The entry `start` of the provenance of the trained student."""
        about = self.checkpoint.provenance
        return {'name': self.path.name, 'sha256': self.sha256, 'licence': about['licence'],
                'data': about.get('data', 'unknown'), 'supervision': about.get('supervision', 'unknown')}  # fmt: skip


def load_start(text: str | Path) -> StartModel:
    """Read the start model: 'embedded' (the bundled float model), a model file (.onnx), or a checkpoint.

    Raises: ModelError when the file cannot be read, or its weights cannot be recovered.
    """
    path = DEFAULT_MODELS['tensorrt'] if str(text) == EMBEDDED else Path(text)
    if path.suffix != '.onnx':
        checkpoint = load_checkpoint(path)
        with open(path, 'rb') as file:
            return StartModel(path, hashlib.file_digest(file, 'sha256').hexdigest(), checkpoint)
    if not path.is_file():
        raise ModelError(f'No model file at {path}. Give an .onnx file, a checkpoint, or {EMBEDDED}.')
    engine = OnnxRuntimeEngine(path)
    student = recover_student(path, engine.card)
    difference = _difference(engine, student)
    if not difference < _LARGEST_DIFFERENCE:
        raise ModelError(
            f'{path}: the student with its weights gives flow that differs by {difference:.2g} m from that of the '
            'file. Start from the checkpoint of this model (last.pt of its training).'
        )
    card = engine.card
    provenance = card.training | {
        'direction': card.direction, 'ground': card.ground, 'z_origin': card.z_origin,
        'network_frame': card.network_frame, 'licence': card.licence,
    }  # fmt: skip
    return StartModel(path, card.checksum, Checkpoint(card.student, student.state_dict(), provenance))


def start_config(start: StartModel, path: Path | None = None) -> TrainConfig | StereoTrainConfig:
    """Return the configuration in a YAML file; None: config/finetune.yaml, for the student of the start model.

    Raises: ConfigError when the file configures another student than that of the start model, or as `load_config`.
    """
    if path is None and start.checkpoint.student in CAMERA_STUDENTS | MONO_STUDENTS:
        raise ConfigError(f'Give the configuration of the training of a {start.checkpoint.student} with --config.')
    if path is None:
        return dataclasses.replace(load_config(TrainConfig, FINETUNE), student=start.checkpoint.student)
    config = load_train_config(path)
    check_start(start, config)
    return config


def check_start(start: StartModel, config: TrainConfig | StereoTrainConfig) -> None:
    """Raise ConfigError when a start model is not the student of a configuration."""
    student = start.checkpoint.student
    if student != config.student:
        raise ConfigError(
            f'The start model {start.path} is a {student}, and the configuration trains a {config.student}. Write '
            f"'student: {student}' into the configuration, or start from a {config.student}."
        )


def recover_student(path: Path, card: ModelCard) -> PillarStudent:
    """Return the student of a float model file in eval mode: its flow is that of the file.

    Batch norms are part of the convolutions in the file. In the student, the weights of such convolutions have the size
    that Muon gives them, and the batch norms hold the rest; their statistics are unknown, see `set_norm_statistics`.
    Raises: ModelError for an 8-bit, a float16 or a full file, and for students with layers that an export merges.
    """
    remedy = 'Start from the checkpoint of this model (last.pt of its training).'
    if card.precision != 'float32':
        raise ModelError(
            f'{path} holds {card.precision} weights, which are rounded; a training starts from float32. Give the '
            'float32 file that it was made from, or its checkpoint.'
        )
    if card.student not in STUDENTS:
        raise ModelError(f'{path} is a {card.student}; this version has {", ".join(STUDENTS)}.')
    if card.form != 'dense':
        raise ModelError(f'{path} has the form {card.form}; weights can be recovered from dense files only. {remedy}')
    student = build_student(card.student)
    state = {name: tensor for name, tensor in student.state_dict().items() if not name.endswith('num_batches_tracked')}
    found = _graph_weights(path)
    for convolution, norm in _normalised_convolutions(student):
        weight, bias = (found.pop(f'{convolution}.{part}', None) for part in ('weight', 'bias'))
        if weight is None:
            continue
        factor = np.linalg.norm(weight.reshape(len(weight), -1), axis=1) / _muon_size(weight.shape)
        factor[factor == 0] = 1
        found[f'{convolution}.weight'] = weight / factor.reshape(-1, *[1] * (weight.ndim - 1))
        found |= _norm_of(norm, factor, bias, student)
    scale = student.embedder.feature_net.feature_scale.numpy()
    weight = np.divide(card.encoder_weight, scale, out=np.zeros_like(card.encoder_weight), where=scale != 0)
    layer = 'embedder.feature_net.pfn_layers.0'
    found[f'{layer}.0.weight'] = weight
    found |= _norm_of(f'{layer}.1', np.ones(len(weight), np.float32), card.encoder_bias, student)
    offset_weight, last = student.head_layers()
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    of_head = ((offset_weight, card.head_offset_weight), (last.weight, card.head_weight), (last.bias, card.head_bias))
    found |= {names.get(id(parameter), ''): values for parameter, values in of_head}  # '': not a parameter by itself
    wrong = sorted(name for name, tensor in state.items() if np.shape(found.get(name)) != tuple(tensor.shape))
    if wrong:
        raise ModelError(
            f'{path} lacks {len(wrong)} of the {len(state)} weights of a {card.student}, such as {wrong[0]}: an export '
            f'merges layers of this student. {remedy}'
        )
    student.load_state_dict(student.state_dict() | {name: torch.from_numpy(found[name].copy()) for name in state})
    return student.eval()


@torch.no_grad()
def set_norm_statistics(student: PillarStudent, batches: Iterable[Batch]) -> None:
    """Set the statistics of all batch norms to those of the batches; the flow in eval mode stays the same.

    A training normalises by the statistics of each batch. With those of the student far from them, it would begin with
    another function than that of the start model.
    """
    student.eval()
    norms = [module for module in student.modules() if isinstance(module, _NORMS)]
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def add(norm, inputs):
        values = inputs[0].double().transpose(0, 1).flatten(1)  # (C, values)
        counts = torch.full((len(values),), values.shape[1], dtype=torch.float64)
        sums[norm] += torch.stack([counts, values.sum(1), values.square().sum(1)]).cpu()

    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    try:
        for batch in batches:
            student.forward_both(batch.clouds, batch.rows, batch.used)
    finally:
        for hook in hooks:
            hook.remove()
    for norm in norms:
        count, total, squares = sums[norm]
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        norm.bias += (mean - norm.running_mean) * factor
        norm.weight.copy_(factor * torch.sqrt(variance + norm.eps))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def _graph_weights(path: Path) -> dict[str, np.ndarray]:
    """Return the weights in the graph of a model file by the name of the student's parameter."""
    try:
        import onnx
    except ImportError as error:
        raise ModelError(
            "Starting from a model file needs the package onnx. Run 'pip install onnx', or start from a checkpoint."
        ) from error
    graph = onnx.load(path).graph
    return {value.name.removeprefix('student.'): onnx.numpy_helper.to_array(value) for value in graph.initializer}


def _muon_size(shape: tuple[int, ...]) -> float:
    """Return the norm of an output channel's weights: a step of Muon with learning rate r changes them by r of it."""
    return 0.2 * math.sqrt(max(shape[0], math.prod(shape[1:])))  # 0.2: the scale of Muon's steps


def _normalised_convolutions(student: nn.Module) -> list[tuple[str, str]]:
    """Return the names of each convolution and the batch norm that follows it."""
    found = []
    for prefix, parent in student.named_modules():
        children = list(parent.named_children())
        for (first, convolution), (second, norm) in itertools.pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                found.append(tuple('.'.join(filter(None, [prefix, name])) for name in (first, second)))
    return found


def _norm_of(name: str, factor: np.ndarray, bias: np.ndarray, student: nn.Module) -> dict[str, np.ndarray]:
    """Return the state of a batch norm that multiplies each channel by `factor` and adds `bias`, both (C,)."""
    eps = student.get_submodule(name).eps
    return {
        f'{name}.weight': factor * np.float32(np.sqrt(1 + eps)), f'{name}.bias': bias,
        f'{name}.running_mean': np.zeros_like(factor), f'{name}.running_var': np.ones_like(factor),
    }  # fmt: skip


def _difference(engine: OnnxRuntimeEngine, student: PillarStudent) -> float:
    """Return the largest difference [m] between the flow of a model file and that of a student, on random clouds."""
    rng = np.random.default_rng(0)
    half = student.grid.half_extent - 1
    clouds = [rng.uniform([-half, -half, 0], [half, half, 2], (5000, 3)).astype(np.float32)]
    clouds += [clouds[0] + np.float32([0.3 * k, 0, 0]) for k in range(1, student.num_sweeps)]
    older = [(points, np.eye(4)) for points in clouds[2:]]
    flow = engine.infer(clouds[0], clouds[1], Stopwatch(), older=older)
    with torch.inference_mode():
        recovered = student(*map(torch.from_numpy, clouds)).numpy()
    return float(np.abs(flow - recovered).max())
