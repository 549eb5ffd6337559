# SPDX-License-Identifier: Apache-2.0
"""The self-supervised losses of multi_mono_sf: images, points and smoothness, on what both images see.

Source: Hur and Roth, Self-Supervised Multi-Frame Monocular Scene Flow (CVPR 2021), and the losses of their code.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from training.students.mono_geometry import (
    BASELINE,
    COVERED,
    optical_flow,
    points_of,
    project,
    resize,
    scaled_intrinsics,
    warp,
)
from training.students.multi_mono_sf import MonoFlow
from training.students.splatting import splat_sum
from training.students.stereo_layers import pixel_grid, sample_at

LEVEL_WEIGHTS = (4.0, 2.0, 1.0, 1.0)  # from the full size to an eighth
DISPARITY_SMOOTHNESS, POINTS, FLOW_SMOOTHNESS = 0.1, 0.2, 1000.0  # weights beside the census term
PUBLISHED_COVERED = 1 - 2**-24  # the largest float32 below 1
_VISIBLE = 0.499  # weight that lands on a pixel that both images see
_CENSUS = 7  # px, side of the neighbourhood
_SMALLEST = 64  # px: an eighth of it is larger than the neighbourhood
_EDGE = 150.0  # how much less smooth values may be where the image changes
_TINY = 1e-8


class MonoLoss(NamedTuple):
    """total: to be minimised; its two terms count the same whatever their size.

    disparity, scene_flow: those terms before that. census, points: what images and points add to the scene flow, the
    sum over the levels without any weights.
    """

    total: Tensor
    disparity: Tensor
    scene_flow: Tensor
    census: Tensor
    points: Tensor


def self_supervised_loss(
    left: Tensor, right: Tensor, intrinsics: Tensor, flows: Sequence[MonoFlow],
    right_disparity: Sequence[Sequence[Tensor]], *, detach_disparity: bool, covered: float = COVERED,
    baseline: Tensor | None = None, finest_level: int = 0,
) -> MonoLoss:  # fmt: skip
    """Return the loss of what a network found in stereo images, of which it saw the left ones.

    left, right: (B, T, 3, H, W) in [0, 1], rectified. baseline: (B,) [m] of the camera pair; None: that of the
    disparities, mono_geometry.BASELINE, as published.
    intrinsics: (B, 3, 3) of both. flows: of the T - 2 images but the first and the last. right_disparity: of the right
    images in the same order, each from the full size to an eighth; no gradient reaches it.
    detach_disparity: scene flow does not train the disparity, as in the first epochs.
    covered: share of a pixel's neighbours by which it lies inside the other image, see `mono_geometry.warp`. The
    published code asks for PUBLISHED_COVERED, by which rounding drops about 1 % of the pixels inside.
    finest_level: larger sizes than image size / 2^finest_level are left out; 0: none, as published.
    Means are over all images of the batch together: one that shows more of what the other shows counts more.
    Raises: ValueError for fewer than four images, images below 64 px, or results of another number of images.
    """
    num = left.shape[1] - 2  # images with a result
    if num < 2 or len(flows) != num or len(right_disparity) != num or right.shape != left.shape:
        raise ValueError(
            f'expected at least 4 images of both cameras and results of all but the first and the last, found images '
            f'{tuple(left.shape)} and {tuple(right.shape)} and {len(flows)} and {len(right_disparity)} results'
        )
    if min(left.shape[3:]) < _SMALLEST:
        raise ValueError(f'expected images of at least {_SMALLEST} px along both axes, found {tuple(left.shape[3:])}')
    ratio = left.new_ones(len(left)) if baseline is None else baseline / BASELINE
    ratio = ratio.reshape(-1, 1, 1, 1).repeat(num, 1, 1, 1)  # of the pixels that the eyes are apart
    totals = [0.0] * 4
    for level, level_weight in list(enumerate(LEVEL_WEIGHTS))[finest_level:]:
        shape, scale = tuple(flows[0].disparity[level].shape[2:]), 2**-level
        images, others = (
            [resize(image, *shape) for image in eye[:, 1:-1].unbind(1)] for eye in (left, right)
        )  # fmt: skip
        disparity = [flow.disparity[level] for flow in flows]
        mask = disparity_mask(torch.cat([values[level] for values in right_disparity]).detach() * ratio)
        loss, mask = _disparity_loss(torch.cat(images), torch.cat(others), torch.cat(disparity), mask, scale, ratio)
        masks = mask.chunk(num)
        if detach_disparity:
            disparity = [values.detach() for values in disparity]
        first, second = slice(None, -1), slice(1, None)  # of the pairs
        terms = scene_flow_loss(
            [torch.cat(images[part]) for part in (first, second)],
            torch.cat([flow.forward[level] for flow in flows[first]]),
            torch.cat([flow.backward[level] for flow in flows[second]]),
            [torch.cat(disparity[part]) for part in (first, second)],
            [torch.cat(masks[part]) for part in (first, second)],
            scaled_intrinsics(intrinsics, tuple(left.shape[3:]), shape).repeat(num - 1, 1, 1),
            scale,
            covered,
        )
        weights = level_weight, level_weight, 1, 1
        totals = [sum_ + weight * term for sum_, weight, term in zip(totals, weights, (loss, *terms), strict=True)]
    disparity_term, flow_term, census, points = totals
    largest = torch.maximum(disparity_term, flow_term).detach()
    total = disparity_term * (largest / disparity_term.detach()) + flow_term * (largest / flow_term.detach())
    return MonoLoss(total, disparity_term, flow_term, census, points)


def _disparity_loss(left: Tensor, right: Tensor, disparity: Tensor, mask: Tensor, scale: float, ratio: Tensor):
    """Return the loss of a disparity (B, 1, h, w), and the mask without the border of the image.

    ratio: (B, 1, 1, 1), baseline of the images by that of the disparity.
    """
    height, width = disparity.shape[2:]
    pixels = pixel_grid(height, width, disparity)
    # Fractions of the width are fractions of width - 1 here, as in the published code.
    u = pixels[:, :1] - disparity * ratio * (width - 1)
    seen = sample_at(right, torch.cat([u, pixels[:, 1:].expand(len(u), -1, -1, -1)], dim=1), 'zeros')
    # The published code clears the border of this mask in place: it is missing in all later terms, too.
    loss = census_distance(left, seen, mask)
    mask = without_border(mask)
    return loss + DISPARITY_SMOOTHNESS * scale * smoothness(disparity, left), mask


def scene_flow_loss(
    images: Sequence[Tensor], forward: Tensor, backward: Tensor, disparity: Sequence[Tensor],
    masks: Sequence[Tensor], intrinsics: Tensor, scale: float, covered: float = COVERED,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the loss of the scene flow between two images, and its terms of images and of points before weights.

    images, disparity, masks: of both images at one size, (B, 3, h, w), (B, 1, h, w), (B, 1, h, w). forward, backward:
    (B, 3, h, w) [m], from the first to the second image and back. scale: of the smoothness.
    """
    motions = forward, backward
    points = [points_of(values, intrinsics) for values in disparity]
    norms = [part.norm(dim=1, keepdim=True) for part in points]
    flows = [optical_flow(motions[k], disparity[k], intrinsics) for k in range(2)]
    census, distance, smooth = 0.0, 0.0, 0.0
    for k, other in ((0, 1), (1, 0)):
        mask = visible(flows[other]) * masks[k]
        moved = points[k] + motions[k]
        pixels = project(moved, intrinsics)
        census = census + census_distance(images[k], warp(images[other], pixels, covered), mask)
        mask = without_border(mask)
        error = (moved - warp(points[other], pixels, covered)).norm(dim=1, keepdim=True) / (norms[k] + _TINY)
        distance = distance + (error * mask).sum() / (mask.sum() + _TINY)
        smooth = smooth + smoothness(motions[k], images[k], norms[k])
    return census + POINTS * distance + FLOW_SMOOTHNESS * scale * smooth, census, distance


