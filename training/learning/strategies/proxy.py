# SPDX-License-Identifier: Apache-2.0
"""Supervised learning of stereo scene flow from proxy labels of a teacher, or from exact ground truth."""

from torch import Tensor

from training.learning import stereo_losses
from training.students.dwarf import FINEST


class Proxy:
    """The strategy of students for stereo cameras: config.loss between prediction and labels. Source: DWARF."""

    teacher = 'stereo'

    def __init__(self, config):
        self.config = config

    def supervision(self, labels: str) -> str:
        """Return the description of the labels unchanged."""
        return labels

    def loss(self, student, batch) -> Tensor:
        """Return the loss of a student (CameraStudent) for a StereoBatch."""
        config = self.config
        if config.loss == 'laplace':
            loss = stereo_losses.laplace_loss(student(*batch.images, batch.ego_motion), batch.target)
        else:
            levels = student.levels(*batch.images)
            if config.loss == 'dwarf_levels':
                loss = stereo_losses.dwarf_levels_loss(levels, batch.target)
            else:
                # `upsampled` gives pixels; the loss is in the network's units.
                values = student.upsampled(levels[FINEST]) / stereo_losses.SCALE
                loss = stereo_losses.dwarf_masked_loss(values, batch.target)
        if config.l2:
            loss = loss + config.l2 * stereo_losses.squared_weights(student.parameters())
        return loss
