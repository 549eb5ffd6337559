# SPDX-License-Identifier: Apache-2.0
"""DWARF, layer for layer: disparity, second disparity and optical flow of two stereo frames in one network.

Source: Aleotti et al., Learning End-To-End Scene Flow by Distilling Single Tasks Knowledge (AAAI 2020), and the
network of their code. Modules are named as the scopes of its TensorFlow variables, so that its weights load by name.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.students.camera_student import CameraStudent, StereoPrediction
from training.students.stereo_layers import (
    correlation_1d,
    correlation_2d,
    correlation_3d,
    legacy_upsample,
    same_padding,
    warp_along_rows,
    warp_by_flow,
)

LEAK = 0.1
SCALE = 20.0  # the network predicts pixels of the full resolution, divided by this
CHANNELS = (16, 32, 64, 96, 128, 196)  # of the encoder, level 1 (half size) to 6
COARSEST, FINEST = 6, 2  # levels of the decoder; level l has 1 / 2^l of the size
RADIUS = 4  # of all correlations [px of the level]
DEPTH_RADIUS = 0  # of the 3-D correlation along its channels, in all published configurations
_VOLUMES = 2 * (2 * RADIUS + 1) + 2 * (2 * RADIUS + 1) ** 2  # channels of the four of them
_VALUES = 4  # disparity, second disparity, flow u, flow v
_HEADS = {'disparity': 1, 'disparity_change': 1, 'optical_flow': 2}  # channels, in the order of the values
_UPSAMPLED = {'disparity': 'disparity', 'disparity_change': 'disparity_change', 'optical_flow': 'flow'}  # scopes
_CONTEXT = ((128, 1), (128, 2), (128, 4), (96, 8), (64, 16), (32, 1))  # channels and rate of the context networks


class Dwarf(CameraStudent):
    """The network of DWARF: 246 variables, 19,618,196 parameters.

    Disparities are negative in the network: what the left camera sees at (u, v), the right sees at
    (u + value, v). The second disparity ("disparity change") is the disparity that the point has in the second
    frame; it is stored at the pixel of the first frame.

    coarsest: level that the decoder begins with; DWARF's is 6.
    """

    name = 'dwarf'
    resize = 'pad'
    default_size = (1280, 384)  # for the images of KITTI
    log_sigma = False
    uses_ego_motion = False

    def __init__(self, coarsest: int = COARSEST):
        super().__init__()
        self.coarsest, self.multiple = coarsest, 2**coarsest
        self.Encoder = nn.ModuleDict({f'level_{level}': _encoder_level(level) for level in range(1, coarsest + 1)})
        self.decoder = nn.ModuleDict({
            f'block_{level}': nn.ModuleDict({'estimator': _Estimator(_inputs(level, coarsest), level == FINEST)})
            for level in range(coarsest, FINEST - 1, -1)
        })  # fmt: skip
        for parameter in self.parameters():  # slim's initial values
            if parameter.ndim == 4:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(self, left0: Tensor, right0: Tensor, left1: Tensor, right1: Tensor,
                ego_motion: Tensor | None = None) -> StereoPrediction:  # fmt: skip
        """Return what a CameraStudent predicts; the ego motion is not used."""
        values = self.upsampled(self.levels(left0, right0, left1, right1)[FINEST])
        return StereoPrediction(-values[:, :1], -values[:, 1:2], values[:, 2:])

    def upsampled(self, values: Tensor) -> Tensor:
        """Return values of the finest level, (B, 4, H/4, W/4), in pixels at full size, (B, 4, H, W)."""
        return legacy_upsample(values * SCALE, 2**FINEST)

    def levels(self, left0: Tensor, right0: Tensor, left1: Tensor, right1: Tensor) -> dict[int, Tensor]:
        """Return the values of each level of the decoder, (B, 4, H / 2^level, W / 2^level), divided by SCALE.

        left0, right0, left1, right1: (B, 3, H, W) RGB in [0, 1]; H and W are multiples of 64.
        Values: disparity and second disparity (both negative), flow u, v, in pixels of the full size.
        """
        self.check_size(left0)
        pyramid = self._pyramid(torch.cat([left0, right0, left1, right1]))
        found: dict[int, Tensor] = {}
        from_above = None
        for level in range(self.coarsest, FINEST - 1, -1):
            features = pyramid[level].chunk(4)
            if from_above is None:
                volumes = _volumes(*features)
            else:
                values, upsampled_features = from_above
                volumes = _volumes(*_warped(*features, values * (SCALE / 2**level)))
                volumes = torch.cat([volumes, features[0], values, upsampled_features], dim=1)
            found[level], from_above = self.decoder[f'block_{level}']['estimator'](volumes)
        return found

    def _pyramid(self, images: Tensor) -> dict[int, Tensor]:
        found = {}
        for level in range(1, self.coarsest + 1):
            first, *others = self.Encoder[f'level_{level}'].values()
            images = _activated(first(same_padding(images)))
            for convolution in others:
                images = _activated(convolution(images))
            found[level] = images
        return found


class _Estimator(nn.Module):
    """Predicts the values of a level from its volumes: a dense trunk, and a dense head for each quantity.

    num_in: channels of the input. is_final: the finest level has context networks instead of upsampling.
    """

    def __init__(self, num_in: int, is_final: bool):
        super().__init__()
        self.is_final = is_final
        for k, width in enumerate((128, 128, 96)):
            self.add_module(f'estimator_block_{k}', _scope(num_in, width))
            num_in += width
        for name, num_out in _HEADS.items():
            self.add_module(name, nn.ModuleDict({
                'estimator_block_0': _scope(num_in, 64), 'estimator_block_1': _scope(num_in + 64, 32),
                'Conv': nn.Conv2d(num_in + 96, num_out, 3, padding=1),
            }))  # fmt: skip
        num_in += 96
        if is_final:
            for name, num_out in _HEADS.items():
                scope = _UPSAMPLED[name]
                self.add_module(f'context_network_{scope}', _context(num_in, num_out))
        else:
            self.upsample_motion_vectors = nn.ModuleDict(
                {_UPSAMPLED[name]: _deconvolution(num, num) for name, num in _HEADS.items()}
            )
            self.upsample_features = nn.ModuleDict(
                {_UPSAMPLED[name]: _deconvolution(num_in, num) for name, num in _HEADS.items()}
            )

    def forward(self, trunk: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return the values of the level, and the values and features for the next one."""
        for k in range(3):
            trunk = _dense(self.get_submodule(f'estimator_block_{k}')['Conv'], trunk)
        features, values = {}, {}
        for name in _HEADS:
            head = self.get_submodule(name)
            features[name] = _dense(head['estimator_block_1']['Conv'], _dense(head['estimator_block_0']['Conv'], trunk))
            values[name] = head['Conv'](features[name])
            if self.is_final:
                context = features[name]
                *layers, last = self.get_submodule(f'context_network_{_UPSAMPLED[name]}').values()
                for layer in layers:
                    context = _activated(layer(context))
                values[name] = values[name] + last(context)
        joined = torch.cat([values[name] for name in _HEADS], dim=1)
        if self.is_final:
            return joined, None
        upsampled = [
            torch.cat([layers[_UPSAMPLED[name]](maps[name]) for name in _HEADS], dim=1)
            for layers, maps in ((self.upsample_motion_vectors, values), (self.upsample_features, features))
        ]
        return joined, (upsampled[0], upsampled[1])


