# SPDX-License-Identifier: Apache-2.0
"""Model files of one camera as estimators: metres, the start of each pair, what is refused."""

import dataclasses

import numpy as np
import pytest

onnx = pytest.importorskip('onnx', reason='writing model files needs onnx')
from kitti_files import write_scene  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from export.model_file import write_model  # noqa: E402
from training.datasets import STEREO, open_dataset  # noqa: E402
from training.scoring.stereo_estimators import build_stereo_estimator, estimate_pair  # noqa: E402
from zeroflow_ros.camera.stereo import StereoCamera  # noqa: E402
from zeroflow_ros.engines.mono_card import METADATA_KEY, MonoCard  # noqa: E402
from zeroflow_ros.errors import ConfigError, DataError, ModelError  # noqa: E402

CAMERA = StereoCamera(64, 48, 100.0, 100.0, 31.5, 23.5, 0.6)
CARD = MonoCard(
    name='plane', student='plane', precision='float32', width=32, height=32, resize='scale', refers_to='previous',
    num_images=3, far=78.0, scale='none', splat='none', nominal_dt=0.1, estimates_sigma=False, sigma=(0.1, 0.01),
    training={}, licence='none', versions={}, state={'count': [1]},
    inputs={'image': [1, 32, 32, 3], 'intrinsics': [1, 3, 3]}, outputs={'scene_flow': [1, 4, 8, 8]},
)  # fmt: skip


def write_plane(path, **changes):
    """Write a model that sees a plane 10 m away, which comes a metre closer for each image since the start."""
    card = dataclasses.replace(CARD, **changes)
    values = np.zeros((1, 4, 8, 8), np.float32)
    motion = values.copy()
    values[:, 0], motion[:, 3] = 10, -1
    constants = {'depth': values, 'motion': motion, 'one': np.ones(1, np.float32)}
    nodes = [
        helper.make_node('Add', ['count', 'one'], ['next_count']),
        helper.make_node('Mul', ['motion', 'next_count'], ['moved']),
        helper.make_node('Add', ['depth', 'moved'], ['scene_flow']),
    ]
    types = {'image': TensorProto.UINT8}
    inputs, outputs = (
        [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape) for name, shape in part.items()]
        for part in card.tensors()
    )
    graph = helper.make_graph(
        nodes, 'plane', inputs, outputs, [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=9)
    write_model(model, card, path, key=METADATA_KEY)
    return path


@pytest.fixture(scope='module')
def plane(tmp_path_factory):
    return write_plane(tmp_path_factory.mktemp('model') / 'plane.onnx')


def test_each_pair_starts_anew_and_metres_are_those_of_the_model(plane):
    estimator = build_stereo_estimator(f'{plane}?images=4')
    assert estimator.num_cameras == 1 and estimator.num_earlier == 2
    images = [np.full((48, 64), 50, np.uint8)] * 4
    for _ in range(2):
        found = estimator.estimate_images(images, CAMERA)
        np.testing.assert_allclose(CAMERA.depth(found.disparity), 10, rtol=1e-5)
        inside = found.is_measured
        assert inside[20:28, 28:36].all()
        np.testing.assert_allclose(CAMERA.depth(found.other_disparity)[inside], 6, rtol=1e-4)  # the 4th image: 4 m
    assert found.other_T_reference is None


def test_disparities_can_be_those_of_the_camera_as_published(plane):
    found = build_stereo_estimator(f'{plane}?baseline=0&images=3').estimate_images(
        [np.full((48, 64), 50, np.uint8)] * 3, CAMERA
    )
    np.testing.assert_allclose(found.disparity, 100 * 0.54 / 10, rtol=1e-5)


def test_a_pair_of_a_data_set(plane, tmp_path):
    dataset = open_dataset(f'kitti_scene_flow:{write_scene(tmp_path / "training", frames=(9, 10, 11))}', (STEREO,))
    found = estimate_pair(build_stereo_estimator(str(plane)), dataset[0])
    np.testing.assert_allclose(dataset[0].reference.camera.depth(found.disparity), 10, rtol=1e-5)


def test_what_model_files_do_not_have_is_said(plane, tmp_path):
    for options in ('flip=true', 'size=64x64'):
        with pytest.raises(ConfigError, match=r'size and flip are for checkpoints.*with --size'):
            build_stereo_estimator(f'{plane}?{options}')
    with pytest.raises(ModelError, match='motion of the latest image back in time'):
        build_stereo_estimator(str(write_plane(tmp_path / 'latest.onnx', refers_to='latest')))
    estimator = build_stereo_estimator(str(plane))
    with pytest.raises(DataError, match='needs 3 images or more, got 2'):
        estimator.estimate_images([np.zeros((48, 64), np.uint8)] * 2, CAMERA)
    with pytest.raises(DataError, match='An image is 60 x 48 px'):
        estimator.estimate_images([np.zeros((48, 60), np.uint8)] * 3, CAMERA)
