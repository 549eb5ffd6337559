# SPDX-License-Identifier: Apache-2.0
"""Scene flow of stereo pairs by a checkpoint of a student, in plain torch."""

import re

import numpy as np
import torch

from training.learning.checkpoint import Checkpoint
from training.students import CameraStudent
from zeroflow_ros.engines.stereo_card import StereoCard
from zeroflow_ros.engines.stereo_network import StereoNetworkFlow
from zeroflow_ros.errors import ConfigError

_SIGMA_PX = 1.0, 1.0, 1.0  # of a student that does not estimate its errors; only its verdicts on what moves use them


class CheckpointStereoFlow(StereoNetworkFlow):
    """Runs a student; the scene flow is that of its model file. card: as the model file has it."""

    def __init__(self, card: StereoCard, student: CameraStudent):
        super().__init__(card, f'torch {torch.__version__} on cpu, {torch.get_num_threads()} threads')
        self._student = student.eval()

    @torch.inference_mode()
    def infer(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """See `StereoNetworkFlow.infer`."""
        images = torch.from_numpy(inputs['images']).to(torch.float32).permute(0, 3, 1, 2) * (1 / 255)
        motion = torch.from_numpy(inputs['ego_motion']) if 'ego_motion' in inputs else None
        found = self._student(*images[:, None].unbind(), motion)
        return torch.cat([part for part in found[:4] if part is not None], dim=1).numpy()


def checkpoint_flow(name: str, checkpoint: Checkpoint, size: str = '') -> CheckpointStereoFlow:
    """Return the estimator of a checkpoint of a student of stereo images.

    name: of the estimator. size: WIDTHxHEIGHT of the network's images [px]; '': that of its training.
    Raises: ConfigError for a size that the student cannot take.
    """
    student = checkpoint.build()
    width, height = parse_size(size, student) if size else checkpoint.image_size(student)
    card = StereoCard(
        name=name, student=checkpoint.student, precision='float32', width=width, height=height, resize=student.resize,
        uses_ego_motion=student.uses_ego_motion, estimates_sigma=student.log_sigma,
        sigma_px=checkpoint.provenance.get('sigma_px') or _SIGMA_PX, training={},
        licence=checkpoint.provenance.get('licence', 'unknown'), versions={},
    )  # fmt: skip
    return CheckpointStereoFlow(card, student)


def parse_size(text: str, student: CameraStudent) -> tuple[int, int]:
    """Return width and height of WIDTHxHEIGHT [px]. Raises: ConfigError when the student cannot take such images."""
    match = re.fullmatch(r'(\d{1,5})x(\d{1,5})', text)
    width, height = map(int, match.groups()) if match else (0, 0)
    if not width * height or width % student.multiple or height % student.multiple:
        raise ConfigError(
            f'The images of a {student.name} have a width and a height that are multiples of {student.multiple} px, '
            f'expected WIDTHxHEIGHT, got {text!r}.'
        )
    return width, height
