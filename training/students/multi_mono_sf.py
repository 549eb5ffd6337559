# SPDX-License-Identifier: Apache-2.0
"""multi_mono_sf, layer for layer: depth and scene flow from three images of one camera, with a state between steps.

Source: Hur and Roth, Self-Supervised Multi-Frame Monocular Scene Flow (CVPR 2021), and the network of their code.
Modules are named as in their checkpoints, so that the weights load by name.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.students.mono_geometry import optical_flow, resize, scaled_intrinsics, target_pixels, warp
from training.students.mono_state import Carrier, MonoState
from training.students.stereo_layers import correlation_2d

LEAK = 0.1
CHANNELS = (32, 64, 96, 128, 192)  # of the pyramid, at 1/2 to 1/32 of the size
NUM_LEVELS = 4  # of the decoder; level 0 is the coarsest, 1/32, and the last is 1/4 of the size
LARGEST_DISPARITY = 0.3  # widths of the image
_FINEST = 4  # pixels per cell of the last level, along an axis
_RADIUS = 4  # of the correlations [cells]
_VOLUME = (2 * _RADIUS + 1) ** 2
_TRUNK = (128, 128, 96)
_HIDDEN = _TRUNK[-1]


class MonoFlow(NamedTuple):
    """Depth and scene flow of the middle one of three images, at four sizes: the images', a half, a quarter, an eighth.

    forward, backward: (B, 3, h, w) [m] each, how far what a pixel shows moves until the next image, and where it was at
    the one before, in the optical frame (x right, y down, z forward). The motion of the camera is in it.
    disparity: (B, 1, h, w) each, fraction of the width, see training.students.mono_geometry for the depth.
    """

    forward: tuple[Tensor, ...]
    backward: tuple[Tensor, ...]
    disparity: tuple[Tensor, ...]


class MultiMonoSf(nn.Module):
    """The network of multi_mono_sf: 122 tensors, 7,536,920 parameters.

    corrected: the flow that carries the state is in cells of each level, each direction has a cell state of its own,
    and the gate of the state starts open. Without it, the network is as published: the flow is in pixels of the whole
    image at every level, 4 to 16 times too long, and both directions share one cell state. Published weights need the
    latter.
    """

    name = 'multi_mono_sf'
    multiple = 32
    resize = 'scale'
    default_size = (832, 256)  # of the published weights

    def __init__(self, *, corrected: bool = False):
        super().__init__()
        self.corrected = corrected
        self.feature_pyramid_extractor = _Pyramid()
        self.flow_estimators = nn.ModuleList(_Decoder(_num_inputs(level)) for level in range(NUM_LEVELS))
        self.upconv_layers = nn.ModuleList(_Upconv() for _ in range(NUM_LEVELS - 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)
        if corrected:
            for decoder in self.flow_estimators:  # the gate has no gradient: a random sign would shut it for ever
                nn.init.ones_(decoder.featprop_softsplat.conv1x1[0].weight)

    def forward(self, image0: Tensor, image1: Tensor, image2: Tensor, intrinsics: Tensor,
                state: MonoState | None = None) -> tuple[MonoFlow, MonoState]:  # fmt: skip
        """Return what the middle one of three images shows, and the state for the step that begins one image later.

        image0, image1, image2: (B, 3, H, W) RGB in [0, 1], in the order of time. intrinsics: (B, 3, 3) [px], of these
        images. state: of the step one image before; None starts anew.
        Raises: ValueError for sizes that do not fit.
        """
        features = [self.features(image) for image in (image0, image1, image2)]
        return self.step(*features, intrinsics, state)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the features (B, C, h, w) of an image (B, 3, H, W), from 1/32 to 1/2 of its size."""
        height, width = image.shape[2:]
        if height % self.multiple or width % self.multiple or not height * width:
            raise ValueError(
                f'{self.name} takes images whose width and height are multiples of {self.multiple} px, not '
                f'{width} x {height}'
            )
        return self.feature_pyramid_extractor(image)

    def sequence(self, images: Tensor, intrinsics: Tensor) -> list[MonoFlow]:
        """Return what the images (B, T, 3, H, W) but the first and the last show; the state starts anew."""
        if images.ndim != 5 or images.shape[1] < 3:
            raise ValueError(f'expected at least 3 images, (B, T, 3, H, W), found {tuple(images.shape)}')
        features, found, state = [self.features(image) for image in images.unbind(1)], [], None
        for k in range(1, len(features) - 1):
            flow, state = self.step(*features[k - 1 : k + 2], intrinsics, state)
            found.append(flow)
        return found

    def step(self, features0: tuple[Tensor, ...], features1: tuple[Tensor, ...], features2: tuple[Tensor, ...],
             intrinsics: Tensor, state: MonoState | None = None, *,
             continues: Tensor | None = None) -> tuple[MonoFlow, MonoState]:  # fmt: skip
        """Return what `forward` returns, from the `features` of the three images: each is computed once.

        continues: bool, (B, 1, 1, 1), whether the state counts: a graph always has a state. None: it does.
        """
        height, width = (2 * side for side in features1[-1].shape[2:])
        if intrinsics.shape != (len(features1[0]), 3, 3):
            raise ValueError(f'expected intrinsics ({len(features1[0])}, 3, 3), found {tuple(intrinsics.shape)}')
        if state is not None:
            state.check(len(features1[0]), height, width)
        flows = [], [], []  # forward, backward, disparity of each level
        hidden, cells = [], []
        values = None
        for level, decoder in enumerate(self.flow_estimators):
            x0, x1, x2 = features0[level], features1[level], features2[level]
            size = x1.shape[2:]
            inputs, backward_inputs, moved0, moved2 = [], [], x0, x2
            if level:
                forward, backward, disparity = (resize(part, *size) for part in values)
                above = [resize(self.upconv_layers[level - 1](part), *size) for part in hidden[-1]]
                here = scaled_intrinsics(intrinsics, (height, width), tuple(size))
                moved2 = warp(x2, target_pixels(forward, disparity, here))
                moved0 = warp(x0, target_pixels(backward, disparity, here))
                inputs = [forward, -backward, disparity]
                backward_inputs = [backward, -forward, disparity]
            normal = normalised(x1)
            volume = _activated(correlation_2d(normal, normalised(moved2), _RADIUS))
            backward_volume = _activated(correlation_2d(normal, normalised(moved0), _RADIUS))
            feature, backward_feature = ([above[0]], [above[1]]) if level else ([], [])
            trunk = decoder.trunk(torch.cat([normal, *feature, volume, backward_volume, *inputs], dim=1))
            backward_trunk = decoder.trunk(
                torch.cat([normal, *backward_feature, backward_volume, volume, *backward_inputs], dim=1)
            )
            if level and state is not None:
                gate = decoder.featprop_softsplat
                carrier = Carrier(state, normalised(x0), normal, gate.conv1x1[0], scaled=self.corrected)
                hidden_level, cells_level = decoder.remember(
                    trunk, backward_trunk, state, level, carrier, shared=not self.corrected
                )
                if continues is not None:
                    first_cells = decoder.first_cells(trunk, backward_trunk, shared=not self.corrected)
                    hidden_level = _where(continues, hidden_level, (trunk, backward_trunk))
                    cells_level = _where(continues, cells_level, first_cells)
            else:
                hidden_level = trunk, backward_trunk
                cells_level = decoder.first_cells(trunk, backward_trunk, shared=not self.corrected) if level else None
            heads = [decoder.heads(part) for part in hidden_level]
            changes = [head[0] for head in heads]
            values = (
                changes[0] + forward if level else changes[0],
                changes[1] + backward if level else changes[1],
                LARGEST_DISPARITY * torch.sigmoid((heads[0][1] + heads[1][1]) / 2),
            )
            hidden.append(hidden_level)
            cells.append(cells_level)
            for found, value in zip(flows, values, strict=True):
                found.insert(0, resize(value, *(_FINEST * side for side in size)))
        flow = MonoFlow(*map(tuple, flows))
        motion = optical_flow(flow.forward[0], flow.disparity[0], intrinsics).detach()
        forward_hidden, backward_hidden = zip(*hidden, strict=True)
        return flow, MonoState(forward_hidden, backward_hidden, tuple(cells[1:]), motion, flow.disparity[0])


