# SPDX-License-Identifier: Apache-2.0
"""One training sample, and a batch of them as tensors."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """A cropped window of consecutive sweeps in one frame, and the targets of the loss.

    clouds: two or more (N, 3) float32 [m], all points inside the phase's grid. rows: two (K,) row numbers in the loss,
    of the first and the last cloud. flows: two (K, 3) float32 [m], target flow of these rows, to the time of the
    neighbour. dt: seconds. used: sweeps that the student may use, 2 to len(clouds); 0: all.
    dynamic: two (K,) int32, dynamic labels of these rows, see training/teachers/dynamic_labels.py; None where the
        strategy does not use them.
    """

    clouds: tuple[np.ndarray, ...]
    rows: tuple[np.ndarray, np.ndarray]
    flows: tuple[np.ndarray, np.ndarray]
    dt: float
    dynamic: tuple[np.ndarray, np.ndarray] | None = None
    used: int = 0


class Batch(NamedTuple):
    """Samples as tensors.

    clouds: per sample two or more (N, 3) [m]. rows: per sample two (K,) int64, the rows in the loss of the first and
    the last cloud. flow: (S, 3) [m], target flow of all these rows: first cloud of the first sample, its last cloud,
    and so on. used: per sample, sweeps that the student may use.
    dt: (S,) [s]. cloud: (S,) int64, number of the cloud that each row belongs to.
    dynamic: per sample two (K,) int32, see training/teachers/dynamic_labels.py; empty where the strategy does not use
        them.
    """

    clouds: list[tuple[Tensor, ...]]
    rows: list[tuple[Tensor, Tensor]]
    flow: Tensor
    dt: Tensor
    cloud: Tensor
    dynamic: list[tuple[Tensor, Tensor]]
    used: list[int]


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
        used=[sample.used or len(sample.clouds) for sample in samples],
    )


def any_component_above(flow: np.ndarray, limit: float) -> np.ndarray:
    """Return which rows of flow (N, 3) [m] have a component whose magnitude exceeds the limit, (N,) bool.

    NaN rows do not. Comparing columns is ten times faster than comparing rows.
    """
    x, y, z = np.abs(flow).T
    return (x > limit) | (y > limit) | (z > limit)
