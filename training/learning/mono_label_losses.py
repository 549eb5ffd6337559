# SPDX-License-Identifier: Apache-2.0
"""Losses of students of one camera at pixels whose depth and motion are known."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from training.learning.mono_losses import LEVEL_WEIGHTS
from training.learning.mono_samples import MonoBatch
from training.students.mono_geometry import BASELINE, FARTHEST, NEAREST
from training.students.multi_mono_sf import MonoFlow
from training.students.stereo_layers import sample_at

_NEAREST_MOVED = 0.5  # m: smallest depth in the other image of which a logarithm is taken
_LEAST_DISPARITY = 1e-4  # px, added, as mono_geometry.depth_of does


class Known(NamedTuple):
    """Labels of one image and direction.

    pixels: (B, 2, 1, N). depth, other_depth: (B, 1, N) [m]. flow: (B, 2, 1, N) [px]. has_depth, has_motion: (B, 1, N)
    bool, which are known; the others have any finite values.
    """

    pixels: Tensor
    depth: Tensor
    other_depth: Tensor
    flow: Tensor
    has_depth: Tensor
    has_motion: Tensor


def known_labels(batch: MonoBatch, image: int, direction: int) -> Known:
    """Return the labels of an image, counted from the second of the window; direction: 0 forward, 1 backward."""
    labels = batch.labels[:, image, direction].transpose(1, 2)[:, :, None]  # (B, 6, 1, N)
    has_depth = torch.isfinite(labels[:, :3]).all(dim=1)
    has_motion = torch.isfinite(labels).all(dim=1)
    labels = torch.where(torch.isfinite(labels), labels, torch.ones_like(labels))
    focal = (batch.intrinsics[:, 0, 0] * batch.baseline).reshape(-1, 1, 1)
    depth, other_depth = ((focal / labels[:, row].clamp(min=1e-6)).clamp(NEAREST, FARTHEST) for row in (2, 3))
    return Known(labels[:, :2], depth, other_depth, labels[:, 4:], has_depth, has_motion)


class AtPixels(NamedTuple):
    """What a result says of some pixels.

    points, moved: (B, 3, 1, N) [m], before and after the motion. flow: (B, 2, 1, N) [px].
    """

    points: Tensor
    moved: Tensor
    flow: Tensor


def at_pixels(disparity: Tensor, motion: Tensor, pixels: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> AtPixels:
    """Return what a disparity (B, 1, h, w) and a motion (B, 3, h, w) [m] of any size say of an image's pixels.

    pixels: (B, 2, 1, N) of an image of this size (height, width), to which intrinsics (B, 3, 3) belong.
    """
    values = torch.cat([disparity, motion], dim=1)
    ratios = [(new - 1) / (old - 1) for new, old in zip(values.shape[:1:-1], size[::-1], strict=True)]
    values = sample_at(values, pixels * pixels.new_tensor(ratios)[:, None, None])
    focal, centre = (
        part[:, :, None, None] for part in (intrinsics.diagonal(dim1=1, dim2=2)[:, :2], intrinsics[:, :2, 2])
    )
    depth = focal[:, :1] * BASELINE / (values[:, :1] * size[1] + _LEAST_DISPARITY)
    depth = depth.clamp(NEAREST, FARTHEST)
    points = torch.cat([(pixels - centre) / focal * depth, depth], dim=1)
    moved = points + values[:, 1:]
    w = moved[:, 2:].abs().clamp(min=1e-3) * moved[:, 2:].sign()
    target = (moved[:, :2] / w * focal + centre).clamp(-1.5 * size[1], 1.5 * size[1])
    return AtPixels(points, moved, target - pixels)


def label_loss(flows: Sequence[MonoFlow], batch: MonoBatch, flow_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of depth and scene flow at labelled pixels, and its parts.

    flows: of the images but the first and the last. flow_weight: of an optical-flow error by the width of the image.
    Parts, each the mean over the labels of both directions: `depth` and `other_depth`, |log| of the ratio of the depths
    in the image and in the other one, up to 80 m; `flow`, length of the error of the optical flow [px].
    The levels count 4 : 2 : 1 : 1, from the full size to an eighth.
    """
    total, parts = 0.0, {}
    for level, weight in enumerate(LEVEL_WEIGHTS):
        found = _level_errors(flows, batch, level)
        flow = found['flow'] * (flow_weight / batch.left.shape[4])
        total = total + weight / sum(LEVEL_WEIGHTS) * (found['depth'] + found['other_depth'] + flow)
        parts = parts or {name: value.detach() for name, value in found.items()}  # of the full size
    return total, parts


def _level_errors(flows: Sequence[MonoFlow], batch: MonoBatch, level: int) -> dict[str, Tensor]:
    sums = {'depth': [], 'other_depth': [], 'flow': []}
    size = tuple(batch.left.shape[3:])
    for k, flow in enumerate(flows):
        for direction, motion in enumerate((flow.forward[level], flow.backward[level])):
            known = known_labels(batch, k, direction)
            found = at_pixels(flow.disparity[level], motion, known.pixels, batch.intrinsics, size)
            other = found.moved[:, 2].clamp(_NEAREST_MOVED, FARTHEST), known.other_depth.clamp(min=_NEAREST_MOVED)
            error = (found.flow - known.flow).square().sum(dim=1)
            sums['depth'].append(((found.points[:, 2] / known.depth).log().abs(), known.has_depth))
            sums['other_depth'].append(((other[0] / other[1]).log().abs(), known.has_motion))
            sums['flow'].append(((error + 1e-4).sqrt(), known.has_motion))
    return {name: _mean(*zip(*parts, strict=True)) for name, parts in sums.items()}


def _mean(values: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    total = sum((value * mask).sum() for value, mask in zip(values, masks, strict=True))
    return total / sum(mask.sum() for mask in masks).clamp(min=1)


def finetuning_losses(flow: MonoFlow, batch: MonoBatch) -> tuple[Tensor, Tensor]:
    """Return the supervised losses of multi_mono_sf's fine-tuning: of both disparities, and of the optical flow.

    flow: flip-averaged, of the last image but one, whose forward labels are the ground truth.
    Both are sums over the levels, weighted 4, 2, 1, 1, of means over the known pixels [px of the camera]: |error| of
    disparity and second disparity, (length of the error + 0.01) ^ 0.4 of the flow. 0 without any ground truth.
    Source: section "fine-tuning" of Hur and Roth (CVPR 2021), and the code of their earlier network.
    """
    known = known_labels(batch, batch.labels.shape[1] - 1, 0)
    x = batch.pixel_size[:, :1, None]
    focal = (batch.intrinsics[:, 0, 0] * BASELINE).reshape(-1, 1, 1)
    disparities, flows = 0.0, 0.0
    for level, weight in enumerate(LEVEL_WEIGHTS):
        found = at_pixels(
            flow.disparity[level], flow.forward[level], known.pixels, batch.intrinsics, tuple(batch.left.shape[3:])
        )
        # Of one baseline: that of the network's disparities, whatever that of the camera.
        errors = [
            ((focal / mine.clamp(min=NEAREST) - focal / true) * x).abs()
            for mine, true in ((found.points[:, 2], known.depth), (found.moved[:, 2], known.other_depth))
        ]
        error = (found.flow - known.flow) * batch.pixel_size[:, :, None, None]
        length = (error.square().sum(dim=1) + 1e-12).sqrt()
        first, second = _mean([errors[0]], [known.has_depth]), _mean([errors[1]], [known.has_motion])
        disparities = disparities + weight * (first + second)
        flows = flows + weight * _mean([(length + 0.01) ** 0.4], [known.has_motion])
    return disparities, flows
