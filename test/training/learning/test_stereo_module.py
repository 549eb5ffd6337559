# SPDX-License-Identifier: Apache-2.0
"""A training on stereo pairs: it learns, resumes, and starts from weights; its checkpoint says where it comes from."""

import dataclasses

import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch', reason='training needs torch')
pytest.importorskip('pytorch_lightning', reason='training needs pytorch-lightning')
pytest.importorskip('cv2', reason='camera images need OpenCV')

from stereo_world import TINY, StereoWorld  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from training import train as train_program  # noqa: E402
from training.labels.stereo_label_store import StereoLabelStore  # noqa: E402
from training.learning import stereo_samples  # noqa: E402
from training.learning.checkpoint import load_checkpoint  # noqa: E402
from training.learning.start_model import load_start, start_config  # noqa: E402
from training.learning.stereo_sources import DatasetSource  # noqa: E402
from training.learning.strategies.proxy import Proxy  # noqa: E402
from training.learning.training_run import train  # noqa: E402
from training.students.dwarf import Dwarf  # noqa: E402
from zeroflow_ros.camera.stereo import StereoFlow  # noqa: E402
from zeroflow_ros.errors import ConfigError  # noqa: E402

SOURCE = DatasetSource(StereoWorld(), range(4))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Ten steps."""
    out = tmp_path_factory.mktemp('whole')
    return load_checkpoint(train(dataclasses.replace(TINY, steps=10), out, SOURCE)), out


def losses(out):
    events = EventAccumulator(str(out / 'tensorboard'))
    events.Reload()
    return [event.value for event in events.Scalars('loss')]


def test_the_loss_falls(whole):
    """It is a few pixels at first, on four scenes that it sees again and again."""
    values = losses(whole[1])
    assert len(values) == 10 and sum(values[-3:]) < 0.8 * sum(values[:3])


def test_the_checkpoint_says_where_it_comes_from(whole):
    checkpoint = whole[0]
    about = checkpoint.provenance
    assert checkpoint.student == 'stereo_lite' and about['step'] == 10 and about['loss'] == 'laplace'
    assert about['supervision'] == 'ground truth of a data set' and about['licence'] == 'Apache-2.0'
    assert about['data'].startswith('4 stereo pairs of 4 of stereo_world') and 'ground' not in about


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path):
    config = dataclasses.replace(TINY, steps=3, lr_steps=5)  # constant rates, whatever the number of steps
    one = load_checkpoint(train(config, tmp_path / 'one', SOURCE))
    train(dataclasses.replace(config, steps=2), tmp_path / 'two', SOURCE)
    two = load_checkpoint(train(config, tmp_path / 'two', SOURCE, change_config=True))
    assert two.provenance['step'] == 3 and [part['until_step'] for part in two.provenance['history']] == [2]
    for key, value in one.state_dict.items():
        torch.testing.assert_close(two.state_dict[key], value, atol=1e-6, rtol=1e-5)
    with pytest.raises(ConfigError, match='another configuration or other data'):
        train(dataclasses.replace(config, lr=1.0), tmp_path / 'two', SOURCE)


def test_a_training_starts_from_a_checkpoint(whole, tmp_path):
    start = load_start(whole[1] / 'last.pt')
    with pytest.raises(ConfigError, match='--config'):
        start_config(start)
    config = dataclasses.replace(TINY, steps=1, lr=1e-12, weight_decay=0.0)
    last = load_checkpoint(train(config, tmp_path, SOURCE, start_model=start))
    assert last.provenance['start']['name'] == 'last.pt'
    weight = 'search2.0.0.weight'
    torch.testing.assert_close(last.state_dict[weight], whole[0].state_dict[weight], atol=1e-6, rtol=0)


@pytest.mark.parametrize('loss', ['dwarf_levels', 'dwarf_masked'])
def test_both_losses_of_dwarf_fall(loss):
    torch.manual_seed(0)
    student = Dwarf(coarsest=3)
    config = dataclasses.replace(TINY, student='dwarf', loss=loss, l2=1e-6, steps=5)
    samples = stereo_samples.StereoSamples(config, SOURCE, student)
    batch = stereo_samples.collate_stereo([samples[0, 0]])
    optimizer = torch.optim.Adam(student.parameters(), 1e-4)
    found = []
    for _ in range(5):
        value = Proxy(config).loss(student, batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(value.item())
    assert found[-1] < 0.9 * found[0]


def test_the_program_trains_on_stored_labels(tmp_path, capsys):
    store = StereoLabelStore.create(tmp_path / 'labels', {'teacher': 'by_hand', 'sensor': 'stereo'}, {})
    world, one = StereoWorld(2, with_truth=False), np.ones((48, 96), np.float32)
    for pair in (world[0], world[1]):
        store.write(pair, StereoFlow(4 * one, 6 * one, np.stack([2 * one, -one], 2), one, one, one, one > 0))
    values = {name: getattr(TINY, name) for name in (
        'student', 'width', 'height', 'crop_width', 'crop_height', 'batch', 'held_out', 'num_threads', 'num_workers'
    )} | {'steps': 1}  # fmt: skip
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump(values))
    arguments = ['--config', tmp_path / 'c.yaml', '--labels', tmp_path / 'labels', '--out', tmp_path / 'out']
    assert train_program.main([str(word) for word in arguments]) == 0
    about = load_checkpoint(tmp_path / 'out' / 'last.pt').provenance
    assert about['supervision'] == 'pseudo-labels of the teacher by_hand, no human labels'
    assert about['step'] == 1 and 'Training on 2 stereo pairs' in capsys.readouterr().err


def test_the_program_needs_a_dataset_for_camera_students(tmp_path, capsys):
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump({'student': 'stereo_lite'}))
    assert train_program.main(['--config', str(tmp_path / 'c.yaml'), '--out', str(tmp_path / 'out')]) == 1
    assert 'stereo_lite learns from stereo pairs: give --dataset' in capsys.readouterr().err
    assert train_program.main(['--dataset', 'stereo_simulation:0', '--out', str(tmp_path / 'out')]) == 1
    assert 'fastflow3d_lite learns from --labels' in capsys.readouterr().err
