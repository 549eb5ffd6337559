# SPDX-License-Identifier: Apache-2.0
"""Quantised dense models with 8-bit tensors: the same flow as the file, and files that are left as they are."""

from pathlib import Path

import numpy as np
import pytest

from zeroflow_ros.engines import onnxruntime_engine
from zeroflow_ros.engines.eight_bit_tensors import read_8_bit
from zeroflow_ros.engines.onnxruntime_engine import OnnxRuntimeEngine
from zeroflow_ros.engines.selection import resolve_model_path
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.transforms import yaw_translation

PATH = Path(resolve_model_path(''))  # the bundled model


@pytest.fixture(scope='module')
def engine():
    return OnnxRuntimeEngine(PATH, num_threads=1)


@pytest.fixture(scope='module')
def float_engine():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime_engine, 'read_8_bit', lambda *_: None)
        return OnnxRuntimeEngine(PATH, num_threads=1)


def test_the_bundled_model_gets_8_bit_tensors(engine, float_engine):
    def shapes(of):
        return [(t.type, t.shape) for t in (*of._session.get_inputs(), *of._session.get_outputs())]

    assert shapes(engine) == [('tensor(uint8)', [1, 256, 256, 80]), ('tensor(uint8)', [1, 128, 128, 128])]
    assert shapes(float_engine) == [('tensor(float)', [1, 80, 256, 256]), ('tensor(float)', [128, 128, 2, 2, 32])]


def test_flow_is_that_of_the_file(engine, float_engine, compiled_or_not):
    rng = np.random.default_rng(0)
    clouds = [rng.uniform((-60, -60, -1), (60, 60, 3), (n, 3)).astype(np.float32) for n in (4000, 0, 3000, 1, 2000)]
    clouds[0][7] = np.nan
    some = [[clouds[k] for k in rows] for rows in ((0, 2, 3), (0, 4), (0, 2, 4, 1, 3))]  # pillars vanish between runs
    for source, target, *older in some:
        arguments = {'network_T_target': yaw_translation(0.1, 1, 0), 'older': [(cloud, np.eye(4)) for cloud in older]}
        found, wanted = (one.infer(source, target, Stopwatch(), **arguments) for one in (engine, float_engine))
        np.testing.assert_allclose(found, wanted, atol=1e-6)  # m; rounding of single float32 operations
        assert np.isfinite(found).any() and np.isnan(found[7]).all()


@pytest.mark.parametrize(
    'change',
    [
        lambda model: model[:-100],
        lambda model: b'no model',
        lambda model: model.replace(b'hidden_QuantizeLinear_Output', b'hidden_QuantizeLinear_Uutput', 1),
        lambda model: model.replace(b'\x04perm', b'\x04prem'),
        lambda model: model.replace(b'images', b'imagez'),
    ],
    ids=['cut', 'text', 'another end', 'no permutation', 'another input'],
)
def test_another_file_is_left_as_it_is(engine, tmp_path, change):
    path = tmp_path / 'model.onnx'
    path.write_bytes(change(PATH.read_bytes()))
    assert read_8_bit(path, engine.card) is None


def test_a_float_model_is_left_as_it_is(engine):
    float32 = PATH.with_name('fastflow3d_lite_5.onnx')
    assert read_8_bit(float32, OnnxRuntimeEngine(float32, num_threads=1).card) is None
    assert read_8_bit(float32, engine.card) is None  # whatever its card says
