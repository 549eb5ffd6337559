# SPDX-License-Identifier: Apache-2.0
"""Learning strategies of students, by name."""

import importlib

from training.learning.strategies.strategy import Strategy
from training.learning.train_config import TrainConfig
from training.students import CAMERA_STUDENTS, MONO_STUDENTS, build_student
from zeroflow_ros.errors import ConfigError

# name: (module in training.learning.strategies, class)
STRATEGIES = {
    'distillation': ('distillation', 'Distillation'),
    'seflow': ('seflow', 'SeFlow'),
}
CAMERA_STRATEGIES = {'proxy': ('proxy', 'Proxy')}  # of students for stereo cameras


def sweeps_per_sample(config: TrainConfig) -> int:
    """Return the number of sweeps of a training sample: as many as the student takes, if the strategy can use them."""
    return 2 if build_strategy(config).pairs_only else build_student(config.student).num_sweeps


def build_strategy(config: TrainConfig) -> Strategy:
    """Return the strategy of a configuration. Raises: ConfigError for one that the student's sensor does not have."""
    if config.student in MONO_STUDENTS:
        raise ConfigError(
            f'{config.student} takes images of one camera, for which there is no strategy. Choose another student.'
        )
    known = CAMERA_STRATEGIES if config.student in CAMERA_STUDENTS else STRATEGIES
    if config.strategy not in known:
        raise ConfigError(
            f'strategy should be one of {", ".join(known)} for {config.student}, got {config.strategy!r}.'
        )
    module, class_name = known[config.strategy]
    return getattr(importlib.import_module(f'training.learning.strategies.{module}'), class_name)(config)
