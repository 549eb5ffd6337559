# SPDX-License-Identifier: Apache-2.0
"""From a drive to a model file; the teacher alone is a stand-in, with the true flow of a box over a plane."""

import dataclasses
import json
import shutil
from importlib import import_module

import numpy as np
import pytest
import yaml
from tiny_bag import BOX_SPEED, write_bag
from tiny_distillation import TINY, ProcessGroup, label

pytest.importorskip('pytorch_lightning', reason='training needs pytorch-lightning')
pytest.importorskip('onnxscript', reason='export needs onnxscript')

from training import distill as program
from training.datasets.clip_store import ClipStore
from training.distill import Distillation, _label_lines, distill, main
from training.labels.label_store import LabelStore
from training.learning.pair_sources import split_labels
from training.learning.start_model import load_start
from training.scoring.label_metrics import score_against_labels
from training.students import build_student
from zeroflow_ros.engines.selection import DEFAULT_MODEL, load_engine
from zeroflow_ros.errors import DataError, ZeroFlowError


@pytest.fixture
def _in_this_process(monkeypatch):
    """Call the programs instead of starting them; the tests of the other labels start them."""

    def call(module, *words):
        return import_module(module).main([str(word) for word in words])

    monkeypatch.setattr(program, 'distill', lambda job: distill(job, call))


@pytest.fixture
def job(tmp_path):
    drive = tmp_path / 'drive.mcap'
    drive.write_bytes(b'clouds')
    return Distillation((str(drive),), tmp_path / 'model.onnx', tmp_path / 'work', config=TINY, calibration_pairs=0)


def test_from_a_drive_to_a_model_and_nothing_twice(job, capsys):
    programs = ProcessGroup()
    programs.fail = 'training.train'
    with pytest.raises(ZeroFlowError, match='Training ended with status 2'):
        distill(job, programs)
    programs.fail = 'export.to_onnx'
    with pytest.raises(ZeroFlowError, match='Exporting'):
        distill(job, programs)
    programs.fail = ''
    [model] = distill(job, programs)
    assert programs.ran == ['label', 'train', 'train', 'to_onnx', 'to_onnx']
    card = load_engine(model).card
    assert card.training['supervision'].startswith('pseudo-labels of the teacher ') and card.training['step'] == 3
    assert '"fast"' in capsys.readouterr().out  # the box at 5 m/s, in the agreement

    model.unlink()
    distill(job, programs)
    assert model.is_file() and len(programs.ran) == 5
    [damaged] = job.work.glob('label_*/labels/drive/2.label')
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    distill(job, programs)
    assert damaged.read_bytes() == whole and programs.ran[5:] == ['label']


def test_a_model_is_adapted_and_another_start_trains_again(job, monkeypatch):
    monkeypatch.setattr('training.distill._CLIPS_TO_SCORE', 1)
    start = load_start('embedded')
    config = dataclasses.replace(
        TINY, student=start.checkpoint.student, rehearsal=0.5, num_clips=1, num_sweeps=5, first_seed=2
    )
    clip = ClipStore(job.work / 'clips', 5).ensure(2)
    shutil.copyfile(clip, clip.with_name(clip.name.replace('2_5', '3_5')))  # the clip to score, not another simulation
    job = dataclasses.replace(job, config=config, start=start, pairs=30)
    programs = ProcessGroup()
    [model] = distill(job, programs)
    training = load_engine(model).card.training
    assert training['start'] == start.about and '50% of the samples: simulation, 1 clips' in training['data']
    assert training['supervision'].endswith('no human labels; exact flow of the simulation')
    assert programs.ran == ['label', 'train', 'to_onnx']
    [path] = job.work.glob('evaluate_*/agreement.json')
    agreement = json.loads(path.read_text())
    assert agreement.keys() == {'adapted', 'start', 'simulated streets'}
    assert agreement['start'].keys() == {'still', 'fast'}
    streets = agreement['simulated streets']
    assert streets.keys() == {'adapted', 'start'} and streets['start'] != streets['adapted']
    assert streets['start']['fast']['normalised_epe'] < 0.5
    distill(dataclasses.replace(job, start=dataclasses.replace(start, sha256='0' * 64)), programs)
    # The file of this start is the same: where the training repeats itself to the bit, there is nothing new to export.
    assert programs.ran[3:] in (['train'], ['train', 'to_onnx'])
    num_ran = len(programs.ran)
    distill(job, programs)
    assert len(programs.ran) == num_ran
    distill(dataclasses.replace(job, pairs=40), programs)
    assert programs.ran[num_ran] == 'label'


