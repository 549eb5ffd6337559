# SPDX-License-Identifier: Apache-2.0
"""One training sample, and a batch of them as tensors."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """Two clouds of a crop in one frame, and what the loss needs of them.

    clouds: two (N, 3) float32 [m], all inside the phase's grid. rows: two (K,) row numbers of the points to score.
    flows: two (K, 3) float32 [m], theirs, to the time of the other cloud. dt: seconds.
    dynamic: two (K,) int32, theirs, see training/dynamic_labels.py; None where the strategy does not ask.
    """

    clouds: tuple[np.ndarray, np.ndarray]
    rows: tuple[np.ndarray, np.ndarray]
    flows: tuple[np.ndarray, np.ndarray]
    dt: float
    dynamic: tuple[np.ndarray, np.ndarray] | None = None


class Batch(NamedTuple):
    """Samples as tensors.

    clouds: of each sample, two (N, 3) [m]. rows: of each sample, two (K,) int64, the points to score.
    flow: (S, 3) [m], wanted, of all scored points: cloud 0 of the first sample, its cloud 1, and so on.
    dt: (S,) [s]. cloud: (S,) int64, the number of the cloud of each.
    dynamic: of each sample, two (K,) int32, see training/dynamic_labels.py; none where the strategy does not ask.
    """

    clouds: list[tuple[Tensor, Tensor]]
    rows: list[tuple[Tensor, Tensor]]
    flow: Tensor
    dt: Tensor
    cloud: Tensor
    dynamic: list[tuple[Tensor, Tensor]]


def collate(samples: list[Sample]) -> Batch:
    """Return samples as one batch."""
    flows = [torch.from_numpy(flow) for sample in samples for flow in sample.flows]
    return Batch(
        clouds=[tuple(map(torch.from_numpy, sample.clouds)) for sample in samples],
        rows=[tuple(map(torch.from_numpy, sample.rows)) for sample in samples],
        flow=torch.cat(flows),
        dt=torch.cat([torch.full((len(flow),), sample.dt) for sample in samples for flow in sample.flows]),
        cloud=torch.cat([torch.full((len(flow),), number) for number, flow in enumerate(flows)]),
        dynamic=[tuple(map(torch.from_numpy, sample.dynamic)) for sample in samples if sample.dynamic],
    )


def faster(flow: np.ndarray, limit: float) -> np.ndarray:
    """Return which of flow (N, 3) [m] has a component beyond the limit; by columns: ten times faster than by rows.

    Unknown flow (NaN) has not.
    """
    x, y, z = np.abs(flow).T
    return (x > limit) | (y > limit) | (z > limit)
