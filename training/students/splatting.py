# SPDX-License-Identifier: Apache-2.0
"""Forward warps: pixels of an image are carried along their flow and add up where they land."""

import torch
from torch import Tensor

from training.students.stereo_layers import pixel_grid

_LEAST_WEIGHT = 1e-7  # added to the sum of the weights


def splat_sum(image: Tensor, flow: Tensor) -> Tensor:
    """Return the image (B, C, h, w) with each pixel added to the four neighbours of p + flow(p), bilinear.

    flow: (B, 2, h, w) [px]. A neighbour outside of the image gets nothing; the others get their part all the same.
    """
    batch, channels, height, width = image.shape
    target = pixel_grid(height, width, flow) + flow
    corner = target.floor()
    share = target - corner  # of the right and of the lower neighbours
    # A corner far outside stays outside, and fits an integer.
    corner = torch.stack([corner[:, 0].clamp(-2, width), corner[:, 1].clamp(-2, height)], dim=1).long()
    total = torch.zeros(batch, channels, height * width, dtype=image.dtype, device=image.device)
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        u, v = corner[:, 0] + right, corner[:, 1] + below
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        weight = (share[:, 0] if right else 1 - share[:, 0]) * (share[:, 1] if below else 1 - share[:, 1])
        weight = weight * inside.to(weight.dtype)
        place = (v.clamp(0, height - 1) * width + u.clamp(0, width - 1)).flatten(1)
        added = image.flatten(2) * weight.flatten(1)[:, None]
        total = total.scatter_add(2, place[:, None].expand(-1, channels, -1), added)
    return total.reshape(batch, channels, height, width)


def splat_softmax(image: Tensor, flow: Tensor, metric: Tensor) -> Tensor:
    """Return the image (B, C, h, w) carried along the flow, where pixels land together as their weighted mean.

    flow: (B, 2, h, w) [px]. metric: (B, 1, h, w), logarithm of the weight. Cells where nothing lands are 0.
    Source: Niklaus and Liu, Softmax Splatting for Video Frame Interpolation (CVPR 2020).
    """
    weight = metric.exp()
    total = splat_sum(torch.cat([image * weight, weight], dim=1), flow)
    return total[:, :-1] / (total[:, -1:] + _LEAST_WEIGHT)
