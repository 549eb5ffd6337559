# SPDX-License-Identifier: Apache-2.0
"""A small student of one camera for two CPU cores: depth, ego motion and what moves by itself, with a state."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.students.mono_geometry import points_of, project, resize, scaled_intrinsics, warp
from training.students.motion_fit import (
    depth_step,
    fit_motion,
    inside,
    matchable,
    parallax,
    pixel_changes,
    soft_match,
)
from training.students.multi_mono_sf import LARGEST_DISPARITY, MonoFlow, normalised
from training.students.stereo_layers import correlation_2d, pixel_grid

_LEAK = 0.1
_WIDTHS = (16, 32, 48, 64, 96)  # channels of the encoder at 1/2 to 1/32 of the size
_HIDDEN = (64, 64, 64, 48)  # channels of the decoder at 1/32, 1/16, 1/8, 1/4
_RADII = (4, 4, 3, 2)  # of the correlations [cells]
_PASSED = 32  # channels that a level passes to the next
_CUES = 1 + 6 + 4 + 4 + 3  # logit of the disparity, both own motions, optical flows and matches, ray
_FITTED = 2 + 4  # what the ego motion leaves: step of the depth and its worth, both residuals
_REMEMBERED = (1, 2)  # levels with a state
_FINEST = 4  # pixels per cell of the last level, along an axis
_FIRST_LOGIT = -2.6  # 16 m with the focal length of KITTI
_OWN = 0.03  # own motion is in shares of the depth; 0.03 is 5 m/s at 16 m
_SHARPNESS = 10.0  # of matches, at first
_LOWEST_RAY = 0.02  # of which a logarithm is taken: the ground at 80 m
_TURN, _SHIFT = 0.05, 2.0  # rad and m per unit of the ego motion


class MonoLiteState(NamedTuple):
    """What one step leaves for the next, of its middle image. Zeros are the state of a first step.

    hidden16: (B, 64, H / 16, W / 16). hidden8: (B, 64, H / 8, W / 8).
    """

    hidden16: Tensor
    hidden8: Tensor


class MonoLite(nn.Module):
    """Depth and scene flow of the middle one of three images, as `MultiMonoSf` gives them.

    The scene flow is the ego motion, one rotation and translation of all pixels, plus the own motion of each pixel in
    shares of its depth. The decoder refines all values at 1/32, 1/16, 1/8 and 1/4 of the size. At each size, cells are
    matched with both other images; the ego motion is the least-squares fit to the matches, which the network corrects
    and weights, and the parallax that is left proposes a change of the depth. So motion is measured, not remembered.
    The state is the features at 1/16 and 1/8, which the next step reads along its backward flow: there is no forward
    warp, and a state of zeros begins anew. The rays of the pixels are inputs: cameras may differ.

    Streaming: `features` of each new image once, then `step` with the features of the last three images.
    """

    name = 'mono_lite'
    multiple = 32
    resize = 'scale'
    default_size = (416, 128)  # a third of KITTI's

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList(
            nn.Sequential(_conv(i, o, stride=2), *([_conv(o, o)] if k else []))
            for k, (i, o) in enumerate(zip((3, *_WIDTHS), _WIDTHS, strict=False))
        )
        self.trunks, self.heads, self.passes = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.matches = nn.ModuleList(nn.Conv2d(hidden, 4 + 2, 3, padding=1) for hidden in _HIDDEN)
        self.sharpness = nn.Parameter(torch.full((len(_HIDDEN),), math.log(_SHARPNESS)))
        for level, (hidden, radius) in enumerate(zip(_HIDDEN, _RADII, strict=True)):
            num_in = _WIDTHS[-1 - level] + 2 * (2 * radius + 1) ** 2 + _CUES + (_PASSED if level else 0)
            self.trunks.append(nn.Sequential(_conv(num_in, hidden), _conv(hidden, hidden)))
            self.heads.append(nn.Sequential(_conv(hidden + _FITTED, 32), nn.Conv2d(32, 7 + 1, 3, padding=1)))
            if level < len(_HIDDEN) - 1:
                self.passes.append(nn.Conv2d(hidden, _PASSED, 1))
        self.gates = nn.ModuleList(nn.Conv2d(2 * _HIDDEN[k], _HIDDEN[k], 3, padding=1) for k in _REMEMBERED)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=_LEAK)
                nn.init.zeros_(module.bias)
        for last in (*(head[-1] for head in self.heads), *self.matches):  # begins with plain matches at one depth
            nn.init.zeros_(last.weight)

    def forward(self, image0: Tensor, image1: Tensor, image2: Tensor, intrinsics: Tensor,
                state: MonoLiteState | None = None) -> tuple[MonoFlow, MonoLiteState]:  # fmt: skip
        """Return what the middle one of three images shows, and the state for the step that begins one image later.

        image0, image1, image2: (B, 3, H, W) RGB in [0, 1], in the order of time. intrinsics: (B, 3, 3) [px], of these
        images. state: of the step one image before; None starts anew, as zeros do.
        Raises: ValueError for sizes that do not fit.
        """
        features = [self.features(image) for image in (image0, image1, image2)]
        return self.step(*features, intrinsics, state)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the features (B, C, h, w) of an image (B, 3, H, W), from 1/32 to 1/4 of its size."""
        height, width = image.shape[2:]
        if height % self.multiple or width % self.multiple or not height * width:
            raise ValueError(
                f'{self.name} takes images whose width and height are multiples of {self.multiple} px, not '
                f'{width} x {height}'
            )
        found = []
        for block in self.encoder:
            image = block(image)
            found.insert(0, image)
        return tuple(found[:-1])

    def sequence(self, images: Tensor, intrinsics: Tensor) -> list[MonoFlow]:
        """Return what the images (B, T, 3, H, W) but the first and the last show; the state starts anew."""
        if images.ndim != 5 or images.shape[1] < 3:
            raise ValueError(f'expected at least 3 images, (B, T, 3, H, W), found {tuple(images.shape)}')
        maps = [level.unflatten(0, images.shape[:2]).unbind(1) for level in self.features(images.flatten(0, 1))]
        features, found, state = list(zip(*maps, strict=True)), [], None
        for k in range(1, len(features) - 1):
            flow, state = self.step(*features[k - 1 : k + 2], intrinsics, state)
            found.append(flow)
        return found

    def first_state(self, batch: int, height: int, width: int, like: Tensor | None = None) -> MonoLiteState:
        """Return the state of a first step for images (batch, 3, height, width); like: of which type and device."""
        like = torch.zeros(1) if like is None else like
        return MonoLiteState(*(
            like.new_zeros(batch, _HIDDEN[level], height * 2**level // 32, width * 2**level // 32)
            for level in _REMEMBERED
        ))  # fmt: skip

    def step(self, features0: tuple[Tensor, ...], features1: tuple[Tensor, ...], features2: tuple[Tensor, ...],
             intrinsics: Tensor, state: MonoLiteState | None = None) -> tuple[MonoFlow, MonoLiteState]:  # fmt: skip
        """Return what `forward` returns, from the `features` of the three images: each is computed once."""
        batch, (height, width) = len(features1[0]), (_FINEST * side for side in features1[-1].shape[2:])
        if intrinsics.shape != (batch, 3, 3):
            raise ValueError(f'expected intrinsics ({batch}, 3, 3), found {tuple(intrinsics.shape)}')
        first = self.first_state(batch, height, width, features1[0])
        if state is None:
            state = first
        elif any(part.shape != zeros.shape for part, zeros in zip(state, first, strict=True)):
            raise ValueError(
                f'the state is not of {batch} images of {width} x {height} px, it has '
                f'{", ".join(str(tuple(part.shape)) for part in state)}; start anew without a state'
            )
        values, passed, hidden = self._first_values(features1[0]), [], list(state)
        ego = features1[0].new_zeros(batch, 12)
        outputs = [], [], []  # forward, backward, disparity of each level
        for level in range(len(_HIDDEN)):
            x0, x1, x2 = features0[level], features1[level], features2[level]
            size = tuple(x1.shape[2:])
            camera = scaled_intrinsics(intrinsics, (height, width), size)
            if level:
                values, passed = resize(values, *size), [resize(passed, *size)]
            scene = _Scene(values, ego, camera)
            pixels = scene.target_pixels()
            others = [warp(other, at) if level else other for other, at in zip((x2, x0), pixels, strict=True)]
            radius, source = _RADII[level], matchable(x1)
            volumes = [correlation_2d(source, matchable(other), radius) for other in others]
            sharpness = self.sharpness[level].exp()
            found, peaks = zip(*(soft_match(volume, radius, sharpness) for volume in volumes), strict=True)
            volumes = [functional.leaky_relu(volume, _LEAK) for volume in volumes]
            x = self.trunks[level](torch.cat([normalised(x1), *volumes, *passed, *scene.cues(*pixels), *found], dim=1))
            if level in _REMEMBERED:
                k = _REMEMBERED.index(level)
                before = warp(hidden[k], pixels[1])
                gate = torch.sigmoid(self.gates[k](torch.cat([x, before], dim=1)))
                x = hidden[k] = x + gate * (before - x)
            corrected = self.matches[level](x)
            found = [match + corrected[:, k : k + 2] for match, k in zip(found, (0, 2), strict=True)]
            weights = torch.sigmoid(corrected[:, 4:]) * torch.cat(peaks, dim=1)
            ego, fitted = self._fitted(scene, ego, pixels, found, weights)
            change = self.heads[level](torch.cat([x, *fitted], dim=1))
            proposed = torch.sigmoid(change[:, 7:] - 1) * fitted[0]  # of the logit, the log of small disparities
            values = values + torch.cat([change[:, :1] + proposed, change[:, 1:7]], dim=1)
            enlarged = resize(values, *(_FINEST * side for side in size))
            scene = _Scene(enlarged, ego, scaled_intrinsics(camera, size, tuple(enlarged.shape[2:])))
            for maps, value in zip(outputs, (*scene.motions, scene.disparity), strict=True):
                maps.insert(0, value)
            passed = self.passes[level](x) if level < len(self.passes) else None
        return MonoFlow(*map(tuple, outputs)), MonoLiteState(*hidden)

    @staticmethod
    def _fitted(scene: '_Scene', ego: Tensor, pixels, matches, weights) -> tuple[Tensor, list[Tensor]]:
        """Return the ego motion (B, 12) that fits matches, and what it leaves: maps of _FITTED channels.

        pixels, matches: (B, 2, h, w) of both directions. weights: (B, 2, h, w).
        """
        egos, ways, residuals, used = [], [], [], []
        for k, part in enumerate(ego.chunk(2, 1)):
            changes = pixel_changes(scene.points, scene.motions[k], scene.intrinsics, _TURN, _SHIFT)
            weight = weights[:, k : k + 1] * inside(pixels[k], tuple(scene.points.shape[2:]))
            step = fit_motion(changes, matches[k], weight)
            egos.append(part + step)
            ways.append(parallax(changes, egos[k][:, 3:]))
            residuals.append(matches[k] - (changes * step[:, :, None, None, None]).sum(dim=1))
            used.append(weight)
        return torch.cat(egos, dim=1), [*depth_step(ways, residuals, used), *residuals]

    @staticmethod
    def _first_values(like: Tensor) -> Tensor:
        """Return the values before level 0, (B, 7, h, w): logit of the disparity, own motions."""
        zeros = torch.zeros_like(like[:, :7])
        return zeros + zeros.new_tensor([_FIRST_LOGIT, *(0,) * 6])[:, None, None]


class _Scene:
    """Points and motions that the values of a level mean.

    values: (B, 7, h, w), logit of the disparity, own motion until the next image and to the one before, in shares of
    the depth's _OWN. ego: (B, 12), rotation and translation of the same two. intrinsics: of the level.
    """

    def __init__(self, values: Tensor, ego: Tensor, intrinsics: Tensor):
        self.values, self.intrinsics = values, intrinsics
        self.disparity = LARGEST_DISPARITY * torch.sigmoid(values[:, :1])
        self.points = points_of(self.disparity, intrinsics)
        own = _OWN * self.points[:, 2:]
        self.motions = tuple(
            motion * own + _ego_flow(self.points, part)
            for motion, part in zip((values[:, 1:4], values[:, 4:]), ego.chunk(2, 1), strict=True)
        )

    def target_pixels(self) -> tuple[Tensor, Tensor]:
        """Return the pixels (B, 2, h, w) of the next image and of the one before."""
        return tuple(project(self.points + motion, self.intrinsics) for motion in self.motions)

    def cues(self, *pixels: Tensor) -> list[Tensor]:
        """Return inputs of the network."""
        grid = pixel_grid(*self.disparity.shape[2:], self.disparity)
        rays = self.points[:, :2] / self.points[:, 2:]
        ground = rays[:, 1:].clamp(min=_LOWEST_RAY).log()  # of the inverse depth that level ground would have
        return [self.values, *((target - grid) / 4 for target in pixels), rays, ground]


def _ego_flow(points: Tensor, ego: Tensor) -> Tensor:
    """Return how far points (B, 3, h, w) move by rotations and translations (B, 6); small angles, to second order."""
    turn = (_TURN * ego[:, :3])[:, :, None, None].expand_as(points)
    once = torch.linalg.cross(turn, points, dim=1)
    return once + torch.linalg.cross(turn, once, dim=1) / 2 + _SHIFT * ego[:, 3:, None, None]


def _conv(num_in: int, num_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(num_in, num_out, 3, stride, padding=1), nn.LeakyReLU(_LEAK))


def mono_lite() -> MonoLite:
    """The student of one camera for 10 Hz on two CPU cores."""
    return MonoLite()
