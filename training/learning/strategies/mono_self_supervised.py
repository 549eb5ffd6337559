# SPDX-License-Identifier: Apache-2.0
"""Self-supervised learning of one camera from stereo videos that nobody labelled."""

from torch import Tensor

from training.learning.mono_losses import self_supervised_loss
from training.learning.mono_samples import MonoBatch
from training.students.mono_geometry import flipped_intrinsics
from training.students.multi_mono_sf import MonoFlow


class MonoSelfSupervised:
    """The loss of multi_mono_sf. Source: Hur and Roth (CVPR 2021)."""

    teacher = ''

    def __init__(self, config):
        self.config = config

    def supervision(self, labels: str) -> str:
        """Return where the training's knowledge comes from; labels do not count."""
        return 'self-supervised by stereo videos'

    def loss(self, student, batch: MonoBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch in a step, and values for the log."""
        return self.loss_of(student, batch, step, student.sequence(batch.left, batch.intrinsics))

    def loss_of(self, student, batch: MonoBatch, step: int, flows: list[MonoFlow]):
        """Return what `loss` returns, given the student's results of the left images."""
        import torch

        with torch.no_grad():  # the right eye, mirrored, is a left one
            mirrored = student.sequence(
                batch.right.flip(-1), flipped_intrinsics(batch.intrinsics, batch.right.shape[-1])
            )
        right_disparity = [[values.flip(-1) for values in flow.disparity] for flow in mirrored]
        loss = self_supervised_loss(
            batch.left, batch.right, batch.intrinsics, flows, right_disparity,
            detach_disparity=step < self.config.detach_steps, baseline=batch.baseline,
            finest_level=self.config.finest_level,
        )  # fmt: skip
        names = 'disparity', 'scene_flow', 'census', 'points'
        return loss.total, {name: getattr(loss, name).detach() for name in names}
