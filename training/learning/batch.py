# SPDX-License-Identifier: Apache-2.0
"""One training sample, and a batch of them as tensors."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """Two cropped clouds in one frame, and the targets of the loss.

    clouds: two (N, 3) float32 [m], all points inside the phase's grid. rows: two (K,) row numbers in the loss.
    flows: two (K, 3) float32 [m], target flow of these rows, to the time of the other cloud. dt: seconds.
    dynamic: two (K,) int32, dynamic labels of these rows, see training/teachers/dynamic_labels.py; None where the
        strategy does not use them.
    """

    clouds: tuple[np.ndarray, np.ndarray]
    rows: tuple[np.ndarray, np.ndarray]
    flows: tuple[np.ndarray, np.ndarray]
    dt: float
    dynamic: tuple[np.ndarray, np.ndarray] | None = None


class Batch(NamedTuple):
    """Samples as tensors.

    clouds: per sample two (N, 3) [m]. rows: per sample two (K,) int64, the rows in the loss.
    flow: (S, 3) [m], target flow of all these rows: cloud 0 of the first sample, its cloud 1, and so on.
    dt: (S,) [s]. cloud: (S,) int64, number of the cloud that each row belongs to.
    dynamic: per sample two (K,) int32, see training/teachers/dynamic_labels.py; empty where the strategy does not use
        them.
    """

    clouds: list[tuple[Tensor, Tensor]]
    rows: list[tuple[Tensor, Tensor]]
    flow: Tensor
    dt: Tensor
    cloud: Tensor
    dynamic: list[tuple[Tensor, Tensor]]


def collate(samples: list[Sample]) -> Batch:
    """Join samples into one batch."""
    flows = [torch.from_numpy(flow) for sample in samples for flow in sample.flows]
    return Batch(
        clouds=[tuple(map(torch.from_numpy, sample.clouds)) for sample in samples],
        rows=[tuple(map(torch.from_numpy, sample.rows)) for sample in samples],
        flow=torch.cat(flows),
        dt=torch.cat([torch.full((len(flow),), sample.dt) for sample in samples for flow in sample.flows]),
        cloud=torch.cat([torch.full((len(flow),), number) for number, flow in enumerate(flows)]),
        dynamic=[tuple(map(torch.from_numpy, sample.dynamic)) for sample in samples if sample.dynamic],
    )


def any_component_above(flow: np.ndarray, limit: float) -> np.ndarray:
    """Return which rows of flow (N, 3) [m] have a component whose magnitude exceeds the limit, (N,) bool.

    NaN rows do not. Comparing columns is ten times faster than comparing rows.
    """
    x, y, z = np.abs(flow).T
    return (x > limit) | (y > limit) | (z > limit)
