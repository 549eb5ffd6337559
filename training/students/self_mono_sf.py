# SPDX-License-Identifier: Apache-2.0
"""self_mono_sf, layer for layer: depth and scene flow from two images of one camera; the predecessor of multi_mono_sf.

Source: Hur and Roth, Self-Supervised Monocular Scene Flow Estimation (CVPR 2020), and the network of their code.
Modules are named as in their checkpoints, so that the weights load by name. For scores and pictures, not for training.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.students.mono_geometry import BASELINE, FARTHEST, NEAREST, resize, scaled_intrinsics, warp
from training.students.multi_mono_sf import LARGEST_DISPARITY, LEAK, MonoFlow
from training.students.stereo_layers import correlation_2d, pixel_grid

CHANNELS = (32, 64, 96, 128, 192, 256)  # of the pyramid, at 1/2 to 1/64 of the size
NUM_LEVELS = 5  # of the decoder, from 1/64 to 1/4 of the size
_RADIUS = 4  # of the correlations [cells]
_TRUNK = (128, 128, 96, 64, 32)
_PASSED = _TRUNK[-1]
_CONTEXT = ((128, 1), (128, 2), (128, 4), (96, 8), (64, 16), (32, 1))  # channels and dilation
_FINEST = 4  # pixels per cell of the last level, along an axis
_TINY = 1e-8  # px of disparity and m of depth, added
_INSIDE = 1 - 2**-24  # the largest float32 below 1: a warp needs all of a pixel's neighbours


class PairFlow(NamedTuple):
    """Scene flow of two images, each to the other: (B, 3, h, w) [m] and (B, 1, h, w), from the full size to 1/16.

    forward, disparity: of the first image. backward, other_disparity: of the second.
    """

    forward: tuple[Tensor, ...]
    disparity: tuple[Tensor, ...]
    backward: tuple[Tensor, ...]
    other_disparity: tuple[Tensor, ...]


class SelfMonoSf(nn.Module):
    """The network of self_mono_sf: 118 tensors, 5,755,000 parameters.

    It has no state. `step` and `sequence` are those of `MultiMonoSf`, and leave the first of three images out.
    """

    name = 'self_mono_sf'
    multiple = 64
    resize = 'scale'
    default_size = (832, 256)  # of the published weights
    num_images = 2  # that count

    def __init__(self):
        super().__init__()
        self.feature_pyramid_extractor = nn.Module()
        pairs = zip((3, *CHANNELS), CHANNELS, strict=False)
        self.feature_pyramid_extractor.convs = nn.ModuleList(
            nn.Sequential(_conv(i, o, stride=2), _conv(o, o)) for i, o in pairs
        )
        self.flow_estimators = nn.ModuleList(_Decoder(_num_inputs(level)) for level in range(NUM_LEVELS))
        self.upconv_layers = nn.ModuleList(_upconv() for _ in range(NUM_LEVELS - 1))
        self.context_networks = _Context()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the features (B, C, h, w) of an image (B, 3, H, W), from 1/64 to 1/2 of its size."""
        height, width = image.shape[2:]
        if height % self.multiple or width % self.multiple or not height * width:
            raise ValueError(
                f'{self.name} takes images whose width and height are multiples of {self.multiple} px, not '
                f'{width} x {height}'
            )
        found = []
        for block in self.feature_pyramid_extractor.convs:
            image = block(image)
            found.insert(0, image)
        return tuple(found)

    def step(self, features0, features1: tuple[Tensor, ...], features2: tuple[Tensor, ...], intrinsics: Tensor,
             state=None) -> tuple[MonoFlow, None]:  # fmt: skip
        """Return what the first of the last two images shows, see `pair`; the result has no backward scene flow."""
        found = self.pair(features1, features2, intrinsics)
        return MonoFlow(found.forward, (), found.disparity), None

    def sequence(self, images: Tensor, intrinsics: Tensor) -> list[MonoFlow]:
        """Return what the images (B, T, 3, H, W) but the first and the last show."""
        if images.ndim != 5 or images.shape[1] < 3:
            raise ValueError(f'expected at least 3 images, (B, T, 3, H, W), found {tuple(images.shape)}')
        features = [self.features(image) for image in images.unbind(1)]
        return [self.step(*features[k - 1 : k + 2], intrinsics)[0] for k in range(1, len(features) - 1)]

    def pair(self, features1: tuple[Tensor, ...], features2: tuple[Tensor, ...], intrinsics: Tensor) -> PairFlow:
        """Return the scene flow of two images from their features. intrinsics: (B, 3, 3) [px] of the images."""
        height, width = (2 * side for side in features1[-1].shape[2:])
        if intrinsics.shape != (len(features1[0]), 3, 3):
            raise ValueError(f'expected intrinsics ({len(features1[0])}, 3, 3), found {tuple(intrinsics.shape)}')
        outputs = [], [], [], []  # as in PairFlow
        passed = motions = disparities = None  # of both images
        for level, decoder in enumerate(self.flow_estimators):
            both = features1[level], features2[level]
            size = tuple(both[0].shape[2:])
            others, inputs = both[::-1], [[], []]
            if level:
                motions, disparities = ([resize(part, *size) for part in parts] for parts in (motions, disparities))
                passed = [self.upconv_layers[level - 1](part) for part in passed]
                camera = scaled_intrinsics(intrinsics, (height, width), size)
                others = [
                    warp(other, _target_pixels(motion, disparity, camera), _INSIDE)
                    for other, motion, disparity in zip(others, motions, disparities, strict=True)
                ]
                inputs = list(zip(passed, motions, disparities, strict=True))
            results = [
                decoder(torch.cat([_activated(correlation_2d(mine, other, _RADIUS)), mine, *more], dim=1))
                for mine, other, more in zip(both, others, inputs, strict=True)
            ]
            passed, changes, logits = zip(*results, strict=True)
            motions = [change + motions[k] if level else change for k, change in enumerate(changes)]
            if level < NUM_LEVELS - 1:
                disparities = [_bounded(logit) for logit in logits]
            else:
                refined = [
                    self.context_networks(torch.cat(parts, 1)) for parts in zip(passed, motions, logits, strict=True)
                ]
                motions = [motion + change for motion, (change, _) in zip(motions, refined, strict=True)]
                disparities = [disparity for _, disparity in refined]
            values = motions[0], disparities[0], motions[1], disparities[1]
            for found, value in zip(outputs, values, strict=True):
                found.insert(0, resize(value, *(_FINEST * side for side in size)))
        return PairFlow(*map(tuple, outputs))


