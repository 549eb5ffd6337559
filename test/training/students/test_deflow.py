# SPDX-License-Identifier: Apache-2.0
"""DeFlow: its head against its formulas, and the whole way from training to the vehicle as a gather model."""

import dataclasses
import json
import time

import numpy as np
import onnx
import pytest

torch = pytest.importorskip('torch', reason='students need torch')
pytest.importorskip('pytorch_lightning', reason='training needs pytorch-lightning')
pytest.importorskip('onnxscript', reason='export needs onnxscript')

from tiny_bag import write_bag  # noqa: E402
from tiny_distillation import TINY as TINY_DISTILLATION  # noqa: E402
from tiny_distillation import ProcessGroup  # noqa: E402
from train_world import GRID, TINY, source  # noqa: E402

from export import benchmark, parity, quantize, to_onnx  # noqa: E402
from training.distill import Distillation, distill  # noqa: E402
from training.learning.checkpoint import Checkpoint  # noqa: E402
from training.learning.losses import balanced_epe  # noqa: E402
from training.learning.samples import PairSamples  # noqa: E402
from training.students import build_student  # noqa: E402
from training.students.deflow import DeFlow, DeFlowLite, PointGru  # noqa: E402
from zeroflow_ros import replay  # noqa: E402
from zeroflow_ros.bags.bag import Bag  # noqa: E402
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message  # noqa: E402
from zeroflow_ros.engines.selection import load_engine  # noqa: E402
from zeroflow_ros.engines.stopwatch import Stopwatch  # noqa: E402
from zeroflow_ros.lidar.pillars import PillarGrid  # noqa: E402
from zeroflow_ros.runtime.offline import FLOW_TOPIC  # noqa: E402

ABOUT = {'direction': 'both', 'ground': 'keep', 'z_origin': 'ground', 'licence': 'Apache-2.0', 'step': 7}
SMALL = PillarGrid(32, 0.4, -2.0, 4.0)
# What every engine has: no scatter, no loop, and nothing whose size depends on what is in a tensor.
CORE = {
    'Add', 'BatchNormalization', 'Cast', 'Concat', 'Conv', 'Div', 'Floor', 'Gather', 'Gelu', 'Gemm', 'LeakyRelu',
    'MatMul', 'Mod', 'Mul', 'Relu', 'Reshape', 'Resize', 'Sigmoid', 'Slice', 'Split', 'Sub', 'Tanh', 'Transpose',
}  # fmt: skip


def lively(student):
    """Give a fresh student batch norms that do something."""
    for module in student.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return student


def cloud(num_points, seed, reach=(6.3, 6.3, 1.5)):
    points = np.random.default_rng(seed).uniform(-1, 1, (num_points, 3)) * reach
    return torch.from_numpy(points.astype(np.float32))


@pytest.mark.parametrize('name', ['deflow', 'deflow_2'])
def test_published_size(name):
    with torch.device('meta'):
        student = build_student(name)
    assert sum(parameter.numel() for parameter in student.head.parameters()) == 80_643
    assert sum(parameter.numel() for parameter in student.parameters()) == 6_891_939
    assert student.head.gru.num_steps == (2 if name == 'deflow_2' else 4)


def test_lite_is_small():
    assert sum(parameter.numel() for parameter in build_student('deflow_lite').parameters()) < 800_000


