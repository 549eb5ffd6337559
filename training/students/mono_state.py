# SPDX-License-Identifier: Apache-2.0
"""The state that multi_mono_sf carries from image to image."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from training.students.mono_geometry import resize
from training.students.splatting import splat_softmax, splat_sum

_SHARPNESS, _FARTHER = 20.0, 0.4  # the metric of the splat is -20 * (0.4 - disparity): what is nearer wins
_COVERED = 0.5  # weight that a cell must receive, and the share of the cells that must, or the state is dropped
_AGREES = 0.5  # what the gate must exceed
_LEAK = 0.1


class MonoState(NamedTuple):
    """What one step leaves for the next, all of the middle image of the step.

    forward_hidden, backward_hidden: (B, 96, h, w) of the levels 1/32, 1/16, 1/8, 1/4 of the image.
    cells: those of the forward and of the backward direction, (B, 96, h, w), of the levels 1/16, 1/8, 1/4; as
    published, both are the same.
    flow: (B, 2, H, W) [px], to the next image. disparity: (B, 1, H, W), fraction of the width.
    """

    forward_hidden: tuple[Tensor, ...]
    backward_hidden: tuple[Tensor, ...]
    cells: tuple[tuple[Tensor, Tensor], ...]
    flow: Tensor
    disparity: Tensor

    def check(self, batch: int, height: int, width: int) -> None:
        """Raise ValueError when the state is not of a batch of images of this size [px]."""
        expected, found = (batch, 2, height, width), tuple(self.flow.shape)
        if found != expected:
            raise ValueError(
                f'the state is of {found[0]} images of {found[3]} x {found[2]} px, the images are {batch} of '
                f'{width} x {height} px; start anew without a state'
            )


class Carrier:
    """Carries maps of one level from the image before to the present one, along the flow of the step before.

    Everything becomes 0 where the features that are carried along differ from those that are there, and everywhere if
    less than half of the cells receive something: of each sample where `scaled`, as published of the whole batch.

    features0, features1: (B, C, h, w), normalised, of the image before and of the present one. gate: 1x1 convolution of
    their product. scaled: whether the flow counts cells of the level; as published, it counts pixels of the image.
    """

    def __init__(self, state: MonoState, features0: Tensor, features1: Tensor, gate: nn.Conv2d, *, scaled: bool):
        height, width = features1.shape[2:]
        self.scaled = scaled
        self.flow = resize(state.flow, height, width)
        if scaled:
            ratios = [width / state.flow.shape[3], height / state.flow.shape[2]]
            self.flow = self.flow * self.flow.new_tensor(ratios)[:, None, None]
        self.metric = -_SHARPNESS * (_FARTHER - resize(state.disparity, height, width))
        received = splat_sum(features1.new_ones(len(features1), 1, height, width), self.flow)
        covered = (received > _COVERED).to(features1.dtype)
        self.coverage = covered.mean(dim=(1, 2, 3) if scaled else (0, 1, 2, 3), keepdim=True)  # share of the cells
        product = (splat_softmax(features0, self.flow, self.metric) * features1).sum(dim=1, keepdim=True)
        agrees = (functional.leaky_relu(gate(product), _LEAK) > _AGREES).to(features1.dtype)
        self.kept = agrees * (self.coverage >= _COVERED).to(features1.dtype)  # (B, 1, h, w)

    def carry(self, maps: Tensor) -> Tensor:
        """Return maps (B, C, h, w) of the image before as (B, C, h, w) of the present one."""
        return splat_softmax(maps, self.flow, self.metric) * self.kept