@pytest.mark.parametrize('words, says', [
    (['--start', 'none.onnx'], 'No model file at none.onnx'),
    (['--start', str(DEFAULT_MODEL)], 'int8 weights'),
    (['--start', 'embedded', '--config', '{deflow}'], "Write 'student: fastflow3d_lite"),
])  # fmt: skip
def test_what_cannot_be_adapted_says_what_to_do(words, says, tmp_path, capsys):
    deflow = tmp_path / 'deflow.yaml'
    deflow.write_text('student: deflow_lite')
    words = [word.format(deflow=deflow) for word in words]
    assert main(['drive', *words, '--out', str(tmp_path / 'm.onnx'), '--work', str(tmp_path / 'work')]) == 1
    assert says in capsys.readouterr().err and not (tmp_path / 'work').exists()


def test_limits_of_an_adaptation_reach_the_label_job(job):
    ran = []

    def refuse(module, *words):
        ran.append([module, *map(str, words)])
        return 2

    for student, runs in (('fastflow3d_lite', []), ('fastflow3d_lite_5', ['--consecutive', '12'])):
        config = dataclasses.replace(TINY, student=student)
        with pytest.raises(DataError, match='Labelling ended'):
            distill(dataclasses.replace(job, config=config, pairs=30), refuse)
        words = ran[-1]
        assert words[words.index('--pairs') :] == ['--pairs', '30', *runs]


@pytest.mark.parametrize('failed_pairs, goes_on', [(0, True), (1, False)])
def test_many_pairs_without_a_label_are_an_error(job, failed_pairs, goes_on):
    programs = ProcessGroup()
    programs.failed_pairs, programs.fail = failed_pairs, 'training.train'
    with pytest.raises(ZeroFlowError) as error:
        distill(job, programs)
    assert isinstance(error.value, DataError) is not goes_on
    assert ('1 of 5 pairs failed' in str(error.value)) is not goes_on


def test_agreement_of_a_student_that_says_zero(tmp_path):
    store = LabelStore.create(tmp_path, {'teacher': 'box'}, {})
    store.write(label('drive/0', 0))
    student = build_student('fastflow3d_lite').eval()
    _, last = student.head_layers()
    last.weight.data.zero_()
    last.bias.data.zero_()
    report = score_against_labels(student, split_labels(store, 0.0)[0])
    assert report == {
        'still': {'points': 800, 'epe': 0.0},
        'fast': {'points': 400, 'epe': 0.5, 'normalised_epe': 1.0},  # both directions of 200 points
    }


def test_program_reports_errors_with_exit_status_1(tmp_path, capsys):
    assert main(['drive', '--config', str(tmp_path / 'none.yaml'), '--out', str(tmp_path / 'model.onnx')]) == 1
    assert 'none.yaml' in capsys.readouterr().err


@pytest.mark.usefixtures('_in_this_process')
def test_a_recorded_drive_becomes_a_model_without_a_teacher(tmp_path, capsys):
    pytest.importorskip('dufomap', reason="these labels need the package dufomap: pip install 'zeroflow_ros[dynamic]'")
    drive = write_bag(tmp_path / 'drive', num_sweeps=5)
    config = tmp_path / 'tiny.yaml'
    phase = {'steps': 1, 'batch': 2, 'cells': 48}
    config.write_text(yaml.safe_dump({'warm_up': phase, 'crops': phase, 'full': phase, 'num_workers': 0}))
    out, work = tmp_path / 'model.onnx', tmp_path / 'work'
    arguments = [drive, '--strategy', 'seflow', '--out', out, '--work', work, '--config', config]
    arguments = [str(word) for word in [*arguments, '--held-out', 0.25, '--calibration-pairs', 0]]
    assert main(arguments) == 0
    card = load_engine(out).card
    assert card.training['loss'] == 'seflow' and 'teacher dufomap' in card.training['supervision']
    [folder] = work.glob('label_*')
    assert LabelStore(folder).about['teacher'] == 'dufomap'
    assert '"still"' in capsys.readouterr().out  # how much the held-out pair moves that should not
    before = out.read_bytes()
    assert main(arguments) == 0 and out.read_bytes() == before
    assert 'already done' in capsys.readouterr().err


