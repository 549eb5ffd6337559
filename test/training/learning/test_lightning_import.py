# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of OpenSceneFlow: published keys and shapes, and the flow that these weights mean, by plain operators.

The layout and the formulas are facts of github.com/KTH-RPL/OpenSceneFlow, commit 848bf86; docs/conventions.md says how
the original itself compares.
"""

import collections
import math
import sys
import types
from typing import Any

import pytest

torch = pytest.importorskip('torch', reason='checkpoints need torch')

from torch.nn import functional  # noqa: E402

from training.learning.checkpoint import load_checkpoint  # noqa: E402
from training.scoring.estimators import checkpoint_engine  # noqa: E402
from zeroflow_ros.errors import ModelError  # noqa: E402
from zeroflow_ros.lidar.pillars import PillarGrid  # noqa: E402

CELLS = 64  # of the test's grid; the network takes any number


def layer(key, *shape):
    return {f'{key}.weight': shape, f'{key}.bias': shape[:1]}


def norm(key, num):
    names = 'weight', 'bias', 'running_mean', 'running_var'
    return {f'{key}.{name}': (num,) for name in names} | {f'{key}.num_batches_tracked': ()}


BACKBONE = {'embedder.feature_net.pfn_layers.0.0.weight': (32, 9)} | norm('embedder.feature_net.pfn_layers.0.1', 32)
for _step, _depth, _width in ((1, 4, 64), (2, 6, 128), (3, 6, 256)):
    for _k in range(_depth):
        _key = f'backbone.encoder_step_{_step}.{_k}'
        BACKBONE |= layer(f'{_key}.conv', _width, _width if _k else _width // 2, 3, 3)
        BACKBONE |= norm(f'{_key}.batchnorm', _width)
for _step, _coarse, _out in ((1, 512, 256), (2, 256, 128), (3, 128, 64)):
    _key = f'backbone.decoder_step{_step}'
    BACKBONE |= layer(f'{_key}.u1_u2.0', _out, _coarse, 1, 1) | layer(f'{_key}.u3', _out, _out, 1, 1)
    BACKBONE |= layer(f'{_key}.u4_u5.0', _out, 2 * _out, 3, 3) | layer(f'{_key}.u4_u5.1', _out, _out, 3, 3)
BACKBONE |= layer('backbone.decoder_step4', 64, 64, 3, 3)
FASTFLOW3D = BACKBONE | layer('head.offset_encoder', 128, 3) | layer('head.decoder.0', 32, 256)
FASTFLOW3D |= layer('head.decoder.2', 3, 32)
DEFLOW = BACKBONE | layer('head.offset_encoder', 64, 3) | layer('head.decoder.0', 32, 192)
DEFLOW |= layer('head.decoder.2', 3, 32)
for _gate in 'zrq':
    DEFLOW |= layer(f'head.gru.conv{_gate}', 128, 192, 1)


def random_weights(table):
    generator = torch.Generator().manual_seed(0)

    def tensor(key, shape):
        if key.endswith('num_batches_tracked'):
            return torch.tensor(7)
        if key.endswith('running_var') or '.batchnorm.weight' in key or '0.1.weight' in key:
            return torch.rand(shape, generator=generator) + 0.5
        return torch.randn(shape, generator=generator) * math.prod(shape[1:]) ** -0.5

    return {key: tensor(key, shape) for key, shape in table.items()}


def plain_flow(w, points0, points1, num_iters):
    """Return the flow (N, 3) of points0, written as the paper says it. w: weights under the published keys."""

    def linear(key, x):
        return x @ w[f'{key}.weight'].reshape(len(w[f'{key}.weight']), -1).T + w[f'{key}.bias']

    def conv(key, x, stride=1):
        return functional.conv2d(x, w[f'{key}.weight'], w[f'{key}.bias'], stride, w[f'{key}.weight'].shape[2] // 2)

    def normed(key, x, eps):
        mean, var, scale, shift = (w[f'{key}.{name}'] for name in ('running_mean', 'running_var', 'weight', 'bias'))
        if x.dim() == 4:
            mean, var, scale, shift = (v[:, None, None] for v in (mean, var, scale, shift))
        return (x - mean) / torch.sqrt(var + eps) * scale + shift

    def gelu(x):
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    def pillars(points):
        cells = torch.floor((points[:, :2] + CELLS * 0.1) / 0.2).long()  # column of x, row of y
        offsets = points - torch.cat([(cells + 0.5) * 0.2 - CELLS * 0.1, torch.zeros(len(points), 1)], 1)
        image = torch.zeros(1, 32, CELLS, CELLS)
        for cell in cells.unique(dim=0):
            inside = (cells == cell).all(1)
            group = points[inside]
            features = torch.cat([group, group - group.mean(0), offsets[inside]], 1)
            encoded = normed('embedder.feature_net.pfn_layers.0.1',
                             features @ w['embedder.feature_net.pfn_layers.0.0.weight'].T, 1e-3)  # fmt: skip
            image[0, :, cell[1], cell[0]] = encoded.clamp(min=0).mean(0)
        return image, cells, offsets

    (image0, cells, offsets), (image1, _, _) = pillars(points0), pillars(points1)
    images = [image0, image1]
    levels = [torch.cat(images, 1)]
    for step, depth in ((1, 4), (2, 6), (3, 6)):
        for k in range(depth):
            key = f'backbone.encoder_step_{step}.{k}'
            images = [gelu(normed(f'{key}.batchnorm', conv(f'{key}.conv', x, 1 if k else 2), 1e-5)) for x in images]
        levels.append(torch.cat(images, 1))
    up = levels[3]
    for step in (1, 2, 3):
        key = f'backbone.decoder_step{step}'
        coarse = functional.interpolate(conv(f'{key}.u1_u2.0', up), scale_factor=2, mode='bilinear')
        up = torch.cat([coarse, conv(f'{key}.u3', levels[3 - step])], 1)
        up = conv(f'{key}.u4_u5.1', conv(f'{key}.u4_u5.0', up))
    up = conv('backbone.decoder_step4', up)
    maps = torch.cat([levels[0], up], 1)[0, :, cells[:, 1], cells[:, 0]].T  # (N, 128)
    given = linear('head.offset_encoder', offsets)
    for _ in range(num_iters):
        both = torch.cat([maps, given], 1)
        z, r = torch.sigmoid(linear('head.gru.convz', both)), torch.sigmoid(linear('head.gru.convr', both))
        q = torch.tanh(linear('head.gru.convq', torch.cat([r * maps, given], 1)))
        maps = (1 - z) * maps + z * q
    return linear('head.decoder.2', gelu(linear('head.decoder.0', torch.cat([maps, given], 1))))


class Node:
    """What omegaconf's classes are to pickle: an object with a dictionary."""

    def __init__(self, **values):
        vars(self).update(values)


