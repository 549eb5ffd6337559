# SPDX-License-Identifier: Apache-2.0
"""When an optimised teacher is done."""


class EarlyStopping:
    """Stop after `patience` losses in a row of which none is below the best by more than min_delta."""

    def __init__(self, patience: int, min_delta: float):
        self.patience = patience
        self.min_delta = min_delta
        self.best = float('inf')
        self.waited = 0

    def done(self, loss: float) -> bool:
        """Take the next loss; one that is not a number is no progress."""
        if loss < self.best - self.min_delta:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        return self.waited >= self.patience
