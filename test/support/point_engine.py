# SPDX-License-Identifier: Apache-2.0
"""An engine around a function, for tests of the code outside the network."""

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.engines.engine import IDENTITY


class PointEngine:
    """Subclasses implement `flow` of two clouds in the network frame."""

    def __init__(self, card):
        self.card = card
        self.calls = []

    def flow(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def infer(self, source, target, watch, *, network_T_source=IDENTITY, network_T_target=IDENTITY):
        clouds = transforms.apply(network_T_source, source), transforms.apply(network_T_target, target)
        self.calls.append(clouds)
        with watch('inference'):
            return self.flow(*clouds)
