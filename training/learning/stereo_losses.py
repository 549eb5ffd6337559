# SPDX-License-Identifier: Apache-2.0
"""Training losses of students for stereo cameras: pure functions of predicted and known scene flow.

Values are disparity, disparity in the other frame (both positive), flow u, v; NaN where not known.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from training.students.camera_student import StereoPrediction, known
from training.students.dwarf import SCALE

LEVEL_WEIGHTS = {2: 0.005, 3: 0.01, 4: 0.02, 5: 0.08, 6: 0.32}
FINEST_WEIGHT = 0.001
_COARSE_WEIGHT = 0.5
_SHARES = (1.0, 1.0, 0.5, 0.5)  # of disparity, disparity in the other frame, flow u, flow v
_SIGNS = (-1.0, -1.0, 1.0, 1.0)  # the network's disparities are negative


def dwarf_levels_loss(levels: dict[int, Tensor], target: Tensor) -> Tensor:
    """Return DWARF's loss of its first stage, on dense ground truth: absolute errors of all levels, summed over pixels.

    levels: values of the network by level, (B, 4, H / 2^level, W / 2^level). target: (B, 4, H, W) [px]. The target of a
    level is the mean over its pixels, divided by 20. Unknown pixels count as 0.
    Source: DWARF's code, whose computed mask of unknown pixels is not used.
    """
    target = network_values(known(target)[0])
    losses = []
    for level, values in levels.items():
        error = (values - functional.avg_pool2d(target, 2**level)).abs()
        losses.append(LEVEL_WEIGHTS[level] * _weighted_sum(error))
    return torch.stack(losses).sum()


def dwarf_masked_loss(values: Tensor, target: Tensor) -> Tensor:
    """Return DWARF's loss of its second stage: absolute errors of the finest level at full size, where known, summed.

    values: (B, 4, H, W), enlarged, still divided by 20. target: (B, 4, H, W) [px].
    Source: DWARF's code. It takes a disparity of 0 as unknown; we take NaN.
    """
    target, is_known = known(target)
    return FINEST_WEIGHT * _weighted_sum((values - network_values(target)).abs() * is_known)


def squared_weights(parameters: Iterable[Tensor]) -> Tensor:
    """Return the sum of the squares of all parameters, biases included."""
    return torch.stack([parameter.square().sum() for parameter in parameters]).sum()


def laplace_loss(predicted: StereoPrediction, target: Tensor, max_error: float = 64.0) -> Tensor:
    """Return the mean absolute errors [px], where known, and how well the student knows them.

    predicted: of a student that estimates its errors. target: (B, 4, H, W) [px]. max_error: larger ones count as that:
    a wrong label, or a pixel that no one can match, does not outweigh the others.
    For each quantity, this adds |e| / b + log b, with b the estimated scale: the negative logarithm of a Laplace
    distribution. Its gradient reaches b only, so that no error is excused by a large b. Where the student gives coarse
    values, half of their mean absolute errors is added: each stage then learns directly.
    """
    target, is_known = known(target)
    values = torch.cat([predicted.disparity, predicted.other_disparity, predicted.flow], dim=1)
    error = (values - target).abs().clamp(max=max_error)
    losses = []
    for k, parts in enumerate((slice(0, 1), slice(1, 2), slice(2, 4))):
        mask = is_known[:, parts].all(dim=1).to(error.dtype)
        size = error[:, parts].mean(dim=1)
        log_scale = predicted.log_sigma[:, k]
        each = size + size.detach() * torch.exp(-log_scale) + log_scale
        losses.append((each * mask).sum() / mask.sum().clamp(min=1))
    if predicted.coarse is not None:
        step = target.shape[3] // predicted.coarse.shape[3]
        mask = is_known[:, :, ::step, ::step].to(error.dtype)
        error = (predicted.coarse - target[:, :, ::step, ::step]).abs().clamp(max=max_error) * mask
        means = error.sum(dim=(0, 2, 3)) / mask.sum(dim=(0, 2, 3)).clamp(min=1)  # of each value
        losses.append(_COARSE_WEIGHT * (means * torch.tensor(_SHARES, dtype=means.dtype, device=means.device)).sum())
    return torch.stack(losses).sum()


def network_values(target: Tensor) -> Tensor:
    """Return known values (B, 4, H, W) [px] as DWARF predicts them: divided by 20, disparities negative."""
    return target * torch.tensor(_SIGNS, dtype=target.dtype, device=target.device).reshape(1, 4, 1, 1) / SCALE


def _weighted_sum(error: Tensor) -> Tensor:
    """Return the weighted sum over channels and pixels, averaged over the batch. error: (B, 4, H, W)."""
    shares = torch.tensor(_SHARES, dtype=error.dtype, device=error.device).reshape(1, 4, 1, 1)
    return (error * shares).sum(dim=(1, 2, 3)).mean()
