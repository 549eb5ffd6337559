# SPDX-License-Identifier: Apache-2.0
"""Learning strategies of students, by name."""

import importlib

from training.learning.strategies.strategy import Strategy
from training.learning.train_config import TrainConfig
from training.students import build_student
from zeroflow_ros.errors import ConfigError

# name: (module in training.learning.strategies, class)
STRATEGIES = {
    'distillation': ('distillation', 'Distillation'),
    'seflow': ('seflow', 'SeFlow'),
}


def sweeps_per_sample(config: TrainConfig) -> int:
    """Return the number of sweeps of a training sample: as many as the student takes, if the strategy can use them."""
    return 2 if build_strategy(config).pairs_only else build_student(config.student).num_sweeps


def build_strategy(config: TrainConfig) -> Strategy:
    """Return the strategy of a configuration. Raises: ConfigError for an unknown name."""
    if config.strategy not in STRATEGIES:
        raise ConfigError(f'strategy should be one of {", ".join(STRATEGIES)}, got {config.strategy!r}.')
    module, class_name = STRATEGIES[config.strategy]
    return getattr(importlib.import_module(f'training.learning.strategies.{module}'), class_name)(config)
