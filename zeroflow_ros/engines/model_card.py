# SPDX-License-Identifier: Apache-2.0
"""The model card: the description of a model, stored as JSON in the metadata of its ONNX file."""

import dataclasses
import hashlib
import json
import math
import re
import reprlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zeroflow_ros.errors import ModelError
from zeroflow_ros.lidar.pillars import PillarEncoder, PillarGrid
from zeroflow_ros.lidar.point_head import PointHead

METADATA_KEY = 'zeroflow_ros.model_card'
SCHEMA = 2
REMEDY = "Write a model file with 'python3 -m export.to_onnx CHECKPOINT --out MODEL.onnx'."
NO_CHECKSUM = '0' * 64
# Fields that some files of schema 2 lack, and their values there.
_SINCE_SCHEMA_2 = {'network_frame': 'source', 'num_sweeps': 2}
MAX_SWEEPS = 32
POINTS_AXIS = 'num_points'  # dynamic axis of a gather model
_CHOICES = {
    'form': ('dense', 'gather', 'full'),
    'precision': ('float32', 'float16', 'int8'),
    'ground': ('keep', 'remove'),
    'z_origin': ('ground', 'sensor'),
    'network_frame': ('source', 'target'),
    'direction': ('both', 'forward'),
}
# Weights of the layers outside the ONNX graph, and their shapes.
_WEIGHTS = {
    'encoder_weight': (-1, 9), 'encoder_bias': (-1,),
    'head_offset_weight': (-1, 3), 'head_weight': (3, -1), 'head_bias': (-1,),
}  # fmt: skip


