# SPDX-License-Identifier: Apache-2.0
"""Parts of the report for a GPU that compare kernels with numpy and provoke failures, on a simulated GPU."""

import shutil

import numpy as np
import pytest
from simulated_gpu import SimulatedGpu, compile_for_cpu

from export import gpu_kernels
from export.gpu_kernels import full_memory, kernel_clouds, kernels, lost_gpu
from export.gpu_result import DONE, FAILED, MissingModelError
from zeroflow_ros.engines.cuda_device import KERNELS
from zeroflow_ros.engines.selection import DEFAULT_MODELS
from zeroflow_ros.lidar.pillars import PillarGrid


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / 'models').mkdir()
    shutil.copy(DEFAULT_MODELS['tensorrt'], tmp_path / 'models' / 'fastflow3d_lite.onnx')
    names = 'as many as fit', 'LiDAR-like', 'NaN and infinite', 'no target'
    monkeypatch.setattr(
        gpu_kernels, 'kernel_clouds',
        lambda grid, _: {name: clouds for name, clouds in kernel_clouds(grid, 2000).items() if name in names},
    )  # fmt: skip
    monkeypatch.setattr(gpu_kernels, '_REPEATS', 1)
    return tmp_path


def test_clouds_are_what_they_are_called():
    clouds = kernel_clouds(grid := PillarGrid(32, 0.4, -2.0, 4.0), 1000)
    cells = {name: grid.assign(pair[0]) for name, pair in clouds.items()}
    assert max(len(cloud) for pair in clouds.values() for cloud in pair) == 1000
    assert len(set(cells['one cell'])) == 1 and cells['one cell'][0] >= 0
    assert (cells['as many as fit'] < 0).any() and len(np.unique(cells['as many as fit'])) > 300
    assert np.isnan(clouds['NaN and infinite'][0]).any() and not len(clouds['no target'][1])


def test_the_kernels_are_right(folder, monkeypatch):
    SimulatedGpu().install(monkeypatch)
    result = kernels(['fastflow3d_lite'], folder, {})
    assert result.verdict == DONE and result.text.startswith('0 points in another cell')
    assert result.text.endswith('recorded as a CUDA graph')
    assert 0 < result.figures['fastflow3d_lite']['image'] < 1e-4


@pytest.mark.parametrize(
    'right, wrong',
    [
        ('floorf(p.x * inv_cell + half)', 'floorf(p.x * inv_cell + half + 0.02f)'),
        ('if (before >= 0 && sums[4 * before + 3] == 0)', 'if (false && before)'),
    ],
    ids=['other cells', 'cells of the sweep before stay'],
)
def test_wrong_kernels_are_found(folder, monkeypatch, right, wrong):
    source = KERNELS.read_text()
    assert source.count(right) == 1
    SimulatedGpu().install(monkeypatch)
    broken = compile_for_cpu(source.replace(right, wrong))
    monkeypatch.setattr(gpu_kernels, 'compile_kernels', lambda capability: broken)
    assert kernels(['fastflow3d_lite'], folder, {}).verdict == FAILED


def test_a_full_memory_is_an_error_that_goes_away(folder, monkeypatch):
    gpu = SimulatedGpu(memory=150 * 10**6).install(monkeypatch)
    result = full_memory(folder, {})
    assert result.verdict == DONE and 'out of memory; freed: opens' in result.text
    assert not gpu.allocations


def test_a_lost_gpu_is_noticed_and_one_that_works_is_not_called_lost(folder, monkeypatch):
    gpu = SimulatedGpu().install(monkeypatch)
    monkeypatch.setattr(
        gpu, 'bytes_at', lambda place, num_bytes: np.zeros(num_bytes, np.uint8)
    )  # addresses are not checked
    gpu.breaks = True
    result = lost_gpu(folder, {})
    assert result.verdict == DONE and result.text == 'an illegal memory access was encountered; lost'
    SimulatedGpu().install(monkeypatch)
    assert lost_gpu(folder, {}).verdict == FAILED


def test_a_model_that_was_not_written_is_named(tmp_path):
    with pytest.raises(MissingModelError, match=r'fastflow3d.onnx is missing.*Run the report again'):
        kernels(['fastflow3d'], tmp_path, {})
