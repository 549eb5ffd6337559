# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import pytest

from zeroflow_ros.engines.mono_card import MonoCard
from zeroflow_ros.errors import ModelError

CARD = MonoCard(
    name='m', student='mono_lite', precision='float32', width=64, height=32, resize='scale', refers_to='previous',
    num_images=3, far=78.0, scale='as in training', splat='none', nominal_dt=0.1, estimates_sigma=False,
    sigma=(0.1, 0.005), training={'step': 7}, licence='Apache-2.0', versions={'opset': 20},
    state={'hidden': [1, 4, 8, 8]}, inputs={'image': [1, 32, 64, 3], 'intrinsics': [1, 3, 3]},
    outputs={'scene_flow': [1, 4, 32, 64]},
)  # fmt: skip


def changed(**values) -> str:
    return json.dumps(json.loads(CARD.to_json()) | values)


def test_a_card_survives_json():
    assert MonoCard.from_json(CARD.to_json()) == CARD
    assert CARD.latency_intervals == 1 and dataclasses.replace(CARD, refers_to='latest').latency_intervals == 0
    assert CARD.output_size == (32, 64)
    assert CARD.tensors()[1] == {'scene_flow': [1, 4, 32, 64], 'next_hidden': [1, 4, 8, 8]}


@pytest.mark.parametrize(
    'text, said',
    [
        ('', 'is not JSON'), ('[]', 'should be a JSON object'), ('{}', 'lacks'),
        (changed(more=1), "unknown fields .*'more'"), (changed(width='64'), "width '64', expected a int"),
        (changed(sensor='stereo'), "sensor 'stereo', expected one of"),
        (changed(refers_to='next'), "refers_to 'next'"), (changed(splat='none '), "splat 'none '"),
        (changed(resize='pad'), "resize 'pad'"), (changed(schema=2), 'schema 2'),
        (changed(width=0), 'images of 0 x 32'), (changed(num_images=1), 'num_images 1, expected 2 to 16'),
        (changed(far=-1.0), 'far -1.0'), (changed(nominal_dt=0.0), 'nominal_dt 0.0'),
        (changed(sigma=[0.1, 0.0]), r'sigma \(0.1, 0.0\), expected two positive'), (changed(sigma=[0.1]), 'invalid'),
        (changed(checksum='0'), '64 hexadecimal'), (changed(height=16), 'fields call for the inputs'),
        (changed(outputs={'scene_flow': [1, 6, 32, 64]}), 'one output'), (changed(outputs={}), 'one output'),
        (changed(outputs={'scene_flow': [1, 4, 64, 64]}), 'is not within 64 x 32'),
        (changed(state={}), 'a state has 1 to'), (changed(state={'image': [1]}), 'is no tensor of a state'),
        (changed(state={'hidden': [1, 0]}), 'is no tensor of a state'),
        (changed(state={'hidden': [2**20, 2**20]}), 'is no tensor of a state'),
        (changed(name='\udc80'), 'is invalid'),
    ],
)  # fmt: skip
def test_a_card_that_cannot_be_used_is_refused(text, said):
    with pytest.raises(ModelError, match=said):
        MonoCard.from_json(text)
