# SPDX-License-Identifier: Apache-2.0
"""Training: samples, resuming, and that a student learns."""

import dataclasses
import os
import subprocess
import sys
import time

import pytest
import yaml
from processes import ROOT

torch = pytest.importorskip('torch', reason='training needs torch')

pytest.importorskip('pytorch_lightning', reason='training needs pytorch-lightning')

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from train_world import GRID, TINY, source  # noqa: E402

from training import train as train_program  # noqa: E402
from training.config import load_config  # noqa: E402
from training.datasets.clip_store import ClipStore  # noqa: E402
from training.learning.checkpoint import load_checkpoint  # noqa: E402
from training.learning.lightning_module import collate  # noqa: E402
from training.learning.losses import balanced_epe  # noqa: E402
from training.learning.pair_sources import ClipSource, split_labels  # noqa: E402
from training.learning.samples import PairSamples  # noqa: E402
from training.learning.train_config import OPTIMIZERS, TrainConfig, TrainPhase  # noqa: E402
from training.students import build_student  # noqa: E402
from training.train import train  # noqa: E402
from zeroflow_ros.errors import ConfigError  # noqa: E402


def run(config, out, *options):
    """Start `python -m training.train` with a configuration on the clips of a folder."""
    out.mkdir()
    (out / 'c.yaml').write_text(yaml.safe_dump(dataclasses.asdict(config)))
    return subprocess.Popen(
        [sys.executable, '-m', 'training.train', '--config', out / 'c.yaml', '--out', out, *map(str, options)],
        cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1'}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def assert_same_weights(one, other):
    for key, value in one.state_dict.items():
        torch.testing.assert_close(other.state_dict[key], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_a_killed_training_goes_on_to_the_same_weights(clips, tmp_path, optimizer):
    config = dataclasses.replace(
        TINY, optimizer=optimizer, accumulate=2, crops=TrainPhase(1, 2, 32), full=TrainPhase(2, 2, 32)
    )
    whole = load_checkpoint(train(config, tmp_path / 'whole', source(clips)))
    last = tmp_path / 'parts' / 'last.pt'
    process = run(config, last.parent, '--clips', clips)
    deadline = time.monotonic() + 240
    while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    said, _ = process.communicate(timeout=20)
    assert last.is_file(), said
    killed_at = load_checkpoint(last).provenance['step']
    parts = load_checkpoint(train(config, tmp_path / 'parts', source(clips)))
    assert 1 <= killed_at < parts.provenance['step'] == config.steps == 5
    assert_same_weights(whole, parts)
    assert parts.optimizer['state'].keys() == whole.optimizer['state'].keys()
    for parameter, state in whole.optimizer['state'].items():
        torch.testing.assert_close(parts.optimizer['state'][parameter], state)
    assert logged(last.parent) == logged(tmp_path / 'whole')
    assert [step for step, _ in logged(last.parent)] == [1, 2, 3, 4, 5]


def logged(out):
    """Return (step, loss) of each line of the log, by step.

    Two files that were begun in the same second are read in the order of their process numbers.
    """
    events = EventAccumulator(str(out / 'tensorboard'))
    events.Reload()
    return sorted({(event.step, round(event.value, 5)) for event in events.Scalars('loss')})


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_two_processes_train_what_one_does_in_two_parts(clips, tmp_path, optimizer):
    config = dataclasses.replace(
        TINY, optimizer=optimizer, loss='zeroflow', warm_up=TrainPhase(1, 4, 32), crops=TrainPhase(0, 1, 32),
        full=TrainPhase(1, 2, 32), clip_norm=0.0,
    )  # fmt: skip
    parts = load_checkpoint(train(dataclasses.replace(config, accumulate=2), tmp_path / 'parts', source(clips)))
    process = run(config, tmp_path / 'both', '--clips', clips, '--accelerator', 'cpu', '--devices', 2)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    both = load_checkpoint(tmp_path / 'both' / 'last.pt')
    assert both.provenance['step'] == 2
    for key, _ in build_student(config.student).named_parameters():  # batch norm counts in each process by itself
        torch.testing.assert_close(both.state_dict[key], parts.state_dict[key], atol=1e-5, rtol=1e-4)


def test_another_configuration_does_not_continue_a_training(clips, tmp_path):
    train(TINY, tmp_path, source(clips))
    with pytest.raises(ConfigError, match='another configuration'):
        train(dataclasses.replace(TINY, lr=1e-4), tmp_path, source(clips))
    with pytest.raises(ConfigError, match='other data'):
        train(TINY, tmp_path, ClipSource(ClipStore(clips, 2), 1, first_seed=7))
    with pytest.raises(ConfigError, match='optimizer adamw, whose state muon cannot use'):
        train(dataclasses.replace(TINY, optimizer='muon'), tmp_path, source(clips), change_config=True)
    longer = dataclasses.replace(TINY, full=dataclasses.replace(TINY.full, steps=2))
    last = load_checkpoint(train(longer, tmp_path, source(clips), change_config=True))
    assert last.provenance['step'] == 5
    assert [part['until_step'] for part in last.provenance['history']] == [4]


def test_mixed_precision_keeps_coordinates_exact(clips):
    """Offsets of 1 cm at 50 m must not vanish."""
    student = build_student('fastflow3d_lite').train()
    student.grid = TINY.warm_up.grid(GRID)
    sample = PairSamples(TINY, source(clips), GRID)[0, 0]
    batch = collate([sample])
    exact = torch.cat(student.forward_both(batch.clouds, batch.rows)[0])
    seen = []
    student.embedder.feature_net.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    with torch.autocast('cpu', torch.bfloat16):
        mixed = torch.cat(student.forward_both(batch.clouds, batch.rows)[0])
    assert set(seen) == {torch.float32} and mixed.dtype == torch.float32
    assert 0 < (mixed - exact).abs().max() < 0.05  # m; bfloat16 maps


def test_pseudo_labels_train_a_student(labels, tmp_path):
    config = dataclasses.replace(TINY, loss='zeroflow', epochs=1, full=TrainPhase(0, 3, 32), precision='bf16-mixed')
    checkpoint = load_checkpoint(train(config, tmp_path, split_labels(labels, 0.1)[0]))
    assert checkpoint.provenance['step'] == 2 + 1 + 3  # 9 pairs in batches of 3
    assert checkpoint.provenance['supervision'] == 'pseudo-labels of the teacher made_up, no human labels'
    assert all(torch.isfinite(value).all() for value in checkpoint.state_dict.values())


def test_a_student_learns_to_flow_one_crop(clips):
    torch.manual_seed(0)
    student = build_student('fastflow3d_lite').train()
    student.grid = TINY.warm_up.grid(GRID)
    sample = PairSamples(TINY, source(clips), GRID)[0, 0]
    clouds, rows, flows = (tuple(map(torch.from_numpy, part)) for part in (sample.clouds, sample.rows, sample.flows))
    target = torch.cat(flows)
    speed = target.norm(dim=1) / sample.dt
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        [predicted] = student.forward_both([clouds], [rows])
        loss = balanced_epe(torch.cat(predicted), target, speed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    zero_flow = balanced_epe(torch.zeros_like(target), target, speed).item()
    assert losses[-1] < 0.6 * zero_flow


@pytest.mark.parametrize(
    'label, text, says',
    [
        ('unknown field', 'stepz: 3', "unknown field 'stepz'"),
        ('near miss', 'num_clip: 3', "did you mean 'num_clips'"),
        ('unknown nested field', 'warm_up: {step: 3}', "did you mean 'steps'"),
        ('wrong type', 'num_clips: many', 'should be a int'),
        ('a list', '[1]', 'mapping'),
        ('not YAML', '{', 'not YAML'),
        ('unknown loss', 'loss: l2', 'one of balanced_epe, deflow'),
        ('unknown precision', 'precision: int8', '32-true'),
        ('nothing left to train on', 'held_out: 1.0', 'below 1'),
        ('cells that do not divide', 'crops: {steps: 1, batch: 1, cells: 30}', 'multiples of 8'),
    ],
)
def test_wrong_configurations(tmp_path, label, text, says):
    (tmp_path / 'c.yaml').write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_config(TrainConfig, tmp_path / 'c.yaml')


def test_program_reports_errors_with_exit_status_1(tmp_path, capsys):
    assert train_program.main(['--config', str(tmp_path / 'none.yaml'), '--out', str(tmp_path / 'out')]) == 1
    assert 'none.yaml' in capsys.readouterr().err
