# SPDX-License-Identifier: Apache-2.0
"""Fast Neural Scene Flow: NSFP with one network and a distance field in place of nearest neighbours.

Source: Li et al., Fast Neural Scene Flow (ICCV 2023).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from training.datasets.pairs import Times
from training.teachers.coordinate_network import CoordinateNetwork, cores
from training.teachers.distance_field import DistanceField
from training.teachers.early_stopping import EarlyStopping
from training.teachers.teacher import Flows
from zeroflow_ros.errors import ConfigError


@dataclass(frozen=True)
class FastNSFConfig:
    """Settings of Fast NSF.

    width: neurons per layer. depth: hidden layers. cell: cell size of the distance field [m]. lr: of Adam.
    max_iterations: upper limit. patience, min_delta: stop after `patience` iterations without a loss lower by
    `min_delta` [m]; OpenSceneFlow's values for better results. seed: of the initial weights.
    device: 'cpu' or 'cuda'. num_threads: CPU cores to use.
    """

    width: int = 128
    depth: int = 8
    cell: float = 0.1
    lr: float = 0.008
    max_iterations: int = 5000
    patience: int = 30
    min_delta: float = 5e-5
    seed: int = 0
    device: str = 'cpu'
    num_threads: int = 2

    def __post_init__(self):
        for name in ('width', 'depth', 'max_iterations', 'patience', 'num_threads'):
            if getattr(self, name) < 1:
                raise ConfigError(f'{name} of Fast NSF should be at least 1, got {getattr(self, name)}.')
        if self.lr <= 0 or self.cell <= 0 or self.min_delta < 0:
            raise ConfigError(f'Fast NSF needs lr and cell above 0 and min_delta not below, got {self}.')


class FastNSF:
    """A Teacher; see training/teachers/teacher.py."""

    name = 'fast_nsf'

    def __init__(self, config: FastNSFConfig | None = None):
        self.config = config or FastNSFConfig()

    def label(self, points0: np.ndarray, points1: np.ndarray, dt: float, *, times: Times | None = None) -> Flows:
        """Return the residual flow [m] of points0 (N, 3) to points1 (M, 3) and back; dt and times are not used.

        Raises: DataError when the clouds reach too far for the grid.
        """
        return self.fit(points0, points1)[0], self.fit(points1, points0)[0]

    def fit(self, points0: np.ndarray, points1: np.ndarray, progress=None) -> tuple[np.ndarray, int]:
        """Return the flow (N, 3) of one direction and its iterations; `progress(iteration, loss)` follows each."""
        config = self.config
        if len(points0) == 0 or len(points1) == 0:
            return np.zeros((len(points0), 3), np.float32), 0
        both = np.concatenate([points0, points1])
        field = DistanceField(points1, both.min(0) - 1, both.max(0) + 1, config.cell, config.device)  # 1 m of margin
        order = cKDTree(points0).indices  # spatial neighbours get nearby rows
        cloud = torch.from_numpy(points0[order]).to(config.device)
        stopping = EarlyStopping(config.patience, config.min_delta)
        best_loss, best = math.inf, torch.zeros_like(cloud)
        with cores(config.num_threads) as map_blocks:
            network = CoordinateNetwork(config.width, config.depth, map_blocks, seed=config.seed).to(config.device)
            optimiser = torch.optim.Adam(network.parameters(), lr=config.lr)
            for iteration in range(1, config.max_iterations + 1):
                flow = network(cloud)
                loss = field(cloud + flow).mean()
                value = loss.item()
                if value <= best_loss:
                    best_loss, best = value, flow.detach()
                if progress:
                    progress(iteration, value)
                if stopping.done(value):
                    break
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        flow = np.empty_like(points0)
        flow[order] = best.cpu().numpy()
        return flow, iteration
