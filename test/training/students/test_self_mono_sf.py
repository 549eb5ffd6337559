# SPDX-License-Identifier: Apache-2.0
"""self_mono_sf: every weight of the original, its checkpoints, and what two images alone determine."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='students need torch')

from export import to_onnx  # noqa: E402
from training.learning.checkpoint import load_checkpoint  # noqa: E402
from training.learning.strategies import build_strategy  # noqa: E402
from training.learning.train_config import TrainConfig  # noqa: E402
from training.scoring.mono_estimators import MonoOptions, MonoStudentFlow, checkpoint_estimator  # noqa: E402
from training.students import build_student  # noqa: E402
from training.students.mono_geometry import target_pixels  # noqa: E402
from training.students.multi_mono_sf_weights import load_weights, weight_shapes  # noqa: E402
from training.students.self_mono_sf import SelfMonoSf, _target_pixels  # noqa: E402
from zeroflow_ros.camera.stereo import StereoCamera  # noqa: E402
from zeroflow_ros.errors import ConfigError, ModelError  # noqa: E402

INTRINSICS = torch.tensor([[[60.0, 0, 32], [0, 60, 32], [0, 0, 1]]])


def _expected_shapes():
    """Return the names and shapes of the checkpoints, from the description of the network."""
    shapes = {}

    def conv(name, num_in, num_out):
        shapes[f'{name}.0.weight'], shapes[f'{name}.0.bias'] = (num_out, num_in, 3, 3), (num_out,)

    for k, (num_in, num_out) in enumerate(itertools.pairwise((3, 32, 64, 96, 128, 192, 256))):
        conv(f'feature_pyramid_extractor.convs.{k}.0', num_in, num_out)
        conv(f'feature_pyramid_extractor.convs.{k}.1', num_out, num_out)
    for level, num_in in enumerate((337, 309, 245, 213, 181)):
        for k, pair in enumerate(itertools.pairwise((num_in, 128, 128, 96, 64, 32))):
            conv(f'flow_estimators.{level}.convs.{k}', *pair)
        conv(f'flow_estimators.{level}.conv_sf', 32, 3)
        conv(f'flow_estimators.{level}.conv_d1', 32, 1)
    for k in range(4):
        conv(f'upconv_layers.{k}.conv1', 32, 32)
    for k, pair in enumerate(itertools.pairwise((36, 128, 128, 128, 96, 64, 32))):
        conv(f'context_networks.convs.{k}', *pair)
    conv('context_networks.conv_sf', 32, 3)
    conv('context_networks.conv_d1.0', 32, 1)
    return shapes


def test_weights_are_those_of_the_original():
    with torch.device('meta'):
        student = build_student('self_mono_sf')
    found = {key: tuple(value.shape) for key, value in student.state_dict().items()}
    assert list(found.items()) == list(_expected_shapes().items())
    assert len(found) == 118 and sum(parameter.numel() for parameter in student.parameters()) == 5_755_000
    parts = {
        part: sum(value.numel() for value in getattr(student, part).parameters())
        for part in ('feature_pyramid_extractor', 'flow_estimators', 'upconv_layers', 'context_networks')
    }
    assert list(parts.values()) == [2_048_352, 3_147_220, 36_992, 522_436]


@pytest.fixture(scope='module')
def student():
    torch.manual_seed(0)
    made = SelfMonoSf().eval()
    for part in (*made.flow_estimators, made.context_networks):
        torch.nn.init.normal_(part.conv_sf[0].weight, std=1e-3)  # motions of some centimetres
    return made


@pytest.fixture(scope='module')
def pair(student):
    torch.manual_seed(1)
    images = torch.rand(2, 1, 3, 64, 64)
    with torch.no_grad():
        features = [student.features(image) for image in images]
        return images, features, student.pair(*features, INTRINSICS)


def test_both_images_swap_their_results_when_they_are_swapped(student, pair):
    _, features, found = pair
    with torch.no_grad():
        swapped = student.pair(*features[::-1], INTRINSICS)
    for here, there in ((found.forward, swapped.backward), (found.disparity, swapped.other_disparity)):
        for one, other in zip(here, there, strict=True):
            torch.testing.assert_close(one, other)


def test_results_have_five_sizes_and_disparities_their_bounds(pair):
    _, _, found = pair
    assert [tuple(part.shape) for part in found.forward] == [(1, 3, side, side) for side in (64, 32, 16, 8, 4)]
    for part in (*found.disparity, *found.other_disparity):
        assert part.shape[1] == 1 and (part > 0).all() and (part < 0.3).all()
    assert not torch.equal(found.disparity[0], found.other_disparity[0])


def test_the_first_of_three_images_is_left_out(student, pair):
    images, _, found = pair
    with torch.no_grad():
        [flow] = student.sequence(torch.stack([torch.rand(1, 3, 64, 64), *images], dim=1), INTRINSICS)
    torch.testing.assert_close(flow.forward[0], found.forward[0])
    assert flow.backward == ()


def test_pixels_are_those_of_the_successor_where_these_are_not_limited():
    torch.manual_seed(2)
    motion, disparity = torch.rand(1, 3, 16, 16) * 0.2, torch.rand(1, 1, 16, 16) * 0.2 + 0.05
    camera = torch.tensor([[[15.0, 0, 8], [0, 15, 8], [0, 0, 1]]])
    expected = target_pixels(motion, disparity, camera)
    torch.testing.assert_close(_target_pixels(motion, disparity, camera), expected, atol=1e-2, rtol=0)


def test_images_of_other_sizes_are_refused(student):
    with pytest.raises(ValueError, match='multiples of 64 px, not 96 x 64'):
        student.features(torch.zeros(1, 3, 64, 96))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A small file in the authors' format: each weight has one value."""
    path = tmp_path_factory.mktemp('checkpoint') / 'selfsup.ckpt'
    shapes = weight_shapes(SelfMonoSf).items()
    torch.save({'state_dict': {f'_model.{name}': torch.tensor(1e-3).expand(shape) for name, shape in shapes}}, path)
    return path


