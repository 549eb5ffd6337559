# SPDX-License-Identifier: Apache-2.0
"""Training losses: pure functions of predicted and wanted flow."""

import torch
from torch import Tensor

SPEED_GROUPS = (0.4, 2.0, 5.0)  # m/s: still, walking, cycling, driving


def balanced_epe(flow: Tensor, target: Tensor, speed: Tensor, *, still_weight: float = 1.0) -> Tensor:
    """Return the sum of the mean EPEs [m] of four groups of points by their true speed.

    Nine points in ten are still: a plain mean would learn to predict zero. An empty group counts 0.
    flow, target: (N, 3) [m]. speed: (N,) [m/s], of the target. still_weight: of the slowest group.
    Source: DeFlow's loss (Zhang et al. 2024), which has three groups with limits at 0.4 and 1 m/s; ours keep
    pedestrians apart from vehicles, which have far more points.
    """
    error = torch.linalg.vector_norm(flow - target, dim=1)
    group = torch.bucketize(speed, torch.tensor(SPEED_GROUPS, device=speed.device), right=True)
    weights = (still_weight, *(1.0 for _ in SPEED_GROUPS))
    means = [w * error[group == number].mean() for number, w in enumerate(weights) if (group == number).any()]
    return torch.stack(means).sum()
