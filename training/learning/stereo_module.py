# SPDX-License-Identifier: Apache-2.0
"""PyTorch Lightning module of a student for stereo cameras."""

from torch import Tensor

from training.learning.lightning_module import StudentModule
from training.learning.stereo_samples import StereoBatch, collate_stereo


class StereoModule(StudentModule):
    """Trains a student on crops of stereo pairs; optimiser, log and checkpoints are those of StudentModule."""

    collate = staticmethod(collate_stereo)

    def loss(self, step: int, batch: StereoBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch; the log has nothing else."""
        return self.samples.strategy.loss(self.student, batch), {}