def normalised(features: Tensor) -> Tensor:
    """Return features (B, C, h, w) with mean 0 and unbiased variance 1 over C, h, w together."""
    variance, mean = torch.var_mean(features, dim=(1, 2, 3), keepdim=True)
    return (features - mean) / torch.sqrt(variance + 1e-16)


class _Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        pairs = zip((3, *CHANNELS), CHANNELS, strict=False)
        self.convs = nn.ModuleList(nn.Sequential(_conv(i, o, stride=2), _conv(o, o)) for i, o in pairs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for block in self.convs:
            x = block(x)
            found.insert(0, x)
        return tuple(found)


class _Decoder(nn.Module):
    """Estimates scene flow and disparity of one level, for both directions with the same weights."""

    def __init__(self, num_in: int):
        super().__init__()
        self.featprop_softsplat = nn.Module()
        self.featprop_softsplat.conv1x1 = nn.Sequential(nn.Conv2d(1, 1, 1))
        self.convs = _chain(num_in, *_TRUNK)
        self.conv_sf = _chain(_HIDDEN, 64, 32, 3, last_is_linear=True)
        self.conv_d1 = _chain(_HIDDEN, 64, 32, 1, last_is_linear=True)
        self.conv_c_init = _conv(_HIDDEN, _HIDDEN)
        self.conv_lstm = _conv(2 * _HIDDEN, 4 * _HIDDEN, activated=False)

    def trunk(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 96, h, w)."""
        return self.convs(x)

    def heads(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return scene flow (B, 3, h, w) and disparity (B, 1, h, w) before its sigmoid from (B, 96, h, w)."""
        return self.conv_sf(hidden), self.conv_d1(hidden)

    def first_cells(self, forward: Tensor, backward: Tensor, *, shared: bool) -> tuple[Tensor, Tensor]:
        """Return the cell states of a first step; shared: that of the direction that comes last, for both."""
        backward_cell = self.conv_c_init(backward)
        return (backward_cell if shared else self.conv_c_init(forward)), backward_cell

    def remember(self, forward: Tensor, backward: Tensor, state: MonoState, level: int, carrier: Carrier, *,
                 shared: bool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:  # fmt: skip
        """Return hidden and cell states of both directions after trunks (B, 96, h, w), given the step before.

        With one cell state for both, the backward direction reads what the forward direction has just written, and
        carries it along the flow a second time.
        """
        cell, backward_cell = state.cells[level - 1]
        maps = torch.cat([state.forward_hidden[level], state.backward_hidden[level], cell], dim=1)
        hidden, backward_hidden, cell = carrier.carry(maps).chunk(3, dim=1)
        forward, cell = self._lstm(forward, hidden, cell)
        backward_cell = carrier.carry(cell if shared else backward_cell)
        backward, backward_cell = self._lstm(backward, backward_hidden, backward_cell)
        return (forward, backward), (backward_cell if shared else cell, backward_cell)

    def _lstm(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Convolutional LSTM without peepholes; a leaky ReLU is in the place of tanh."""
        i, f, o, g = self.conv_lstm(torch.cat([x, hidden], dim=1)).chunk(4, dim=1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * _activated(g)
        return torch.sigmoid(o) * _activated(cell), cell


class _Upconv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = _conv(_HIDDEN, _HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(functional.interpolate(x, scale_factor=2, mode='nearest'))


def _where(condition: Tensor, here: tuple[Tensor, Tensor], there: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return tuple(torch.where(condition, one, other) for one, other in zip(here, there, strict=True))


def _num_inputs(level: int) -> int:
    from_above = _HIDDEN + 3 + 3 + 1 if level else 0
    return CHANNELS[-1 - level] + 2 * _VOLUME + from_above


def _activated(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, LEAK)


def _conv(num_in: int, num_out: int, *, stride: int = 1, activated: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(num_in, num_out, 3, stride, padding=1)
    return nn.Sequential(conv, nn.LeakyReLU(LEAK)) if activated else nn.Sequential(conv)


def _chain(*channels: int, last_is_linear: bool = False) -> nn.Sequential:
    num = len(channels) - 1
    return nn.Sequential(*(
        _conv(channels[k], channels[k + 1], activated=not (last_is_linear and k == num - 1)) for k in range(num)
    ))  # fmt: skip


def multi_mono_sf() -> MultiMonoSf:
    """The network as published."""
    return MultiMonoSf()


def multi_mono_sf_corrected() -> MultiMonoSf:
    """The network with a state that is carried by the flow of each level; for training, not for published weights."""
    return MultiMonoSf(corrected=True)
