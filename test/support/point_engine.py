# SPDX-License-Identifier: Apache-2.0
"""An engine around a function, for tests of the code outside the network."""

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.engines.engine import IDENTITY


class PointEngine:
    """Subclasses implement `flow` of two clouds in the network frame.

    calls: of each call, source and target in the network frame. older: of each call, the sweeps beyond the target.
    """

    def __init__(self, card):
        self.card = card
        self.calls, self.older = [], []

    def flow(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def infer(self, source, target, watch, *, network_T_source=IDENTITY, network_T_target=IDENTITY, older=()):
        clouds = transforms.apply(network_T_source, source), transforms.apply(network_T_target, target)
        self.calls.append(clouds)
        self.older.append([transforms.apply(network_T_points, points) for points, network_T_points in older])
        with watch('inference'):
            return self.flow(*clouds)
