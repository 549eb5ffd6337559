# SPDX-License-Identifier: Apache-2.0
"""Configuration of a training: its phases, loss, optimiser and learning-rate schedule."""

import dataclasses
import math
from dataclasses import dataclass

from training.learning.augmentation import Augmentation
from training.learning.disturbances import Disturbances
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.lidar.pillars import PillarGrid


@dataclass(frozen=True)
class TrainPhase:
    """One phase of a training.

    steps: optimiser steps. batch: crops per step; each is used forward and backward in time.
    cells: side of the crops in grid cells, a multiple of 8; the convolutional student accepts any size. Crops as large
        as the student's grid are centred on the vehicle.
    near_mover: share of the smaller crops that are centred near a moving point; the others are near any point.
    min_height: points lower than this above the ground are left out of the smaller crops [m].
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
        """Return the pillar grid of this phase's crops."""
        return dataclasses.replace(full, cells=min(self.cells, full.cells))


LOSSES = ('balanced_epe', 'deflow', 'zeroflow', 'zeroflow_constant', 'fastflow3d')
OPTIMIZERS = ('adamw', 'muon')
PRECISIONS = ('32-true', 'bf16-mixed', '16-mixed')


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of a training with three phases.

    student: name. strategy: learning strategy, one of training.learning.strategies.
    num_clips: number of simulated clips, with seeds from first_seed. num_sweeps: sweeps per clip.
    held_out: share of the pseudo-labelled pairs, the last ones, that are never trained on.
    warm_up: small crops around moving objects, without ground. An untrained student that sees whole sweeps predicts
        zero for hundreds of steps; on these crops it learns to compare the two sweeps within fifty.
    crops: larger crops with all points. full: whole sweeps, as on the vehicle.
    epochs: passes over the data in phase `full`; sets its number of steps. 0: use `full.steps`.
    accumulate: number of parts in which each process handles its share of a batch, to limit memory.
    loss: distillation loss, one of LOSSES, see training/learning/losses.py; for fastflow3d, points that move by their
        label are the foreground.
    optimizer: one of OPTIMIZERS; muon needs fewer steps, see training/learning/muon.py.
    lr: peak learning rate, reached after lr_steps; then cosine decay to 0, or constant with constant_lr.
    weight_decay: adamw with 0 is Adam. clip_norm: largest gradient norm; 0: no limit.
    still_weight: weight in balanced_epe of points slower than 0.4 m/s; each faster group has weight 1.
    scored_points: largest number of moving points, and of static points, per cloud in the loss; 0: all points. The
        encoder always sees all points.
    beside_movers: share of these static points that are within about 1 m of moving ones, seen from above, where the
        student errs most: ground under vehicles, walls beside walkers. 0: all static points alike.
    mover_speed: a point whose label is faster than this moves [m/s].
    precision: one of PRECISIONS; mixed precision applies to the convolutions only, coordinates stay float32.
    save_every: steps between checkpoints. log_every: steps between log entries. num_threads: threads of torch.
    num_workers: processes that read, simulate and augment. cached_pairs: pairs that each worker keeps in memory (6 MB
        per pair of 120,000 points); 0: none. seed: seed of all random numbers.
    licence: licence of the student.
    augmentation, disturbances: see there. short_history: share of the samples of which a student that takes more than
        two sweeps sees only some. alongside_every: N: every N-th simulated clip has a large vehicle beside the ego
        vehicle; 0: none.
    rehearsal: share of the samples of a training on labels that are of the num_clips simulated clips, with exact flow.
        A start model that sees one drive only forgets other streets. 0: none.
    """

    student: str = 'fastflow3d_lite'
    strategy: str = 'distillation'
    num_clips: int = 280
    first_seed: int = 0
    num_sweeps: int = 4
    held_out: float = 0.1
    warm_up: TrainPhase = TrainPhase(steps=300, batch=16, cells=48, near_mover=1.0, min_height=0.3)
    crops: TrainPhase = TrainPhase(steps=1000, batch=10, cells=80)
    full: TrainPhase = TrainPhase(steps=600, batch=3, cells=256)
    epochs: int = 0
    accumulate: int = 1
    loss: str = 'balanced_epe'
    optimizer: str = 'adamw'
    lr: float = 2e-3
    lr_steps: int = 20
    constant_lr: bool = False
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    still_weight: float = 6.0
    scored_points: int = 2500
    beside_movers: float = 0.0
    mover_speed: float = 0.3
    precision: str = '32-true'
    save_every: int = 50
    log_every: int = 10
    num_threads: int = 2
    num_workers: int = 1
    cached_pairs: int = 256
    seed: int = 0
    licence: str = 'Apache-2.0'
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    disturbances: Disturbances = dataclasses.field(default_factory=Disturbances)
    short_history: float = 0.2
    alongside_every: int = 0
    rehearsal: float = 0.0

    def __post_init__(self):
        names = {'loss': LOSSES, 'optimizer': OPTIMIZERS, 'precision': PRECISIONS}
        for name, known in names.items():
            if getattr(self, name) not in known:
                raise ConfigError(f'{name} should be one of {", ".join(known)}, got {getattr(self, name)!r}.')
        if min(self.accumulate, self.save_every, self.log_every) < 1 or min(self.epochs, self.scored_points) < 0:
            raise ConfigError('accumulate, save_every, log_every should be >= 1, epochs and scored_points >= 0.')
        if not 0 <= self.held_out < 1:
            raise ConfigError(f'held_out is a share of the pairs, from 0 to below 1, got {self.held_out}.')
        if not 0 <= self.rehearsal < 1:
            raise ConfigError(f'rehearsal is a share of the samples, from 0 to below 1, got {self.rehearsal}.')
        if not 0 <= self.beside_movers <= 1:
            raise ConfigError(f'beside_movers is a share of the static points, from 0 to 1, got {self.beside_movers}.')

    @property
    def phases(self) -> tuple[TrainPhase, TrainPhase, TrainPhase]:
        """All phases in order."""
        return self.warm_up, self.crops, self.full

    @property
    def steps(self) -> int:
        """Total steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase(self, step: int) -> TrainPhase:
        """Return the phase of a step, counted from 0."""
        if step < self.warm_up.steps:
            return self.warm_up
        return self.crops if step < self.warm_up.steps + self.crops.steps else self.full

    def for_pairs(self, num_pairs: int) -> 'TrainConfig':
        """Return the configuration with `full.steps` set to `epochs` passes over num_pairs pairs."""
        if not self.epochs:
            return self
        steps = math.ceil(self.epochs * num_pairs / self.full.batch)
        return dataclasses.replace(self, full=dataclasses.replace(self.full, steps=steps))

    def with_steps(self, steps: int) -> 'TrainConfig':
        """Return the configuration with a new total of steps; phases keep their shares, the last one takes the rest."""
        shares = [round(steps * phase.steps / max(1, self.steps)) for phase in (self.warm_up, self.crops)]
        warm_up, crops, full = (
            dataclasses.replace(phase, steps=number)
            for phase, number in zip(self.phases, [*shares, steps - sum(shares)], strict=True)
        )
        return dataclasses.replace(self, warm_up=warm_up, crops=crops, full=full, epochs=0)

    def work(self, first: int, last: int) -> float:
        """Return how much steps first to last (exclusive) compute, in pillars: their time is roughly in proportion."""
        total, begin = 0.0, 0
        for phase in self.phases:
            steps = max(0, min(last, begin + phase.steps) - max(first, begin))
            total, begin = total + steps * phase.batch * phase.cells**2, begin + phase.steps
        return total

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.lr_steps:
            return self.lr * (step + 1) / self.lr_steps
        progress = 0 if self.constant_lr else (step - self.lr_steps) / max(1, self.steps - self.lr_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
