# SPDX-License-Identifier: Apache-2.0
"""Interface of learning strategies: the preparation of a sweep pair, and the loss."""

from typing import Protocol

import numpy as np
from torch import Tensor

from training.datasets.training_pair import TrainingPair
from training.learning.batch import Batch


class Strategy(Protocol):
    """A learning strategy, constructed from a TrainConfig.

    teacher: name of the default teacher for its labels. pairs_only: whether it learns from pairs of sweeps, not from
    longer windows.
    """

    teacher: str
    pairs_only: bool

    def supervision(self, labels: str) -> str:
        """Return the `supervision` entry of the student's provenance. labels: description of the labels."""

    def prepare(self, pair: TrainingPair) -> TrainingPair:
        """Return a pair with everything the loss needs; called once per read. Raises: DataError if it cannot."""

    def loss_rows(self, points: np.ndarray, flow: np.ndarray, dt: float, rng: np.random.Generator) -> np.ndarray:
        """Return the rows of a cloud that enter the loss. points, flow: (N, 3) [m], flow is NaN where unknown."""

    def loss(self, predicted: list[tuple[Tensor, Tensor]], batch: Batch) -> Tensor:
        """Return the loss. predicted: per sample the flow [m] of the loss rows of both clouds."""
