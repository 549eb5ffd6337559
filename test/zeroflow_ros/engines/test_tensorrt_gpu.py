# SPDX-License-Identifier: Apache-2.0
"""The engine on a real GPU, where there is one with TensorRT and pycuda."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from zeroflow_ros.engines.cuda_device import CudaDevice
from zeroflow_ros.engines.parity import flow_of_clouds, largest_difference, parity_clouds
from zeroflow_ros.engines.selection import DEFAULT_MODELS, load_engine
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.engines.tensorrt_build import TOLERANCES, open_engine
from zeroflow_ros.engines.tensorrt_library import TensorRt
from zeroflow_ros.errors import ModelError


@pytest.fixture(scope='module', autouse=True)
def gpu():
    try:
        TensorRt(), CudaDevice()
    except ModelError as error:
        pytest.skip(f'needs an NVIDIA GPU with TensorRT and pycuda: {error}')


@pytest.fixture(scope='module')
def engine(gpu, tmp_path_factory):
    return open_engine(DEFAULT_MODELS['tensorrt'], cache=tmp_path_factory.mktemp('engines'), max_points=100_000)


def test_flow_is_that_of_onnx_runtime_sweep_after_sweep(engine):
    reference = load_engine(DEFAULT_MODELS['tensorrt'])
    for _ in range(2):  # the second time nothing of the first may be left
        for name, clouds in parity_clouds(engine.card.grid, engine.card.num_sweeps):
            flows = [flow_of_clouds(each, clouds) for each in (engine, reference)]
            assert largest_difference(*flows) < TOLERANCES['float32'], name


def test_the_launches_are_recorded_as_one(engine):
    assert 'no CUDA graph' not in engine.runs_on


def test_growing_and_closing_in_another_thread_gives_the_memory_back(engine):
    device = CudaDevice()

    def free_bytes():
        with device.current():
            return device.free_bytes()

    points = np.random.default_rng(0).uniform(-40, 40, (300_000, 3)).astype(np.float32)
    before = []
    for _ in range(4):
        engine.close()
        before.append(free_bytes())
        with ThreadPoolExecutor(1) as thread:
            thread.submit(engine.infer, points[:1000], points, Stopwatch()).result()
            thread.submit(engine.close).result()
    assert before[1] - before[-1] < 10**6, before


def test_a_larger_cloud_makes_room_for_itself(engine):
    points = np.random.default_rng(0).uniform(-40, 40, (250_000, 3)).astype(np.float32) * np.float32([1, 1, 0.05])
    assert np.isfinite(engine.infer(points, points, Stopwatch())).all()


@pytest.mark.parametrize('name', ['fastflow3d', 'deflow_lite'])
def test_float16_and_points_in_the_network(name, tmp_path):
    torch = pytest.importorskip('torch', reason='export needs torch')
    from export.onnx_graph import export_onnx
    from training.learning.checkpoint import Checkpoint
    from training.students import build_student

    torch.manual_seed(0)
    about = {'direction': 'both', 'ground': 'keep', 'z_origin': 'ground', 'licence': 'Apache-2.0'}
    checkpoint = Checkpoint(name, build_student(name).state_dict(), about)
    export_onnx(checkpoint, tmp_path / 'm.onnx', precision='float16')
    engine = open_engine(tmp_path / 'm.onnx', cache=tmp_path)  # compares it with ONNX Runtime
    assert engine.card.precision == 'float16'
