# SPDX-License-Identifier: Apache-2.0
"""DWARF: every variable of the original, the order of its channels, and the loader of its weights."""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='students need torch')

from training.students.dwarf import Dwarf, _dense  # noqa: E402
from training.students.dwarf_weights import load_variables, variable_shapes  # noqa: E402
from training.students.stereo_layers import warp_along_rows, warp_by_flow  # noqa: E402
from zeroflow_ros.errors import ModelError  # noqa: E402


@pytest.fixture(scope='module')
def shapes():
    return variable_shapes()


def test_variables_are_those_of_the_original(shapes):
    assert len(shapes) == 246
    assert sum(map(np.prod, shapes.values())) == 19_618_196
    block = 'dwarf/decoder/block_{}/estimator'
    for part, number in [
        ('dwarf/Encoder', 1_665_804), (block.format(6), 2_436_668), (block.format(5), 3_233_628),
        (block.format(4), 3_046_108), (block.format(3), 2_858_588), (block.format(2), 6_377_400),
    ]:  # fmt: skip
        assert sum(np.prod(shape) for name, shape in shapes.items() if name.startswith(part)) == number, part


@pytest.mark.parametrize(
    'name, shape',
    [
        ('Encoder/level_1/Conv/weights', (3, 3, 3, 16)),
        ('Encoder/level_6/Conv_2/biases', (196,)),
        ('decoder/block_6/estimator/estimator_block_0/Conv/weights', (3, 3, 180, 128)),
        ('decoder/block_5/estimator/estimator_block_2/Conv/weights', (3, 3, 572, 96)),
        ('decoder/block_4/estimator/optical_flow/estimator_block_1/Conv/weights', (3, 3, 700, 32)),
        ('decoder/block_3/estimator/disparity_change/Conv/weights', (3, 3, 700, 1)),
        ('decoder/block_3/estimator/upsample_motion_vectors/flow/weights', (4, 4, 2, 2)),
        ('decoder/block_5/estimator/upsample_features/disparity/weights', (4, 4, 1, 764)),
        ('decoder/block_2/estimator/context_network_flow/Conv_6/weights', (3, 3, 32, 2)),
        ('decoder/block_2/estimator/context_network_disparity_change/Conv_3/weights', (3, 3, 128, 96)),
    ],
)
def test_a_variable_has_the_name_and_shape_of_the_original(shapes, name, shape):
    assert shapes[f'dwarf/{name}'] == shape


@pytest.fixture(scope='module')
def small():
    """The two finest levels."""
    torch.manual_seed(0)
    return Dwarf(coarsest=3).eval()


def test_values_become_pixels_with_positive_disparities():
    student = Dwarf(coarsest=3).eval()
    for parameter in student.parameters():
        torch.nn.init.zeros_(parameter)
    final = student.decoder['block_2']['estimator']
    for name, values in [('disparity', [-1]), ('disparity_change', [-2]), ('optical_flow', [0.5, -0.25])]:
        final.get_submodule(name)['Conv'].bias.data = torch.tensor(values, dtype=torch.float32)
    images = torch.rand(4, 1, 3, 16, 24)
    with torch.no_grad():
        found = student(*images)
    assert found.log_sigma is None
    for values, expected in zip(found[:3], ([20], [40], [10, -5]), strict=True):
        assert values.shape == (1, len(expected), 16, 24)
        assert values[0, :, 3, 5].tolist() == expected and (values == values[:, :, :1, :1]).all()


