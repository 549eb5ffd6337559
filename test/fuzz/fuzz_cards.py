# SPDX-License-Identifier: Apache-2.0
"""Hostile model cards, and model files that are damaged or contain a hostile card with a valid checksum."""

import copy
import dataclasses
import json
import random

import numpy as np
from example_card import CARD
from hostile_examples import Examples, damage
from hypothesis import strategies as st
from onnx import TensorProto, helper

from zeroflow_ros.engines.model_card import METADATA_KEY, NO_CHECKSUM, ModelCard, stamp_checksum
from zeroflow_ros.engines.selection import load_engine
from zeroflow_ros.engines.stopwatch import Stopwatch

_ODD = st.sampled_from((
    None, True, False, 0, 1, 2, 3, -1, 7, 8, 8.0, 4096, 4098, 10**6, 2**31, 2**63, 10**400, 0.1, 1e-320, 1e308,
    float('nan'), float('inf'), float('-inf'), '', '0' * 64, 'a', 'a' * 10**5, '\ud800', '\0', 'nan', '1e5', [], {},
    [[]], [0], [1, 4, 8, 8], [4, 4, 2, 2, 5], ['n', 3], [-1, -1], [10**9] * 4, {'images': 5}, {'images': [1, 4, 8, 8]},
    {'hidden': [4, 4, 2, 2, 5]}, {'flow': ['n', 3]}, 'full', 'dense', 'gather', 'float16', 'remove', 'sensor',
    'target', 'forward',
))  # fmt: skip
_VALUES = _ODD | st.recursive(_ODD | st.text(max_size=5) | st.floats() | st.integers(), lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)), max_leaves=12)  # fmt: skip
_FIELDS = [field.name for field in dataclasses.fields(ModelCard)]
_PLACES = [(name,) for name in _FIELDS] + [('grid', name) for name in ('cells', 'cell', 'z_min', 'z_max', 'colour')]
_PLACES += [('inputs', 'images'), ('outputs', 'hidden'), ('outputs', 'hidden', 2), ('dt_range', 0), ('head_weight', 1)]
_CHANGES = st.lists(st.tuples(st.sampled_from(_PLACES), _VALUES, st.booleans()), min_size=1, max_size=3)
_GOOD = json.loads(CARD.to_json()) | {'outputs': {'hidden': [4, 4, 2, 2, 5]}}
_POINTS = np.random.default_rng(0).uniform(-3, 3, (200, 3)).astype(np.float32)


def write_model(path, card: str) -> None:
    """Write a dense model of 8 x 8 cells with this text as its card; stamp its checksum field, if any."""
    rng = np.random.default_rng(0)
    weights = [
        helper.make_tensor('w', TensorProto.FLOAT, (5, 4, 1, 1), rng.normal(size=20)),
        helper.make_tensor('shape', TensorProto.INT64, (5,), (5, 4, 2, 4, 2)),
    ]
    nodes = [
        helper.make_node('Conv', ['images', 'w'], ['features']),
        helper.make_node('Reshape', ['features', 'shape'], ['blocks']),
        helper.make_node('Transpose', ['blocks'], ['hidden'], perm=[1, 3, 2, 4, 0]),
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
               for name, shape in (('images', (1, 4, 8, 8)), ('hidden', (4, 4, 2, 2, 5)))]  # fmt: skip
    graph = helper.make_graph(nodes, 'tiny', tensors[:1], tensors[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    model.metadata_props.add(key=METADATA_KEY, value=card.encode(errors='replace').decode())
    path.write_bytes(model.SerializeToString())
    if path.read_bytes().count(NO_CHECKSUM.encode()) == 1:
        stamp_checksum(path, CARD)


class Cards:
    """In turn: a card with odd values, damaged card text, such a card in a model file, a damaged model file."""

    limit_s, margin_mb = 10.0, 1024

    def __init__(self, seed, folder):
        self._seed, self._changes = seed, Examples(_CHANGES, seed)
        self._good, self._path = folder / 'good.onnx', folder / 'hostile.onnx'
        write_model(self._good, json.dumps(_GOOD))
        self._load(self._good)

    def prepare(self, case):
        self._random = random.Random(f'{self._seed} {case}')
        values = copy.deepcopy(_GOOD)
        for place, value, is_removed in self._changes[case // 4]:
            _change(values, place, value, is_removed and len(place) == 1)
        self._card = json.dumps(values)

    def run(self, case):
        try:
            return self._run(case)
        finally:
            if case % 20 == 0:
                self._load(self._good)

    def _run(self, case):
        way = ('card', 'card text', 'file with card', 'file')[case % 4]
        if way == 'card':
            self._use(ModelCard.from_json(self._card))
        elif way == 'card text':
            text = damage(CARD.to_json().encode(), self._random, b'[[[[{{{{""::,,1e999-0nullNaNInfinity\\u')
            self._use(ModelCard.from_json(text.decode(errors='replace')))
        elif way == 'file with card':
            write_model(self._path, self._card)
            self._load(self._path)
        else:
            good = self._good.read_bytes()
            self._path.write_bytes(damage(good, self._random))
            self._load(self._path)
            assert self._path.read_bytes() == good, 'a file that was changed is served'
        return f'served ({way})'

    def _use(self, card):
        assert ModelCard.from_json(card.to_json()).to_json() == card.to_json()

    def _load(self, path):
        engine = load_engine(path, num_threads=1)
        assert engine.infer(_POINTS, _POINTS, Stopwatch()).shape == _POINTS.shape

    def finish(self):
        return {}


def _change(values, place, value, is_removed):
    """Set or remove a value in nested JSON, if its path exists."""
    *way, last = place
    for step in way:
        if isinstance(values, list) and isinstance(step, int) and step < len(values):
            values = values[step]
        elif isinstance(values, dict) and step in values:
            values = values[step]
        else:
            return
    if is_removed and isinstance(values, dict):
        values.pop(last, None)
    elif isinstance(values, dict) or (isinstance(values, list) and isinstance(last, int) and last < len(values)):
        values[last] = value
