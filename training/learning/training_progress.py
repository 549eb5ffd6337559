# SPDX-License-Identifier: Apache-2.0
"""How far a training is, how long the rest will take, and whether it waits for its samples."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from pytorch_lightning.callbacks import Callback

from training.learning.mono_train_config import MonoTrainConfig
from training.learning.stereo_train_config import StereoTrainConfig
from training.learning.train_config import TrainConfig

_EVERY_S = 30.0  # between two lines, where lines cannot be overwritten
_MAX_WAITING = 0.3  # share of the time spent waiting for samples, from which on there is a warning
_JUDGED_AFTER_S = 60.0  # the first samples are slow: workers start, files are not in memory yet


class TrainingProgress(Callback):
    """Writes one line every `log_every` steps: step, seconds per step, time left, loss.

    On a terminal the line overwrites the one before; in a file there is one line per half a minute. It warns once when
    more than 30 % of a minute or more went by waiting for samples.
    clock: seconds, as time.monotonic.
    """

    def __init__(self, config: TrainConfig | StereoTrainConfig | MonoTrainConfig, output: TextIO | None = None,
                 clock: Callable[[], float] = time.monotonic):  # fmt: skip
        self._config, self._output, self._clock = config, output or sys.stderr, clock
        self._overwrites = self._output.isatty()
        self._warned = False
        self._first_step = self._step = 0
        self._began = self._said = self._waits_since = 0.0
        self._waited = 0.0

    def on_train_start(self, trainer, module) -> None:
        """Say at which step the training begins."""
        self._first_step = self._step = trainer.global_step
        self._began = self._waits_since = self._clock()
        self._said = self._began
        if self._step:
            self._write(f'resumed at step {self._step} of {self._config.steps}')

    def on_train_batch_start(self, trainer, module, batch, batch_index) -> None:
        """Count the time since the last batch: the loader had no samples ready."""
        self._waited += self._clock() - self._waits_since

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        """Write the line, and the warning."""
        self._waits_since = now = self._clock()
        step, config = trainer.global_step, self._config
        if step == self._step or (step % config.log_every and step != config.steps):
            return
        self._step = step
        if self._overwrites or now - self._said >= _EVERY_S or step == config.steps:
            self._said = now
            self._write(self._line(step, now, float(outputs['loss'])))
        if not self._warned and now - self._began > _JUDGED_AFTER_S:
            share = self._waited / (now - self._began)
            if share > _MAX_WAITING:
                self._warned = True
                self._write(
                    f'warning: {share:.0%} of the time goes by waiting for samples. Set num_workers above '
                    f'{config.num_workers} where processors are idle; else keep the data on a faster disk.'
                )

    def on_train_end(self, trainer, module) -> None:
        """End the line on a terminal."""
        if self._overwrites:
            self._output.write('\n')

    def _line(self, step: int, now: float, loss: float) -> str:
        config = self._config
        seconds = (now - self._began) / (step - self._first_step)
        done, rest = config.work(self._first_step, step), config.work(step, config.steps)
        left = duration((now - self._began) * rest / done)
        return (
            f'step {step} of {config.steps} ({step / config.steps:.0%}), {seconds:.2g} s per step, about {left} left, '
            f'loss {loss:.4g}'
        )

    def _write(self, text: str) -> None:
        if self._overwrites and not text.startswith('warning'):
            self._output.write(f'\r{text:<100}')
        else:
            self._output.write(('\n' if self._overwrites else '') + f'training.train: {text}\n')
        self._output.flush()


def duration(seconds: float) -> str:
    """Return a time as 12 s, 4 min or 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f'{seconds:.0f} s'
    return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02d} min'