def test_a_recorded_drive_becomes_models_by_the_programs_themselves(tmp_path, capsys):
    drive = write_bag(tmp_path / 'drive', num_sweeps=5)
    config = tmp_path / 'tiny.yaml'
    phase = {'steps': 1, 'batch': 2, 'cells': 48}
    config.write_text(yaml.safe_dump({'warm_up': phase, 'crops': phase, 'full': phase, 'num_workers': 0}))
    out, work = tmp_path / 'model.onnx', tmp_path / 'work'
    arguments = [drive, '--out', out, '--work', work, '--config', config, '--calibration-pairs', 2]
    assert main([str(word) for word in arguments]) == 0
    for path, precision in ((out, 'float32'), (tmp_path / 'model_int8.onnx', 'int8')):
        card = load_engine(path).card
        assert card.precision == precision and 'teacher rigid, no human labels' in card.training['supervision']
        assert f'model_path:={path}' in capsys.readouterr().out or precision == 'int8'
    [folder] = work.glob('label_*')
    store = LabelStore(folder)
    assert len(store.keys()) == 4
    label = store.read(store.keys()[0])
    moves = np.nan_to_num(label.flow0[:, 0]) > 0.05
    assert moves.sum() > 500 and np.median(label.flow0[moves, 0]) == pytest.approx(0.1 * BOX_SPEED, abs=0.05)


def test_the_embedded_model_is_adapted_to_a_recorded_drive_by_the_programs_themselves(tmp_path, capsys):
    drive = write_bag(tmp_path / 'drive', num_sweeps=6)
    start = load_start('embedded')
    config = tmp_path / 'tiny.yaml'
    phase = {'steps': 1, 'batch': 2, 'cells': 48}
    config.write_text(yaml.safe_dump({
        'student': start.checkpoint.student, 'warm_up': phase, 'crops': phase, 'full': phase, 'num_workers': 0,
        'held_out': 0.25,
    }))  # fmt: skip
    out, work = tmp_path / 'mine.onnx', tmp_path / 'work'
    arguments = [drive, '--start', 'embedded', '--out', out, '--work', work, '--config', config, '--pairs', 4,
                 '--calibration-pairs', 0, '--processes', 1]  # fmt: skip
    assert main([str(word) for word in arguments]) == 0
    training = load_engine(out).card.training
    assert training['start'] == start.about and training['step'] == 3
    [folder] = work.glob('label_*')
    assert len(LabelStore(folder).keys()) == 4
    assert '"adapted"' in capsys.readouterr().out


def test_it_ends_with_what_labelling_dropped_and_warned_of(tmp_path):
    assert _label_lines(tmp_path) == []
    warning = {'level': 'WARN', 'count': 3, 'text': 'The sensor hangs upside down.'}
    dataset = {
        'sweeps': 9, 'pairs': 6, 'dropped': {'no_ego_motion': 2, 'first_sweep': 1}, 'warnings': [warning],
        'dropped_because': {'no_ego_motion': 'No pose.', 'first_sweep': 'It waits.'},
    }  # fmt: skip
    report = {'points': 1000, 'points_labelled': 940, 'failures': {'a': 'Too few.'}, 'datasets': {'drive': dataset}}
    (tmp_path / 'jobs').mkdir()
    (tmp_path / 'jobs' / 'shard_1_of_1.json').write_text(json.dumps(report))
    assert _label_lines(tmp_path) == [
        'labels for 94.0 % of 1,000 points, ground included',
        '1 pairs not labelled: Too few.',
        'drive: 9 sweeps, 6 pairs, dropped: 2 no_ego_motion, 1 first_sweep',
        '  no_ego_motion: No pose.',
        'WARN (3 times): The sensor hangs upside down.',
    ]
