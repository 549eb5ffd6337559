# SPDX-License-Identifier: Apache-2.0
"""When an engine is built, when it is taken from the cache, and when it is refused."""

import hashlib
import itertools
import json
import os
import sys

import pytest
from simulated_gpu import CudaError, SimulatedGpu

from export import to_tensorrt
from zeroflow_ros.engines import tensorrt_build
from zeroflow_ros.engines.parity import parity_clouds
from zeroflow_ros.engines.selection import DEFAULT_MODEL, DEFAULT_MODELS, load_engine
from zeroflow_ros.engines.tensorrt_build import CUBIN, PLAN, SIDECAR, default_cache
from zeroflow_ros.errors import ModelError
from zeroflow_ros.lidar.pillars import PillarGrid

MODEL = DEFAULT_MODELS['tensorrt']


class Computer:
    """Opens engines on simulated GPUs with one cache; remembers what was said."""

    def __init__(self, monkeypatch, cache):
        self.monkeypatch, self.cache, self.said = monkeypatch, cache, []

    def open(self, path=MODEL, **gpu):
        self.gpu = SimulatedGpu(**gpu).install(self.monkeypatch)
        self.said.clear()
        return load_engine(path, name='tensorrt', cache=self.cache, max_points=90_000, progress=self.said.append)

    @property
    def folder(self):
        [folder] = self.cache.iterdir()
        return folder


@pytest.fixture
def few_clouds(monkeypatch):
    """Compare engines with ONNX Runtime on one small pair; `test_an_engine_is_built_once` does it on all."""
    pairs = [*itertools.islice(parity_clouds(PillarGrid(256, 0.4, -2.0, 4.0)), 4, 5)]
    monkeypatch.setattr(tensorrt_build, 'parity_clouds', lambda grid, num_sweeps: pairs)


@pytest.fixture
def computer(monkeypatch, tmp_path, few_clouds):
    return Computer(monkeypatch, tmp_path / 'cache')


def test_an_engine_is_built_once(computer, monkeypatch):
    monkeypatch.setattr(tensorrt_build, 'parity_clouds', parity_clouds)
    engine = computer.open()
    assert computer.gpu.log == ['compiled for sm_90', 'built', 'loaded']
    assert 'can take minutes: there is none in the cache yet.' in computer.said[0]
    assert 'from ONNX Runtime' in computer.said[-1]
    assert sorted(path.name for path in computer.folder.iterdir()) == sorted([PLAN, CUBIN, SIDECAR])
    about = json.loads((computer.folder / SIDECAR).read_text())
    assert about['gpu'] == 'Simulated GPU' and about['tensorrt'] == 'tensorrt 11.0.0'
    assert 0 < about['largest_difference_m'] < 1e-3
    again = computer.open()
    assert computer.gpu.log == ['loaded'] and not computer.said
    assert again.card.to_json() == engine.card.to_json()


def test_another_tensorrt_or_gpu_gets_an_engine_of_its_own(computer):
    computer.open()
    # H100 and H200 have one compute capability, every Orin one name.
    others = {'version': '11.1.0'}, {'name': 'NVIDIA H100 80GB HBM3'}, {'processors': 8}
    for other in others:
        computer.open(**other)
        assert 'built' in computer.gpu.log, other
    assert len(list(computer.cache.iterdir())) == 1 + len(others)
    computer.open()
    assert computer.gpu.log == ['loaded']


def corrupt(name):
    def damage(folder):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


def edit(**changes):
    def change(folder):
        about = json.loads((folder / SIDECAR).read_text())
        (folder / SIDECAR).write_text(json.dumps({**about, **changes}))

    return change


@pytest.mark.parametrize(
    'damage, says',
    [
        (corrupt(PLAN), 'network.engine is damaged'),
        (corrupt(CUBIN), 'pillars.cubin is damaged'),
        (remove(PLAN), 'there is none in the cache yet'),
        (remove(SIDECAR), 'there is none in the cache yet'),
        (lambda folder: (folder / SIDECAR).write_text('{'), 'cannot be read'),
        (lambda folder: (folder / SIDECAR).write_text('[]'), 'cannot be read'),
        (edit(model_sha256='0' * 64), "has model_sha256 '000"),
        (edit(compute_capability='8.9'), "has compute_capability '8.9', expected '9.0'"),
        (edit(tensorrt='tensorrt 10.0'), "has tensorrt 'tensorrt 10.0', expected 'tensorrt 11.0.0'"),
        (edit(kernels_sha256=''), 'has kernels_sha256'),
        (edit(schema=1), 'has schema 1, expected 2'),
        (edit(gpu='NVIDIA H100'), "has gpu 'NVIDIA H100', expected 'Simulated GPU'"),
        (edit(multiprocessors=16), 'has multiprocessors 16, expected 2'),
        (edit(files={}), 'cannot be read'),
        (edit(card='{}'), 'model card lacks'),
    ],
)
def test_what_does_not_fit_is_built_again_and_said(computer, damage, says):
    computer.open()
    damage(computer.folder)
    computer.open()
    assert says in computer.said[0]
    assert 'built' in computer.gpu.log
    computer.open()
    assert computer.gpu.log == ['loaded']


