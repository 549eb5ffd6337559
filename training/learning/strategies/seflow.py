# SPDX-License-Identifier: Apache-2.0
"""Self-supervised learning (SeFlow): the flow must align the two sweeps; labels only say which points move."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from training.datasets.training_pair import TrainingPair
from training.learning.seflow_losses import PredictedPair, seflow_terms
from training.teachers.dynamic_labels import from_flow
from zeroflow_ros.errors import DataError


class SeFlow:
    """A Strategy with SeFlow's four loss terms, equally weighted, forward and backward in time.

    From labels with flow it uses only which points are dynamic and their clusters.
    """

    teacher = 'dufomap'
    pairs_only = True

    def __init__(self, config):
        self.config = config

    def supervision(self, labels: str) -> str:
        """Return a description that says the labels are not the target."""
        return f"SeFlow's losses on the sweeps themselves; which points move: {labels}"

    def prepare(self, pair: TrainingPair) -> TrainingPair:
        """Return the pair with dynamic labels of both clouds, derived from the flow if missing.

        Raises: DataError for a window of more than two sweeps: its losses compare the two clouds of a pair.
        """
        if pair.between:
            raise DataError(
                f'The strategy seflow compares two sweeps, and these samples have {len(pair.clouds)}. Train from '
                'labels, or a student that takes two sweeps.'
            )
        if pair.dynamic0 is not None:
            return pair
        dynamic = [
            from_flow(points, flow, np.zeros(len(points), bool) if is_ground is None else is_ground, pair.dt)
            for points, flow, is_ground in (
                (pair.points0, pair.flow0, pair.is_ground0), (pair.points1, pair.flow1, pair.is_ground1)
            )
        ]  # fmt: skip
        return dataclasses.replace(pair, dynamic0=dynamic[0], dynamic1=dynamic[1])

    def loss_rows(self, points: np.ndarray, flow: np.ndarray, dt: float, rng: np.random.Generator) -> np.ndarray:
        """Return all rows: the losses compare whole clouds."""
        return np.arange(len(points))

    def loss(self, predicted: list[tuple[Tensor, Tensor]], batch) -> Tensor:
        """Return the sum of the terms, averaged over samples and time directions; NaN if the flow is not finite."""
        if not all(torch.isfinite(flow).all() for both in predicted for flow in both):
            return predicted[0][0].sum() * torch.nan  # training_step reports it; the k-d tree rejects non-finite points
        losses = []
        for (points0, points1), (flow0, flow1), (labels0, labels1) in zip(
            batch.clouds, predicted, batch.dynamic, strict=True
        ):
            losses.append(sum(seflow_terms(PredictedPair(points0, points1, flow0, labels0, labels1))))
            losses.append(sum(seflow_terms(PredictedPair(points1, points0, flow1, labels1, labels0))))
        return torch.stack(losses).mean()
