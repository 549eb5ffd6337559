# SPDX-License-Identifier: Apache-2.0
"""Start models: recovered weights give the flow of their file, and a training begins there."""

import dataclasses
import hashlib

import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch', reason='training needs torch')
pytest.importorskip('pytorch_lightning', reason='training needs pytorch-lightning')
pytest.importorskip('onnx', reason='model files need onnx')

from train_world import TINY, source  # noqa: E402

from training.learning.batch import collate  # noqa: E402
from training.learning.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from training.learning.samples import PairSamples  # noqa: E402
from training.learning.start_model import EMBEDDED, load_start, recover_student, set_norm_statistics, start_config  # noqa: E402
from training.learning.train_config import TrainConfig, TrainPhase  # noqa: E402
from training.learning.training_run import train  # noqa: E402
from training.students import build_student  # noqa: E402
from zeroflow_ros.engines.selection import DEFAULT_MODEL, DEFAULT_MODELS, load_engine  # noqa: E402
from zeroflow_ros.engines.stopwatch import Stopwatch  # noqa: E402
from zeroflow_ros.errors import ConfigError, ModelError  # noqa: E402

POLICIES = {'direction': 'both', 'ground': 'keep', 'z_origin': 'ground', 'licence': 'CC-BY-NC-4.0'}
SMALL = dataclasses.replace(
    TINY, warm_up=TrainPhase(0, 2, 32), crops=TrainPhase(1, 2, 32), full=TrainPhase(1, 2, 32), lr=1e-4
)


@pytest.fixture(scope='module')
def embedded():
    return load_start(EMBEDDED)


def all_flow(student, batch):
    with torch.no_grad():
        return torch.cat([flow for both in student.forward_both(batch.clouds, batch.rows, batch.used) for flow in both])


@pytest.fixture(scope='module')
def batch(clips, embedded):
    config = dataclasses.replace(SMALL, crops=TrainPhase(0, 2, 32), full=TrainPhase(1, 2, 256))
    student = embedded.checkpoint.build()
    samples = PairSamples(config, source(clips), student.grid)
    return collate([samples[0, 0], samples[0, 1]])


def test_the_embedded_model_comes_back_from_its_file_and_goes_into_the_same_file(embedded, clips, tmp_path):
    pytest.importorskip('onnxscript', reason='export needs onnxscript')
    from export.onnx_graph import export_onnx

    original = load_engine(DEFAULT_MODELS['tensorrt'])
    assert (embedded.sha256, embedded.checkpoint.student) == (original.card.checksum, original.card.student)
    export_onnx(embedded.checkpoint, tmp_path / 'again.onnx')
    again = load_engine(tmp_path / 'again.onnx')
    window = source(clips)[0]
    flows = [engine.infer(window.points1, window.points0, Stopwatch()) for engine in (original, again)]
    assert np.nanmax(np.abs(flows[0])) > 0.3  # m: something moves
    # 0.1 mm: float32 through 16 layers whose weights are divided and multiplied again
    np.testing.assert_allclose(flows[0], flows[1], rtol=0, atol=1e-4)
    assert again.card.training['data'] == original.card.training['data']


def test_a_model_file_of_any_weights_gives_its_checkpoint_back(tmp_path):
    """Of two sweeps; the test above has the embedded model, of five."""
    name = 'fastflow3d_lite'
    pytest.importorskip('onnxscript', reason='export needs onnxscript')
    from export.onnx_graph import export_onnx

    torch.manual_seed(0)
    student = build_student(name)
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor in (module.weight, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 2.0)
                module.weight[0] = 0.0  # a channel that learned nothing
    Checkpoint(name, student.state_dict(), POLICIES).save(tmp_path / 'c.pt')
    export_onnx(load_checkpoint(tmp_path / 'c.pt'), tmp_path / 'm.onnx')
    start = load_start(tmp_path / 'm.onnx')
    assert start.checkpoint.student == name and start.about['licence'] == 'CC-BY-NC-4.0'
    rng = np.random.default_rng(0)
    clouds = [torch.from_numpy(rng.uniform(-5, 5, (500, 3)).astype(np.float32)) for _ in range(student.num_sweeps)]
    with torch.inference_mode():
        torch.testing.assert_close(start.checkpoint.build()(*clouds), student.eval()(*clouds), rtol=0, atol=1e-4)
    same = load_start(tmp_path / 'c.pt')
    assert same.sha256 == hashlib.sha256((tmp_path / 'c.pt').read_bytes()).hexdigest()


