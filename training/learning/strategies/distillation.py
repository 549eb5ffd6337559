# SPDX-License-Identifier: Apache-2.0
"""Supervised learning of flow from a teacher's pseudo-labels or the simulation's ground truth."""

import numpy as np
import torch
from torch import Tensor

from training.datasets.training_pair import TrainingPair
from training.learning import losses
from training.learning.batch import any_component_above
from zeroflow_ros.errors import DataError


class Distillation:
    """A Strategy with config.loss between the student's flow and the label flow. Source: ZeroFlow."""

    teacher = 'rigid'
    pairs_only = False

    def __init__(self, config):
        self.config = config

    def supervision(self, labels: str) -> str:
        """Return the description of the labels unchanged."""
        return labels

    def prepare(self, pair: TrainingPair) -> TrainingPair:
        """Return the pair unchanged. Raises: DataError when its labels are dynamic/static only, without flow."""
        if pair.dynamic0 is not None:
            raise DataError(
                'These labels say which points move, not how: they hold no flow to distill. Train with '
                'config/train_seflow_lite.yaml (strategy: seflow), or label with another teacher.'
            )
        return pair

    def loss_rows(self, points: np.ndarray, flow: np.ndarray, dt: float, rng: np.random.Generator) -> np.ndarray:
        """Return random rows with known flow: at most scored_points moving ones and scored_points static ones.

        A share beside_movers of the static ones is near moving ones, as far as there are so many.
        """
        known, moves = ~np.isnan(flow).any(axis=1), any_component_above(flow, self.config.mover_speed * dt)
        most = self.config.scored_points
        if not most:
            return np.flatnonzero(known)
        moving, static = np.flatnonzero(known & moves), np.flatnonzero(known & ~moves)
        moving = rng.permutation(moving)[:most]
        if self.config.beside_movers and len(moving) and len(static) > most:
            near = beside(points[static], points[moving])
            first = rng.permutation(static[near])[: round(self.config.beside_movers * most)]
            static = np.concatenate([first, rng.permutation(static[~near])[: most - len(first)]])
        else:
            static = rng.permutation(static)[:most]
        return np.sort(np.concatenate([moving, static]))

    def loss(self, predicted: list[tuple[Tensor, Tensor]], batch) -> Tensor:
        """Return config.loss over all rows in the loss."""
        config, target = self.config, batch.flow
        flow = torch.cat([flow for both in predicted for flow in both])
        speed = torch.linalg.vector_norm(target, dim=1) / batch.dt
        if config.loss == 'balanced_epe':
            return losses.balanced_epe(flow, target, speed, still_weight=config.still_weight)
        if config.loss == 'deflow':
            return losses.deflow_loss(flow, target, speed)
        if config.loss == 'fastflow3d':
            return losses.fastflow3d_loss(flow, target, speed > config.mover_speed, batch.cloud)
        constant = config.loss == 'zeroflow_constant'
        return losses.zeroflow_loss(flow, target, speed, batch.cloud, constant_weight=constant)


def beside(points: np.ndarray, movers: np.ndarray) -> np.ndarray:
    """Return which of points (N, 3) are within about 1 m of one of movers (M, 3), seen from above, (N,) bool."""
    cells, movers = (np.floor(xyz[:, :2] * 2).astype(np.int64) for xyz in (points, movers))  # of 0.5 m
    low, reach = cells.min(axis=0), 2
    size = cells.max(axis=0) - low + 1
    occupied = np.zeros(size, bool)
    movers = np.unique(movers, axis=0)
    for dx, dy in np.ndindex(2 * reach + 1, 2 * reach + 1):
        around = movers + (dx - reach, dy - reach) - low
        x, y = around[((around >= 0) & (around < size)).all(axis=1)].T
        occupied[x, y] = True
    return occupied[tuple((cells - low).T)]
