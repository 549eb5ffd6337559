# SPDX-License-Identifier: Apache-2.0
"""The line of progress of a training: how far, how long, and whether it waits for samples."""

import dataclasses
import io
import re
import shutil
from types import SimpleNamespace

import pytest

torch = pytest.importorskip('torch', reason='training needs torch')
pytest.importorskip('pytorch_lightning', reason='training needs pytorch-lightning')
pytest.importorskip('cv2', reason='camera images need OpenCV')

import stereo_world  # noqa: E402
import train_world  # noqa: E402

from training.learning.checkpoint import load_checkpoint  # noqa: E402
from training.learning.stereo_sources import DatasetSource  # noqa: E402
from training.learning.train_config import TrainConfig, TrainPhase  # noqa: E402
from training.learning.training_progress import TrainingProgress, duration  # noqa: E402
from training.learning.training_run import train  # noqa: E402

STEREO = dataclasses.replace(stereo_world.TINY, steps=1000, log_every=10)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(config, steps, *, first=0, reading_s=0.0, learning_s=1.0, output=None):
    """Run a training on a clock of its own; return what was written."""
    now, output = [0.0], output or io.StringIO()
    progress = TrainingProgress(config, output, lambda: now[0])
    trainer = SimpleNamespace(global_step=first)
    progress.on_train_start(trainer, None)
    for number in range(steps):
        now[0] += reading_s
        progress.on_train_batch_start(trainer, None, None, number)
        now[0] += learning_s
        trainer.global_step += 1
        progress.on_train_batch_end(trainer, None, {'loss': torch.tensor(0.5)}, None, number)
    progress.on_train_end(trainer, None)
    return output.getvalue()


@pytest.mark.parametrize('seconds, text', [(0, '0 s'), (59.4, '59 s'), (60, '1 min'), (3599, '1 h 00 min'),
                                           (3e5, '83 h 20 min')])  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_lines_in_a_file_come_every_half_minute_and_say_the_time_left():
    lines = run(STEREO, 100).splitlines()
    assert lines == [
        f'training.train: step {step} of 1000 ({step / 10:.0f}%), 1 s per step, about {left} left, loss 0.5'
        for step, left in ((30, '16 min'), (60, '16 min'), (90, '15 min'))
    ]


def test_a_resumed_training_counts_its_own_steps_for_the_time_left():
    lines = run(STEREO, 100, first=900, learning_s=0.5).splitlines()
    assert lines[0] == 'training.train: resumed at step 900 of 1000'
    assert lines[1].endswith('step 960 of 1000 (96%), 0.5 s per step, about 20 s left, loss 0.5')
    assert lines[-1].endswith('step 1000 of 1000 (100%), 0.5 s per step, about 0 s left, loss 0.5')


def test_later_phases_with_larger_crops_count_more():
    config = TrainConfig(
        warm_up=TrainPhase(100, 1, 32), crops=TrainPhase(0, 1, 32), full=TrainPhase(100, 1, 64), log_every=100
    )
    assert config.work(0, 200) == 100 * 32**2 + 100 * 64**2 and config.work(150, 200) == 50 * 64**2
    assert 'step 100 of 200 (50%), 1 s per step, about 7 min left' in run(config, 100)


def test_a_terminal_shows_one_line_that_changes():
    text = run(STEREO, 20, output=Terminal())
    assert text.count('\r') == 2 and text.count('\n') == 1 and text.endswith('\n')


@pytest.mark.parametrize('reading_s, warns', [(0.1, False), (0.3, False), (0.6, True), (3.0, True)])
def test_a_training_that_waits_for_samples_says_so_once(reading_s, warns):
    text = run(STEREO, 200, reading_s=reading_s)
    assert text.count('warning') == int(warns)
    if warns:
        share = int(re.search(r'warning: (\d+)% of the time goes by waiting for samples. Set num_workers', text)[1])
        assert share == pytest.approx(100 * reading_s / (1 + reading_s), abs=1)


def test_slow_first_samples_are_no_reason_to_warn():
    assert 'warning' not in run(STEREO, 10, reading_s=5)


@pytest.mark.parametrize('kind, num_read', [('lidar', 2), ('stereo', 4)])  # the reader is a step ahead
def test_a_training_moved_to_another_folder_ends_with_the_same_weights(kind, num_read, request, tmp_path, capsys):
    if kind == 'lidar':
        clips = request.getfixturevalue('clips')
        config = dataclasses.replace(train_world.TINY, full=TrainPhase(1, 1, 64), cached_pairs=0)
        source = train_world.source(clips)
        there = train_world.source(shutil.copytree(clips, tmp_path / 'other' / 'clips'))
    else:
        config = stereo_world.TINY
        source = there = DatasetSource(stereo_world.StereoWorld(), range(4))
    whole = load_checkpoint(train(config, tmp_path / 'whole', source))
    stopped = _Stops(source, after=num_read)
    with pytest.raises(RuntimeError, match='power'):
        train(config, tmp_path / 'here', stopped)
    step = load_checkpoint(tmp_path / 'here' / 'last.pt').provenance['step']
    assert 1 <= step < config.steps
    shutil.move(tmp_path / 'here', tmp_path / 'other' / 'run')
    capsys.readouterr()
    moved = load_checkpoint(train(config, tmp_path / 'other' / 'run', there))
    assert f'resumed at step {step} of {config.steps}' in capsys.readouterr().err
    assert moved.provenance['step'] == config.steps
    for key, value in whole.state_dict.items():
        torch.testing.assert_close(moved.state_dict[key], value, atol=1e-6, rtol=1e-5)


class _Stops:
    """A source that is interrupted when it is read a number of times."""

    def __init__(self, source, after):
        self._source, self._left, self.about = source, after, source.about

    def __len__(self):
        return len(self._source)

    def in_use(self, step):
        return self._source.in_use(step)

    def __getitem__(self, index):
        if not self._left:
            raise RuntimeError('the power goes off')
        self._left -= 1
        return self._source[index]
