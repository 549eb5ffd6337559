# SPDX-License-Identifier: Apache-2.0
"""Model files for stereo cameras run on the vehicle; their values are known, because the graphs are made by hand."""

import dataclasses

import numpy as np
import pytest
import stereo_corridor

onnx = pytest.importorskip('onnx', reason='writing model files needs onnx')
pytest.importorskip('cv2', reason='camera images need OpenCV')

from export.model_file import write_model  # noqa: E402
from zeroflow_ros.camera.camera_motion import rigid_flow  # noqa: E402
from zeroflow_ros.camera.network_images import NetworkImages  # noqa: E402
from zeroflow_ros.camera.static_scene import UNKNOWN_MOTION, pixel_motion  # noqa: E402
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame  # noqa: E402
from zeroflow_ros.engines.onnxruntime_engine import OnnxRuntimeEngine  # noqa: E402
from zeroflow_ros.engines.stereo_card import METADATA_KEY, StereoCard  # noqa: E402
from zeroflow_ros.engines.stereo_network import (  # noqa: E402
    NetworkStereoFlow,
    StereoNetworkFlow,
    _differ,
    open_stereo_estimator,
)
from zeroflow_ros.errors import ModelError  # noqa: E402
from zeroflow_ros.transforms import yaw_translation  # noqa: E402

CAMERA = StereoCamera(16, 8, 10.0, 10.0, 7.5, 3.5, 0.5)
SIGMA = (0.5, 1.0, 2.0)


def write(path, *, ego_motion=False, sigma=False, **changes):
    """Write a model at half of the camera's size. Its scene flow is the mean of each image, in their order.

    With ego motion, that is its first row instead. The logarithms of the sigmas are 0, 1 and 2.
    """
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor
    nodes, inputs = [], {'images': [4, 4, 8, 3]}
    if ego_motion:
        inputs['ego_motion'] = [1, 3, 4]
        nodes += [node('Slice', ['ego_motion', 'zero', 'one', 'row'], ['given'])]
    else:
        nodes += [node('Cast', ['images'], ['f'], to=1), node('ReduceMean', ['f', 'axes'], ['given'], keepdims=0)]
    nodes += [node('Reshape', ['given', 'shape'], ['values'])]
    joined = 'values'
    if sigma:
        nodes += [node('Concat', ['values', 'sigmas'], ['both'], axis=1)]
        joined = 'both'
    num = 7 if sigma else 4
    nodes += [node('Expand', [joined, 'size'], ['scene_flow'])]
    integers = {'zero': [0], 'one': [1], 'row': [1], 'axes': [1, 2, 3], 'shape': [1, 4, 1, 1], 'size': [1, num, 4, 8]}
    weights = [tensor(name, onnx.TensorProto.INT64, [len(value)], value) for name, value in integers.items()]
    weights += [tensor('sigmas', onnx.TensorProto.FLOAT, [1, 3, 1, 1], [0, 1, 2])]
    outputs = {'scene_flow': [1, num, 4, 8]}
    kinds = {'images': onnx.TensorProto.UINT8}
    values = [
        [onnx.helper.make_tensor_value_info(name, kinds.get(name, onnx.TensorProto.FLOAT), shape)
         for name, shape in part.items()] for part in (inputs, outputs)
    ]  # fmt: skip
    graph = onnx.helper.make_graph(nodes, 'hand_made', *values, weights)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 20)], ir_version=9)
    card = StereoCard(
        name='m', student='hand_made', precision='float32', width=8, height=4, resize='scale',
        uses_ego_motion=ego_motion, estimates_sigma=sigma, sigma_px=SIGMA, training={}, licence='Apache-2.0',
        versions={}, inputs=inputs, outputs=outputs,
    )  # fmt: skip
    write_model(proto, dataclasses.replace(card, **changes), path, key=METADATA_KEY)
    return path


def frame(left, right, camera=CAMERA):
    return StereoFrame(*(np.full((8, 16, 3), value, np.uint8) for value in (left, right)), camera)


