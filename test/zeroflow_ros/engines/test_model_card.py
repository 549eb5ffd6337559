# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import numpy as np
import pytest
from example_card import CARD

from zeroflow_ros.engines.model_card import ModelCard, stamp_checksum, verify_checksum
from zeroflow_ros.errors import ModelError

WEIGHTS = ('encoder_weight', 'encoder_bias', 'head_offset_weight', 'head_weight', 'head_bias')


def test_json_keeps_every_field_and_every_bit_of_the_weights():
    back = ModelCard.from_json(CARD.to_json())
    for name in WEIGHTS:
        np.testing.assert_array_equal(getattr(back, name), getattr(CARD, name))
    plain = dict.fromkeys(WEIGHTS)
    assert dataclasses.replace(back, form='full', **plain) == dataclasses.replace(CARD, form='full', **plain)


GATHER = {
    'form': 'gather',
    'inputs': CARD.inputs | {'cell_index': ['num_points'], 'offsets': ['num_points', 3]},
    'outputs': {'flow': ['num_points', 3]},
    **{name: getattr(CARD, name)[..., :0] for name in ('head_bias', 'head_weight')},
    'head_offset_weight': CARD.head_offset_weight[:0],
    'head_activation': '',
}


def test_a_gather_card_needs_no_head():
    back = ModelCard.from_json(dataclasses.replace(CARD, **GATHER).to_json())
    assert (back.form, back.outputs) == ('gather', {'flow': ['num_points', 3]})
    np.testing.assert_array_equal(back.encoder.weight, CARD.encoder_weight)


def test_a_card_from_before_there_were_two_network_frames():
    text = json.dumps({k: v for k, v in json.loads(CARD.to_json()).items() if k != 'network_frame'})
    assert ModelCard.from_json(text).network_frame == 'source'


def test_a_card_without_a_number_of_sweeps_takes_two():
    text = json.dumps({k: v for k, v in json.loads(CARD.to_json()).items() if k != 'num_sweeps'})
    assert ModelCard.from_json(text).num_sweeps == 2


def changed(**values):
    card = json.loads(CARD.to_json())
    for name, value in values.items():
        if value is None:
            del card[name]
        else:
            card[name] = value
    return json.dumps(card)


@pytest.mark.parametrize(
    'label, text, says',
    [
        ('empty', '', 'not JSON'),
        ('list', '[]', 'JSON object'),
        ('deep nesting', '[' * 100_000, 'not JSON'),
        ('missing field', changed(grid=None), r"lacks \['grid'\]"),
        ('unknown field', changed(colour='red'), r"unknown fields \['colour'\]"),
        ('future schema', changed(schema=99), 'schema 99'),
        ('a megabyte of choice', changed(ground='x' * 10**6), 'ground'),
        ('wrong choice', changed(ground='sometimes'), 'ground'),
        ('frame of a third sweep', changed(network_frame='map'), 'network_frame'),
        ('one sweep', changed(num_sweeps=1), 'takes 1 sweeps'),
        ('a hundred sweeps', changed(num_sweeps=100), 'takes 100 sweeps; this version runs models that take 2 to 32'),
        ('three sweeps, images of two', changed(num_sweeps=3), 'grid and weights belong to'),
        ('dt outside its range', changed(nominal_dt=1.0), 'dt_range'),
        ('dt_range of three', changed(dt_range=[1, 2, 3]), 'is invalid'),
        ('infinite dt', changed(nominal_dt='nan'), 'dt_range'),
        ('odd grid', changed(grid={'cells': 7, 'cell': 0.5, 'z_min': -1, 'z_max': 3}), 'is invalid'),
        ('grid with a surprise', changed(grid={'cells': 8, 'colour': 1}), 'is invalid'),
        ('ragged weights', changed(encoder_weight=[[1, 2]]), 'is invalid'),
        ('bias of another size', changed(encoder_bias=[1.0]), 'is invalid'),
        ('dense without encoder', changed(encoder_weight=[], encoder_bias=[]), 'pillar encoder'),
        ('dense without head', changed(head_offset_weight=[], head_weight=[[], [], []]), 'point head'),
        ('head of two sizes', changed(head_weight=[[1], [2], [3]]), 'is invalid'),
        ('unknown activation', changed(head_activation='tanh'), 'activation'),
        ('another output', changed(outputs={'flow': ['n', 3]}), 'hidden'),
        ('blocks that do not fit', changed(outputs={'hidden': [2, 2, 3, 3, 5]}), 'blocks of 3'),
        ('name is a number', changed(name=3), 'expected a str'),
        ('grid for gigabytes', changed(grid={'cells': 10**6, 'cell': 0.5, 'z_min': -1, 'z_max': 3}), '2 to 4096'),
        ('cells that are no integer', changed(grid={'cells': 8.0, 'cell': 0.5, 'z_min': -1, 'z_max': 3}), '2 to 4096'),
        ('grid of another model', changed(grid={'cells': 4, 'cell': 0.5, 'z_min': -1, 'z_max': 3}), 'belong to'),
        ('shape that is a number', changed(inputs={'images': 5}), 'the shape of a tensor'),
        ('full model with other tensors', changed(form='full'), 'the inputs points0, points1'),
        ('gather without encoder', changed(form='gather', encoder_weight=[], encoder_bias=[]), 'pillar encoder'),
        ('gather with the tensors of dense', changed(form='gather'), 'belong to'),
        ('no checksum', changed(checksum=''), '64 hexadecimal digits'),
        ('checksum that is no text', changed(checksum='\ud800' * 64), 'surrogates not allowed'),
        ('half a character in the name', changed(name='\ud800'), 'surrogates not allowed'),
        ('dt without end', changed(dt_range=[0.05, 1e999]), 'dt_range'),
        ('number beyond all floats', changed(nominal_dt=10**400), 'is invalid'),
    ],
)
def test_a_wrong_card_is_refused_with_the_command_that_writes_one(label, text, says):
    with pytest.raises(ModelError, match=says) as refused:
        ModelCard.from_json(text)
    assert len(str(refused.value)) < 2000
    assert 'export.to_onnx' in str(refused.value) or 'sweeps' in str(refused.value)


def test_checksum_finds_one_changed_byte(tmp_path):
    path = tmp_path / 'model.onnx'
    path.write_bytes(b'weights ' + CARD.to_json().encode() + b' more')
    card = stamp_checksum(path, CARD)
    assert card.checksum in path.read_text() and card.checksum != '0' * 64
    verify_checksum(path, card)
    path.write_bytes(path.read_bytes().replace(b'more', b'mare'))
    with pytest.raises(ModelError, match='damaged'):
        verify_checksum(path, card)
