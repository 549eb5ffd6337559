# SPDX-License-Identifier: Apache-2.0
"""Configuration of the training of a student of one camera."""

import dataclasses
import math
from dataclasses import dataclass

from training.learning.mono_augmentation import MonoAugmentation
from training.learning.strategies import MONO_STRATEGIES
from training.learning.train_config import OPTIMIZERS
from training.students import MONO_STUDENTS
from zeroflow_ros.errors import ConfigError


@dataclass(frozen=True)
class MonoTrainConfig:
    """Configuration of a training on windows of consecutive stereo frames, of which the student sees the left images.

    student: name, of training.students.MONO_STUDENTS. strategy: of training.learning.strategies.MONO_STRATEGIES.
    width, height: of the student's images [px]; parts of the camera's images are scaled to it.
    num_frames: frames of a window; all but the first and the last get a result. mono_from_lidar alone takes 3 or more,
        the others 4 or more.
    steps: optimiser steps. epochs: passes over the windows; they set the steps. 0: use `steps`. batch: windows per
        step. accumulate: number of parts in which each process handles its share of a batch, to limit memory.
    held_out: share of the windows, the last ones, that are never trained on, nor any of their frames.
    excluded_frames: numbers of frames, in all drives, that are never trained on: those that scores are judged on.
    finest_level: size at which images are compared first: 0 is that of the images, 1 a half, up to 3, an eighth.
    detach_steps: first steps, in which the loss of the scene flow does not train the disparity.
    self_supervised: weight of the self-supervised loss in mono_from_lidar; 0: labels alone, which also may be those of
        drives without a stereo camera. flow: weight in mono_from_lidar of an error of the optical flow by the width of
        the image; depths count by the logarithm of their ratio.
    labels: most labelled pixels of an image, drawn at random for each sample; 0: all.
    lr: peak learning rate, reached after lr_steps; then cosine decay to 0. lr_halvings: steps from which the learning
        rate is halved, instead of the cosine decay.
    precision: 32-true only; mixed precision would round positions to parts of a pixel.
    cached_pairs: stereo pairs that stay in memory, scaled to about the size of the student's images.
    optimizer, weight_decay, clip_norm, save_every, log_every, num_threads, num_workers, seed, licence: as in
        TrainConfig. augmentation: see there.
    """

    student: str = 'mono_lite'
    strategy: str = 'mono_self_supervised'
    width: int = 416
    height: int = 128
    num_frames: int = 4
    steps: int = 20000
    epochs: int = 0
    batch: int = 2
    accumulate: int = 1
    held_out: float = 0.1
    excluded_frames: tuple[float, ...] = ()
    detach_steps: int = 0
    finest_level: int = 0
    self_supervised: float = 0.0
    flow: float = 20.0
    labels: int = 4096
    optimizer: str = 'adamw'
    lr: float = 5e-4
    lr_steps: int = 200
    lr_halvings: tuple[float, ...] = ()
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    precision: str = '32-true'
    save_every: int = 100
    log_every: int = 20
    num_threads: int = 2
    num_workers: int = 0
    cached_pairs: int = 200
    seed: int = 0
    licence: str = 'Apache-2.0'
    augmentation: MonoAugmentation = dataclasses.field(default_factory=MonoAugmentation)

    def __post_init__(self):
        names = {'optimizer': OPTIMIZERS, 'precision': ('32-true',), 'student': tuple(MONO_STUDENTS),
                 'strategy': tuple(MONO_STRATEGIES)}  # fmt: skip
        for name, choices in names.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f'{name} should be one of {", ".join(choices)}, got {getattr(self, name)!r}.')
        counts = ('accumulate', 'save_every', 'log_every', 'batch', 'steps', 'cached_pairs', 'width', 'height')
        if min(getattr(self, name) for name in counts) < 1 or self.epochs < 0:
            raise ConfigError(f'{", ".join(counts)} should be >= 1, epochs >= 0.')
        if min(self.labels, self.detach_steps, self.self_supervised, self.flow) < 0:
            raise ConfigError('labels, detach_steps, self_supervised and flow should be >= 0.')
        if not 0 <= self.held_out < 1:
            raise ConfigError(f'held_out is a share of the windows, from 0 to below 1, got {self.held_out}.')
        if self.finest_level not in range(4):
            raise ConfigError(f'finest_level should be 0, 1, 2 or 3, got {self.finest_level}.')
        fewest = 4 if self.is_self_supervised else 3
        if self.num_frames < fewest:
            raise ConfigError(f'{self.strategy} needs num_frames of {fewest} or more, got {self.num_frames}.')

    @property
    def is_self_supervised(self) -> bool:
        """Whether the loss compares images, and needs those of the right camera."""
        return self.strategy != 'mono_from_lidar' or self.self_supervised > 0

    @property
    def has_labels(self) -> bool:
        """Whether the loss takes labels."""
        return self.strategy != 'mono_self_supervised'

    def for_pairs(self, num_windows: int) -> 'MonoTrainConfig':
        """Return the configuration with `steps` set to `epochs` passes over num_windows windows."""
        if not self.epochs:
            return self
        return dataclasses.replace(self, steps=math.ceil(self.epochs * num_windows / self.batch))

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