def omegaconf_module():
    module = types.ModuleType('omegaconf')
    for name in ('DictConfig', 'ListConfig', 'AnyNode', 'Metadata'):
        setattr(module, name, type(name, (Node,), {'__module__': 'omegaconf', '__qualname__': name}))
    return module


def settings(value, module):
    """Return settings as omegaconf keeps them."""
    kinds = {'ref_type': Any, 'object_type': dict if isinstance(value, dict) else None}
    about = {'_metadata': module.Metadata(**kinds, resolver_cache=collections.defaultdict(dict)), '_parent': None}
    if isinstance(value, dict):
        return module.DictConfig(**about, _content={key: settings(one, module) for key, one in value.items()})
    if isinstance(value, list):
        return module.ListConfig(**about, _content=[settings(one, module) for one in value])
    return module.AnyNode(**about, _val=value)


def write(path, weights, monkeypatch, *, with_settings=True, model_settings=None, **changes):
    """Write a checkpoint as OpenSceneFlow does. model_settings: name and class. changes: of the settings."""
    named = dict(model_settings or {})
    target = {'voxel_size': '${voxel_size}', 'point_cloud_range': '${point_cloud_range}', 'num_iters': 4}
    values = {'voxel_size': [0.2, 0.2, 6], 'point_cloud_range': [-51.2, -51.2, -3, 51.2, 51.2, 3]}
    values |= {key: value for key, value in changes.items() if key != 'num_iters'}
    target |= {key: value for key, value in changes.items() if key == 'num_iters'}
    values['model'] = {**{key: named[key] for key in named if key == 'name'},
                       'target': target | {key: named[key] for key in named if key == '_target_'}}  # fmt: skip
    content = {'epoch': 8, 'global_step': 900, 'state_dict': {f'model.{key}': value for key, value in weights.items()}}
    with monkeypatch.context() as patch:
        module = omegaconf_module()
        patch.setitem(sys.modules, 'omegaconf', module)
        if with_settings:
            content['hyper_parameters'] = {'cfg': settings(values, module), 'eval': False}
        torch.save(content, path)
    return path


@pytest.fixture(scope='module')
def weights():
    return {name: random_weights(table) for name, table in (('fastflow3d', FASTFLOW3D), ('deflow', DEFLOW))}


@pytest.mark.parametrize('table, parameters', [(FASTFLOW3D, 6_820_131), (DEFLOW, 6_891_939)])
def test_the_table_has_the_published_size(table, parameters):
    learned = {key: shape for key, shape in table.items() if 'running' not in key and 'batches' not in key}
    assert sum(math.prod(shape) for shape in learned.values()) == parameters


