# SPDX-License-Identifier: Apache-2.0
"""The model card of models for one camera, stored as JSON in the metadata of their ONNX files."""

import dataclasses
import json
import math
import re
import reprlib
from dataclasses import dataclass, field
from pathlib import Path

from zeroflow_ros.engines.camera_card import MAX_SIZE, REMEDY, read_fields
from zeroflow_ros.engines.model_card import NO_CHECKSUM
from zeroflow_ros.errors import ModelError

METADATA_KEY = 'zeroflow_ros.mono_card'
SCHEMA = 1
MAX_STATES, MAX_STATE_VALUES = 64, 2**28
RESIZES = ('scale', 'corners')
SPLATS = ('none', 'published', 'corrected')
_CHOICES = {
    'sensor': ('mono',), 'precision': ('float32', 'float16', 'int8'), 'resize': RESIZES,
    'refers_to': ('previous', 'latest'), 'splat': SPLATS,
}  # fmt: skip
_VALUES = 4  # depth, motion x, y, z
_SIGMAS = 2
_TYPES = {
    'name': str, 'student': str, 'sensor': str, 'precision': str, 'width': int, 'height': int, 'resize': str,
    'refers_to': str, 'num_images': int, 'scale': str, 'splat': str, 'estimates_sigma': bool, 'inputs': dict,
    'outputs': dict, 'state': dict, 'training': dict, 'licence': str, 'versions': dict, 'checksum': str, 'schema': int,
}  # fmt: skip