def test_images_go_in_the_order_of_the_card_and_pixels_become_those_of_the_camera(tmp_path):
    estimator = NetworkStereoFlow(write(tmp_path / 'm.onnx'), num_threads=1)
    found = estimator.estimate(frame(3, 2), frame(1, 4))
    assert estimator.name == 'm' and 'onnxruntime' in estimator.runs_on
    assert found.disparity.shape == (8, 16) and found.flow.shape == (8, 16, 2)
    assert (found.disparity == 6).all() and (found.other_disparity == 4).all()  # a pixel of the network is two
    assert (found.flow == [2, 8]).all() and found.other_T_reference is None
    assert (found.disparity_sigma == 1).all() and (found.other_disparity_sigma == 2).all()
    assert (found.flow_sigma == 4).all()
    assert all(part.dtype == np.float32 for part in (found.disparity, found.flow, found.flow_sigma))


def test_the_flow_of_every_second_pixel_is_that_of_all_pixels(tmp_path):
    estimator = NetworkStereoFlow(write(tmp_path / 'm.onnx', ego_motion=True, sigma=True), num_threads=1)
    frames = frame(3, 2), frame(1, 4)
    motion = yaw_translation(0.02, 0.1, 0.0, -0.4)
    all_pixels = estimator.estimate(*frames, motion)
    found = estimator.estimate_every_nth(*frames, motion, step=2)
    for name in ('disparity', 'other_disparity', 'flow', 'disparity_sigma', 'other_disparity_sigma', 'flow_sigma'):
        whole = getattr(all_pixels, name)
        np.testing.assert_allclose(getattr(found, name), whole[::2, ::2] / 2, rtol=1e-6)
        assert np.abs(whole).max() > 0
    assert (found.is_measured == all_pixels.is_measured[::2, ::2]).all() and found.disparity.shape == (4, 8)
    measured = np.where(all_pixels.is_measured, all_pixels.disparity, np.nan)
    np.testing.assert_array_equal(found.full_disparity(), measured)


def test_images_of_a_frame_are_resized_once(tmp_path, monkeypatch):
    estimator = NetworkStereoFlow(write(tmp_path / 'm.onnx'), num_threads=1)
    resized, images = [], NetworkImages.images
    monkeypatch.setattr(NetworkImages, 'images', lambda self, one: resized.append(one) or images(self, one))
    first, second, third = frame(3, 2), frame(1, 4), frame(5, 6)
    estimator.estimate(second, first)
    found = estimator.estimate(third, second)
    assert len(resized) == 3 and (found.disparity == 10).all() and (found.flow == [2, 8]).all()


def test_pixels_that_leave_the_image_are_not_measured(tmp_path):
    measured = NetworkStereoFlow(write(tmp_path / 'm.onnx')).estimate(frame(3, 2), frame(1, 2)).is_measured
    assert measured[:4, :14].all() and measured.sum() == 4 * 14  # flow (2, 4) in an image of 16 x 8


def test_pixels_without_disparity_are_not_measured(tmp_path):
    estimator = NetworkStereoFlow(write(tmp_path / 'm.onnx'))
    assert not estimator.estimate(frame(0, 2), frame(0, 0)).is_measured.any()
    assert not estimator.estimate(frame(2, 0), frame(0, 0)).is_measured.any()
    assert estimator.estimate(frame(2, 2), frame(0, 0)).is_measured.all()


def test_ego_motion_is_that_of_the_networks_pixels_and_unknown_motion_is_none(tmp_path):
    estimator = NetworkStereoFlow(write(tmp_path / 'm.onnx', ego_motion=True, sigma_px=(1e-3, 1e-3, 1e-3)))
    other_T_reference = yaw_translation(0.1, 0.2, 0.0, -0.5)
    found = estimator.estimate(frame(1, 1), frame(1, 1), other_T_reference)
    first_row = pixel_motion(CAMERA.scaled(8, 4), other_T_reference)[0]
    np.testing.assert_allclose(found.disparity[0, 0], 2 * first_row[0], rtol=1e-6)
    np.testing.assert_allclose(found.flow[0, 0], 2 * first_row[2:], rtol=1e-6)
    assert found.other_T_reference is other_T_reference
    assert (estimator.estimate(frame(1, 1), frame(1, 1)).disparity == 2).all()  # the first entry of the identity