@pytest.mark.parametrize('num_points, num_steps', [(0, 2), (1, 1), (50, 4)])
def test_gru_follows_its_formulas(num_points, num_steps):
    """z, r of [h, x]; q of [r h, x]; h becomes (1 - z) h + z q."""
    torch.manual_seed(0)
    gru = PointGru(8, 3, num_steps)
    state, given = torch.randn(num_points, 8), torch.randn(num_points, 3)
    expected = state
    for _ in range(num_steps):
        both = torch.cat([expected, given], 1)
        z, r = (1 / (1 + torch.exp(-(both @ gate.weight.T + gate.bias))) for gate in (gru.convz, gru.convr))
        q = torch.tanh(torch.cat([r * expected, given], 1) @ gru.convq.weight.T + gru.convq.bias)
        expected = (1 - z) * expected + z * q
    torch.testing.assert_close(gru(state, given), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize('student', [DeFlow('small', 4, SMALL), DeFlowLite(grid=SMALL)], ids=['full', 'lite'])
def test_both_directions_equal_two_single_runs(student):
    student = lively(student).eval()
    points0, points1 = cloud(300, 1), cloud(200, 2)
    with torch.no_grad():
        rows = (torch.arange(0, 300, 2), torch.arange(200))
        [(flow0, flow1)] = student.forward_both([(points0, points1)], [rows])
        torch.testing.assert_close(flow0, student(points0, points1)[::2], atol=1e-5, rtol=0)
        torch.testing.assert_close(flow1, student(points1, points0), atol=1e-5, rtol=0)


def test_points_of_one_pillar_flow_apart():
    student = DeFlow('small', 4, SMALL).eval()
    points = torch.tensor([[0.05, 0.05, 0.0], [0.35, 0.35, 1.0]])
    with torch.no_grad():
        flow = student(points, cloud(100, 2))
    assert not torch.allclose(flow[0], flow[1], atol=1e-4)


def test_lite_learns_to_flow_one_crop(clips):
    torch.manual_seed(0)
    student = build_student('deflow_lite').train()
    student.grid = TINY.warm_up.grid(GRID)
    sample = PairSamples(TINY, source(clips), GRID)[0, 0]
    clouds, rows, flows = (tuple(map(torch.from_numpy, part)) for part in (sample.clouds, sample.rows, sample.flows))
    target = torch.cat(flows)
    speed = target.norm(dim=1) / sample.dt
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for _ in range(40):
        [predicted] = student.forward_both([clouds], [rows])
        loss = balanced_epe(torch.cat(predicted), target, speed)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in student.parameters())  # none is idle: DDP would stop
        optimizer.step()
    assert loss.item() < 0.6 * balanced_epe(torch.zeros_like(target), target, speed).item()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A checkpoint of the lite student with random weights, and its exported forms."""
    folder = tmp_path_factory.mktemp('deflow')
    torch.manual_seed(0)
    state_dict = lively(build_student('deflow_lite')).state_dict()
    Checkpoint('deflow_lite', state_dict, ABOUT).save(folder / 'c.pt')
    assert to_onnx.main([str(folder / 'c.pt'), '--out', str(folder / 'm.onnx')]) == 0
    return folder


def operators(path):
    return {node.op_type for node in onnx.load(path).graph.node}


def test_the_vehicle_gets_a_gather_model_of_core_operators(folder):
    gather, full = load_engine(folder / 'm.onnx').card, load_engine(folder / 'm_full.onnx').card
    assert (gather.form, full.form) == ('gather', 'full')
    assert gather.inputs == {'images': [1, 32, 256, 256], 'cell_index': ['num_points'], 'offsets': ['num_points', 3]}
    assert gather.outputs == {'flow': ['num_points', 3]}
    assert gather.encoder_weight.shape == (16, 9) and gather.head_weight.size == 0
    assert operators(folder / 'm.onnx') <= CORE
    graph = onnx.load(folder / 'm.onnx').graph
    types = {given.name: given.type.tensor_type.elem_type for given in graph.input}
    assert types == {name: onnx.TensorProto.FLOAT for name in ('images', 'offsets')} | {
        'cell_index': onnx.TensorProto.INT32
    }


@pytest.mark.parametrize('first, second', [('c.pt', 'm.onnx'), ('m.onnx', 'm_full.onnx')])
def test_parity_at_90000_points_with_two_threads(folder, capsys, first, second):
    assert parity.main([str(folder / first), str(folder / second)]) == 0
    printed = capsys.readouterr().out
    assert 'random 90000 + 90000' in printed and 'random 0 + 333' in printed and 'equal' in printed


def test_points_outside_the_grid_get_nan_and_change_nothing(folder, compiled_or_not):
    engine = load_engine(folder / 'm.onnx')
    inside = cloud(200, 0).numpy()
    outside = np.float32([[60, 0, 0], [0, -52, 0], [0, 0, 9], [np.nan] * 3, [np.inf, 0, 0]])
    mixed = np.concatenate([outside, inside])
    flow = engine.infer(mixed, mixed, Stopwatch())
    assert np.isnan(flow[:5]).all()
    np.testing.assert_allclose(flow[5:], engine.infer(inside, inside, Stopwatch()), atol=1e-5)
    assert np.isnan(engine.infer(outside, inside, Stopwatch())).all()
    assert engine.infer(inside[:0], inside[:0], Stopwatch()).shape == (0, 3)


def test_half_precision_is_close(folder, tmp_path):
    arguments = [str(folder / 'c.pt'), '--out', str(tmp_path / 'half.onnx'), '--forms', 'gather']
    assert to_onnx.main([*arguments, '--precision', 'float16']) == 0
    points = cloud(2000, 0).numpy()
    flows = [load_engine(path).infer(points, points[::-1].copy(), Stopwatch())
             for path in (tmp_path / 'half.onnx', folder / 'm.onnx')]  # fmt: skip
    assert parity.largest_difference(*flows) < 0.02 * np.abs(flows[1]).max()  # 10 bits of mantissa, some 20 layers


def test_the_full_size_student_exports(tmp_path):
    torch.manual_seed(0)
    student = lively(build_student('deflow')).eval()
    Checkpoint('deflow', student.state_dict(), ABOUT).save(tmp_path / 'c.pt')
    assert to_onnx.main([str(tmp_path / 'c.pt'), '--out', str(tmp_path / 'm.onnx'), '--forms', 'vehicle']) == 0
    assert operators(tmp_path / 'm.onnx') <= CORE
    points0, points1 = cloud(333, 1), cloud(334, 2)
    with torch.no_grad():
        expected = student(points0, points1).numpy()
    flow = load_engine(tmp_path / 'm.onnx').infer(points0.numpy(), points1.numpy(), Stopwatch())
    np.testing.assert_allclose(flow, expected, atol=1e-4)


def test_a_form_that_the_student_has_not_is_refused(folder, tmp_path, capsys):
    arguments = [str(folder / 'c.pt'), '--out', str(tmp_path / 'm.onnx'), '--forms', 'dense']
    assert to_onnx.main(arguments) == 1
    assert 'deflow_lite has the forms gather and full, not dense' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_offline_replay_of_a_recorded_drive(folder, tmp_path):
    bag, report_path = write_bag(tmp_path / 'bag', num_sweeps=4), tmp_path / 'report.json'
    model = ['--model', str(folder / 'm.onnx')]
    assert replay.main([str(bag), '--offline', *model, '--out', str(tmp_path / 'o'), '--report', str(report_path)]) == 0
    report = json.loads(report_path.read_text())
    assert (report['flow_published'], report['dropped']) == (3, {'first_sweep': 1})
    assert report['latency_ms']['inference']['count'] == 3
    with Bag(tmp_path / 'o') as flow:
        [message] = [m for m in flow.messages([FLOW_TOPIC])][:1]
    assert decode_message(message.cdr, POINT_CLOUD).width == 4000


def test_the_node_runs_it(folder):
    pytest.importorskip('rclpy', reason='needs rclpy')
    from flow_node import NodeProcess, Vehicle, column, scene
    from flow_node import cloud as message

    model = ('-p', f'model_path:={folder}/m.onnx', '-p', 'ego_motion:=odometry')
    points = np.concatenate([scene(), scene() + np.float32(500)])  # the second half is beyond the grid
    stamp_ns = time.time_ns() - 100_000_000
    with NodeProcess('-r', '__ns:=/gather', *model) as node, Vehicle('/gather') as vehicle:
        vehicle.connect(node)
        for stamp in (stamp_ns, stamp_ns + 100_000_000):
            vehicle.drive(stamp)
            vehicle.send(message(points, stamp))
            vehicle.spin(0.1)
        flow = vehicle.flow_of(stamp)
        assert flow is not None, node.log
    np.testing.assert_array_equal(column(flow, 'flow_valid'), np.repeat([3, 0], 3000))
    assert np.isfinite(column(flow, 'vx')[:3000]).all() and np.isnan(column(flow, 'vx')[3000:]).all()


def test_benchmark_times_it_beside_its_checkpoint(folder, capsys):
    arguments = ['--model', str(folder / 'm.onnx'), '--checkpoint', str(folder / 'c.pt'), '--pairs', '1']
    assert benchmark.main([*arguments, '--warm-up', '1']) == 0
    assert 'inference' in capsys.readouterr().out


def test_distillation_ends_in_gather_models(tmp_path):
    drive = write_bag(tmp_path / 'drive', num_sweeps=4)
    config = dataclasses.replace(TINY_DISTILLATION, student='deflow_lite')
    job = Distillation((str(drive),), tmp_path / 'model.onnx', tmp_path / 'work', config=config, calibration_pairs=2)
    models = [tmp_path / 'model.onnx', tmp_path / 'model_int8.onnx']
    assert distill(job, ProcessGroup()) == models
    for path, precision in zip(models, ('float32', 'int8'), strict=True):
        card = load_engine(path).card
        assert (card.form, card.student, card.precision) == ('gather', 'deflow_lite', precision)


def test_the_8_bit_form_keeps_in_float_what_is_done_with_each_point(folder, tmp_path):
    bag = write_bag(tmp_path / 'bag', num_sweeps=5)
    words = [str(folder / 'm.onnx'), '--out', str(tmp_path / 'int8.onnx'), '--bag', str(bag), '--pairs', '3']
    assert quantize.main(words) == 0
    nodes = onnx.load(tmp_path / 'int8.onnx').graph.node
    made_by = {output: node for node in nodes for output in node.output}
    of_points = [node for node in nodes if node.op_type in ('Gemm', 'Sigmoid', 'Tanh', 'LeakyRelu')]
    convolutions = [node for node in nodes if node.op_type == 'Conv']
    assert len(of_points) > 10 and len(convolutions) > 10

    def inputs(nodes):
        return [made_by[name].op_type for node in nodes for name in node.input if name in made_by]

    assert 'DequantizeLinear' not in inputs(of_points) and set(inputs(convolutions)) == {'DequantizeLinear'}
    points = cloud(5000, seed=1, reach=(30, 30, 1.5)).numpy()
    flows = [
        load_engine(path).infer(points + np.float32([0.3, 0, 0]), points, Stopwatch())
        for path in (tmp_path / 'int8.onnx', folder / 'm.onnx')
    ]
    error = np.linalg.norm(flows[0] - flows[1], axis=1)
    assert np.median(error) < 0.03 * np.median(np.linalg.norm(flows[1], axis=1))