@torch.no_grad()
def visible(flow: Tensor) -> Tensor:
    """Return which pixels (B, 1, h, w) of an image the other image shows, 1 or 0; flow: (B, 2, h, w) from the other.

    All are 1 where that leaves less than half of the batch: such a flow is not to be trusted.
    """
    mask = (splat_sum(torch.ones_like(flow[:, :1]), flow) > _VISIBLE).to(flow.dtype)
    return torch.ones_like(mask) if mask.mean() < 0.5 else mask


def disparity_mask(right_disparity: Tensor) -> Tensor:
    """Return which pixels (B, 1, h, w) of the left image the right one shows; right_disparity: of the right image."""
    shift = right_disparity * right_disparity.shape[3]
    return visible(torch.cat([shift, torch.zeros_like(shift)], dim=1))


def census_distance(image: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Return the mean difference of the census transforms of two images (B, 3, h, w), outside of the border.

    mask: (B, 1, h, w), 1 where the images are compared.
    """
    grey, other_grey = (values.mean(dim=1, keepdim=True) * 255 for values in (image, other))
    kept = without_border(mask)
    distance = _CensusDistance.apply(grey, other_grey, mask)
    return ((distance + 0.01) ** 0.4 * kept).sum() / (kept.sum() + _TINY)


class _CensusDistance(torch.autograd.Function):
    """Mean difference of the census transforms of two images over the neighbours of each pixel.

    Each pair of pixels is computed once, from a few planes that stay in the cache; autograd over all 49 neighbours of
    all pixels takes ten times as long. Within 3 px of the border, the values lack neighbours. Only `other` gets a
    gradient: an image that is compared is data.
    """

    @staticmethod
    def forward(ctx, grey: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """Return (B, 1, h, w); grey, other, mask: (B, 1, h, w)."""
        if grey.requires_grad:
            raise ValueError('the first image of a census distance is data, it has no gradient')
        total, count = torch.zeros_like(other), mask + _TINY
        for first, second in _neighbour_pairs(other):
            error = (_census(grey, first, second) - _census(other, first, second)).square_()
            error = error / (error + 0.1)
            total[first] += error * mask[second]
            total[second] += error * mask[first]
            count[first] += mask[second]
            count[second] += mask[first]
        ctx.save_for_backward(grey, other, mask, count)
        return total / count

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor, None]:
        """Return the gradient of `other`."""
        grey, other, mask, count = ctx.saved_tensors
        share, found = gradient / count, torch.zeros_like(other)
        for first, second in _neighbour_pairs(other):
            scale = (other[second] - other[first]).square_().add_(0.81).rsqrt_()
            error = (other[second] - other[first]).mul_(scale).sub_(_census(grey, first, second))
            change = (share[first] * mask[second]).add_(share[second] * mask[first])
            change.mul_(error).mul_(0.2 * 0.81).mul_(scale.pow_(3)).div_(error.square_().add_(0.1).square_())
            found[second] += change
            found[first] -= change
        return None, found, None


def _neighbour_pairs(image: Tensor):
    """Yield where each pair of neighbours of an image (B, 1, h, w) lies, as two tuples of slices."""
    height, width = image.shape[2:]
    reach = _CENSUS // 2
    for down in range(reach + 1):
        for right in range(-reach if down else 1, reach + 1):
            rows = slice(0, height - down), slice(down, height)
            columns = slice(max(0, -right), width - max(0, right)), slice(max(0, right), width - max(0, -right))
            yield (..., rows[0], columns[0]), (..., rows[1], columns[1])


def _census(grey: Tensor, first, second) -> Tensor:
    difference = grey[second] - grey[first]
    return difference * (difference.square() + 0.81).rsqrt_()


def without_border(mask: Tensor) -> Tensor:
    """Return a mask (B, 1, h, w) that is 0 within 3 px of the border."""
    border = _CENSUS // 2
    return functional.pad(mask[:, :, border:-border, border:-border], (border,) * 4)


def smoothness(values: Tensor, image: Tensor, norm: Tensor | None = None) -> Tensor:
    """Return how much values (B, C, h, w) bend along both axes, where the image (B, 3, h, w) does not change.

    norm: (B, 1, h, w), by which the bend is divided.
    """
    found = []
    for axis in (3, 2):
        before, here, after = (values.narrow(axis, k, values.shape[axis] - 2) for k in range(3))
        change = image.narrow(axis, 2, image.shape[axis] - 2) - image.narrow(axis, 0, image.shape[axis] - 2)
        weight = torch.exp(-_EDGE * change.abs().mean(dim=1, keepdim=True))
        bend = torch.sqrt((before - 2 * here + after) ** 2 + 0.001**2) * weight
        if norm is not None:
            bend = bend / (norm.narrow(axis, 1, norm.shape[axis] - 2) + _TINY)
        found.append(bend.mean())
    return (found[0] + found[1]) / 2
