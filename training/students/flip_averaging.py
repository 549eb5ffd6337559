# SPDX-License-Identifier: Apache-2.0
"""Averages what a network of one camera finds in images and in the same images flipped left to right."""

import torch
from torch import Tensor

from training.students.mono_geometry import flipped_intrinsics
from training.students.multi_mono_sf import MonoFlow, MultiMonoSf

_BORDER, _STEEPNESS = 0.05, 20.0  # widths of the image that one result gives alone; 1 / the width of the transition


def flip_averaged(student: MultiMonoSf, images: Tensor, intrinsics: Tensor) -> list[MonoFlow]:
    """Return what `MultiMonoSf.sequence` returns, averaged with the result of the flipped images: twice the work.

    images: (B, T, 3, H, W). At the left border, the flipped result counts alone, at the right border, the direct one:
    each without the strip that the camera of the other eye would not see.
    Source: Hur and Roth, as Godard et al. (2017) do for disparity.
    """
    direct = student.sequence(images, intrinsics)
    flipped = student.sequence(images.flip(-1), flipped_intrinsics(intrinsics, images.shape[-1]))
    return [blended(one, unflipped(other)) for one, other in zip(direct, flipped, strict=True)]


def unflipped(flow: MonoFlow) -> MonoFlow:
    """Return a result of flipped images as one of the images: mirrored, and motion along x negated."""

    def motion(values: Tensor) -> Tensor:
        return values.flip(-1) * values.new_tensor([-1.0, 1.0, 1.0])[:, None, None]

    return MonoFlow(
        tuple(map(motion, flow.forward)),
        tuple(map(motion, flow.backward)),
        tuple(values.flip(-1) for values in flow.disparity),
    )


def blended(direct: MonoFlow, other: MonoFlow) -> MonoFlow:
    """Return the mean of two results of the same images, but `other` at the left and `direct` at the right border."""
    return MonoFlow(*(tuple(map(_blend, here, there)) for here, there in zip(direct, other, strict=True)))


def _blend(direct: Tensor, other: Tensor) -> Tensor:
    x = torch.linspace(0, 1, direct.shape[-1], dtype=direct.dtype, device=direct.device)
    left = 1 - (_STEEPNESS * (x - _BORDER)).clamp(0, 1)
    right = left.flip(0)
    return right * direct + left * other + (1 - left - right) * (direct + other) / 2
