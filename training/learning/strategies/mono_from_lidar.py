# SPDX-License-Identifier: Apache-2.0
"""Learning of one camera from depth and scene flow of the `lidar` teacher, or of any other labels of stereo pairs."""

from torch import Tensor

from training.learning.mono_label_losses import label_loss
from training.learning.mono_samples import MonoBatch
from training.learning.strategies.mono_self_supervised import MonoSelfSupervised


class MonoFromLidar:
    """Depth and motion where the labels have them; config.self_supervised adds the loss of images beside them."""

    teacher = 'lidar'

    def __init__(self, config):
        self.config = config
        self._self_supervised = MonoSelfSupervised(config)

    def supervision(self, labels: str) -> str:
        """Return the description of the labels, and of what is beside them."""
        beside = self._self_supervised.supervision('') if self.config.self_supervised else ''
        return f'{labels}; {beside}' if beside else labels

    def loss(self, student, batch: MonoBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch in a step, and values for the log."""
        flows = student.sequence(batch.left, batch.intrinsics)
        loss, parts = label_loss(flows, batch, self.config.flow)
        if self.config.self_supervised:
            beside, more = self._self_supervised.loss_of(student, batch, step, flows)
            loss, parts = loss + self.config.self_supervised * beside, parts | more
        return loss, parts
