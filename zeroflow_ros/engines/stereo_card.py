# SPDX-License-Identifier: Apache-2.0
"""The model card of models for stereo cameras, stored as JSON in the metadata of their ONNX files."""

import dataclasses
import json
import math
import re
import reprlib
from dataclasses import dataclass, field

from zeroflow_ros.camera.network_images import RESIZES, NetworkImages
from zeroflow_ros.engines.camera_card import MAX_SIZE, REMEDY, read_fields
from zeroflow_ros.engines.model_card import NO_CHECKSUM
from zeroflow_ros.errors import ModelError

METADATA_KEY = 'zeroflow_ros.stereo_card'
SCHEMA = 1
_CHOICES = {'precision': ('float32', 'float16', 'int8'), 'resize': RESIZES}
_VALUES = 4  # disparity, disparity in the other frame, flow u, flow v
_TYPES = {
    'name': str, 'student': str, 'precision': str, 'width': int, 'height': int, 'resize': str, 'uses_ego_motion': bool,
    'estimates_sigma': bool, 'inputs': dict, 'outputs': dict, 'training': dict, 'licence': str, 'versions': dict,
    'checksum': str, 'schema': int,
}  # fmt: skip


@dataclass(frozen=True)
class StereoCard:
    """Everything needed to run a model for stereo cameras, and where it comes from.

    name: name of the model. student: the architecture. precision: arithmetic inside the file.
    width, height, resize: of the images that the network takes, see NetworkImages.
    uses_ego_motion: whether the network takes ego motion; it works without.
    estimates_sigma: whether the network estimates the standard deviation of its errors for each pixel.
    sigma_px: standard deviations of disparity, of disparity in the other frame, and of flow per axis [px of the
        network's images] of a network that does not estimate them.
    inputs, outputs: tensor name to shape. `images`: left and right image of the reference frame, then of the other,
        uint8 RGB. `ego_motion`: see zeroflow_ros.camera.static_scene. `scene_flow`: disparity, disparity in the other
        frame, flow u, v [px of the network's images], then the logarithms of the three sigmas, if it estimates them.
    training: data, duration and code of the training. licence: SPDX id. versions: versions of the export libraries.
    checksum: sha256 of the file with this field set to 64 zeros.
    """

    name: str
    student: str
    precision: str
    width: int
    height: int
    resize: str
    uses_ego_motion: bool
    estimates_sigma: bool
    sigma_px: tuple[float, float, float]
    training: dict
    licence: str
    versions: dict
    inputs: dict = field(default_factory=dict)
    outputs: dict = field(default_factory=dict)
    checksum: str = NO_CHECKSUM
    schema: int = SCHEMA

    def __post_init__(self):
        if self.schema != SCHEMA:
            raise ModelError(f'The stereo card has schema {self.schema}, this version reads schema {SCHEMA}. {REMEDY}')
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ModelError(
                    f'The stereo card has {name} {reprlib.repr(getattr(self, name))}, expected one of {choices}. '
                    f'{REMEDY}'
                )
        if not (1 <= self.width <= MAX_SIZE and 1 <= self.height <= MAX_SIZE):
            raise ModelError(
                f'The stereo card has images of {self.width} x {self.height} px, expected 1 to {MAX_SIZE}. {REMEDY}'
            )
        if not self.estimates_sigma and not all(0 < sigma < math.inf for sigma in self.sigma_px):
            raise ModelError(
                f'The stereo card has sigma_px {self.sigma_px}; a model that does not estimate its errors needs three '
                f'positive standard deviations. {REMEDY}'
            )

    @property
    def images(self) -> NetworkImages:
        """The images of the network."""
        return NetworkImages(self.width, self.height, self.resize)

    def to_json(self) -> str:
        """Return the card as JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> 'StereoCard':
        """Read a card from JSON.

        Raises: ModelError that names missing or unknown fields, or fields of the wrong type.
        """
        values = read_fields(text, StereoCard, _TYPES, 'stereo card')
        try:
            json.dumps(values, ensure_ascii=False).encode()  # a lone surrogate would break logs and diagnostics
            disparity, other_disparity, flow = (float(sigma) for sigma in values['sigma_px'])
            card = StereoCard(**values | {'sigma_px': (disparity, other_disparity, flow)})
            card.check_tensors()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ModelError(f'The stereo card is invalid: {str(error)[:400]}. {REMEDY}') from error
        return card

    def tensors(self) -> tuple[dict, dict]:
        """Return the inputs and outputs that the other fields call for."""
        inputs = {'images': [4, self.height, self.width, 3]}
        if self.uses_ego_motion:
            inputs['ego_motion'] = [1, 3, 4]
        num_values = _VALUES + 3 * self.estimates_sigma
        return inputs, {'scene_flow': [1, num_values, self.height, self.width]}

    def check_tensors(self) -> None:
        """Check the format of the checksum, and that the tensors fit the other fields. Raises: ValueError."""
        if not re.fullmatch('[0-9a-f]{64}', self.checksum):
            raise ValueError(f'a checksum has 64 hexadecimal digits, not {self.checksum[:80]!r}')
        if (self.inputs, self.outputs) != self.tensors():
            inputs, outputs = self.tensors()
            raise ValueError(
                f'its fields call for {inputs} and {outputs}, not {reprlib.repr(self.inputs)} and '
                f'{reprlib.repr(self.outputs)}'
            )
