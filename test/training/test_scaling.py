# SPDX-License-Identifier: Apache-2.0
"""Students of growing amounts of data: the fit, the picture, and the whole program on two clips."""

import json

import numpy as np
import pytest
import yaml

from training.datasets import open_dataset
from training.datasets.clip_store import ClipStore
from training.labels.label_store import LabelStore
from training.scaling import SCORES, draw_scaling, main, power_law, scaling, sources
from training.teachers.teacher import run_teacher
from training.teachers.teacher_input import Crop, teacher_input
from zeroflow_ros.errors import ConfigError


def test_a_power_law_is_found_again():
    amounts = [6, 24, 96, 360]
    factor, exponent = power_law(amounts, 0.7 * np.array(amounts) ** -0.3)
    assert (factor, exponent) == (pytest.approx(0.7), pytest.approx(-0.3))


def report(error):
    return {'three_way': {'mean': error, 'BS': error / 4}, 'dynamic_normalised_epe': 3 * error}


def test_scores_are_gathered_by_kind_and_drawn(tmp_path):
    runs = {'distilled': {10: report(0.2), 20: report(0.1)}, 'supervised': {5: report(0.16), 20: report(0.08)}}
    result = scaling(runs, report(0.12))
    assert result.keys() == SCORES.keys()
    part = result['dynamic_normalised_epe']
    assert part['teacher'] == pytest.approx(0.36) and part['supervised']['errors'] == pytest.approx([0.48, 0.24])
    assert part['distilled']['exponent'] == pytest.approx(-1)  # twice the data, half the error
    single = scaling({**runs, 'supervised': {20: report(0.08)}}, report(0.12))
    assert single['dynamic_normalised_epe']['supervised']['exponent'] is None  # no law through one point
    for each in (result, single):
        draw_scaling(each, tmp_path / 'scaling.png')
    assert (tmp_path / 'scaling.png').read_bytes().startswith(b'\x89PNG')


class Still:
    """A teacher that says that nothing moves."""

    def label(self, points0, points1, dt, *, times=None):
        return np.zeros_like(points0), np.zeros_like(points1)


@pytest.fixture
def labels_of_clips(clips, tmp_path):
    """Pseudo-labels of two simulated clips."""
    store = LabelStore.create(tmp_path / 'labels', {'teacher': 'still'}, {})
    dataset = open_dataset(f'simulation:0-1@{clips}')
    for index in range(2):
        store.write(run_teacher(Still(), teacher_input(dataset[index], Crop())))
    return store


def test_both_kinds_learn_from_the_same_clips(labels_of_clips, clips):
    both = sources(labels_of_clips, ClipStore(clips, 2), 2)
    assert {name: (len(source), source.in_use(0)) for name, source in both.items()} == {
        'distilled': (2, 2), 'supervised': (2, 2),
    }  # fmt: skip
    pairs = {name: source[1] for name, source in both.items()}
    assert not np.nan_to_num(pairs['distilled'].flow0).any() and pairs['supervised'].flow0.any()
    assert len(pairs['distilled'].points0) == len(pairs['supervised'].points0)
    with pytest.raises(ConfigError, match='lacks 1 of the first 3 clips, for example clip_000002'):
        sources(labels_of_clips, ClipStore(clips, 2), 3)


def test_the_program_trains_scores_and_fits(labels_of_clips, clips, tmp_path, capsys):
    pytest.importorskip('pytorch_lightning', reason='training needs pytorch-lightning')
    config = tmp_path / 'tiny.yaml'
    crop = {'steps': 1, 'batch': 1, 'cells': 32}
    config.write_text(
        yaml.safe_dump(
            {**{name: dict(crop) for name in ('warm_up', 'crops', 'full')}, 'num_workers': 0, 'num_threads': 1}
        )
    )
    arguments = ['--labels', labels_of_clips.folder, '--clips', clips, '--amounts', '2', '1', '--supervised', '2', '1',
                 '--config', config, '--dataset', f'simulation:0@{clips}', '--out', tmp_path / 'out']  # fmt: skip
    assert main([str(word) for word in arguments]) == 0
    made = json.loads((tmp_path / 'out' / 'scaling.json').read_text())
    for kind in ('distilled', 'supervised'):
        assert made['scores']['three_way_epe'][kind]['amounts'] == [1, 2]
        errors = made['scores']['three_way_epe'][kind]['errors']
        assert len(errors) == 2 and all(0 < error < 10 for error in errors)
        assert (tmp_path / 'out' / f'{kind}_2' / 'last.pt').is_file()
    assert made['scores']['dynamic_normalised_epe']['teacher'] < 0.5  # rigid, not the one of the labels
    assert 'three_way_epe: teacher' in capsys.readouterr().out
    assert main([str(word) for word in (*arguments, '--teacher', f'labels:{labels_of_clips.folder}')]) == 0
    again = json.loads((tmp_path / 'out' / 'scaling.json').read_text())
    assert again['scores']['dynamic_normalised_epe']['teacher'] == 1  # the one of the labels, which says zero
    capsys.readouterr()
    elsewhere = (*arguments[:-1], tmp_path / 'other', '--teacher', f'labels:{tmp_path / "none"}')
    assert main([str(word) for word in elsewhere]) == 1
    assert 'holds no pseudo-labels' in capsys.readouterr().err and not (tmp_path / 'other').exists()  # said at once
    assert main([str(word) for word in (*arguments[:4], '--amounts', '0', '5', '--out', tmp_path)]) == 1
    assert 'two amounts or more' in capsys.readouterr().err
