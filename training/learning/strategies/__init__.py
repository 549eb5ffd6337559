# SPDX-License-Identifier: Apache-2.0
"""Learning strategies of students, by name."""

import importlib

from training.learning.strategies.strategy import Strategy
from training.learning.train_config import TrainConfig
from training.students import CAMERA_STUDENTS, MONO_STUDENTS, SCORED_STUDENTS, build_student
from zeroflow_ros.errors import ConfigError

# name: (module in training.learning.strategies, class)
STRATEGIES = {
    'distillation': ('distillation', 'Distillation'),
    'seflow': ('seflow', 'SeFlow'),
}
CAMERA_STRATEGIES = {'proxy': ('proxy', 'Proxy')}  # of students for stereo cameras
MONO_STRATEGIES = {  # of students for one camera
    'mono_self_supervised': ('mono_self_supervised', 'MonoSelfSupervised'),
    'mono_from_lidar': ('mono_from_lidar', 'MonoFromLidar'),
    'mono_finetuning': ('mono_finetuning', 'MonoFinetuning'),
}


def sweeps_per_sample(config: TrainConfig) -> int:
    """Return the number of sweeps of a training sample: as many as the student takes, if the strategy can use them."""
    return 2 if build_strategy(config).pairs_only else build_student(config.student).num_sweeps


def build_strategy(config: TrainConfig) -> Strategy:
    """Return the strategy of a configuration. Raises: ConfigError for one that the student's sensor does not have."""
    known = STRATEGIES
    if config.student in SCORED_STUDENTS:
        raise ConfigError(
            f'{config.student} is for scores of published checkpoints, and has no training here. Train multi_mono_sf '
            'or mono_lite.'
        )
    if config.student in CAMERA_STUDENTS:
        known = CAMERA_STRATEGIES
    elif config.student in MONO_STUDENTS:
        known = MONO_STRATEGIES
    if config.strategy not in known:
        raise ConfigError(
            f'strategy should be one of {", ".join(known)} for {config.student}, got {config.strategy!r}.'
        )
    module, class_name = known[config.strategy]
    return getattr(importlib.import_module(f'training.learning.strategies.{module}'), class_name)(config)
