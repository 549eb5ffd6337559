# SPDX-License-Identifier: Apache-2.0
"""Learn a flow that takes one sweep to the other; labels say which points move, and never how."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from training.datasets.training_pair import TrainingPair
from training.learning.seflow_losses import FlowedPair, seflow_terms
from training.teachers.dynamic_labels import from_flow


class SeFlow:
    """A Strategy: SeFlow's four terms, which weigh the same, over both directions of time.

    Of labels that hold flow only which points move, and in which body, is kept.
    """

    teacher = 'dufomap'

    def __init__(self, config):
        self.config = config

    def supervision(self, labels: str) -> str:
        """Return that the labels are not the target."""
        return f"SeFlow's losses on the sweeps themselves; which points move: {labels}"

    def prepare(self, pair: TrainingPair) -> TrainingPair:
        """Return the pair with the dynamic labels of both clouds."""
        if pair.dynamic0 is not None:
            return pair
        dynamic = [
            from_flow(points, flow, np.zeros(len(points), bool) if is_ground is None else is_ground, pair.dt)
            for points, flow, is_ground in (
                (pair.points0, pair.flow0, pair.is_ground0), (pair.points1, pair.flow1, pair.is_ground1)
            )
        ]  # fmt: skip
        return dataclasses.replace(pair, dynamic0=dynamic[0], dynamic1=dynamic[1])

    def scored(self, flow: np.ndarray, dt: float, rng: np.random.Generator) -> np.ndarray:
        """Return all rows: what is compared are whole clouds."""
        return np.arange(len(flow))

    def loss(self, predicted: list[tuple[Tensor, Tensor]], batch) -> Tensor:
        """Return the mean over samples and directions of time of the sum of the terms; NaN for a flow that is none."""
        if not all(torch.isfinite(flow).all() for both in predicted for flow in both):
            return predicted[0][0].sum() * torch.nan  # which the training reports; no tree takes such points
        losses = []
        for (points0, points1), (flow0, flow1), (labels0, labels1) in zip(
            batch.clouds, predicted, batch.dynamic, strict=True
        ):
            losses.append(sum(seflow_terms(FlowedPair(points0, points1, flow0, labels0, labels1))))
            losses.append(sum(seflow_terms(FlowedPair(points1, points0, flow1, labels1, labels0))))
        return torch.stack(losses).mean()
