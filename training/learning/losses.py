# SPDX-License-Identifier: Apache-2.0
"""Training losses: pure functions of predicted and target flow."""

import torch
from torch import Tensor

SPEED_GROUPS = (0.4, 2.0, 5.0)  # m/s: limits between static, walking, cycling and driving


def balanced_epe(flow: Tensor, target: Tensor, speed: Tensor, *, still_weight: float = 1.0) -> Tensor:
    """Return the sum of the mean EPEs [m] of four groups of points by target speed.

    Nine points in ten are static: a plain mean would teach the student to predict zero. An empty group counts 0.
    flow, target: (N, 3) [m]. speed: (N,) [m/s], of the target. still_weight: weight of the slowest group.
    Source: DeFlow's loss (Zhang et al. 2024), which has three groups with limits at 0.4 and 1 m/s; ours
    separate pedestrians from vehicles, which have far more points.
    """
    error = torch.linalg.vector_norm(flow - target, dim=1)
    group = torch.bucketize(speed, torch.tensor(SPEED_GROUPS, device=speed.device), right=True)
    weights = (still_weight, *(1.0 for _ in SPEED_GROUPS))
    means = [w * error[group == number].mean() for number, w in enumerate(weights) if (group == number).any()]
    return torch.stack(means).sum()


def deflow_loss(flow: Tensor, target: Tensor, speed: Tensor) -> Tensor:
    """Return DeFlow's supervised loss: the sum of the mean EPEs [m] of points slower than 0.4, up to 1, and over 1 m/s.

    flow, target: (N, 3) [m]. speed: (N,) [m/s], of the target. An empty group counts 0.
    Source: DeFlow (Zhang et al. 2024); its code assumes 0.1 s for every pair; we use the actual dt.
    """
    error = torch.linalg.vector_norm(flow - target, dim=1)
    groups = (speed < 0.4, (speed >= 0.4) & (speed <= 1.0), speed > 1.0)
    return torch.stack([error[group].mean() if group.any() else error.sum() * 0 for group in groups]).sum()


def zeroflow_loss(
    flow: Tensor, target: Tensor, speed: Tensor, cloud: Tensor, *, constant_weight: bool = False
) -> Tensor:
    """Return ZeroFlow's distillation loss: the mean weighted EPE [m] of each cloud, averaged over the clouds.

    flow, target: (N, 3) [m], of the student and of the teacher. speed: (N,) [m/s], of the target.
    cloud: (N,) int64, number of the cloud that a point belongs to, from 0.
    constant_weight: 0.1 for every point, as in the code that trained the released weights, whose clamp has its limits
        swapped; otherwise `speed_weight`, as in the paper.
    Source: ZeroFlow (Vedder et al. 2024), which sums over the clouds. Adam is invariant to that factor; the mean does
    not depend on the number of GPUs that share a batch.
    """
    weight = torch.full_like(speed, 0.1) if constant_weight else speed_weight(speed)
    return _mean_of_clouds(weight * torch.linalg.vector_norm(flow - target, dim=1), cloud)


def speed_weight(speed: Tensor) -> Tensor:
    """Return the weight of points from their label speed (N,) [m/s].

    0.1 up to 0.5 m/s, 1.8 v - 0.8 between, 1 from 1 m/s. Source: ZeroFlow, section 4.
    """
    return (1.8 * speed - 0.8).clamp(0.1, 1.0)


def fastflow3d_loss(flow: Tensor, target: Tensor, is_foreground: Tensor, cloud: Tensor) -> Tensor:
    """Return FastFlow3D's supervised loss: like `zeroflow_loss`, with weight 1 on the foreground and 0.1 elsewhere.

    flow, target: (N, 3) [m]. is_foreground: (N,) bool. cloud: (N,) int64.
    Source: FastFlow3D (Jund et al. 2021) as ZeroFlow implements it.
    """
    weight = torch.where(is_foreground, 1.0, 0.1)
    return _mean_of_clouds(weight * torch.linalg.vector_norm(flow - target, dim=1), cloud)


def _mean_of_clouds(error: Tensor, cloud: Tensor) -> Tensor:
    """Return the mean over clouds of the mean error per cloud; clouds without points are ignored."""
    _, cloud, counts = torch.unique(cloud, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=error.dtype, device=error.device).scatter_add(0, cloud, error)
    return (sums / counts).mean()
