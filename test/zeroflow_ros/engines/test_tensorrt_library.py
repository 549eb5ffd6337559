# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX: supported GPUs, one logger, settings of a build; also with the real TensorRT-RTX."""

import pytest
from simulated_gpu import SimulatedGpu

from zeroflow_ros.engines import tensorrt_build, tensorrt_library
from zeroflow_ros.engines.selection import DEFAULT_MODELS, load_engine
from zeroflow_ros.engines.tensorrt_build import RTX_KERNELS
from zeroflow_ros.engines.tensorrt_library import TensorRt
from zeroflow_ros.errors import ModelError

H200, ORIN, RTX_4090, RTX_5090 = ('NVIDIA H200', '9.0'), ('Orin', '8.7'), ('RTX 4090', '8.9'), ('RTX 5090', '12.0')


@pytest.fixture(params=['real', 'simulated'])
def rtx(request, monkeypatch):
    if request.param == 'real':
        pytest.importorskip('tensorrt_rtx_bindings', reason='TensorRT-RTX is not installed (Makefile: TENSORRT_GATE)')
    else:
        SimulatedGpu(rtx=True).install(monkeypatch)
    return TensorRt()


@pytest.mark.parametrize('gpu', [H200, ORIN])
def test_rtx_says_in_a_sentence_that_it_does_not_support_a_gpu(rtx, gpu):
    with pytest.raises(ModelError) as error:
        rtx.check_gpu(*gpu)
    assert str(error.value).startswith(
        f'{rtx} does not support {gpu[0]} (compute capability {gpu[1]}), only GPUs of 7.5, 8.0, 8.6, 8.9, 12.0, 12.1. '
        "Use TensorRT ('pip install tensorrt'; on a Jetson that of JetPack)"
    )


@pytest.mark.parametrize('gpu', [RTX_4090, RTX_5090])
def test_rtx_takes_the_gpus_it_is_made_for(rtx, gpu):
    rtx.check_gpu(*gpu)


def test_tensorrt_is_not_asked_what_only_rtx_knows(monkeypatch):
    SimulatedGpu().install(monkeypatch)
    TensorRt().check_gpu(*H200)


def test_an_unsupported_gpu_is_found_before_the_long_build(monkeypatch, tmp_path):
    gpu = SimulatedGpu(rtx=True, compute_capability=(9, 0)).install(monkeypatch)
    with pytest.raises(ModelError, match='does not support Simulated GPU'):
        load_engine(name='tensorrt', cache=tmp_path)
    assert gpu.log == []


def test_all_libraries_of_a_process_have_one_logger(monkeypatch):
    SimulatedGpu().install(monkeypatch)
    first, second = TensorRt(), TensorRt()
    assert first._log is second._log
    first._log.log(first._trt.ILogger.ERROR, 'out of tactics')
    assert second._errors.take() == 'out of tactics' and first._errors.take() == 'no reason given'


class Builds:
    """Opens the bundled model on simulated GPUs, with a short check against ONNX Runtime."""

    def __init__(self, monkeypatch, folder):
        self._monkeypatch, self._folder = monkeypatch, folder
        monkeypatch.setattr(tensorrt_build, 'check_parity', lambda engine, reference: 0.0)

    def __call__(self, **features):
        gpu = SimulatedGpu(**features).install(self._monkeypatch)
        return gpu, load_engine(name='tensorrt', cache=self._folder, max_points=100, progress=lambda text: None)


@pytest.fixture
def builds(monkeypatch, tmp_path):
    return Builds(monkeypatch, tmp_path)


def test_rtx_builds_for_a_graph_and_keeps_what_it_compiled(builds):
    gpu, engine = builds(rtx=True, compute_capability=(12, 0))
    assert 'no CUDA graph' not in engine.runs_on
    assert (engine.folder / RTX_KERNELS).read_bytes() == b'kernels of (12, 0)'
    gpu, _ = builds(rtx=True, compute_capability=(12, 0))
    assert gpu.log == ['loaded', 'kernels taken']
    (engine.folder / RTX_KERNELS).write_bytes(b'damaged')
    gpu, engine = builds(rtx=True, compute_capability=(12, 0))
    assert gpu.log == ['loaded', 'kernels refused']
    assert (engine.folder / RTX_KERNELS).read_bytes() == b'kernels of (12, 0)'


def test_rtx_that_cannot_be_recorded_is_not_even_tried(builds):
    gpu, engine = builds(rtx=True, compute_capability=(12, 0), captures=False)
    assert 'no CUDA graph: TensorRT cannot record this network' in engine.runs_on
    assert not gpu.graphs


def test_the_builder_of_a_gpu_that_shares_memory_leaves_most_of_it(builds):
    gpu, _ = builds(is_integrated=True, memory=8 * 10**9)
    assert 'workspace 2000000000' in gpu.log
    assert not [line for line in builds(processors=4)[0].log if line.startswith('workspace')]


def test_real_rtx_builds_for_gpus_it_knows_and_for_a_graph():
    pytest.importorskip('tensorrt_rtx_bindings', reason='TensorRT-RTX is not installed (Makefile: TENSORRT_GATE)')
    path = DEFAULT_MODELS['tensorrt']
    assert len(TensorRt().build(path.read_bytes(), path.name, print)) > 10**6
    assert hasattr(tensorrt_library._import().BuilderFlag, 'REQUIRE_USER_ALLOCATION')
