# SPDX-License-Identifier: Apache-2.0
"""Neural Scene Flow Prior: a small network, optimised on one pair so that its flow warps one cloud onto the other.

Source: Li et al., NSFP (NeurIPS 2021), with the settings of ZeroFlow's pseudo-labels.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from training.datasets.pairs import Times
from training.teachers.coordinate_network import CoordinateNetwork, cores
from training.teachers.early_stopping import EarlyStopping
from training.teachers.nearest import NearestTracker, nearest_by_distance
from training.teachers.teacher import Flows
from zeroflow_ros.errors import ConfigError


@dataclass(frozen=True)
class NSFPConfig:
    """Settings of NSFP; the defaults are ZeroFlow's.

    width: neurons per layer. depth: hidden layers. lr: learning rate of Adam. max_iterations: upper limit.
    patience, min_delta: stop after `patience` iterations without an improvement of the total loss by `min_delta` [m^2].
    truncation: neighbours at this squared distance [m^2] or more count as 0; 2 is 1.414 m.
    backward: flow of points1 from a second run with swapped clouds ('swap'), or from the first run's 'inverse' network.
    seed: of the initial weights. device: 'cpu' or 'cuda'. num_threads: CPU cores to use.
    """

    width: int = 128
    depth: int = 8
    lr: float = 0.008
    max_iterations: int = 5000
    patience: int = 100
    min_delta: float = 5e-5
    truncation: float = 2.0
    backward: str = 'swap'
    seed: int = 0
    device: str = 'cpu'
    num_threads: int = 2

    def __post_init__(self):
        least = {'width': 1, 'depth': 1, 'max_iterations': 1, 'patience': 1, 'num_threads': 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f'{name} of NSFP should be at least {value}, got {getattr(self, name)}.')
        if self.lr <= 0 or self.truncation <= 0 or self.min_delta < 0:
            raise ConfigError(f'NSFP needs lr and truncation above 0 and min_delta of 0 or more, got {self}.')
        if self.backward not in ('swap', 'inverse'):
            raise ConfigError(f"backward of NSFP should be 'swap' or 'inverse', got {self.backward!r}.")


@dataclass(frozen=True)
class FittedFlow:
    """Result of one optimisation.

    forward: (N, 3) float32 [m], flow of points0. inverse: (M, 3) float32 [m], flow of points1 by the inverse network;
    zeros if the configuration does not use it. iterations: run until the stop. loss: lowest forward loss [m^2].
    """

    forward: np.ndarray
    inverse: np.ndarray
    iterations: int
    loss: float


class TruncatedChamfer:
    """Truncated Chamfer distance [m^2] between a moving and a fixed cloud, for repeated calls.

    truncation: neighbours at this squared distance [m^2] or more count as 0, but stay in the mean.
    """

    def __init__(self, truncation: float, num_threads: int = 1):
        self.truncation = truncation
        reach = 1.001 * math.sqrt(truncation)  # a little more: the loss itself truncates
        self._reach = reach
        self._to_fixed, self._to_moving = NearestTracker(reach, num_threads), NearestTracker(reach, num_threads)

    def __call__(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Return the loss of moving (N, 3) and fixed (M, 3), a scalar with a gradient to `moving`."""
        with torch.no_grad():
            if moving.device.type == 'cpu':
                clouds = moving.contiguous().numpy(), fixed.numpy()
                to_fixed = torch.from_numpy(self._to_fixed(*clouds))
                to_moving = torch.from_numpy(self._to_moving(*clouds[::-1]))
            else:
                to_fixed = nearest_by_distance(moving, fixed, self._reach)
                to_moving = nearest_by_distance(fixed, moving, self._reach)
        return self._one_way(moving, fixed, to_fixed) + self._one_way(fixed, moving, to_moving)

    def _one_way(self, points: torch.Tensor, others: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        rows = (nearest >= 0).nonzero()[:, 0]
        squared = (points.index_select(0, rows) - others.index_select(0, nearest[rows])).square().sum(1)
        return torch.where(squared < self.truncation, squared, 0).sum() / len(points)


class NSFP:
    """A Teacher; see training/teachers/teacher.py."""

    name = 'nsfp'
    network, loss = CoordinateNetwork, TruncatedChamfer

    def __init__(self, config: NSFPConfig | None = None):
        self.config = config or NSFPConfig()

    def label(self, points0: np.ndarray, points1: np.ndarray, dt: float, *, times: Times | None = None) -> Flows:
        """Return the residual flow [m] of points0 (N, 3) to points1 (M, 3) and back; dt and times are not used."""
        result = self.fit(points0, points1)
        if self.config.backward == 'inverse':
            return result.forward, result.inverse
        return result.forward, self.fit(points1, points0).forward

    def fit(self, points0: np.ndarray, points1: np.ndarray, progress=None) -> FittedFlow:
        """Optimise one direction; `progress(iteration, forward loss, inverse loss)` is called after each iteration."""
        if len(points0) == 0 or len(points1) == 0:
            zeros = [np.zeros((len(points), 3), np.float32) for points in (points0, points1)]
            return FittedFlow(*zeros, 0, 0.0)
        orders = [cKDTree(points).indices for points in (points0, points1)]  # spatial neighbours get nearby rows
        clouds = [
            torch.from_numpy(points[order]).to(self.config.device)
            for points, order in zip((points0, points1), orders, strict=True)
        ]
        stopping = EarlyStopping(self.config.patience, self.config.min_delta)
        best_loss, best = math.inf, [torch.zeros_like(cloud) for cloud in clouds]
        with cores(self.config.num_threads) as map_blocks:
            for iteration, forward_loss, inverse_loss, flow, inverse in self.steps(*clouds, map_blocks):
                if forward_loss <= best_loss:
                    best_loss, best[0] = forward_loss, flow
                    if self.config.backward == 'inverse':
                        with torch.no_grad():
                            best[1] = -inverse(clouds[1])
                if progress:
                    progress(iteration, forward_loss, inverse_loss)
                if stopping.done(forward_loss + inverse_loss):
                    break
        flows = []
        for flow, order in zip(best, orders, strict=True):
            flows.append(np.empty((len(order), 3), np.float32))
            flows[-1][order] = flow.cpu().numpy()
        return FittedFlow(*flows, iteration, best_loss)

    def steps(self, cloud0: torch.Tensor, cloud1: torch.Tensor, map_blocks=map):
        """Yield for each iteration its number, forward and inverse loss [m^2], the flow and the inverse network."""
        config = self.config
        # Both networks start from the same weights.
        network, inverse = (
            self.network(config.width, config.depth, map_blocks, seed=config.seed).to(config.device) for _ in range(2)
        )
        optimiser = torch.optim.Adam([*network.parameters(), *inverse.parameters()], lr=config.lr)
        to_cloud1, to_cloud0 = (self.loss(config.truncation, config.num_threads) for _ in range(2))
        for iteration in range(1, config.max_iterations + 1):
            flow = network(cloud0)
            warped = cloud0 + flow
            forward_loss = to_cloud1(warped, cloud1)
            inverse_loss = to_cloud0(warped - inverse(warped), cloud0)
            yield iteration, forward_loss.item(), inverse_loss.item(), flow.detach(), inverse
            optimiser.zero_grad()
            (forward_loss + inverse_loss).backward()
            optimiser.step()
