# SPDX-License-Identifier: Apache-2.0
"""A pseudo-label: the output of a teacher for a sweep pair."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class PseudoLabel:
    """The output of a teacher for both sweeps of a pair.

    key: of the pair. points0 (N, 3), points1 (M, 3): float32 [m], both in ego0, shifted so that z = 0
    is the ground below the vehicle; NaN rows are no returns. flow0 (N, 3), flow1 (M, 3): float32 [m], residual flow to
    the time of the other sweep; NaN where not labelled (outside the crop, NaN points), exactly 0 on the
    ground. is_ground0 (N,), is_ground1 (M,): bool. dt: seconds. input_sha256: of the sweep pair, '' if not known.
    dynamic0 (N,), dynamic1 (M,): int32, see training/teachers/dynamic_labels.py, if the teacher labels dynamic points
    without flow, which is then NaN; None for teachers that give flow.
    """

    key: str
    points0: np.ndarray
    points1: np.ndarray
    flow0: np.ndarray
    flow1: np.ndarray
    is_ground0: np.ndarray
    is_ground1: np.ndarray
    dt: float
    input_sha256: str = ''
    dynamic0: np.ndarray | None = None
    dynamic1: np.ndarray | None = None

    def __post_init__(self):
        for side in '01':
            points, flow, is_ground, dynamic = (
                getattr(self, f'{name}{side}') for name in ('points', 'flow', 'is_ground', 'dynamic')
            )
            n = len(points)
            dynamic = np.zeros(n, np.int32) if dynamic is None else dynamic
            for name, array, shape, dtype in (
                ('points', points, (n, 3), np.float32),
                ('flow', flow, (n, 3), np.float32),
                ('is_ground', is_ground, (n,), np.bool_),
                ('dynamic', dynamic, (n,), np.int32),
            ):
                if array.shape != shape or array.dtype != dtype:
                    raise ValueError(f'{self.key}: {name}{side} is {array.shape} {array.dtype}, not {shape} {dtype}')
            if flow[is_ground].any():  # NaN is true
                raise ValueError(f'{self.key}: flow{side} of the ground must be 0')
        if not 0 < self.dt < np.inf:
            raise ValueError(f'{self.key}: dt must be positive seconds, got {self.dt}')
