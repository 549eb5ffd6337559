# SPDX-License-Identifier: Apache-2.0
"""What sets one way of learning apart from another: what it needs of a sweep pair, and its loss."""

from typing import Protocol

import numpy as np
from torch import Tensor

from training.datasets.training_pair import TrainingPair
from training.learning.batch import Batch


class Strategy(Protocol):
    """A way in which a student learns. It is made from a TrainConfig.

    teacher: what labels its data where nobody says otherwise.
    """

    teacher: str

    def supervision(self, labels: str) -> str:
        """Return what the student learns from, for its provenance; labels: what its data is labelled by."""

    def prepare(self, pair: TrainingPair) -> TrainingPair:
        """Return a pair with all that the loss needs, once when it is read. Raises: DataError when it has not."""

    def scored(self, flow: np.ndarray, dt: float, rng: np.random.Generator) -> np.ndarray:
        """Return the rows of a cloud that the loss looks at; flow: (N, 3) [m] as far as it is known, else NaN."""

    def loss(self, predicted: list[tuple[Tensor, Tensor]], batch: Batch) -> Tensor:
        """Return the loss; predicted: of each sample the flow [m] of the scored rows of both clouds."""
