# SPDX-License-Identifier: Apache-2.0
"""Trainings of students of one camera: they learn, resume, and say where their weights come from."""

import dataclasses

import pytest
import yaml

torch = pytest.importorskip('torch', reason='training needs torch')
pytest.importorskip('pytorch_lightning', reason='training needs pytorch-lightning')
pytest.importorskip('cv2', reason='camera images need OpenCV')

from mono_world import DISPARITY, STEP, TINY, WIDTH, MonoWorld, frame  # noqa: E402
from workspace import ROOT  # noqa: E402

from training import distill  # noqa: E402
from training import train as train_program  # noqa: E402
from training.learning.checkpoint import load_checkpoint  # noqa: E402
from training.learning.mono_samples import MonoSamples, collate_mono  # noqa: E402
from training.learning.mono_sources import window_source  # noqa: E402
from training.learning.mono_train_config import MonoTrainConfig  # noqa: E402
from training.learning.start_model import load_start, start_config  # noqa: E402
from training.learning.stereo_train_config import load_train_config  # noqa: E402
from training.learning.strategies import MONO_STRATEGIES, build_strategy  # noqa: E402
from training.learning.training_run import train  # noqa: E402
from training.students import build_student  # noqa: E402
from training.students.mono_geometry import optical_flow  # noqa: E402
from zeroflow_ros.errors import ConfigError  # noqa: E402


def source(config):
    return window_source([MonoWorld(7)], config)


@pytest.mark.parametrize(
    'changes',
    [
        {'strategy': 'mono_self_supervised', 'detach_steps': 2},
        {'strategy': 'mono_from_lidar', 'self_supervised': 0.1},
    ],
    ids=['self-supervised', 'both'],
)
def test_a_stopped_training_goes_on_to_the_same_weights(changes, tmp_path):
    config = dataclasses.replace(TINY, **changes)
    one = load_checkpoint(train(config, tmp_path / 'one', source(config)))
    train(dataclasses.replace(config, steps=2), tmp_path / 'two', source(config))
    two = load_checkpoint(train(config, tmp_path / 'two', source(config), change_config=True))
    assert two.provenance['step'] == 3 and [part['until_step'] for part in two.provenance['history']] == [2]
    for key, value in one.state_dict.items():
        torch.testing.assert_close(two.state_dict[key], value, atol=1e-6, rtol=1e-5)
    about = two.provenance
    assert about['loss'] == changes['strategy'] and 'self-supervised' in about['supervision'] and 'ground' not in about
    start = load_start(tmp_path / 'two' / 'last.pt')
    with pytest.raises(ConfigError, match='--config'):
        start_config(start)


