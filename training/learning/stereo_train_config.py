# SPDX-License-Identifier: Apache-2.0
"""Configuration of the training of a student for stereo cameras."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from training.config import build_config, load_config, read_yaml
from training.learning.mono_train_config import MonoTrainConfig
from training.learning.stereo_augmentation import StereoAugmentation
from training.learning.train_config import OPTIMIZERS, TrainConfig
from training.students import CAMERA_STUDENTS, MONO_STUDENTS
from zeroflow_ros.errors import ConfigError

LOSSES = ('laplace', 'dwarf_levels', 'dwarf_masked')
_DWARF_LOSSES = ('dwarf_levels', 'dwarf_masked')


@dataclass(frozen=True)
class StereoTrainConfig:
    """Configuration of a training on stereo pairs.

    student: name, of training.students.CAMERA_STUDENTS. strategy: proxy.
    width, height: of the images that the student sees of a whole camera image [px]: scaled to it for stereo_lite,
        padded to it for dwarf, as in its model files. crop_width, crop_height: of the part that a sample shows [px],
        multiples of what the student takes.
    steps: optimiser steps. epochs: passes over the data; they set the steps. 0: use `steps`. batch: pairs per step.
    accumulate: number of parts in which each process handles its share of a batch, to limit memory.
    held_out: share of the pairs, the last ones, that are never trained on.
    loss: one of LOSSES, see training/learning/stereo_losses.py: laplace for students that estimate their errors,
        dwarf_levels and dwarf_masked for dwarf.
    precision: 32-true only; mixed precision would round positions to parts of a pixel.
    optimizer, weight_decay, clip_norm, save_every, log_every, num_threads, num_workers, seed, licence: as in
        TrainConfig. l2: weight of the sum of all squared weights in the loss.
    lr: peak learning rate, reached after lr_steps; then cosine decay to 0. lr_halvings: steps from which the learning
        rate is halved, instead of the cosine decay.
    augmentation: see there.
    """

    student: str = 'stereo_lite'
    strategy: str = 'proxy'
    width: int = 640
    height: int = 192
    crop_width: int = 320
    crop_height: int = 160
    steps: int = 20000
    epochs: int = 0
    batch: int = 8
    accumulate: int = 1
    held_out: float = 0.1
    loss: str = 'laplace'
    optimizer: str = 'adamw'
    lr: float = 5e-4
    lr_steps: int = 200
    lr_halvings: tuple[float, ...] = ()
    weight_decay: float = 1e-4
    l2: float = 0.0
    clip_norm: float = 1.0
    precision: str = '32-true'
    save_every: int = 100
    log_every: int = 20
    num_threads: int = 2
    num_workers: int = 1
    seed: int = 0
    licence: str = 'Apache-2.0'
    augmentation: StereoAugmentation = dataclasses.field(default_factory=StereoAugmentation)

    def __post_init__(self):
        names = {'loss': LOSSES, 'optimizer': OPTIMIZERS, 'precision': ('32-true',), 'student': tuple(CAMERA_STUDENTS),
                 'strategy': ('proxy',)}  # fmt: skip
        for name, choices in names.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f'{name} should be one of {", ".join(choices)}, got {getattr(self, name)!r}.')
        if (self.student == 'dwarf') != (self.loss in _DWARF_LOSSES):
            raise ConfigError(f'The loss {self.loss} is not for {self.student}: dwarf has {_DWARF_LOSSES}.')
        if min(self.accumulate, self.save_every, self.log_every, self.batch, self.steps) < 1 or self.epochs < 0:
            raise ConfigError('accumulate, save_every, log_every, batch and steps should be >= 1, epochs >= 0.')
        if not 0 <= self.held_out < 1:
            raise ConfigError(f'held_out is a share of the pairs, from 0 to below 1, got {self.held_out}.')
        if not (0 < self.crop_width <= self.width and 0 < self.crop_height <= self.height):
            raise ConfigError(
                f'A crop of {self.crop_width} x {self.crop_height} px does not fit into {self.width} x {self.height}.'
            )

    def for_pairs(self, num_pairs: int) -> 'StereoTrainConfig':
        """Return the configuration with `steps` set to `epochs` passes over num_pairs pairs."""
        return dataclasses.replace(self, steps=math.ceil(self.epochs * num_pairs / self.batch)) if self.epochs else self

    def work(self, first: int, last: int) -> float:
        """Return how much steps first to last (exclusive) compute: all steps are alike."""
        return last - first

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.lr_steps:
            return self.lr * (step + 1) / self.lr_steps
        if self.lr_halvings:
            return self.lr * 0.5 ** sum(step >= start for start in self.lr_halvings)
        progress = (step - self.lr_steps) / max(1, self.steps - self.lr_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))


def load_train_config(path: Path | None) -> TrainConfig | StereoTrainConfig | MonoTrainConfig:
    """Return the training configuration in a YAML file; its `student` says for which sensor. None: all defaults.

    Raises: ConfigError as `load_config` does.
    """
    if path is None:
        return TrainConfig()
    values = read_yaml(path)
    for kind, students in ((StereoTrainConfig, CAMERA_STUDENTS), (MonoTrainConfig, MONO_STUDENTS)):
        if isinstance(values, dict) and values.get('student') in students:
            return build_config(kind, values, str(path))
    return load_config(TrainConfig, path)
