# SPDX-License-Identifier: Apache-2.0
"""Cards of models for stereo cameras: what is written is read, and nothing wrong is accepted."""

import dataclasses
import json

import pytest

from zeroflow_ros.engines.stereo_card import StereoCard
from zeroflow_ros.errors import ModelError

CARD = StereoCard(
    name='m', student='stereo_lite', precision='float32', width=64, height=32, resize='scale', uses_ego_motion=True,
    estimates_sigma=True, sigma_px=(0.0, 0.0, 0.0), training={'data': 'test'}, licence='Apache-2.0', versions={},
    inputs={'images': [4, 32, 64, 3], 'ego_motion': [1, 3, 4]}, outputs={'scene_flow': [1, 7, 32, 64]},
)  # fmt: skip


def test_a_card_is_read_as_it_was_written():
    assert StereoCard.from_json(CARD.to_json()) == CARD
    assert CARD.images.width == 64 and CARD.images.resize == 'scale'


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'schema': 2}, 'schema 2'),
        ({'resize': 'crop'}, "resize 'crop', expected one of"),
        ({'precision': 'float64'}, 'precision'),
        ({'width': 0}, '0 x 32 px'),
        ({'width': 10**6}, '1000000 x 32 px'),
        ({'width': 64.0}, 'width 64.0, expected a int'),
        ({'uses_ego_motion': 1}, 'uses_ego_motion 1, expected a bool'),
        ({'estimates_sigma': False}, 'needs three positive standard deviations'),
        ({'sigma_px': [1, 2]}, 'invalid'),
        ({'sigma_px': None}, 'invalid'),
        ({'inputs': {'images': [4, 32, 64, 3]}}, 'its fields call for'),
        ({'outputs': {'scene_flow': [1, 4, 32, 64]}}, 'its fields call for'),
        ({'checksum': 'abc'}, '64 hexadecimal digits'),
        ({'extra': 1}, r"unknown fields \['extra'\]"),
        ({'name': '\ud800'}, 'invalid'),
    ],
)
def test_a_wrong_card_is_refused(changes, said):
    with pytest.raises(ModelError, match=said):
        StereoCard.from_json(json.dumps(dataclasses.asdict(CARD) | changes))


@pytest.mark.parametrize('text, said', [('', 'not JSON'), ('[]', 'JSON object, got list'), ('{}', 'lacks')])
def test_what_is_no_card_is_refused(text, said):
    with pytest.raises(ModelError, match=said):
        StereoCard.from_json(text)
