# SPDX-License-Identifier: Apache-2.0
"""Training: samples, resuming, and that a student learns."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from training import train as train_program  # noqa: E402
from training.checkpoint import load_checkpoint  # noqa: E402
from training.clip_store import ClipStore  # noqa: E402
from training.config import load_config  # noqa: E402
from training.samples import PairSamples  # noqa: E402
from training.schedule import Phase, TrainConfig  # noqa: E402
from zeroflow_ros.errors import ConfigError  # noqa: E402
from zeroflow_ros.pillars import PillarGrid  # noqa: E402

GRID = PillarGrid(256, 0.4, -2.0, 4.0)
TINY = TrainConfig(
    num_clips=1,
    num_sweeps=2,
    warm_up=Phase(steps=2, batch=2, cells=32, near_mover=1.0, min_height=0.3),
    crops=Phase(steps=1, batch=1, cells=32),
    full=Phase(steps=1, batch=1, cells=256),
    save_every=2,
    num_workers=0,
)


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    """A folder with one simulated clip in which something moves."""
    folder = tmp_path_factory.mktemp('clips')
    ClipStore(folder, 2).ensure(0)
    return folder


def test_samples_are_a_function_of_their_number(clips):
    samples = PairSamples(TINY, ClipStore(clips, 2), GRID)
    for number in ((0, 0), (2, 0), (3, 0)):
        first, again = samples[number], samples[number]
        for one, other in zip(
            first.clouds + first.rows + first.flows, again.clouds + again.rows + again.flows, strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(samples[0, 0].clouds[0], samples[0, 1].clouds[0])


def test_samples_lie_in_the_grid_of_their_phase(clips):
    samples = PairSamples(TINY, ClipStore(clips, 2), GRID)
    for step in (0, 2, 3):
        sample, grid = samples[step, 0], TINY.phase(step).grid(GRID)
        for points, rows, flow in zip(sample.clouds, sample.rows, sample.flows, strict=True):
            assert len(points) and (grid.assign(points) >= 0).all()
            assert len(rows) == len(flow) and (np.diff(rows) > 0).all()
    assert [len(step) for step in samples.batches(1)] == [2, 1, 1]


def test_flow_of_a_crop_leads_to_the_other_cloud(clips):
    exact = dataclasses.replace(
        TINY.augmentation, height=0.0, ego_translation=0.0, ego_yaw=0.0, thin=0.0, jitter=0.0, scale=0.0
    )
    samples = PairSamples(dataclasses.replace(TINY, augmentation=exact), ClipStore(clips, 2), GRID)
    sample = samples[0, 0]
    moving = np.linalg.norm(sample.flows[0], axis=1) > 0.1
    assert moving.any()
    moved = sample.clouds[0][sample.rows[0]] + sample.flows[0]

    def nearest(points):
        return np.median(np.linalg.norm(points[:, None] - sample.clouds[1][None], axis=2).min(1))

    still = sample.clouds[0][sample.rows[0]]
    assert nearest(moved[moving][:200]) < 0.5 * nearest(still[moving][:200])


def test_a_damaged_clip_is_simulated_again(clips, tmp_path):
    store = ClipStore(tmp_path, 2)
    path = store.ensure(0)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    pair = store.pair(0, 0, 1)
    again = ClipStore(clips, 2).pair(0, 0, 1)
    np.testing.assert_array_equal(pair.points0, again.points0)
    np.testing.assert_array_equal(pair.flow1, again.flow1)


def test_a_stopped_training_goes_on_to_the_same_weights(clips, tmp_path):
    whole = load_checkpoint(train_program.train(TINY, tmp_path / 'whole', clips))

    class StopError(Exception):
        pass

    saved = train_program._save

    def save_and_stop(student, optimizer, config, progress, path):
        saved(student, optimizer, config, progress, path)
        if progress['step'] == 2:
            raise StopError

    train_program._save = save_and_stop
    try:
        with pytest.raises(StopError):
            train_program.train(TINY, tmp_path / 'parts', clips)
    finally:
        train_program._save = saved
    assert load_checkpoint(tmp_path / 'parts' / 'last.pt').provenance['step'] == 2
    parts = load_checkpoint(train_program.train(TINY, tmp_path / 'parts', clips))
    assert parts.provenance['step'] == TINY.steps == 4
    for key, value in whole.state_dict.items():
        torch.testing.assert_close(parts.state_dict[key], value, atol=1e-6, rtol=1e-5)
    steps = [json.loads(line)['step'] for line in (tmp_path / 'parts' / 'log.jsonl').read_text().splitlines()]
    assert steps == [0, 1, 2, 3]


def test_another_configuration_does_not_continue_a_training(clips, tmp_path):
    train_program.train(TINY, tmp_path, clips)
    with pytest.raises(ConfigError, match='another configuration'):
        train_program.train(dataclasses.replace(TINY, lr=1e-4), tmp_path, clips)
    longer = dataclasses.replace(TINY, full=dataclasses.replace(TINY.full, steps=2))
    last = load_checkpoint(train_program.train(longer, tmp_path, clips, change_config=True))
    assert last.provenance['step'] == 5
    assert [part['until_step'] for part in last.provenance['history']] == [4]


def test_a_student_learns_to_flow_one_crop(clips):
    from training.losses import balanced_epe
    from training.students import build_student

    torch.manual_seed(0)
    student = build_student('fastflow3d_lite').train()
    student.grid = TINY.warm_up.grid(GRID)
    sample = PairSamples(TINY, ClipStore(clips, 2), GRID)[0, 0]
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
        ('cells that do not divide', 'crops: {steps: 1, batch: 1, cells: 30}', 'multiples of 8'),
    ],
)
def test_wrong_configurations(tmp_path, label, text, says):
    (tmp_path / 'c.yaml').write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_config(TrainConfig, tmp_path / 'c.yaml')


def test_the_shipped_configuration_loads():
    config = load_config(TrainConfig, Path(__file__).parents[1] / 'config' / 'train_lite_simulation.yaml')
    assert config.student == 'fastflow3d_lite' and config.steps > 1000


def test_program_reports_errors_with_exit_status_1(tmp_path, capsys):
    assert train_program.main(['--config', str(tmp_path / 'none.yaml'), '--out', str(tmp_path / 'out')]) == 1
    assert 'none.yaml' in capsys.readouterr().err
