# SPDX-License-Identifier: Apache-2.0
"""What an engine holds on a GPU: freed in any thread, after any failure; and a GPU that is lost."""

import gc
import threading

import numpy as np
import pytest
from simulated_gpu import SimulatedGpu

from zeroflow_ros.engines import tensorrt_build
from zeroflow_ros.engines.parity import largest_difference
from zeroflow_ros.engines.selection import FallbackEngine, load_engine
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import GpuLostError, ModelError


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('engines')


@pytest.fixture
def open_on(monkeypatch, cache):
    """Open the bundled model on a simulated GPU with these features; the check against ONNX Runtime is short."""
    monkeypatch.setattr(tensorrt_build, 'parity_clouds', lambda grid, num_sweeps: [('few', [cloud(50), cloud(60)])])

    def open_(folder=cache, **features):
        gpu = SimulatedGpu(**features).install(monkeypatch)
        return gpu, load_engine(name='tensorrt', cache=folder, max_points=500, progress=lambda text: None)

    return open_


def cloud(num_points, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.uniform(-1, 1, (num_points, 3)) * [30, 30, 2]).astype(np.float32)


def run(engine, num_points=400):
    return engine.infer(cloud(num_points), cloud(num_points, 1), Stopwatch())


def in_thread(function):
    """Run a function in a thread, as the node runs its engine; return its result or raise its error."""
    results = []

    def catch():
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=catch)
    thread.start()
    thread.join()
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def test_growing_in_the_workers_thread_leaks_nothing(open_on):
    gpu, engine = open_on()
    before = dict(gpu.held)
    assert before['memory'] > 10 and before['page-locked memory'] == 6
    for num_points in (700, 1500):
        in_thread(lambda n=num_points: run(engine, n))
    assert dict(gpu.held) == before and not gpu.leaks
    assert gpu.log.count('loaded') <= 1, 'growth does not load the network again'


def test_failing_in_the_workers_thread_leaks_nothing(open_on):
    gpu, engine = open_on()
    before, expected = dict(gpu.held), run(engine)
    gpu.fails = 1
    assert largest_difference(in_thread(lambda: run(engine)), expected) < 1e-5
    assert dict(gpu.held) == before and not gpu.leaks
    gpu.fails = 2
    with pytest.raises(ModelError, match=r'failed twice on a sweep of 400 points.*nvidia-smi'):
        in_thread(lambda: run(engine))
    assert not +gpu.held and not gpu.leaks and not gpu.allocations
    assert largest_difference(in_thread(lambda: run(engine)), expected) < 1e-5


def test_too_little_memory_half_way_through_opening_leaves_nothing(open_on):
    gpu, engine = open_on()
    needed = sum(array.nbytes for array in gpu.allocations.values())
    engine.close()
    assert not gpu.allocations
    gpu.memory = needed - 1000
    gc.disable()  # a cycle would wait for the collector, which frees in any thread
    try:
        with pytest.raises(ModelError, match='out of memory'):
            in_thread(lambda: run(engine))
        assert not gpu.allocations and not +gpu.held and not gpu.leaks
    finally:
        gc.enable()


def test_an_engine_that_nobody_uses_any_more_gives_its_memory_back_in_any_thread(open_on):
    gpu, engine = open_on()
    held = [engine]
    del engine
    in_thread(held.clear)
    gc.collect()
    assert not +gpu.held and not gpu.leaks


def test_falling_back_to_the_cpu_gives_the_memory_of_the_gpu_back(open_on):
    gpu, engine = open_on()
    both = FallbackEngine(lambda: engine, load_engine, lambda text: None)
    gpu.fails = 2
    assert np.isfinite(in_thread(lambda: run(both))).any() and both.fell_back
    assert not +gpu.held and not gpu.leaks


def test_a_network_that_refuses_to_be_recorded_runs_unrecorded(open_on, tmp_path):
    gpu, recorded = open_on()
    assert 'no CUDA graph' not in recorded.runs_on and gpu.held['executable graph'] == 1
    expected = run(recorded)
    gpu, engine = open_on(tmp_path, captures=False)
    assert 'no CUDA graph: The engine does not run: no reason given' in engine.runs_on
    assert not gpu.held['executable graph'] and not gpu.graphs
    assert largest_difference(run(engine), expected) < 1e-5


@pytest.mark.parametrize('has_fallback', [False, True])
def test_a_lost_gpu_is_not_tried_again(open_on, has_fallback):
    gpu, engine = open_on()
    run(engine)
    log = []
    estimator = FallbackEngine(lambda: engine, load_engine, log.append) if has_fallback else engine
    gpu.breaks, gpu.log[:] = True, []
    if has_fallback:
        assert np.isfinite(in_thread(lambda: run(estimator))).any() and estimator.fell_back
        assert 'takes no more calls of this process: an illegal memory access' in log[0]
    else:
        for _ in range(2):  # for ever
            with pytest.raises(GpuLostError, match=r'illegal memory access.*Start the node again.*Xid'):
                in_thread(lambda: run(engine))
    assert gpu.log == [], 'nothing is loaded again'
    engine.close()
    gc.collect()
    assert not gpu.leaks, 'nothing is freed: the destructors of TensorRT could end the process'


def test_a_lost_gpu_at_the_start_is_not_an_engine_to_build_again(open_on, monkeypatch):
    gpu, engine = open_on()
    engine.close()
    gpu.log[:], gpu.breaks = [], True
    with pytest.raises(GpuLostError):
        load_engine(name='tensorrt', cache=engine.folder.parent, progress=gpu.log.append)
    assert gpu.log == ['loaded']
