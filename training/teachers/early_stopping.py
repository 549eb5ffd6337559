# SPDX-License-Identifier: Apache-2.0
"""When the optimisation of a teacher stops."""


class EarlyStopping:
    """Stop after `patience` losses in a row that do not improve the best one by more than `min_delta`."""

    def __init__(self, patience: int, min_delta: float):
        self.patience = patience
        self.min_delta = min_delta
        self.best = float('inf')
        self.waited = 0

    def done(self, loss: float) -> bool:
        """Return whether to stop after this loss; NaN is no improvement."""
        if loss < self.best - self.min_delta:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        return self.waited >= self.patience
