# SPDX-License-Identifier: Apache-2.0
"""From the drives of a stereo camera to a model file. The teacher is a stand-in, and so is the export, for its time."""

import dataclasses
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('pytorch_lightning', reason='training needs pytorch-lightning')
pytest.importorskip('cv2', reason='camera images need OpenCV')

from stereo_world import TINY, StereoWorld

from training.distill import Distillation, distill, main
from training.labels.stereo_label_store import StereoLabelStore
from training.learning.checkpoint import Checkpoint, load_checkpoint
from training.learning.start_model import load_start
from training.students import build_student
from zeroflow_ros.camera.stereo import StereoFlow
from zeroflow_ros.errors import ZeroFlowError


class Programs:
    """Trains in this process; labels eight pairs by hand; copies the checkpoint in place of an export."""

    def __init__(self):
        self.ran = []

    def __call__(self, module, *words):
        words = [str(word) for word in words]
        self.ran.append([module, *words])
        out = Path(words[words.index('--out') + 1])
        if module == 'training.label':
            store = StereoLabelStore.create(out, {'teacher': 'by_hand', 'sensor': 'stereo'}, {})
            world, one = StereoWorld(8, with_truth=False), np.ones((48, 96), np.float32)
            for k in range(8):
                flow = np.stack([2 * one, -one], axis=2)
                store.write(world[k], StereoFlow((4 + k) * one, (6 + k) * one, flow, one, one, one, one > 0))
            (out / 'jobs').mkdir(exist_ok=True)
            report = {'done': 8, 'failed': 0, 'points': 8 * one.size, 'points_labelled': 4 * one.size}
            (out / 'jobs' / 'shard_1_of_1.json').write_text(json.dumps(report))
        elif module == 'export.to_onnx':
            out.write_bytes(Path(words[0]).read_bytes())
        else:
            return import_module(module).main(words)
        return 0


def test_a_stereo_drive_becomes_a_model_and_the_model_starts_another(tmp_path, capsys):
    drive = tmp_path / 'drive.mcap'
    drive.write_bytes(b'images')
    job = Distillation(
        (str(drive), 'stereo_simulation:0'), tmp_path / 'model.onnx', tmp_path / 'work', 'stereo', pairs=30,
        config=dataclasses.replace(TINY, steps=1, held_out=0.25),
    )  # fmt: skip
    programs = Programs()
    assert distill(job, programs) == [job.out]
    label, train, export = programs.ran
    assert label[1:6] == [
        f'stereo:{drive}',
        f'stereo:{drive}?latest=true',
        'stereo_simulation:0',
        '--teacher',
        'stereo',
    ]
    assert label[-2:] == ['--pairs', '10'] and '--forms' in export and '--start' not in train
    said = capsys.readouterr().out
    assert 'labels for 50.0 % of 36,864 pixels' in said
    [path] = job.work.glob('evaluate_*/agreement.json')
    agreement = json.loads(path.read_text())['trained']
    assert agreement.keys() == {'D1', 'D2', 'Fl', 'SF', 'pairs'} and agreement['pairs'] == 2
    assert 0 < agreement['SF'] <= 100  # of pairs 6 and 7, after one step
    about = load_checkpoint(job.out).provenance
    assert about['supervision'] == 'pseudo-labels of the teacher by_hand, no human labels'
    assert about['data'].startswith('6 stereo pairs of 8')
    distill(job, programs)
    assert len(programs.ran) == 3

    [last] = job.work.glob('train_*/last.pt')
    distill(dataclasses.replace(job, start=load_start(last)), programs)
    assert [words[0].rpartition('.')[2] for words in programs.ran[3:]] == ['train', 'to_onnx']
    assert str(last) in programs.ran[3]
    reports = [json.loads(path.read_text()) for path in job.work.glob('evaluate_*/agreement.json')]
    [adapted] = [report for report in reports if 'adapted' in report]
    assert adapted['start'] == agreement


def test_the_command_line_trains_the_student_of_stereo_cameras(tmp_path, monkeypatch, capsys):
    from training import distill as program

    jobs = []
    monkeypatch.setattr(program, 'distill', lambda job: jobs.append(job) or [job.out])
    out = tmp_path / 'm.onnx'
    assert main(['drive', '--student', 'stereo_lite', '--steps', '7', '--held-out', '0.2', '--out', str(out)]) == 0
    [job] = jobs
    assert job.is_stereo and job.teacher == 'stereo' and (job.config.steps, job.config.held_out) == (7, 0.2)
    assert job.config.width == 512 and job.datasets == ('drive',)
    assert f'camera_flow_node --ros-args -p model_path:={out}' in capsys.readouterr().out

    start = tmp_path / 'last.pt'
    Checkpoint('stereo_lite', build_student('stereo_lite').state_dict(), {'licence': 'Apache-2.0'}).save(start)
    assert main(['drive', '--start', str(start), '--out', str(out)]) == 0
    assert jobs[1].start.path == start and jobs[1].config.steps == 400 and jobs[1].pairs == 240


@pytest.mark.parametrize('words, says', [
    (['--student', 'dwarf', '--config', '{dwarf}'], 'does not estimate its errors'),
    (['--student', 'stereo_lite', '--strategy', 'seflow'], 'strategy should be one of proxy'),
    (['--student', 'dwarf', '--config', '{lite}'], '--student is dwarf, and {lite} trains a stereo_lite'),
    (['--student', 'stereo'], 'student should be one of fastflow3d'),
])  # fmt: skip
def test_what_does_not_go_together_is_said(words, says, tmp_path, capsys):
    paths = {name: str(tmp_path / f'{name}.yaml') for name in ('dwarf', 'lite')}
    Path(paths['dwarf']).write_text('student: dwarf\nloss: dwarf_masked\n')
    Path(paths['lite']).write_text('student: stereo_lite\n')
    words = [word.format(**paths) for word in words]
    assert main(['drive', *words, '--out', str(tmp_path / 'm.onnx'), '--work', str(tmp_path / 'work')]) == 1
    assert says.format(**paths) in capsys.readouterr().err and not (tmp_path / 'work').exists()


def test_a_stage_that_fails_ends_the_job(tmp_path):
    job = Distillation(('stereo_simulation:0',), tmp_path / 'm.onnx', tmp_path / 'work', 'stereo', config=TINY)
    with pytest.raises(ZeroFlowError, match='Labelling ended with status 2'):
        distill(job, lambda *_: 2)