def test_estimated_errors_are_those_of_a_laplace_distribution(tmp_path):
    estimator = NetworkStereoFlow(write(tmp_path / 'm.onnx', ego_motion=True, sigma=True))
    found = estimator.estimate(frame(1, 1), frame(1, 1), yaw_translation(0.1, 0.2, 0.0, -0.5))
    np.testing.assert_allclose(found.disparity_sigma, 2 * np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(found.flow_sigma, 2 * np.sqrt(2) * np.exp(2), rtol=1e-6)


def test_pixels_that_agree_with_the_static_scene_have_its_motion(tmp_path):
    """The network gives all pixels the same values; how much that is off depends on the pixel."""
    estimator = NetworkStereoFlow(write(tmp_path / 'm.onnx', ego_motion=True, sigma_px=(0.38955, 0.38955, 0.7791)))
    motion = np.eye(4)
    motion[2, 3] = -0.2
    found = estimator.estimate(frame(1, 1), frame(1, 1), motion)
    camera = CAMERA.scaled(8, 4)
    values = pixel_motion(camera, motion)[0].astype(np.float32)  # disparity, other disparity, flow u, v
    flow, other_disparity = rigid_flow(camera, np.full((4, 8), values[0], np.float32), motion)
    error = ((values[2:] - flow) ** 2).sum(2) / (2 * 0.7791**2) + (values[1] - other_disparity) ** 2 / (2 * 0.38955**2)
    agrees = error < 4
    assert 2 < agrees.sum() < 30
    own = np.broadcast_to(values[2:], flow.shape)
    expected = 2 * np.where(agrees[..., None], flow, own)
    at_pixels = [estimator.card.images.to_camera(np.ascontiguousarray(expected[..., k]), CAMERA) for k in (0, 1)]
    np.testing.assert_allclose(found.flow, np.stack(at_pixels, 2), atol=1e-4)


def test_unknown_ego_motion_is_fitted_to_the_scene_flow(tmp_path):
    """A plane at fx * baseline / 6 px = 0.83 m moves by 2 px at a focal length of 10 px: 0.167 m."""
    found = NetworkStereoFlow(write(tmp_path / 'm.onnx')).estimate(frame(3, 3), frame(1, 0))
    np.testing.assert_allclose(found.other_T_reference[:3, 3], [1 / 6, 0, 0], atol=1e-3)
    np.testing.assert_allclose(found.other_T_reference[:3, :3], np.eye(3), atol=1e-3)


@pytest.mark.parametrize(
    'x, yaw, differs', [(0.0, 0.0, False), (0.04, 0.004, False), (0.06, 0.0, True), (0.0, 0.006, True)]
)
def test_the_network_runs_again_where_the_ego_motion_differs(x, yaw, differs):
    start = yaw_translation(0.3, 0.0, 0.0, -1.0)
    assert _differ(start, start @ yaw_translation(yaw, x, 0.0, 0.0)) == differs


class DepthOnly(StereoNetworkFlow):
    """Knows the disparity of a street of boards, and no flow; keeps the ego motions that it is given."""

    def __init__(self, card):
        super().__init__(card, 'test')
        self.given = []

    def infer(self, inputs):
        self.given.append(inputs['ego_motion'][0])
        height, width = inputs['images'].shape[1:3]
        disparity = stereo_corridor.disparity(0)[:: stereo_corridor.CAMERA.height // height]
        disparity = disparity[:, :: stereo_corridor.CAMERA.width // width] * (width / stereo_corridor.CAMERA.width)
        zero = np.zeros_like(disparity)
        return np.stack([disparity, disparity, zero, zero, zero, zero, zero])[None].astype(np.float32)


@pytest.mark.parametrize('step', [1, 2])
def test_the_first_ego_motion_is_searched_in_the_images(tmp_path, step):
    """The network has no flow without ego motion, so that none can be fitted to it."""
    card = NetworkStereoFlow(write(tmp_path / 'm.onnx', ego_motion=True, sigma=True)).card
    estimator = DepthOnly(dataclasses.replace(card, width=112, height=56))
    frames = stereo_corridor.frame(0), stereo_corridor.frame(1)
    found = estimator.estimate_every_nth(*frames, step=step)
    forward = stereo_corridor.EGO_SPEED * stereo_corridor.PERIOD_NS * 1e-9  # m
    np.testing.assert_allclose(found.other_T_reference[:3, 3], [0, 0, -forward], atol=0.02)
    assert len(estimator.given) == 2 and np.array_equal(estimator.given[0], UNKNOWN_MOTION)
    camera = estimator.card.images.camera(stereo_corridor.CAMERA)
    np.testing.assert_array_equal(estimator.given[1], pixel_motion(camera, found.other_T_reference))


def test_the_ego_motion_of_the_pair_before_does_not_confirm_itself(tmp_path):
    card = NetworkStereoFlow(write(tmp_path / 'm.onnx', ego_motion=True, sigma=True)).card
    estimator = DepthOnly(dataclasses.replace(card, width=112, height=56))
    estimator._last_motion = yaw_translation(0.0, 0.0, 0.0, -0.4)
    found = estimator.estimate(stereo_corridor.frame(0), stereo_corridor.frame(1))
    forward = stereo_corridor.EGO_SPEED * stereo_corridor.PERIOD_NS * 1e-9  # m
    np.testing.assert_allclose(found.other_T_reference[:3, 3], [0, 0, -forward], atol=0.02)
    assert len(estimator.given) == 2


def test_the_ego_motion_is_fitted_to_the_disparity_of_the_pair_before_and_the_network_runs_once(tmp_path):
    card = NetworkStereoFlow(write(tmp_path / 'm.onnx', ego_motion=True, sigma=True)).card
    estimator = DepthOnly(dataclasses.replace(card, width=112, height=56))
    before, between, latest = (stereo_corridor.frame(number) for number in (-1, 0, 1))
    estimator.estimate(between, before)
    assert len(estimator.given) == 2  # its motion was searched
    found = estimator.estimate(latest, between)
    backward = stereo_corridor.EGO_SPEED * stereo_corridor.PERIOD_NS * 1e-9  # m
    np.testing.assert_allclose(found.other_T_reference[:3, 3], [0, 0, backward], atol=0.02)
    assert len(estimator.given) == 3
    camera = estimator.card.images.camera(stereo_corridor.CAMERA)
    np.testing.assert_array_equal(estimator.given[2], pixel_motion(camera, found.other_T_reference))
    estimator.estimate(before, latest)  # whose disparity at that time is not that of the last reference
    assert len(estimator.given) >= 4


def test_the_network_runs_again_without_ego_motion_where_none_fits(tmp_path):
    estimator = NetworkStereoFlow(write(tmp_path / 'm.onnx', ego_motion=True, sigma=True))
    runs, run = [], estimator._run
    estimator._run = lambda images, camera, motion: runs.append(motion) or run(images, camera, motion)
    estimator._last_motion = yaw_translation(0.0, 0.0, 0.0, -1.0)
    assert estimator.estimate(frame(1, 1), frame(1, 1)).other_T_reference is None
    assert len(runs) == 2 and runs[0] is not None and runs[1] is None and estimator._last_motion is None
    estimator.estimate(frame(1, 1), frame(1, 1))
    assert len(runs) == 3 and runs[2] is None


def test_disparity_of_infinitely_far_points_is_added_again(tmp_path):
    camera = dataclasses.replace(CAMERA, right_cx=5.5)
    found = NetworkStereoFlow(write(tmp_path / 'm.onnx')).estimate(frame(3, 2, camera), frame(1, 4, camera))
    assert (found.disparity == 6 + 2).all() and (found.other_disparity == 4 + 2).all()


def test_an_empty_path_is_the_classical_estimator_and_a_missing_file_is_said(tmp_path):
    assert open_stereo_estimator().name == 'classical'
    assert open_stereo_estimator(str(write(tmp_path / 'm.onnx')), num_threads=1).name == 'm'
    with pytest.raises(ModelError, match='No model file at'):
        open_stereo_estimator(str(tmp_path / 'n.onnx'))


def test_a_changed_file_or_another_model_is_refused(tmp_path):
    path = write(tmp_path / 'm.onnx')
    path.write_bytes(path.read_bytes().replace(b'hand_made', b'hand_mada'))
    with pytest.raises(ModelError, match='damaged'):
        NetworkStereoFlow(path)
    with pytest.raises(ModelError, match='fields call for'):
        NetworkStereoFlow(write(tmp_path / 'w.onnx', width=16))
    with pytest.raises(ModelError, match='without a model card'):
        OnnxRuntimeEngine(write(tmp_path / 'n.onnx'))
    (tmp_path / 'x.onnx').write_bytes(b'text')
    with pytest.raises(ModelError, match='cannot load'):
        NetworkStereoFlow(tmp_path / 'x.onnx')


def test_the_largest_disparity_is_that_of_the_parameter():
    pytest.importorskip('cv2', reason='needs OpenCV')
    assert [open_stereo_estimator(max_disparity=px).config.matching.max_disparity for px in (0, 256)] == [128, 256]