def test_a_plan_that_tensorrt_does_not_load_is_built_again(computer):
    computer.open()
    plan = (computer.folder / PLAN).read_bytes().replace(b'11.0.0', b'11.0.1')
    (computer.folder / PLAN).write_bytes(plan)
    about = json.loads((computer.folder / SIDECAR).read_text())
    edit(files={**about['files'], PLAN: hashlib.sha256(plan).hexdigest()})(computer.folder)
    computer.open()
    assert 'not compatible with this version' in computer.said[0] and 'built' in computer.gpu.log


def test_an_engine_that_computes_something_else_is_not_kept(computer, monkeypatch):
    gpu = SimulatedGpu().install(monkeypatch)
    gpu.error_m = 0.5
    with pytest.raises(
        ModelError, match=r'm from ONNX Runtime on random .* points, more than the 0.001 m allowed for float32'
    ):
        load_engine(MODEL, name='tensorrt', cache=computer.cache, progress=computer.said.append)
    assert not computer.cache.exists()


def test_a_cache_that_cannot_be_written_is_no_obstacle(computer):
    computer.cache.write_text('a file, not a folder')
    engine = computer.open()
    assert engine.card.form == 'dense'
    assert 'cannot be cached, so the next start builds it again' in computer.said[-1]


def test_what_a_killed_build_left_is_cleared(computer):
    computer.open()
    left = computer.cache / f'.{computer.folder.name}.x1'
    left.mkdir()
    os.utime(left, (0, 0))
    (computer.cache / left.name.split('.x1')[0][1:] / PLAN).unlink()  # so that it is written again
    computer.open()
    assert not left.exists()


def test_the_cache_is_the_users_not_the_packages(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert default_cache() == tmp_path / 'zeroflow_ros' / 'engines'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert default_cache() == tmp_path / '.cache' / 'zeroflow_ros' / 'engines'


def test_a_file_that_tensorrt_does_not_take_is_a_clear_error(computer):
    with pytest.raises(ModelError, match=r'does not take fastflow3d_lite_5_int8.onnx.*float32.*export.quantize'):
        computer.open(DEFAULT_MODEL)


def test_without_a_gpu_the_error_names_what_to_do(monkeypatch, tmp_path):
    gpu = SimulatedGpu().install(monkeypatch)

    def no_driver():
        raise CudaError('cuInit failed: no CUDA-capable device is detected')

    monkeypatch.setattr(sys.modules['pycuda.driver'], 'init', no_driver)
    with pytest.raises(ModelError, match=r'no CUDA-capable device.*nvidia-smi'):
        load_engine(MODEL, name='tensorrt', cache=tmp_path)
    monkeypatch.setitem(sys.modules, 'pycuda.driver', None)
    with pytest.raises(ModelError, match='pip install pycuda'):
        load_engine(MODEL, name='tensorrt', cache=tmp_path)
    assert gpu.log == []


def test_without_nvcc_the_error_names_what_to_do(computer, monkeypatch):
    def no_nvcc(self, *_, **__):
        raise OSError('nvcc was not found (is it on the PATH?)')

    monkeypatch.setattr(SimulatedGpu, 'compile', no_nvcc)
    with pytest.raises(ModelError, match=r'nvcc was not found.*export.to_tensorrt'):
        computer.open()


def test_to_tensorrt_builds_ahead(computer, monkeypatch, capsys):
    SimulatedGpu().install(monkeypatch)
    assert to_tensorrt.main([str(MODEL), '--cache', str(computer.cache)]) == 0
    assert str(computer.folder) in capsys.readouterr().out
    computer.open()
    assert computer.gpu.log == ['loaded']


def test_to_tensorrt_says_in_a_sentence_what_is_wrong(tmp_path, capsys):
    assert to_tensorrt.main([str(tmp_path / 'none.onnx')]) == 1
    assert capsys.readouterr().err.startswith('export.to_tensorrt: No model file at')
