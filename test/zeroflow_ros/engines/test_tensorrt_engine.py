# SPDX-License-Identifier: Apache-2.0
"""The engine for NVIDIA GPUs, on a GPU that the CPU plays: our kernels as C++, the network in ONNX Runtime."""

import gc

import numpy as np
import pytest
from simulated_gpu import SimulatedGpu

from zeroflow_ros.engines.parity import largest_difference
from zeroflow_ros.engines.selection import DEFAULT_MODELS, FallbackEngine, load_engine
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import ModelError
from zeroflow_ros.transforms import from_quaternion

MODEL = DEFAULT_MODELS['tensorrt']


@pytest.fixture
def gpu(monkeypatch):
    return SimulatedGpu().install(monkeypatch)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('engines')


@pytest.fixture
def engine(gpu, cache):
    return load_engine(name='tensorrt', cache=cache, max_points=2000, progress=lambda text: None)


def cloud(num_points, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.uniform(-1, 1, (num_points, 3)) * [60, 60, 5]).astype(np.float32)


def test_flow_is_that_of_onnx_runtime_in_frames_of_their_own(engine):
    reference = load_engine(MODEL)
    poses = {
        'network_T_source': from_quaternion((0.1, 0.2, 1.7), (0.0, 0.0, 0.6, 0.8)),
        'network_T_target': from_quaternion((1.3, 0.0, 1.7), (0.0, 0.1, 0.0, 0.99498744)),
    }
    source, target = cloud(1500), cloud(1700, seed=1)
    source[3] = np.nan
    flows = [each.infer(source, target, Stopwatch(), **poses) for each in (engine, reference)]
    assert np.isnan(flows[0][3]).all() and np.isfinite(flows[0]).any()
    assert largest_difference(*flows) < 1e-4


def test_nothing_of_a_sweep_stays_for_the_next(engine):
    first, second = cloud(2000), cloud(500, seed=1)
    alone = engine.infer(second, second, Stopwatch())
    engine.infer(first, first, Stopwatch())
    assert largest_difference(engine.infer(second, second, Stopwatch()), alone) < 1e-5


@pytest.mark.parametrize('num_source, num_target', [(0, 0), (0, 5), (1, 0), (1, 1)])
def test_any_number_of_points(engine, num_source, num_target):
    flow = engine.infer(cloud(num_source), cloud(num_target), Stopwatch())
    assert flow.shape == (num_source, 3) and flow.dtype == np.float32


def test_a_larger_cloud_makes_room_for_itself(engine):
    points = cloud(7000)
    assert largest_difference(
        engine.infer(points, points, Stopwatch()), load_engine(MODEL).infer(points, points, Stopwatch())
    ) < 1e-4  # fmt: skip


def test_memory_is_taken_once(engine, gpu):
    before = sorted(gpu.allocations)
    for num_points in (10, 2000, 3):
        engine.infer(cloud(num_points), cloud(num_points), Stopwatch())
    assert sorted(gpu.allocations) == before


def test_it_says_what_it_runs_on_and_holds(engine, gpu):
    held_mb = sum(array.nbytes for array in gpu.allocations.values()) / 1e6
    assert held_mb > 10
    assert f'tensorrt 11.0.0 on Simulated GPU, {held_mb:.0f} MB of buffers, engine in ' in engine.runs_on


def test_a_network_that_takes_points_runs_too(monkeypatch, tmp_path):
    torch = pytest.importorskip('torch', reason='export needs torch')
    from export.onnx_graph import export_onnx
    from training.learning.checkpoint import Checkpoint
    from training.students import build_student

    torch.manual_seed(0)
    about = {'direction': 'both', 'ground': 'keep', 'z_origin': 'ground', 'licence': 'Apache-2.0'}
    checkpoint = Checkpoint('deflow_lite', build_student('deflow_lite').state_dict(), about)
    assert export_onnx(checkpoint, tmp_path / 'm.onnx').form == 'gather'
    SimulatedGpu().install(monkeypatch)  # torch would look at a module called tensorrt
    on_gpu = load_engine(tmp_path / 'm.onnx', name='tensorrt', cache=tmp_path, progress=lambda text: None)
    on_cpu = load_engine(tmp_path / 'm.onnx')
    for num_source, num_target in ((1500, 900), (10, 0), (0, 10), (2000, 2000)):
        clouds = cloud(num_source), cloud(num_target, seed=1)
        flows = [each.infer(*clouds, Stopwatch()) for each in (on_gpu, on_cpu)]
        assert largest_difference(*flows) < 1e-4
    with pytest.raises(ModelError, match='has 500001 points, more than the engine was built for'):
        on_gpu.infer(np.zeros((500_001, 3), np.float32), clouds[1], Stopwatch())
    said = []
    load_engine(tmp_path / 'm.onnx', name='tensorrt', cache=tmp_path, max_points=500_001, progress=said.append)
    assert 'takes 500000 points, max_points is 500001' in said[0]


def test_flow_is_the_callers_own(engine):
    points = cloud(100)
    flow = engine.infer(points, points, Stopwatch())
    kept = flow.copy()
    engine.infer(cloud(100, seed=1), points, Stopwatch())
    np.testing.assert_array_equal(flow, kept)


def test_a_failure_is_tried_again_once_with_everything_set_up_anew(engine, gpu):
    points = cloud(1000)
    expected = engine.infer(points, points, Stopwatch())
    gpu.fails, gpu.log[:] = 1, []
    assert largest_difference(engine.infer(points, points, Stopwatch()), expected) < 1e-5
    assert gpu.log == ['loaded']


def test_a_failure_that_stays_is_a_clear_error_and_not_for_ever(engine, gpu):
    points = cloud(1000)
    gpu.fails = 2
    with pytest.raises(ModelError, match=r'failed twice on a sweep of 1000 points.*nvidia-smi'):
        engine.infer(points, points, Stopwatch())
    gc.collect()  # pytest held the traceback
    assert not gpu.allocations, 'what failed gives its memory back'
    assert np.isfinite(engine.infer(points, points, Stopwatch())).any()


def test_too_little_memory_is_a_clear_error(monkeypatch, tmp_path):
    SimulatedGpu(memory=10**6).install(monkeypatch)
    with pytest.raises(ModelError, match=r'does not start on Simulated GPU: .*out of memory'):
        load_engine(name='tensorrt', cache=tmp_path, progress=lambda text: None)


def test_with_a_fallback_the_cpu_takes_over_in_the_middle_of_a_drive(engine, gpu):
    said, points = [], cloud(1000)
    both = FallbackEngine(lambda: engine, load_engine, said.append)
    both.infer(points, points, Stopwatch())
    assert not both.fell_back and both.card.precision == 'float32'
    gpu.fails = 2
    flow = both.infer(points, points, Stopwatch())
    assert both.fell_back and both.card.precision == 'int8'
    np.testing.assert_array_equal(flow, load_engine().infer(points, points, Stopwatch()))
    assert len(said) == 1 and 'ONNX Runtime takes over' in said[0]


def test_with_a_fallback_a_gpu_that_is_not_there_is_no_obstacle(tmp_path):
    said = []
    both = FallbackEngine(lambda: load_engine(name='tensorrt', cache=tmp_path), load_engine, said.append)
    assert both.fell_back and 'cannot be imported' in said[0]


def test_a_fallback_that_fails_says_so(tmp_path):
    def broken():
        raise ModelError('no model')

    with pytest.raises(ModelError, match='no model'):
        FallbackEngine(broken, broken, lambda text: None)