def test_labels_teach_depth_and_motion(tmp_path):
    """From one depth and no motion, at first, to those of the labels."""
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, strategy='mono_from_lidar', num_frames=3)
    student = build_student('mono_lite')
    samples = MonoSamples(config, source(config), student)
    optimizer = torch.optim.Adam(student.parameters(), 1.5e-3)
    losses = []
    for step in range(24):
        loss, _ = samples.strategy.loss(student, collate_mono([samples[step, 0]]), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.3 * sum(losses[:4])
    batch = collate_mono([samples[0, 0]])
    with torch.no_grad():
        flow = student.sequence(batch.left, batch.intrinsics)[0]
    moved = optical_flow(flow.forward[0], flow.disparity[0], batch.intrinsics)
    assert float(moved[:, 0].median()) == pytest.approx(STEP, abs=0.7)  # px


def test_images_teach_the_disparity():
    """The self-supervised loss has its minimum near the true disparity: its gradient points there from both sides."""
    config = TINY
    student = build_student('mono_lite')
    samples = MonoSamples(config, source(config), student)
    batch = collate_mono([samples[0, 0]])
    for head in student.heads:
        head[-1].bias.data[7] = -20  # no depth from parallax
    ratio = 0.54 / 0.5  # disparities are those of a baseline of 0.54 m
    found = []
    for disparity in (DISPARITY - 1.5, DISPARITY, DISPARITY + 1.5):
        share = torch.tensor(disparity * ratio / (WIDTH - 1) / 0.3)
        student.heads[0][-1].bias.data[0] = torch.logit(share) + 2.6
        with torch.no_grad():
            found.append(float(samples.strategy.loss(student, batch, 0)[1]['disparity']))
    assert found[1] < 0.7 * min(found[0], found[2])


def test_every_strategy_says_what_it_learns_from():
    said = {
        build_strategy(dataclasses.replace(TINY, strategy=name, self_supervised=weight)).supervision('the labels')
        for name, weight in [*((name, 0.0) for name in MONO_STRATEGIES)]
    }
    assert len(said) == len(MONO_STRATEGIES) == 3
    with pytest.raises(ConfigError, match='strategy should be one of mono_self_supervised'):
        dataclasses.replace(TINY, strategy='proxy')


def test_fine_tuning_adds_ground_truth_and_leaves_windows_without_it_alone():
    config = dataclasses.replace(TINY, strategy='mono_finetuning')
    student = build_student('mono_lite')
    samples = MonoSamples(config, source(config), student)
    batch = collate_mono([samples[0, 0]])
    with torch.no_grad():
        loss, parts = samples.strategy.loss(student, batch, 0)
        alone, _ = samples.strategy.loss(student, batch._replace(labels=batch.labels * float('nan')), 0)
    # Each of the three terms counts as much as the largest, and the self-supervised one is the alone one.
    largest = max(float(alone), float(parts['true_disparities']), float(parts['true_flow']))
    assert float(loss) == pytest.approx(3 * largest, rel=1e-4) and float(alone) < float(loss)


@pytest.mark.parametrize(
    ('name', 'student', 'strategy'),
    [
        ('train_mono_lite', 'mono_lite', 'mono_self_supervised'),
        ('train_mono_lite_lidar', 'mono_lite', 'mono_from_lidar'),
        ('train_multi_mono_sf', 'multi_mono_sf_corrected', 'mono_self_supervised'),
        ('finetune_multi_mono_sf', 'multi_mono_sf_corrected', 'mono_finetuning'),
    ],
)
def test_recipes_load(name, student, strategy):
    config = load_train_config(ROOT / 'config' / f'{name}.yaml')
    assert isinstance(config, MonoTrainConfig) and (config.student, config.strategy) == (student, strategy)
    multiple = build_student(student).multiple if student == 'mono_lite' else 32
    assert config.width % multiple == 0 and config.height % multiple == 0


def test_the_published_recipe_halves_its_rate():
    config = load_train_config(ROOT / 'config' / 'train_multi_mono_sf.yaml')
    assert [config.learning_rate(step) for step in (0, 147_199, 200_000, config.steps - 1)] == [
        2e-4, 2e-4, 1e-4, 2e-4 / 16,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('wrong', 'match'),
    [
        ({'num_frames': 3}, 'num_frames of 4 or more'),
        ({'strategy': 'mono_from_lidar', 'num_frames': 2}, 'num_frames of 3 or more'),
        ({'student': 'stereo_lite'}, 'student should be one of'),
        ({'held_out': 1.0}, 'held_out'),
        ({'batch': 0}, 'batch'),
        ({'flow': -1.0}, 'flow should be >= 0|flow'),
        ({'finest_level': 4}, 'finest_level should be 0, 1, 2 or 3, got 4'),
    ],
)
def test_wrong_settings_are_errors(wrong, match):
    with pytest.raises(ConfigError, match=match):
        dataclasses.replace(TINY, **wrong)


def test_epochs_set_the_steps():
    assert dataclasses.replace(TINY, epochs=3, batch=2).for_pairs(5).steps == 8
    assert frame(0).left.shape[1] == TINY.width


def test_the_program_needs_data(tmp_path, capsys):
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump({'student': 'mono_lite'}))
    arguments = ['--config', str(tmp_path / 'c.yaml'), '--out', str(tmp_path / 'out')]
    assert train_program.main(arguments) == 1
    assert 'give --dataset' in capsys.readouterr().err


def test_distilling_says_what_to_run_instead(tmp_path, capsys):
    config = ROOT / 'config' / 'train_mono_lite.yaml'
    arguments = ['simulation:0-1', '--out', str(tmp_path / 'm.onnx'), '--work', str(tmp_path), '--config', str(config)]
    assert distill.main(arguments) == 1
    assert 'mono_training.md' in capsys.readouterr().err
