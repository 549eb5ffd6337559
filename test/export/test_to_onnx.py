# SPDX-License-Identifier: Apache-2.0
"""From checkpoint to model file: the card, the operators, and that nothing changes on the way."""

import json

import numpy as np
import onnx
import pytest
from processes import ROOT

torch = pytest.importorskip('torch', reason='export needs torch')

from export import benchmark, parity, to_onnx  # noqa: E402
from training.learning.checkpoint import Checkpoint  # noqa: E402
from training.students import build_student  # noqa: E402
from zeroflow_ros.engines.selection import load_engine  # noqa: E402

ABOUT = {
    'direction': 'both',
    'ground': 'keep',
    'z_origin': 'ground',
    'licence': 'Apache-2.0',
    'data': 'test',
    'step': 7,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A checkpoint with random weights and lively batch norms, and both its exported forms."""
    folder = tmp_path_factory.mktemp('export')
    torch.manual_seed(0)
    student = build_student('fastflow3d_lite')
    for module in student.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    Checkpoint('fastflow3d_lite', student.state_dict(), ABOUT).save(folder / 'c.pt')
    assert to_onnx.main([str(folder / 'c.pt'), '--out', str(folder / 'm.onnx')]) == 0
    return folder


def test_a_student_of_five_sweeps_keeps_its_flow_with_two_and_with_five(tmp_path, capsys):
    torch.manual_seed(0)
    Checkpoint('fastflow3d_lite_5', build_student('fastflow3d_lite_5').state_dict(), ABOUT).save(tmp_path / 'c.pt')
    assert to_onnx.main([str(tmp_path / 'c.pt'), '--out', str(tmp_path / 'm.onnx')]) == 0
    assert {load_engine(tmp_path / name).card.num_sweeps for name in ('m.onnx', 'm_full.onnx')} == {5}
    capsys.readouterr()
    for other in ('c.pt', 'm_full.onnx'):
        assert parity.main([str(tmp_path / 'm.onnx'), str(tmp_path / other)]) == 0
        assert '5 sweeps' in capsys.readouterr().out


def test_both_forms_carry_the_card(folder):
    dense, full = load_engine(folder / 'm.onnx').card, load_engine(folder / 'm_full.onnx').card
    assert (dense.form, full.form) == ('dense', 'full')
    assert dense.grid == full.grid and dense.training == {'data': 'test', 'step': 7}
    assert dense.encoder_weight.shape == (16, 9) and full.encoder_weight.shape == (0, 9)
    assert dense.checksum != full.checksum
    assert not any(str(ROOT).encode() in path.read_bytes() for path in folder.rglob('*.onnx'))
    assert sorted(path.name for path in folder.iterdir()) == ['c.pt', 'm.onnx', 'm_full.onnx']


def operators(path):
    return {node.op_type for node in onnx.load(path).graph.node}


def test_operators_are_those_that_engines_take(folder):
    dense, full = operators(folder / 'm.onnx'), operators(folder / 'm_full.onnx')
    data_dependent = {'NonZero', 'Loop', 'If', 'Unique', 'Compress', 'ScatterND'}
    assert not dense & (data_dependent | {'ScatterElements'})
    assert not full & data_dependent
    assert 'ScatterElements' in full
    [scatter] = {
        attribute.s.decode()
        for node in onnx.load(folder / 'm_full.onnx').graph.node
        if node.op_type == 'ScatterElements'
        for attribute in node.attribute
        if attribute.name == 'reduction'
    }
    assert scatter == 'add'


@pytest.mark.parametrize('first, second', [('c.pt', 'm.onnx'), ('m.onnx', 'm_full.onnx')])
def test_parity_at_90000_points_with_two_threads(folder, capsys, first, second):
    assert parity.main([str(folder / first), str(folder / second)]) == 0
    printed = capsys.readouterr().out
    assert 'random 90000 + 90000' in printed and 'equal' in printed


def test_parity_tells_two_models_apart(folder, tmp_path, capsys):
    torch.manual_seed(1)
    Checkpoint('fastflow3d_lite', build_student('fastflow3d_lite').state_dict(), ABOUT).save(tmp_path / 'other.pt')
    assert parity.main([str(tmp_path / 'other.pt'), str(folder / 'm.onnx')]) == 1
    assert 'DIFFERENT' in capsys.readouterr().out


def test_parity_on_real_sweeps(folder, shared_data, capsys):
    bag = shared_data / 'bags' / 'kitti_0005_a'
    assert parity.main([str(folder / 'm.onnx'), str(folder / 'm_full.onnx'), '--bag', str(bag), '--sweeps', '1']) == 0
    assert 'sweep 1' in capsys.readouterr().out


@pytest.mark.parametrize(
    'label, first, second, expected',
    [
        ('equal', [[0, 1.0]], [[0, 1.25]], 0.25),
        ('no points', np.zeros((0, 2)), np.zeros((0, 2)), 0.0),
        ('both NaN', [[np.nan, 1.0]], [[np.nan, 1.0]], 0.0),
        ('NaN in one only', [[np.nan, 1.0]], [[0.0, 1.0]], np.inf),
        ('all NaN', [[np.nan]], [[np.nan]], 0.0),
    ],
)
def test_largest_difference(label, first, second, expected):
    assert parity.largest_difference(np.array(first), np.array(second)) == expected


def test_a_half_precision_file_is_close_and_says_so(folder, tmp_path):
    assert to_onnx.main(
        [str(folder / 'c.pt'), '--out', str(tmp_path / 'half.onnx'), '--forms', 'dense', '--precision', 'float16']
    ) == 0  # fmt: skip
    half, single = load_engine(tmp_path / 'half.onnx'), load_engine(folder / 'm.onnx')
    assert half.card.precision == 'float16'
    assert (tmp_path / 'half.onnx').stat().st_size < 0.7 * (folder / 'm.onnx').stat().st_size
    points = np.random.default_rng(0).uniform(-20, 20, (2000, 3)).astype(np.float32) * np.float32([1, 1, 0.1])
    from zeroflow_ros.engines.stopwatch import Stopwatch

    flows = [engine.infer(points, points[::-1].copy(), Stopwatch()) for engine in (half, single)]
    scale = np.abs(flows[1]).max()
    assert parity.largest_difference(*flows) < 0.02 * scale  # half precision: 10 bits of mantissa, some 15 layers


def test_a_full_file_in_half_precision_is_refused(folder, tmp_path, capsys):
    arguments = [str(folder / 'c.pt'), '--out', str(tmp_path / 'x.onnx'), '--forms', 'full', '--precision', 'float16']
    assert to_onnx.main(arguments) == 1
    assert 'float32' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_papers_student_exports_and_keeps_zeroflow_conventions(tmp_path):
    torch.manual_seed(0)
    state_dict = {f'model.{key}': value for key, value in build_student('fastflow3d').state_dict().items()}
    torch.save({'state_dict': state_dict, 'epoch': 1, 'global_step': 2}, tmp_path / 'official.ckpt')
    assert to_onnx.main([str(tmp_path / 'official.ckpt'), '--out', str(tmp_path / 'z.onnx'), '--forms', 'dense']) == 0
    card = load_engine(tmp_path / 'z.onnx').card
    assert (card.direction, card.ground, card.grid.cells) == ('forward', 'remove', 512)
    assert 'ScatterND' not in operators(tmp_path / 'z.onnx')


def test_errors_are_a_sentence_and_an_exit_status(tmp_path, capsys):
    assert to_onnx.main([str(tmp_path / 'none.pt'), '--out', str(tmp_path / 'm.onnx')]) == 1
    assert parity.main([str(tmp_path / 'a.onnx'), str(tmp_path / 'b.onnx')]) == 1
    assert benchmark.main(['--model', str(tmp_path / 'a.onnx')]) == 1
    assert benchmark.main(['--bag', str(tmp_path / 'none.mcap')]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 4


def test_benchmark_reports_every_stage_of_every_model(folder, tmp_path, capsys):
    arguments = ['--model', str(folder / 'm.onnx'), str(folder / 'm_full.onnx'), '--checkpoint', str(folder / 'c.pt')]
    assert benchmark.main([*arguments, '--pairs', '2', '--warm-up', '1', '--json', str(tmp_path / 'b.json')]) == 0
    report = json.loads((tmp_path / 'b.json').read_text())
    [models] = (of_input['models'] for of_input in report['inputs'].values())
    assert len(models) == 3 and report['hardware']['cpu'] and report['memory_mb'] > 50
    assert set(models[str(folder / 'm.onnx')]) == {'prepare', 'pillars', 'inference', 'objects', 'finish', 'total'}
    assert all(stages['total']['count'] == 2 for stages in models.values())
    assert 'onnxruntime' in report['runs_on'][str(folder / 'm.onnx')]
    assert 'median' in capsys.readouterr().out


def test_benchmark_compiles_the_network_of_a_checkpoint(folder, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch, 'compile', lambda function, mode: lambda images: compiled.append(mode) or function(images)
    )
    arguments = ['--checkpoint', str(folder / 'c.pt'), '--compile', '--points', '500', '--pairs', '2', '--warm-up', '1']
    assert benchmark.main(['--model', str(folder / 'm.onnx'), *arguments, '--json', str(tmp_path / 'b.json')]) == 0
    [of_input] = json.loads((tmp_path / 'b.json').read_text())['inputs'].values()
    assert list(of_input['models'])[1:] == [f'torch {folder / "c.pt"}', f'compiled torch {folder / "c.pt"}']
    assert compiled == [compiled[0]] * 3, 'its network ran once a pair, that of the other run never'


def test_benchmark_times_refinements(folder, tmp_path):
    models = [str(folder / 'm.onnx'), f'{folder / "m.onnx"}?refinements=3']
    arguments = ['--model', *models, '--points', '20000', '--compare', '--pairs', '5']
    assert benchmark.main([*arguments, '--json', str(tmp_path / 'b.json')]) == 0
    [of_input] = json.loads((tmp_path / 'b.json').read_text())['inputs'].values()
    assert of_input['ratios'][models[1]]['p50'] > 1.5  # four times the work


def test_benchmark_compares_over_sizes(folder, tmp_path, capsys):
    arguments = ['--model', str(folder / 'm.onnx'), str(folder / 'm_full.onnx'), '--points', '1000', '30000']
    arguments += ['--compare', '--cells', '64', '--pairs', '3', '--warm-up', '1', '--json', str(tmp_path / 'b.json')]
    assert benchmark.main(arguments) == 0
    inputs = json.loads((tmp_path / 'b.json').read_text())['inputs']
    assert list(inputs) == ['random, 1000 points', 'random, 30000 points']
    for of_input in inputs.values():
        assert list(of_input['ratios']) == [str(folder / 'm_full.onnx'), 'untrained, 64 x 64 cells']
        assert all(ratio['count'] == 3 and ratio['p50'] > 0 for ratio in of_input['ratios'].values())
    assert 'times as long as' in capsys.readouterr().out


def test_benchmark_runs_another_revision_beside_this_one(folder, tmp_path, capsys):
    if not (ROOT / '.git').exists():
        pytest.skip('not a git checkout')
    arguments = ['--model', str(folder / 'm.onnx'), '--revision', 'HEAD', '--points', '500', '--compare']
    assert benchmark.main([*arguments, '--pairs', '2', '--warm-up', '1', '--json', str(tmp_path / 'b.json')]) == 0
    [of_input] = json.loads((tmp_path / 'b.json').read_text())['inputs'].values()
    assert [of_input['models'][name]['total']['count'] for name in of_input['models']] == [2, 2]
    assert list(of_input['ratios']) == [f'HEAD: {folder / "m.onnx"}']
    assert benchmark.main(['--revision', 'no-such-revision', '--points', '500', '--pairs', '1']) == 1
    assert 'no-such-revision' in capsys.readouterr().err


def test_ratios_are_taken_pair_by_pair():
    samples = {'first': {'total': [10.0, 20.0, 40.0]}, 'second': {'total': [20.0, 40.0, 80.0]}}
    assert benchmark.ratios(samples) == {'second': {'count': 3, 'p50': 2.0, 'p95': 2.0, 'p99': 2.0, 'max': 2.0}}