@pytest.mark.parametrize(
    'name, student, num_iters', [('fastflow3d', 'fastflow3d', 0), ('deflow', 'deflow', 4), ('deflow', 'deflow_2', 2)]
)
def test_an_imported_student_gives_the_flow_of_the_published_formulas(
    tmp_path, weights, monkeypatch, name, student, num_iters
):
    path = write(tmp_path / 'c.ckpt', weights[name], monkeypatch, num_iters=num_iters)
    checkpoint = load_checkpoint(path)
    assert checkpoint.student == student
    assert (checkpoint.provenance['epoch'], checkpoint.provenance['step']) == (8, 900)
    built = checkpoint.build()
    assert built.grid == PillarGrid(512, 0.2, -3.0, 3.0)
    built.grid = PillarGrid(CELLS, 0.2, -3.0, 3.0)
    generator = torch.Generator().manual_seed(1)
    points0, points1 = ((torch.rand(400, 3, generator=generator) - 0.5) * torch.tensor([12.0, 12.0, 5.0]) for _ in '01')
    with torch.no_grad():
        expected, flow = plain_flow(weights[name], points0, points1, num_iters), built(points0, points1)
    assert expected.abs().max() > 0.1  # m
    torch.testing.assert_close(flow, expected, atol=1e-4, rtol=1e-4)  # float32, sums of up to 4,608 products


def test_the_card_says_their_frames(tmp_path, weights, monkeypatch):
    """Both clouds in the sensor's frame at the time of the second; no ground; forward in time."""
    card = checkpoint_engine(write(tmp_path / 'c.ckpt', weights['fastflow3d'], monkeypatch)).card
    assert (card.network_frame, card.z_origin) == ('target', 'sensor')
    assert (card.ground, card.direction, card.licence) == ('remove', 'forward', 'BSD-3-Clause')


@pytest.mark.parametrize('name, student', [('fastflow3d', 'fastflow3d'), ('deflow', 'deflow_2')])
def test_weights_without_settings_need_a_name(tmp_path, weights, monkeypatch, name, student):
    path = write(tmp_path / 'c.ckpt', weights[name], monkeypatch, with_settings=False)
    with pytest.raises(ModelError, match=rf'without its settings.*--student .*{student}'):
        load_checkpoint(path)
    assert load_checkpoint(path, student=student).student == student
    with pytest.raises(ModelError, match='by its keys, not fastflow3d_xl'):
        load_checkpoint(path, student='fastflow3d_xl')


@pytest.mark.parametrize(
    'label, changes, says',
    [
        ('finer pillars', {'voxel_size': [0.1, 0.1, 6]}, r'voxel_size \[0\.1, 0\.1, 6\], expected \[0\.2, 0\.2'),
        ('a smaller range', {'point_cloud_range': [-38.4, -38.4, -3, 38.4, 38.4, 3]}, 'point_cloud_range'),
        ('eight iterations', {'num_iters': 8}, r'num_iters 8, expected one of \[2, 4\]'),
    ],
)
def test_settings_that_weights_do_not_show_are_checked(tmp_path, weights, monkeypatch, label, changes, says):
    with pytest.raises(ModelError, match=says):
        load_checkpoint(write(tmp_path / 'c.ckpt', weights['deflow'], monkeypatch, **changes))


def test_a_name_that_contradicts_the_settings_is_refused(tmp_path, weights, monkeypatch):
    path = write(tmp_path / 'c.ckpt', weights['deflow'], monkeypatch)
    with pytest.raises(ModelError, match='holds deflow by its settings, not deflow_2'):
        load_checkpoint(path, student='deflow_2')


@pytest.mark.parametrize(
    'name, key, value, says',
    [
        ('fastflow3d', 'head.offset_encoder.bias', None, r'missing head\.offset_encoder\.bias \(128,\)'),
        ('fastflow3d', 'head.decoder.0.weight', (32, 131), r'is \(32, 131\), expected \(32, 256\)'),
        ('deflow', 'head.gru.convz.weight', (128, 192), r'convz\.weight is \(128, 192\), expected \(128, 192, 1\)'),
        ('deflow', 'head.gru.convr.bias', None, r"fit OpenSceneFlow's deflow; 1 differences: missing .*convr"),
        ('deflow', 'backbone.decoder_step5.weight', (3, 3), r'unknown backbone\.decoder_step5\.weight'),
    ],
)
def test_differences_are_listed(tmp_path, weights, monkeypatch, name, key, value, says):
    changed = {**weights[name], **({} if value is None else {key: torch.zeros(value)})}
    if value is None:
        del changed[key]
    with pytest.raises(ModelError, match=says):
        load_checkpoint(write(tmp_path / 'c.ckpt', changed, monkeypatch))


class Bomb:
    def __reduce__(self):
        return (print, ('code of the checkpoint runs',))


def test_code_among_the_settings_does_not_run(tmp_path, weights, monkeypatch, capsys):
    with pytest.raises(ModelError, match='safely'):
        load_checkpoint(write(tmp_path / 'c.ckpt', weights['deflow'], monkeypatch, voxel_size=Bomb()))
    assert 'runs' not in capsys.readouterr().out