def test_checkpoints_of_the_authors_load_and_are_not_those_of_the_successor(checkpoint):
    assert list(load_weights(checkpoint, network=SelfMonoSf)) == list(weight_shapes(SelfMonoSf))
    assert load_checkpoint(checkpoint).student == 'self_mono_sf'
    with pytest.raises(ModelError, match=r'122 weights of multi_mono_sf.*of self_mono_sf, the predecessor'):
        load_weights(checkpoint)


def test_it_is_neither_exported_nor_trained(checkpoint, tmp_path, capsys):
    assert to_onnx.main([str(checkpoint), '--out', str(tmp_path / 'model.onnx')]) == 1
    assert 'is a self_mono_sf, which has no ONNX form' in capsys.readouterr().err
    with pytest.raises(ConfigError, match='self_mono_sf is for scores of published checkpoints'):
        build_strategy(TrainConfig(student='self_mono_sf'))


def test_a_checkpoint_with_another_weight_is_refused(checkpoint, tmp_path):
    content = torch.load(checkpoint)
    del content['state_dict']['_model.context_networks.conv_sf.0.bias']
    torch.save(content, tmp_path / 'other.ckpt')
    with pytest.raises(ModelError, match=r'118 weights of self_mono_sf\. missing: context_networks\.conv_sf\.0\.bias'):
        load_checkpoint(tmp_path / 'other.ckpt')


def test_it_estimates_from_two_images(student, checkpoint):
    camera = StereoCamera(64, 64, 60.0, 60.0, 32.0, 32.0, 0.54)
    estimator = MonoStudentFlow('self_mono_sf', student, MonoOptions(flip=True))
    assert not estimator.needs_earlier and estimator.num_earlier == 1
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(3)]
    estimator.size = (64, 64)
    found = [estimator.estimate_images([first, *images[1:]], camera) for first in images[:2]]
    np.testing.assert_array_equal(found[0].flow, found[1].flow)
    assert np.isfinite(found[0].disparity).all()
    assert checkpoint_estimator(f'{checkpoint}?size=64x64').is_published
