# SPDX-License-Identifier: Apache-2.0
"""What all students of stereo images have in common."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class StereoPrediction(NamedTuple):
    """Scene flow of the pixels of the first left image, in pixels of the images that the student was given.

    disparity, other_disparity: (B, 1, H, W), positive; the latter is what the point has in the second frame.
    flow: (B, 2, H, W), from the first to the second left image.
    log_sigma: (B, 3, H, W), logarithm of the scale of the errors [px] of disparity, other_disparity and flow; None: the
    student does not estimate them.
    coarse: (B, 4, H / n, W / n), disparity, other_disparity and flow at every n-th pixel before the last refinement,
    for the loss. None: there are none.
    """

    disparity: Tensor
    other_disparity: Tensor
    flow: Tensor
    log_sigma: Tensor | None = None
    coarse: Tensor | None = None


class CameraStudent(nn.Module):
    """A student of stereo images.

    multiple: width and height of its images are multiples of this [px]. resize: how other sizes get there, 'pad'
    (reflected borders, centred) or 'scale'. default_size: width and height of the images of a model file [px].
    log_sigma: whether it estimates its errors. uses_ego_motion: whether it takes ego motion; it works without.
    """

    name: str
    multiple: int
    resize: str
    default_size: tuple[int, int]
    log_sigma: bool
    uses_ego_motion: bool

    def forward(self, left0: Tensor, right0: Tensor, left1: Tensor, right1: Tensor,
                ego_motion: Tensor | None = None) -> StereoPrediction:  # fmt: skip
        """Return the prediction.

        left0, right0, left1, right1: (B, 3, H, W) RGB in [0, 1], rectified.
        ego_motion: (B, 3, 4), where the pixels of a static scene go, see `zeroflow_ros.camera.static_scene`; None:
        unknown.
        """
        raise NotImplementedError

    def check_size(self, image: Tensor) -> None:
        """Raise ValueError when the size of images is not a multiple of `multiple`."""
        height, width = image.shape[2:]
        if height % self.multiple or width % self.multiple or not height * width:
            raise ValueError(
                f'{self.name} takes images whose width and height are multiples of {self.multiple} px, not '
                f'{width} x {height}'
            )


def known(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return values with 0 in place of NaN, and which are known, (same shape) bool."""
    is_known = ~torch.isnan(values)
    return torch.where(is_known, values, torch.zeros_like(values)), is_known
