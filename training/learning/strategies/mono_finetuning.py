# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of multi_mono_sf on ground truth, beside the self-supervised loss, as it was meant."""

import torch
from torch import Tensor

from training.learning.mono_label_losses import finetuning_losses
from training.learning.mono_samples import MonoBatch
from training.learning.strategies.mono_self_supervised import MonoSelfSupervised
from training.students.flip_averaging import blended, unflipped
from training.students.mono_geometry import flipped_intrinsics


class MonoFinetuning:
    """The self-supervised loss, and the losses of disparities and of flow, each scaled to the largest of the three.

    Windows without ground truth have the self-supervised loss alone.
    Source: Hur and Roth; the released loss of multi-mono-sf cannot be constructed, that of their earlier code can.
    """

    teacher = ''

    def __init__(self, config):
        self.config = config
        self._self_supervised = MonoSelfSupervised(config)

    def supervision(self, labels: str) -> str:
        """Return the description of both parts."""
        return f'{labels}; {self._self_supervised.supervision("")}'

    def loss(self, student, batch: MonoBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch in a step, and values for the log."""
        flows = student.sequence(batch.left, batch.intrinsics)
        loss, parts = self._self_supervised.loss_of(student, batch, step, flows)
        if not torch.isfinite(batch.labels[:, -1, 0]).all(dim=-1).any():
            return loss, parts
        mirrored = student.sequence(batch.left.flip(-1), flipped_intrinsics(batch.intrinsics, batch.left.shape[-1]))
        disparities, flow = finetuning_losses(blended(flows[-1], unflipped(mirrored[-1])), batch)
        terms = loss, disparities, flow
        largest = torch.stack([term.detach() for term in terms]).max()
        total = sum(term * (largest / term.detach().clamp(min=1e-12)) for term in terms)
        return total, parts | {'true_disparities': disparities.detach(), 'true_flow': flow.detach()}
