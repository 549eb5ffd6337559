# SPDX-License-Identifier: Apache-2.0
"""The loader of the weights of multi_mono_sf: every name and shape is checked, nothing is resized."""

import argparse

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='students need torch')

from export import to_onnx  # noqa: E402
from training.learning.checkpoint import load_checkpoint  # noqa: E402
from training.learning.strategies import build_strategy  # noqa: E402
from training.learning.train_config import TrainConfig  # noqa: E402
from training.students.multi_mono_sf import MultiMonoSf  # noqa: E402
from training.students.multi_mono_sf_weights import load_weights, weight_shapes  # noqa: E402
from zeroflow_ros.errors import ConfigError, ModelError  # noqa: E402

CONV = 'upconv_layers.2.conv1.0.weight'


@pytest.fixture(scope='module')
def weights():
    """Weights whose values are stored once each: small files."""
    shapes = weight_shapes()
    return {name: torch.tensor(float(k)).expand(shape) for k, (name, shape) in enumerate(shapes.items())}


@pytest.fixture
def write(tmp_path, weights):
    """Return a function that writes the weights, changed, as a checkpoint."""

    def write_checkpoint(change=None, prefix='_model.', **content):
        values = dict(weights)
        if change is not None:
            change(values)
        values = {prefix + name: value for name, value in values.items()}
        torch.save({'state_dict': values, **content} if content else values, tmp_path / 'weights.ckpt')
        return tmp_path / 'weights.ckpt'

    return write_checkpoint


@pytest.mark.parametrize('prefix', ['_model.', ''])
@pytest.mark.parametrize('content', [{}, {'epoch': 62, 'optimizer': {}, 'scheduler': {}}])
def test_checkpoints_with_and_without_prefix_and_beside_other_content_load(write, weights, prefix, content):
    found = load_weights(write(prefix=prefix, **content))
    assert list(found) == list(weights)
    assert all(value.shape == weights[name].shape and value.dtype == torch.float32 for name, value in found.items())
    assert all(value.flatten()[-1] == weights[name].flatten()[0] for name, value in found.items())
    with torch.device('meta'):
        student = MultiMonoSf()
    student.load_state_dict(found, assign=True)


def test_checkpoints_of_the_authors_are_recognised_and_export_needs_their_errors(write, weights, capsys, tmp_path):
    # As theirs, it holds values of NumPy beside the weights; no code of it runs.
    path = write(epoch=np.int64(62), optimizer={})
    checkpoint = load_checkpoint(path)
    assert checkpoint.student == 'multi_mono_sf' and list(checkpoint.state_dict) == list(weights)
    with pytest.raises(ModelError, match='missing: upconv_layers'):
        load_checkpoint(write(lambda values: values.pop(CONV), epoch=1))
    assert to_onnx.main([str(write(epoch=1)), '--out', str(tmp_path / 'model.onnx')]) != 0
    assert 'with --sigma-relative DEPTH MOTION' in capsys.readouterr().err


def test_strategies_of_sweeps_are_refused_for_it():
    with pytest.raises(ConfigError, match='strategy should be one of mono_self_supervised'):
        build_strategy(TrainConfig(student='multi_mono_sf'))


def test_each_difference_is_named_and_nothing_is_resized(write):
    def change(values):
        del values['flow_estimators.0.conv_lstm.0.bias']
        values['context_networks.convs.0.0.weight'] = torch.zeros(1)
        values[CONV] = torch.zeros(96, 96, 1, 1)

    with pytest.raises(ModelError) as error:
        load_weights(write(change))
    for part in (
        'missing: flow_estimators.0.conv_lstm.0.bias',
        'unexpected: context_networks.convs.0.0.weight',
        f'wrong shape: {CONV} (96, 96, 1, 1) instead of (96, 96, 3, 3)',
        'self_mono_sf, the predecessor',
        'Nothing was loaded',
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda values: values.update({CONV: 'text'}), f'{CONV} str instead of'),
        (lambda values: values.update({CONV: torch.full((96, 96, 3, 3), torch.nan)}), f'not finite: {CONV}'),
        (lambda values: values.clear(), 'and 117 more'),
        (lambda values: values.update({'_model.' + CONV: values.pop(CONV)}), f'unexpected: _model.{CONV}'),
    ],
)
def test_broken_weights_are_refused(write, change, message):
    with pytest.raises(ModelError, match=message.replace('.', r'\.')):
        load_weights(write(change, prefix=''))


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    path = tmp_path / 'file.ckpt'
    with pytest.raises(ModelError, match='no readable checkpoint'):
        load_weights(path)
    for content in (b'', b'version https://git-lfs.github.com/spec/v1\n', b'PK\x03\x04 cut'):
        path.write_bytes(content)
        for trusted in (False, True):
            with pytest.raises(ModelError, match=r'no (readable )?checkpoint'):
                load_weights(path, trusted=trusted)
    for content in ([1, 2], {1: torch.zeros(1)}):
        torch.save(content, path)
        with pytest.raises(ModelError, match='expected a dict of weights by name'):
            load_weights(path)


def test_pickled_objects_are_read_only_from_trusted_files(write, weights):
    path = write(arguments=argparse.Namespace(batch_size=1))
    with pytest.raises(ModelError, match='trusted=True'):
        load_weights(path)
    assert list(load_weights(path, trusted=True)) == list(weights)
