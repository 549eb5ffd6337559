# SPDX-License-Identifier: Apache-2.0
"""Ego motion and depth from matched cells: a linear least-squares fit inside a network.

Points and motions are in the optical frame [m], maps are (B, C, h, w), cells are the pixels of a level.
"""

import torch
from torch import Tensor

from training.students.stereo_layers import pixel_grid

_LEAST_DEPTH = 0.5  # m, of a moved point
_DAMPING = 2.0  # of the normal equations, by the number of cells: the variance of a match [cells^2], in units of motion
_NEVER = 1e3  # subtracted from what has no share
_LEAST_PEAK = 0.02
_NOISE = 0.1  # cells^2: variance of a match, against which parallax counts


def matchable(features: Tensor) -> Tensor:
    """Return features (B, C, h, w) of which the mean over C of a product is the cosine of two cells, from -1 to 1.

    What all cells of an image have in common tells none from another, and is taken out.
    """
    features = features - features.mean(dim=(2, 3), keepdim=True)
    return features * torch.rsqrt(features.square().mean(dim=1, keepdim=True) + 1e-6)


def soft_match(volume: Tensor, radius: int, sharpness: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean offset (B, 2, h, w) [cells] of a correlation volume (B, (2 * radius + 1)^2, h, w), and its peak.

    volume: dy outer, dx inner, as `correlation_2d` gives it. Offsets inside the image count by the softmax of sharpness
    * correlation, as far as a share exceeds twice what equal shares would be: a cell that looks like all others rests.
    peak: (B, 1, h, w), the sum of what exceeds it, from 0 to 1.
    """
    height, width = volume.shape[2:]
    steps = torch.arange(-radius, radius + 1, dtype=volume.dtype, device=volume.device)
    offsets = torch.stack([steps.repeat(len(steps)), steps.repeat_interleave(len(steps))])  # (2, N)
    places = pixel_grid(height, width, volume) + offsets.T[:, :, None, None]  # (N, 2, h, w)
    known = inside(places, (height, width)).transpose(0, 1)  # (1, N, h, w)
    share = torch.softmax(sharpness * volume - _NEVER * (1 - known), dim=1)
    share = torch.relu(share - 2 / known.sum(dim=1, keepdim=True))
    peak = share.sum(dim=1, keepdim=True)
    return (offsets @ share.flatten(2)).unflatten(2, (height, width)) / (peak + _LEAST_PEAK), peak


def pixel_changes(points: Tensor, motion: Tensor, intrinsics: Tensor, turn: float, shift: float) -> Tensor:
    """Return by how much rotations and translations move the pixels of points + motion, (B, 6, 2, h, w) [cells].

    The first three are small rotations of the points about x, y and z by `turn` [rad], the others translations by
    `shift` [m].
    """
    moved, (x, y, z) = points + motion, points.unbind(1)
    ahead = moved[:, 2:].clamp(min=_LEAST_DEPTH)
    image = moved[:, :2] / ahead
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    ways = [(zero, -z, y), (z, zero, -x), (-y, x, zero), (one, zero, zero), (zero, one, zero), (zero, zero, one)]
    changes = torch.stack([torch.stack(way, dim=1) for way in ways], dim=1)  # (B, 6, 3, h, w)
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], dim=1)[:, :, None, None]
    pixels = (changes[:, :, :2] - image[:, None] * changes[:, :, 2:]) * (focal / ahead)[:, None]
    return pixels * pixels.new_tensor([turn] * 3 + [shift] * 3)[:, None, None, None]


def fit_motion(changes: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    """Return the motion (B, 6) whose changes (B, 6, 2, h, w) explain a residual (B, 2, h, w) best.

    weight: (B, 1, h, w), of the squared error of each cell. Motions of more than one unit count as unlikely,
    the more so the fewer cells there are.
    """
    A = changes.flatten(2)  # (B, 6, 2 h w)
    share = (weight / (weight.sum(dim=(1, 2, 3), keepdim=True) + 1e-6)).expand_as(residual).flatten(1)[:, None]
    weighted = A * share
    normal = weighted @ A.transpose(1, 2)
    damping = torch.eye(6, dtype=A.dtype, device=A.device) * (_DAMPING / weight[0].numel())
    return solved(normal + damping, weighted @ residual.flatten(1)[..., None])[..., 0]


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Return x of matrix @ x = right by elimination without pivots: matrix (B, N, N) is symmetric and positive.

    right: (B, N, K). Every step is an operator that model files know.
    """
    num = matrix.shape[1]
    rows, identity = torch.cat([matrix, right], dim=2), torch.eye(num, dtype=matrix.dtype, device=matrix.device)
    for k in range(num):
        row = rows[:, k : k + 1] / rows[:, k : k + 1, k : k + 1]
        rows = rows - (rows[:, :, k : k + 1] - identity[:, k : k + 1]) * row
    return rows[:, :, num:]


def parallax(changes: Tensor, translation: Tensor) -> Tensor:
    """Return the change (B, 2, h, w) [cells] of a cell's place in the other image by its log of inverse depth.

    changes: of `pixel_changes`. translation: (B, 3), of the camera, in its units.
    """
    return (changes[:, 3:] * translation[:, :, None, None, None]).sum(dim=1)


def depth_step(ways: list[Tensor], residuals: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the change (B, 1, h, w) of the log of inverse depth that residuals show, and how well they show it.

    ways: parallax of each direction of time. The change is damped by the noise of matches, and limited to 1; the second
    value is the logarithm of 1 + the squared parallax by that noise.
    """
    along, squared = 0.0, 0.0
    for way, residual, weight in zip(ways, residuals, weights, strict=True):
        along = along + weight * (way * residual).sum(dim=1, keepdim=True)
        squared = squared + weight * way.square().sum(dim=1, keepdim=True)
    return (along / (squared + _NOISE)).clamp(-1, 1), torch.log1p(squared / _NOISE)


def inside(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which pixels (B, 2, h, w) lie in an image of a size (height, width), (B, 1, h, w), 1 or 0."""
    limits = pixels.new_tensor([size[1] - 1, size[0] - 1])[:, None, None]
    return ((pixels >= 0) & (pixels <= limits)).all(dim=1, keepdim=True).to(pixels.dtype)