def test_norm_statistics_change_the_training_and_not_the_flow(embedded, batch):
    student = embedded.checkpoint.build()
    before = all_flow(student, batch)
    unknown = all_flow(student.train(), batch)
    student = embedded.checkpoint.build()
    set_norm_statistics(student, [batch])
    torch.testing.assert_close(all_flow(student, batch), before, rtol=0, atol=1e-4)
    known = all_flow(student.train(), batch)
    length = before.norm(dim=1).mean()
    assert (known - before).norm(dim=1).mean() < 0.3 * length < (unknown - before).norm(dim=1).mean()


@pytest.mark.parametrize('path, says', [
    (DEFAULT_MODEL, 'int8 weights, which are rounded; .* float32 file that it was made from'),
    ('none.onnx', 'No model file at none.onnx.* or embedded'),
    ('none.pt', 'No checkpoint at'),
], ids=['8 bits', 'no file', 'no checkpoint'])  # fmt: skip
def test_files_without_weights_to_start_from_say_what_to_do(path, says):
    with pytest.raises(ModelError, match=says):
        load_start(path)


@pytest.mark.parametrize('changes, says', [
    ({'precision': 'float16'}, 'float16 weights'),
    ({'form': 'full'}, 'has the form full.* Start from the checkpoint'),
    ({'form': 'gather'}, 'has the form gather.* Start from the checkpoint'),
    ({'student': 'newer'}, 'is a newer; this version has .*fastflow3d_lite'),
    ({'student': 'fastflow3d'}, 'lacks .* of the .* weights of a fastflow3d, .* merges layers .* from the checkpoint'),
], ids=str)  # fmt: skip
def test_models_whose_weights_are_not_all_in_the_file_say_what_to_do(changes, says):
    path = DEFAULT_MODELS['tensorrt']
    with pytest.raises(ModelError, match=says):
        recover_student(path, dataclasses.replace(load_engine(path).card, **changes))


def test_the_configuration_is_of_the_student_of_the_start_model(embedded, tmp_path):
    config = start_config(embedded)
    assert config.student == embedded.checkpoint.student and config.warm_up.steps == 0 and config.steps < 500
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump({'student': 'deflow_lite'}))
    with pytest.raises(ConfigError, match=f"trains a deflow_lite. Write 'student: {config.student}' into"):
        start_config(embedded, tmp_path / 'c.yaml')
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump({'student': config.student, 'lr': 0.5}))
    assert start_config(embedded, tmp_path / 'c.yaml').lr == 0.5


def test_a_training_starts_from_the_model_and_says_so_and_resuming_wins(clips, tmp_path, embedded):
    config = dataclasses.replace(SMALL, student=embedded.checkpoint.student)
    other = dataclasses.replace(embedded, sha256='0' * 64)
    first = load_checkpoint(train(config, tmp_path, source(clips), start_model=embedded))
    assert first.provenance['start'] == embedded.about and first.provenance['step'] == 2
    weights = [c.state_dict['encoder2.1.0.weight'] for c in (embedded.checkpoint, first)]
    change = (weights[1] - weights[0]).norm() / weights[0].norm()
    assert 0 < change < 0.01  # two steps of Muon at 1e-4; a fresh student differs by more than 1
    longer = dataclasses.replace(config, full=TrainPhase(2, 2, 32))
    resumed = load_checkpoint(train(longer, tmp_path, source(clips), change_config=True, start_model=other))
    assert resumed.provenance['start'] == embedded.about and resumed.provenance['step'] == 3
    without = load_checkpoint(train(longer, tmp_path, source(clips)))
    assert without.provenance['start'] == embedded.about


def test_a_start_model_of_another_student_is_refused(clips, tmp_path, embedded):
    with pytest.raises(ConfigError, match='trains a deflow_lite'):
        train(dataclasses.replace(SMALL, student='deflow_lite'), tmp_path, source(clips), start_model=embedded)


def test_the_licence_of_the_start_model_stays(clips, tmp_path, embedded):
    start = dataclasses.replace(
        embedded, checkpoint=dataclasses.replace(
            embedded.checkpoint, provenance=embedded.checkpoint.provenance | {'licence': 'CC-BY-NC-4.0'}
        )
    )  # fmt: skip
    config = dataclasses.replace(SMALL, student=embedded.checkpoint.student, full=TrainPhase(0, 2, 32))
    assert config.licence == TrainConfig.licence
    made = load_checkpoint(train(config, tmp_path / 'a', source(clips), start_model=start))
    assert made.policies['licence'] == 'CC-BY-NC-4.0'
