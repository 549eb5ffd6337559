# SPDX-License-Identifier: Apache-2.0
"""The ways in which a student learns, by name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.schedule import TrainConfig
    from training.strategies.strategy import Strategy

# module in training.strategies, class in it
STRATEGIES = {
    'distillation': ('distillation', 'Distillation'),
    'seflow': ('seflow', 'SeFlow'),
}


def build_strategy(config: TrainConfig) -> Strategy:
    """Return the strategy that a configuration names, which has checked that there is one."""
    module, class_name = STRATEGIES[config.strategy]
    return getattr(importlib.import_module(f'training.strategies.{module}'), class_name)(config)
