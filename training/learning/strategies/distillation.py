# SPDX-License-Identifier: Apache-2.0
"""Learn to say the flow that a teacher, or the simulation, says."""

import numpy as np
import torch
from torch import Tensor

from training.datasets.training_pair import TrainingPair
from training.learning import losses
from training.learning.batch import faster
from zeroflow_ros.errors import DataError


class Distillation:
    """A Strategy: config.loss between the flow of the student and that of the labels. Source: ZeroFlow."""

    teacher = 'rigid'

    def __init__(self, config):
        self.config = config

    def supervision(self, labels: str) -> str:
        """Return what the labels are."""
        return labels

    def prepare(self, pair: TrainingPair) -> TrainingPair:
        """Return the pair as it is. Raises: DataError when its labels say what moves, and not how."""
        if pair.dynamic0 is not None:
            raise DataError(
                'These labels say which points move, and not how, so there is no flow to distill. Train with '
                'config/train_seflow_lite.yaml (strategy: seflow), or label with another teacher.'
            )
        return pair

    def scored(self, flow: np.ndarray, dt: float, rng: np.random.Generator) -> np.ndarray:
        """Return rows of known flow: at most scored_points that move and as many that do not, at random."""
        known, moves = ~np.isnan(flow).any(axis=1), faster(flow, self.config.mover_speed * dt)
        if not self.config.scored_points:
            return np.flatnonzero(known)
        groups = (np.flatnonzero(known & moves), np.flatnonzero(known & ~moves))
        return np.sort(np.concatenate([rng.permutation(group)[: self.config.scored_points] for group in groups]))

    def loss(self, predicted: list[tuple[Tensor, Tensor]], batch) -> Tensor:
        """Return config.loss of all scored points."""
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
