# SPDX-License-Identifier: Apache-2.0
"""PyTorch Lightning module of a student of one camera."""

from torch import Tensor

from training.learning.lightning_module import StudentModule
from training.learning.mono_samples import MonoBatch, collate_mono


class MonoModule(StudentModule):
    """Trains a student on windows of images; optimiser, log and checkpoints are those of StudentModule.

    The log has the parts of the loss, see the strategies.
    """

    collate = staticmethod(collate_mono)

    def loss(self, step: int, batch: MonoBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and its parts for the log."""
        loss, parts = self.samples.strategy.loss(self.student, batch, step)
        return loss, {f'loss/{name}': value for name, value in parts.items()}