class _Decoder(nn.Module):
    def __init__(self, num_in: int):
        super().__init__()
        pairs = zip((num_in, *_TRUNK), _TRUNK, strict=False)
        self.convs = nn.Sequential(*(_conv(i, o) for i, o in pairs))
        self.conv_sf = _conv(_PASSED, 3, activated=False)
        self.conv_d1 = _conv(_PASSED, 1, activated=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, h, w) -> features (B, 32, h, w), scene flow (B, 3, h, w), disparity before its sigmoid."""
        x = self.convs(x)
        return x, self.conv_sf(x), self.conv_d1(x)


class _Context(nn.Module):
    def __init__(self):
        super().__init__()
        channels = (_PASSED + 3 + 1, *(num for num, _ in _CONTEXT))
        self.convs = nn.Sequential(
            *(_conv(channels[k], num, dilation=dilation) for k, (num, dilation) in enumerate(_CONTEXT))
        )
        self.conv_sf = _conv(_CONTEXT[-1][0], 3, activated=False)
        self.conv_d1 = nn.Sequential(_conv(_CONTEXT[-1][0], 1, activated=False))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 36, h, w) -> change of the scene flow (B, 3, h, w), disparity (B, 1, h, w)."""
        x = self.convs(x)
        return self.conv_sf(x), _bounded(self.conv_d1(x))


def _num_inputs(level: int) -> int:
    from_above = _PASSED + 3 + 1 if level else 0
    return CHANNELS[-1 - level] + (2 * _RADIUS + 1) ** 2 + from_above


def _upconv() -> nn.Module:
    made = nn.Sequential()
    made.add_module('upsample', nn.Upsample(scale_factor=2, mode='nearest'))
    made.add_module('conv1', _conv(_PASSED, _PASSED))
    return made


def _target_pixels(scene_flow: Tensor, disparity: Tensor, intrinsics: Tensor) -> Tensor:
    """Return the pixels (B, 2, h, w) to which scene flow (B, 3, h, w) [m] moves what pixels show; not limited."""
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], dim=1)[:, :, None, None]
    centre = intrinsics[:, :2, 2, None, None]
    depth = (focal[:, :1] * BASELINE / (disparity * disparity.shape[3] + _TINY)).clamp(NEAREST, FARTHEST)
    rays = (pixel_grid(*disparity.shape[2:], disparity) - centre) / focal
    x, z = rays * depth + scene_flow[:, :2], depth + scene_flow[:, 2:]
    return (x * focal + centre * z) / (z + _TINY)


def _bounded(logit: Tensor) -> Tensor:
    return LARGEST_DISPARITY * torch.sigmoid(logit)


def _activated(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, LEAK)


def _conv(num_in: int, num_out: int, *, stride: int = 1, dilation: int = 1, activated: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(num_in, num_out, 3, stride, padding=dilation, dilation=dilation)
    return nn.Sequential(conv, nn.LeakyReLU(LEAK)) if activated else nn.Sequential(conv)


def self_mono_sf() -> SelfMonoSf:
    """The network as published."""
    return SelfMonoSf()
