# SPDX-License-Identifier: Apache-2.0
"""The engine with its network in torch gives the flow of the exported file; the GPU is simulated on the CPU."""

import ctypes

import numpy as np
import pytest
from simulated_gpu import SimulatedGpu

torch = pytest.importorskip('torch', reason='export needs torch')

from export import torch_network  # noqa: E402
from export.onnx_graph import export_onnx  # noqa: E402
from export.torch_network import TorchLibrary, TorchNetwork, open_torch_engine  # noqa: E402
from training.learning.checkpoint import Checkpoint  # noqa: E402
from training.students import build_student  # noqa: E402
from zeroflow_ros.engines.parity import largest_difference  # noqa: E402
from zeroflow_ros.engines.selection import load_engine  # noqa: E402
from zeroflow_ros.engines.stopwatch import Stopwatch  # noqa: E402

ABOUT = {'direction': 'both', 'ground': 'keep', 'z_origin': 'ground', 'licence': 'Apache-2.0'}


def test_flow_is_that_of_the_exported_file(monkeypatch, tmp_path):
    torch.manual_seed(0)
    checkpoint = Checkpoint('fastflow3d_lite', build_student('fastflow3d_lite').state_dict(), ABOUT)
    card = export_onnx(checkpoint, tmp_path / 'lite.onnx')
    gpu = SimulatedGpu().install(monkeypatch)  # torch.onnx would look at a module called tensorrt

    class OnCpu(TorchLibrary):
        def __init__(self, checkpoint, shapes):
            super().__init__(checkpoint, shapes, 'cpu', 'float32')

    def tensor_at(address, shape):
        return torch.from_numpy(np.ctypeslib.as_array((ctypes.c_float * int(np.prod(shape))).from_address(address)))

    monkeypatch.setattr(torch_network, 'tensor_at', lambda address, shape: tensor_at(address, shape).view(shape))
    monkeypatch.setattr(torch_network, 'TorchLibrary', OnCpu)
    monkeypatch.setattr(TorchNetwork, 'enqueue', lambda self, handle: gpu.streams[handle].put(self.run))
    engine, reference = open_torch_engine(checkpoint, card, tmp_path, 2000), load_engine(tmp_path / 'lite.onnx')
    assert 'no CUDA graph' not in engine.runs_on and f'torch {torch.__version__} on Simulated GPU' in engine.runs_on
    rng = np.random.default_rng(0)
    clouds = [rng.uniform([-40, -40, -2], [40, 40, 3], (1000, 3)).astype(np.float32) for _ in range(2)]
    flows = [each.infer(*clouds, Stopwatch()) for each in (engine, reference)]
    assert np.isfinite(flows[0]).any() and largest_difference(*flows) < 1e-4