def test_a_dense_layer_appends_what_it_computes():
    layer = torch.nn.Conv2d(1, 1, 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.constant_(layer.bias, -5)
    assert _dense(layer, torch.full((1, 1, 1, 1), 3.0)).flatten().tolist() == [3, -0.5]


def test_input_of_a_level_is_volumes_features_values_and_features_from_above(small):
    found = {}

    def keep(name):
        return lambda _, given, made: found.update({name: (given[0], made)})

    hooks = [small.decoder[name]['estimator'].register_forward_hook(keep(name)) for name in ('block_3', 'block_2')]
    images = torch.rand(4, 1, 3, 16, 24)
    with torch.no_grad():
        levels = small.levels(*images)
        left0, right0, left1, right1 = small._pyramid(torch.cat(list(images)))[2].chunk(4)
    for hook in hooks:
        hook.remove()
    volumes, (values, (upsampled, features)) = found['block_2'][0], found['block_3'][1]
    assert torch.equal(values, levels[3]) and volumes.shape[1] == 180 + 32 + 4 + 4
    torch.testing.assert_close(volumes[:, 180:212], left0)
    assert torch.equal(volumes[:, 212:216], upsampled) and torch.equal(volumes[:, 216:], features)
    pixels = upsampled * 20 / 4  # of the full size, divided by 20; at a quarter of the size
    warped = warp_along_rows(right0, pixels[:, :1])
    activated = torch.nn.functional.leaky_relu
    volume0 = activated((left0 * warped).mean(1), 0.1)
    torch.testing.assert_close(volumes[:, 4], volume0)  # offset 0 of -4..4
    torch.testing.assert_close(
        volumes[:, 180 - 41], activated((left0 * warp_by_flow(left1, pixels[:, 2:])).mean(1), 0.1)
    )
    by = torch.cat([pixels[:, 2:3] + pixels[:, 1:2], pixels[:, 3:]], 1)
    product = (warp_by_flow(left1, pixels[:, 2:]) * warp_by_flow(right1, by)).mean(1)
    torch.testing.assert_close(volumes[:, 9 + 4], activated(product, 0.1))
    both = activated((volumes[:, :9] * volumes[:, 9:18]).mean(1), 0.1)
    torch.testing.assert_close(volumes[:, 18 + 40], both)


def test_sizes_that_do_not_fit_the_pyramid_are_refused(small):
    with pytest.raises(ValueError, match='multiples of 8 px, not 20 x 16'):
        small(*torch.rand(4, 1, 3, 16, 20))
    assert Dwarf.__init__.__defaults__ == (6,)


@pytest.fixture(scope='module')
def variables(shapes):
    """Zeros of the right shapes, small on disk, and numbers in one of each kind."""
    found = {name: np.zeros(shape, np.int8) for name, shape in shapes.items()}
    for name in (
        'dwarf/Encoder/level_1/Conv/weights',
        'dwarf/decoder/block_6/estimator/upsample_features/flow/weights',
    ):
        found[name] = np.arange(found[name].size, dtype=np.float32).reshape(shapes[name])
    return found


def test_weights_load_from_tensorflow_variables(variables, tmp_path):
    extra = {'dwarf/Encoder/level_1/Conv/weights/Adam': np.zeros(1), 'global_step': np.int64(7)}
    np.savez_compressed(tmp_path / 'w.npz', **{f'{name}:0': value for name, value in variables.items()}, **extra)
    state = load_variables(tmp_path / 'w.npz')
    with torch.device('meta'):
        student = Dwarf()
    student.load_state_dict(state, assign=True)
    kernel = variables['dwarf/Encoder/level_1/Conv/weights']  # (h, w, in, out)
    assert student.Encoder['level_1']['Conv'].weight[5, 2, 0, 1] == kernel[0, 1, 2, 5]
    kernel = variables['dwarf/decoder/block_6/estimator/upsample_features/flow/weights']  # (h, w, out, in)
    upsample = student.decoder['block_6']['estimator'].upsample_features['flow']
    assert upsample.weight[600, 1, 3, 2] == kernel[3, 2, 1, 600]


def test_what_is_missing_unexpected_or_misshapen_is_listed(variables, tmp_path):
    changed = dict(variables)
    changed['dwarf/other/weights'] = changed.pop('dwarf/Encoder/level_2/Conv/biases')
    changed['dwarf/Encoder/level_3/Conv/biases'] = np.zeros(65, np.float32)
    np.savez_compressed(tmp_path / 'w.npz', **changed)
    with pytest.raises(ModelError) as caught:
        load_variables(tmp_path / 'w.npz')
    assert 'does not hold the 246 variables of DWARF' in str(caught.value)
    assert 'missing: dwarf/Encoder/level_2/Conv/biases;' in str(caught.value)
    assert 'unexpected: dwarf/other/weights;' in str(caught.value)
    assert 'wrong shape: dwarf/Encoder/level_3/Conv/biases (65,) instead of (64,)' in str(caught.value)


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04broken', b'text'])
def test_a_file_that_is_no_npz_is_said(content, tmp_path):
    (tmp_path / 'w.npz').write_bytes(content)
    with pytest.raises(ModelError, match=r'is no \.npz file of TensorFlow variables'):
        load_variables(tmp_path / 'w.npz')


def test_weights_that_are_not_finite_are_refused(variables, tmp_path):
    name = 'dwarf/Encoder/level_1/Conv/biases'
    np.savez_compressed(tmp_path / 'w.npz', **variables | {name: np.full(16, np.nan, np.float32)})
    with pytest.raises(ModelError, match=f'not finite: {name}'):
        load_variables(tmp_path / 'w.npz')