@dataclass(frozen=True)
class ModelCard:
    """Everything needed to run a model, and where it comes from.

    name: name of the model. student: the architecture.
    form: 'dense' (pillar images in, a hidden layer of every cell out), 'gather' (pillar images, cells and offsets of
        points in, their flow out) or 'full' (points in, flow out).
    precision: arithmetic inside the file.
    grid: the pillar grid.
    ground: 'keep' when the network takes all points, 'remove' when it was trained without ground.
    network_frame: 'source' when the network works in the frame of the cloud that gets the flow, 'target' when in that
        of the other cloud.
    z_origin: 'ground' when z = 0 is the ground below the vehicle, 'sensor' when it is the frame's origin.
    direction: 'both' when trained forward and backward in time, so that it can estimate flow for the latest sweep, else
        'forward'.
    nominal_dt: seconds between the sweeps in training. dt_range: allowed seconds between sweeps.
    num_sweeps: sweeps that the model takes: the one that gets the flow, its neighbour in time, and those beyond. Any
        model works with two.
    encoder_weight (C, 9), encoder_bias (C,): the pillar encoder that runs before the network; empty for a full model.
    head_offset_weight (H, 3), head_weight (3, H), head_bias (3,), head_activation: the point head that runs after a
        dense network; empty for other forms.
    inputs, outputs: tensor name to shape; a string is a dynamic axis.
    training: data, duration and code of the training. licence: SPDX id. versions: versions of the export libraries.
    checksum: sha256 of the file with this field set to 64 zeros.
    """

    name: str
    student: str
    form: str
    precision: str
    grid: PillarGrid
    ground: str
    z_origin: str
    direction: str
    nominal_dt: float
    dt_range: tuple[float, float]
    num_sweeps: int
    inputs: dict
    outputs: dict
    training: dict
    licence: str
    versions: dict
    encoder_weight: np.ndarray = field(default_factory=lambda: np.zeros((0, 9), np.float32))
    encoder_bias: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    head_offset_weight: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    head_weight: np.ndarray = field(default_factory=lambda: np.zeros((3, 0), np.float32))
    head_bias: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    head_activation: str = ''
    network_frame: str = 'source'
    checksum: str = NO_CHECKSUM
    schema: int = SCHEMA

    def __post_init__(self):
        if self.schema != SCHEMA:
            raise ModelError(f'The model card has schema {self.schema}, this version reads schema {SCHEMA}. {REMEDY}')
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ModelError(
                    f'The model card has {name} {reprlib.repr(getattr(self, name))}, expected one of {choices}. '
                    f'{REMEDY}'
                )
        low, high = self.dt_range
        if not (0 < low <= self.nominal_dt <= high and math.isfinite(high)):
            raise ModelError(
                f'The model card has dt_range {self.dt_range} around nominal_dt {self.nominal_dt}. {REMEDY}'
            )
        if not 2 <= self.num_sweeps <= MAX_SWEEPS:
            raise ModelError(
                f'The model takes {self.num_sweeps} sweeps; this version runs models that take 2 to {MAX_SWEEPS}.'
            )
        if self.form == 'dense' and not (len(self.encoder_weight) and len(self.head_offset_weight)):
            raise ModelError(
                f'A dense model needs the weights of its pillar encoder and point head in the card. {REMEDY}'
            )
        if self.form == 'gather' and not len(self.encoder_weight):
            raise ModelError(f'A gather model needs the weights of its pillar encoder in the card. {REMEDY}')

    @property
    def encoder(self) -> PillarEncoder:
        """The pillar encoder that runs before a dense or a gather model."""
        return PillarEncoder(self.grid, self.encoder_weight, self.encoder_bias)

    @property
    def head(self) -> PointHead:
        """The point head that runs after a dense model."""
        hidden = self.outputs.get('hidden')
        if not isinstance(hidden, list) or len(hidden) != 5 or not isinstance(hidden[2], int):
            raise ValueError(f"a dense model has the output 'hidden' with 5 axes, not {reprlib.repr(self.outputs)}")
        weights = self.head_offset_weight, self.head_weight, self.head_bias
        return PointHead(self.grid, hidden[2], *weights, self.head_activation)

    def to_json(self) -> str:
        """Return the card as JSON; float32 weights are preserved exactly."""
        values = dataclasses.asdict(self)
        for name in _WEIGHTS:
            values[name] = values[name].tolist()
        return json.dumps(values, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> 'ModelCard':
        """Read a card from JSON.

        Raises: ModelError that names missing or unknown fields, or fields of the wrong type.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f'The model card is not JSON: {error}. {REMEDY}') from error
        if not isinstance(values, dict):
            raise ModelError(f'The model card should be a JSON object, got {type(values).__name__}. {REMEDY}')
        values = _SINCE_SCHEMA_2 | values
        known = {f.name: f for f in dataclasses.fields(ModelCard)}
        missing = sorted(set(known) - set(values))
        unknown = [name[:40] for name in sorted(set(values) - set(known))[:5]]
        if missing or unknown:
            raise ModelError(f'The model card lacks {missing} and has the unknown fields {unknown}. {REMEDY}')
        for name, kind in (('name', str), ('student', str), ('licence', str), ('checksum', str), ('inputs', dict),
                           ('outputs', dict), ('training', dict), ('versions', dict), ('num_sweeps', int),
                           ('schema', int)):  # fmt: skip
            if not isinstance(values[name], kind):
                raise ModelError(
                    f'The model card has {name} {reprlib.repr(values[name])}, expected a {kind.__name__}. {REMEDY}'
                )
        try:
            json.dumps(values, ensure_ascii=False).encode()  # a lone surrogate would break logs and diagnostics
            values['grid'] = PillarGrid(**values['grid'])
            values['nominal_dt'] = float(values['nominal_dt'])
            low, high = values['dt_range']
            values['dt_range'] = (float(low), float(high))
            for name, shape in _WEIGHTS.items():
                values[name] = np.asarray(values[name], np.float32).reshape(shape)
            card = ModelCard(**values)
            card.check_tensors()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ModelError(f'The model card is invalid: {str(error)[:400]}. {REMEDY}') from error
        return card

    def check_tensors(self) -> None:
        """Check the format of the checksum, and that grid and weights match the tensors: they set the memory use.

        Raises: ValueError.
        """
        if not re.fullmatch('[0-9a-f]{64}', self.checksum):
            raise ValueError(f'a checksum has 64 hexadecimal digits, not {self.checksum[:80]!r}')
        for shape in (*self.inputs.values(), *self.outputs.values()):
            if not isinstance(shape, list) or not all(type(size) in (int, str) for size in shape):
                raise ValueError(f'the shape of a tensor is a list of numbers and names, not {reprlib.repr(shape)}')
        if self.form == 'full':
            names = [f'points{k}' for k in range(self.num_sweeps)]
            if self.inputs.keys() != set(names) or self.outputs.keys() != {'flow'}:
                raise ValueError(f"a full model has the inputs {', '.join(names)} and the output 'flow'")
            return
        cells = self.grid.cells
        inputs = {'images': [1, self.num_sweeps * len(self.encoder.weight), cells, cells]}
        if self.form == 'gather':
            inputs |= {'cell_index': [POINTS_AXIS], 'offsets': [POINTS_AXIS, 3]}
            outputs = {'flow': [POINTS_AXIS, 3]}
        else:
            blocks, head = cells // self.head.block, self.head
            outputs = {'hidden': [blocks, blocks, head.block, head.block, len(head.offset_weight)]}
        if (self.inputs, self.outputs) != (inputs, outputs):
            raise ValueError(
                f'grid and weights belong to {inputs} and {outputs}, not to {reprlib.repr(self.inputs)} and '
                f'{reprlib.repr(self.outputs)}'
            )


def stamp_checksum(path: Path, card: ModelCard) -> ModelCard:
    """Write the checksum into a new model file whose card still has 64 zeros; return the card with it."""
    data = path.read_bytes()
    if data.count(NO_CHECKSUM.encode()) != 1:
        raise ValueError(f'{path} should hold one empty checksum')
    checksum = hashlib.sha256(data).hexdigest()
    path.write_bytes(data.replace(NO_CHECKSUM.encode(), checksum.encode()))
    return dataclasses.replace(card, checksum=checksum)


def verify_checksum(path: Path, card: ModelCard) -> None:
    """Check that a model file is unchanged.

    Raises: ModelError when any byte has changed.
    """
    data = Path(path).read_bytes().replace(card.checksum.encode(), NO_CHECKSUM.encode())
    found = hashlib.sha256(data).hexdigest()
    if found != card.checksum:
        raise ModelError(
            f'{path} is damaged: its card says sha256 {card.checksum[:12]}..., the file has {found[:12]}.... '
            f'Copy it again. {REMEDY}'
        )
