# SPDX-License-Identifier: Apache-2.0
"""What a supervised training does at each of its steps."""

import dataclasses
import math
from dataclasses import dataclass

from training.augmentation import Augmentation
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.pillars import PillarGrid


@dataclass(frozen=True)
class Phase:
    """One part of a training.

    steps: optimiser steps. batch: crops in a step; each is used in both directions of time.
    cells: side of the crops, a multiple of 8; the student is convolutional and takes any. Crops as large as the
        student's grid are centred on the vehicle.
    near_mover: share of the smaller crops that lie around a moving point; the others lie around any point.
    min_height: points lower than this above the ground are left out [m].
    """

    steps: int
    batch: int
    cells: int
    near_mover: float = 0.8
    min_height: float = -10.0

    def __post_init__(self):
        if self.steps < 0 or self.batch < 1 or self.cells < 8 or self.cells % 8:
            raise ConfigError(f'A phase needs steps >= 0, batch >= 1 and cells in multiples of 8, got {self}.')

    def grid(self, full: PillarGrid) -> PillarGrid:
        """Return the grid of the phase's crops."""
        return dataclasses.replace(full, cells=min(self.cells, full.cells))


@dataclass(frozen=True)
class TrainConfig:
    """One supervised training, in three phases.

    student: name. num_clips: how many simulated clips, seeds first_seed and up. num_sweeps: of each clip.
    warm_up: small crops around movers, without ground. A fresh student that sees whole sweeps predicts zero for
        hundreds of steps; this way it learns to compare the two sweeps within fifty.
    crops: larger crops with everything in them. full: whole sweeps, as on the vehicle.
    lr: peak learning rate of AdamW; lr_steps up to it, then a cosine down to 0. weight_decay: of AdamW.
    still_weight: of points slower than 0.4 m/s in the loss, where each faster group has 1.
    scored_points: moving points, and still ones, of each cloud that the loss looks at; the encoder sees all.
    clip_norm: largest gradient norm. save_every: steps between checkpoints. num_threads: of torch.
    num_workers: processes that read, simulate and augment. seed: of everything random.
    """

    student: str = 'fastflow3d_lite'
    num_clips: int = 280
    first_seed: int = 0
    num_sweeps: int = 4
    warm_up: Phase = Phase(steps=300, batch=16, cells=48, near_mover=1.0, min_height=0.3)
    crops: Phase = Phase(steps=1000, batch=10, cells=80)
    full: Phase = Phase(steps=600, batch=3, cells=256)
    lr: float = 2e-3
    lr_steps: int = 20
    weight_decay: float = 1e-2
    still_weight: float = 6.0
    scored_points: int = 2500
    clip_norm: float = 1.0
    save_every: int = 50
    num_threads: int = 2
    num_workers: int = 1
    seed: int = 0
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return self.warm_up.steps + self.crops.steps + self.full.steps

    def phase(self, step: int) -> Phase:
        """Return the phase of a step, counted from 0."""
        if step < self.warm_up.steps:
            return self.warm_up
        return self.crops if step < self.warm_up.steps + self.crops.steps else self.full

    def clips_in_use(self, step: int) -> int:
        """Return how many clips a step draws from: 48 at first and one more every third step, simulated meanwhile."""
        return min(self.num_clips, 48 + step // 3)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.lr_steps:
            return self.lr * (step + 1) / self.lr_steps
        progress = (step - self.lr_steps) / max(1, self.steps - self.lr_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