def _inputs(level: int, coarsest: int) -> int:
    """Return the channels of the input of a level's estimator."""
    return _VOLUMES if level == coarsest else _VOLUMES + CHANNELS[level - 1] + 2 * _VALUES


def _encoder_level(level: int) -> nn.ModuleDict:
    before, width = (3, *CHANNELS)[level - 1], CHANNELS[level - 1]
    return nn.ModuleDict({
        'Conv': nn.Conv2d(before, width, 3, stride=2), 'Conv_1': nn.Conv2d(width, width, 3, padding=1),
        'Conv_2': nn.Conv2d(width, width, 3, padding=1),
    })  # fmt: skip


def _context(num_in: int, num_out: int) -> nn.ModuleDict:
    layers, widths = {}, [*_CONTEXT, (num_out, 1)]
    for k, (width, rate) in enumerate(widths):
        layers[f'Conv_{k}' if k else 'Conv'] = nn.Conv2d(num_in, width, 3, padding=rate, dilation=rate)
        num_in = width
    return nn.ModuleDict(layers)


def _scope(num_in: int, num_out: int) -> nn.ModuleDict:
    return nn.ModuleDict({'Conv': nn.Conv2d(num_in, num_out, 3, padding=1)})


def _deconvolution(num_in: int, num_out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(num_in, num_out, 4, stride=2, padding=1)


def _activated(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, LEAK)


def _dense(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the input and the output of a convolution as channels of one image."""
    return torch.cat([x, _activated(convolution(x))], dim=1)


def _warped(left0: Tensor, right0: Tensor, left1: Tensor, right1: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Return the four feature maps warped to the first left image by values in pixels of the level."""
    flow = values[:, 2:]
    to_right1 = torch.cat([flow[:, :1] + values[:, 1:2], flow[:, 1:]], dim=1)
    return left0, warp_along_rows(right0, values[:, :1]), warp_by_flow(left1, flow), warp_by_flow(right1, to_right1)


def _volumes(left0: Tensor, right0: Tensor, left1: Tensor, right1: Tensor) -> Tensor:
    """Return the four correlation volumes, (B, 180, h, w): both disparities, their correlation, the flow."""
    volume0 = _activated(correlation_1d(left0, right0, RADIUS, RADIUS))
    volume1 = _activated(correlation_1d(left1, right1, RADIUS, RADIUS))
    between = _activated(correlation_3d(volume0, volume1, RADIUS, DEPTH_RADIUS))
    motion = _activated(correlation_2d(left0, left1, RADIUS))
    return torch.cat([volume0, volume1, between, motion], dim=1)


def dwarf() -> Dwarf:
    """DWARF with its six levels: 19,618,196 parameters."""
    return Dwarf()
