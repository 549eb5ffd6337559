# SPDX-License-Identifier: Apache-2.0
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from zeroflow_ros.engines.model_card import METADATA_KEY, ModelCard, stamp_checksum
from zeroflow_ros.engines.selection import DEFAULT_MODEL, load_engine
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import ConfigError, ModelError


@pytest.fixture(scope='module')
def engine():
    return load_engine()


def test_default_model_is_small_and_has_a_card(engine):
    assert DEFAULT_MODEL.stat().st_size < 5e6
    assert engine.card.student == 'fastflow3d_lite_5'
    assert engine.card.form == 'dense'
    assert engine.card.licence == 'Apache-2.0'
    assert engine.card.training['supervision']


@pytest.mark.parametrize('num_source, num_target', [(0, 0), (0, 5), (1, 0), (1, 1), (700, 300)])
def test_any_number_of_points(engine, num_source, num_target):
    rng = np.random.default_rng(0)
    source, target = (rng.uniform(-20, 20, (n, 3)).astype(np.float32) * [1, 1, 0.05] for n in (num_source, num_target))
    flow = engine.infer(source.astype(np.float32), target.astype(np.float32), Stopwatch())
    assert flow.shape == (num_source, 3) and flow.dtype == np.float32
    assert np.isfinite(flow).all()


def test_points_outside_the_grid_get_nan_and_change_nothing(engine):
    inside = np.random.default_rng(0).uniform(-10, 10, (200, 3)).astype(np.float32) * np.float32([1, 1, 0.1])
    outside = np.float32([[60, 0, 0], [0, -52, 0], [0, 0, 9], [np.nan] * 3, [np.inf, 0, 0]])
    mixed = np.concatenate([outside, inside])
    flow = engine.infer(mixed, mixed, Stopwatch())
    assert np.isnan(flow[:5]).all()
    np.testing.assert_allclose(flow[5:], engine.infer(inside, inside, Stopwatch()), atol=1e-5)


def test_stages_are_timed(engine):
    watch = Stopwatch()
    engine.infer(np.zeros((10, 3), np.float32), np.zeros((10, 3), np.float32), watch)
    assert set(watch.stages_ms) == {'pillars', 'inference'}


def edited_model(path, edit):
    proto = onnx.load(DEFAULT_MODEL)
    edit(proto)
    onnx.save(proto, path)


def drop_card(proto):
    del proto.metadata_props[:]


def rename_input(proto):
    [old] = proto.graph.input
    for node in proto.graph.node:
        node.input[:] = ['pictures' if name == old.name else name for name in node.input]
    old.name = 'pictures'


def break_card(proto):
    [entry] = [p for p in proto.metadata_props if p.key == METADATA_KEY]
    entry.value = entry.value[:-20]


def change_weight(proto):
    tensor = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    tensor.raw_data = b'\0' * len(tensor.raw_data)


@pytest.mark.parametrize(
    'edit, says',
    [
        (drop_card, 'without a model card'),
        (break_card, 'not JSON'),
        (change_weight, 'damaged'),
        (rename_input, 'damaged'),
    ],
)
def test_an_edited_model_is_refused(tmp_path, edit, says):
    path = tmp_path / 'edited.onnx'
    edited_model(path, edit)
    with pytest.raises(ModelError, match=says):
        load_engine(path)


def test_a_card_that_does_not_fit_the_tensors_is_refused(tmp_path):
    def edit(proto):
        rename_input(proto)
        [entry] = [p for p in proto.metadata_props if p.key == METADATA_KEY]
        card = ModelCard.from_json(entry.value)
        entry.value = entry.value.replace(card.checksum, '0' * 64)

    path = tmp_path / 'renamed.onnx'
    edited_model(path, edit)
    [entry] = [p for p in onnx.load(path).metadata_props if p.key == METADATA_KEY]
    stamp_checksum(path, ModelCard.from_json(entry.value))
    with pytest.raises(ModelError, match=r"inputs .*'pictures'.* card says .*'images'"):
        load_engine(path)


def test_a_foreign_onnx_file_is_refused(tmp_path):
    node = helper.make_node('Identity', ['x'], ['y'])
    tensors = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])] for name in 'xy']
    model = helper.make_model(helper.make_graph([node], 'g', *tensors), opset_imports=[helper.make_opsetid('', 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / 'foreign.onnx')
    with pytest.raises(ModelError, match='without a model card'):
        load_engine(tmp_path / 'foreign.onnx')


@pytest.mark.parametrize('content', [b'', b'not a model', b'\0' * 1000])
def test_a_file_that_is_no_onnx_is_refused(tmp_path, content):
    (tmp_path / 'm.onnx').write_bytes(content)
    with pytest.raises(ModelError, match=r'm\.onnx'):
        load_engine(tmp_path / 'm.onnx')


def test_text_in_a_model_file_that_is_not_utf8_is_refused(tmp_path):
    content = DEFAULT_MODEL.read_bytes()
    key = METADATA_KEY.encode()
    assert content.count(key) == 1
    (tmp_path / 'm.onnx').write_bytes(content.replace(key, b'\xff' * len(key)))
    with pytest.raises(ModelError, match='cannot load'):
        load_engine(tmp_path / 'm.onnx')


@pytest.mark.parametrize('name', ['double', 'int32'])
def test_model_that_takes_another_type_is_refused(tmp_path, name):
    def edit(proto):
        proto.graph.input[0].type.tensor_type.elem_type = getattr(TensorProto, name.upper())
        cast = helper.make_node('Cast', ['images'], ['images_float'], to=TensorProto.FLOAT)
        for node in proto.graph.node:
            node.input[:] = ['images_float' if name == 'images' else name for name in node.input]
        proto.graph.node.insert(0, cast)
        [entry] = [p for p in proto.metadata_props if p.key == METADATA_KEY]
        entry.value = entry.value.replace(ModelCard.from_json(entry.value).checksum, '0' * 64)

    path = tmp_path / f'{name}.onnx'
    edited_model(path, edit)
    [entry] = [p for p in onnx.load(path).metadata_props if p.key == METADATA_KEY]
    stamp_checksum(path, ModelCard.from_json(entry.value))
    with pytest.raises(ModelError, match=rf'images of tensor\({name}\), expected tensor'):
        load_engine(path)


@pytest.mark.parametrize('path', ['~nobody-of-that-name/m.onnx', 'm' * 5000, 'm\0.onnx'])
def test_path_that_the_system_refuses_is_no_model_file(path):
    with pytest.raises(ModelError, match='No model file at'):
        load_engine(path)


def test_a_missing_file_and_an_unknown_engine_are_named(tmp_path):
    with pytest.raises(ModelError, match=r'No model file at .*missing\.onnx'):
        load_engine(tmp_path / 'missing.onnx')
    with pytest.raises(ConfigError, match='onnxruntime'):
        load_engine(name='onnxrt')