@dataclass(frozen=True)
class MonoCard:
    """Everything needed to run a model for one camera, and where it comes from.

    name: name of the model. student: the architecture. sensor: 'mono'. precision: arithmetic inside the file.
    width, height: of the images that the network takes [px]. resize: how images of a camera get this size: 'scale':
        pixels are areas, with antialiasing; 'corners': corners on corners, without, as multi-mono-sf does.
    refers_to: the frame whose pixels get depth and motion. 'previous': the last but one image, with its motion until
        the last one; flow is then one interval of the camera older than the last image. 'latest': the last image, with
        its motion back to the one before.
    num_images: images from the start of a sequence until the first output counts.
    far: depth from which on a value only means far away [m].
    scale: where metres come from, in words. splat: how the state is carried along: 'none': not along the flow,
        'published', 'corrected': see training.students.multi_mono_sf.
    nominal_dt: seconds between the images of the training.
    estimates_sigma: whether the network estimates its errors for each pixel.
    sigma: standard deviations of a network that does not: of depth, relative; of motion [m per m of depth].
    inputs, outputs: tensor name to shape, without the state. `image`: the newest one, uint8 RGB. `intrinsics`: of that
        size [px]. `scene_flow`: depth [m], motion x, y, z [m] in the optical frame, with the camera's own motion; then
        the logarithms of both sigmas, if it estimates them, of motion in metres. Its pixels may be longer than those of
        the image.
    state: shape of each tensor NAME that goes from one image to the next as input NAME and output next_NAME, float32.
        All are 0 at the start.
    training: data, duration and code of the training. licence: SPDX id. versions: versions of the export libraries.
    checksum: sha256 of the file with this field set to 64 zeros.
    """

    name: str
    student: str
    precision: str
    width: int
    height: int
    resize: str
    refers_to: str
    num_images: int
    far: float
    scale: str
    splat: str
    nominal_dt: float
    estimates_sigma: bool
    sigma: tuple[float, float]
    training: dict
    licence: str
    versions: dict
    state: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)
    outputs: dict = field(default_factory=dict)
    sensor: str = 'mono'
    checksum: str = NO_CHECKSUM
    schema: int = SCHEMA

    def __post_init__(self):
        if self.schema != SCHEMA:
            raise ModelError(f'The mono card has schema {self.schema}, this version reads schema {SCHEMA}. {REMEDY}')
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ModelError(
                    f'The mono card has {name} {reprlib.repr(getattr(self, name))}, expected one of {choices}. {REMEDY}'
                )
        if not (1 <= self.width <= MAX_SIZE and 1 <= self.height <= MAX_SIZE):
            raise ModelError(
                f'The mono card has images of {self.width} x {self.height} px, expected 1 to {MAX_SIZE}. {REMEDY}'
            )
        if not 2 <= self.num_images <= 16:
            raise ModelError(f'The mono card has num_images {self.num_images}, expected 2 to 16. {REMEDY}')
        for name in ('far', 'nominal_dt'):
            if not 0 < getattr(self, name) < math.inf:
                raise ModelError(
                    f'The mono card has {name} {getattr(self, name)}, expected a positive number. {REMEDY}'
                )
        if not self.estimates_sigma and not all(0 < sigma < math.inf for sigma in self.sigma):
            raise ModelError(f'The mono card has sigma {self.sigma}, expected two positive numbers. {REMEDY}')

    @property
    def latency_intervals(self) -> int:
        """Intervals of the camera from the image that the flow belongs to until the last one that it needs."""
        return 1 if self.refers_to == 'previous' else 0

    def to_json(self) -> str:
        """Return the card as JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> 'MonoCard':
        """Read a card from JSON.

        Raises: ModelError that names missing or unknown fields, or fields of the wrong type.
        """
        values = read_fields(text, MonoCard, _TYPES, 'mono card')
        try:
            json.dumps(values, ensure_ascii=False).encode()  # a lone surrogate would break logs and diagnostics
            depth, motion = (float(sigma) for sigma in values['sigma'])
            numbers = {name: float(values[name]) for name in ('far', 'nominal_dt')}
            card = MonoCard(**values | numbers | {'sigma': (depth, motion)})
            card.check_tensors()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ModelError(f'The mono card is invalid: {str(error)[:400]}. {REMEDY}') from error
        return card

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the scene flow [pixels of the output]."""
        return tuple(self.outputs['scene_flow'][2:])

    def tensors(self) -> tuple[dict, dict]:
        """Return all inputs and outputs of the file: name to shape."""
        return self.inputs | self.state, self.outputs | {f'next_{name}': shape for name, shape in self.state.items()}

    def check_tensors(self) -> None:
        """Check the format of the checksum, and that the tensors fit the other fields. Raises: ValueError."""
        if not re.fullmatch('[0-9a-f]{64}', self.checksum):
            raise ValueError(f'a checksum has 64 hexadecimal digits, not {self.checksum[:80]!r}')
        inputs = {'image': [1, self.height, self.width, 3], 'intrinsics': [1, 3, 3]}
        if self.inputs != inputs:
            raise ValueError(f'its fields call for the inputs {inputs}, not {reprlib.repr(self.inputs)}')
        num_values = _VALUES + _SIGMAS * self.estimates_sigma
        shape = self.outputs.get('scene_flow')
        fits = isinstance(shape, list) and len(shape) == 4 and all(type(side) is int for side in shape)
        if not fits or shape[:2] != [1, num_values] or len(self.outputs) != 1:
            raise ValueError(
                f"its fields call for one output 'scene_flow' (1, {num_values}, height, width), not "
                f'{reprlib.repr(self.outputs)}'
            )
        if not (0 < shape[2] <= self.height and 0 < shape[3] <= self.width):
            raise ValueError(f'scene_flow of {shape[3]} x {shape[2]} is not within {self.width} x {self.height}')
        if not 0 < len(self.state) <= MAX_STATES:
            raise ValueError(f'a state has 1 to {MAX_STATES} tensors, not {len(self.state)}')
        for name, sides in self.state.items():
            is_shape = isinstance(sides, list) and all(type(side) is int and side > 0 for side in sides)
            if not is_shape or math.prod(sides) > MAX_STATE_VALUES or name in inputs or name == 'scene_flow':
                raise ValueError(f'{name[:40]!r} of {reprlib.repr(sides)} is no tensor of a state')


def is_mono_model(path: str | Path) -> bool:
    """Return whether a file seems to be a model for one camera; False where there is none."""
    path = Path(path).expanduser()
    return path.is_file() and METADATA_KEY.encode() in path.read_bytes()
