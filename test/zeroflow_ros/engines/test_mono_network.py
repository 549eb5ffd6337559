# SPDX-License-Identifier: Apache-2.0
"""Model files for one camera run on the vehicle; their values are known, because the images are their own truth."""

import dataclasses
import itertools

import numpy as np
import pytest

onnx = pytest.importorskip('onnx', reason='writing model files needs onnx')
pytest.importorskip('cv2', reason='camera images need OpenCV')

from truth_images import CAMERA, EGO_SPEED, HEIGHT, MOVER_SPEED, SIGMA, WIDTH, frame, is_mover, write_mono_model  # noqa: E402

from zeroflow_ros.camera.metric_scale import MetricScale  # noqa: E402
from zeroflow_ros.camera.mono import MonoFrame, NoFlowError  # noqa: E402
from zeroflow_ros.camera.stereo_pairing import FrameDrop  # noqa: E402
from zeroflow_ros.camera_pipeline import CameraPipeline  # noqa: E402
from zeroflow_ros.engines.mono_card import is_mono_model  # noqa: E402
from zeroflow_ros.engines.mono_network import MonoNetworkFlow, _resized_by_corners, open_mono_estimator  # noqa: E402
from zeroflow_ros.engines.stereo_network import open_stereo_estimator  # noqa: E402
from zeroflow_ros.errors import ConfigError, EgoMotionError, ModelError  # noqa: E402

FORWARD = np.eye(4)  # previous_T_latest of the camera, optical axes
FORWARD[2, 3] = 0.1 * EGO_SPEED


@pytest.fixture(scope='session')
def path(tmp_path_factory):
    return write_mono_model(tmp_path_factory.mktemp('mono') / 'm.onnx')


def run(pipeline, frames, motion=None):
    """Return the estimate of each pair, or the reason why there is none."""
    found = []
    for previous, latest in itertools.pairwise(frames):
        try:
            found.append(pipeline.estimate(previous, latest, 0.1, motion))
        except NoFlowError as error:
            found.append(error.drop)
    return found


def median_velocity(estimate, number, **options):
    """Return the median velocity of the mover and of the rest in the flow of a frame."""
    mover = is_mover(number, estimate.step, **options)
    return tuple(np.nanmedian(estimate.velocity[part], axis=0) for part in (mover, ~mover))


@pytest.mark.parametrize('ego_motion', ['given', 'visual', 'none'])
@pytest.mark.parametrize('step', [1, 2])
def test_the_previous_frame_gets_point_and_velocity_of_each_pixel(path, ego_motion, step):
    pipeline = CameraPipeline(MonoNetworkFlow(path, num_threads=1), output_on='previous', ego_motion=ego_motion,
                              step=step)  # fmt: skip
    first, *estimates = run(pipeline, [frame(k) for k in range(4)], FORWARD if ego_motion == 'given' else None)
    assert first is FrameDrop.FIRST and len(estimates) == 2
    last = estimates[-1]
    towards = -EGO_SPEED if ego_motion == 'none' else 0.0
    moving, rest = median_velocity(last, 2)
    # The floor's depth has steps of 0.1 m: motion that is fitted to it is good to 5 mm a frame.
    np.testing.assert_allclose(moving, [MOVER_SPEED, 0, towards], atol=0.06)
    np.testing.assert_allclose(rest, [0, 0, towards], atol=0.06)
    assert last.points.shape == (HEIGHT // step, WIDTH // step, 3)
    assert np.nanmedian(last.points[is_mover(2, step), 2]) == pytest.approx(4.8, abs=0.01)  # of frame 2
    assert np.mean(last.flow_valid > 0) > 0.8
    np.testing.assert_allclose(CAMERA.depth(last.disparity)[::step, ::step], last.points[..., 2], rtol=1e-4)


def test_the_error_of_the_speed_grows_with_depth_and_with_an_ego_motion_of_another_scale(path):
    def sigma(ego_motion, motion):
        pipeline = CameraPipeline(MonoNetworkFlow(path), output_on='previous', ego_motion=ego_motion)
        estimate = run(pipeline, [frame(k) for k in range(3)], motion)[-1]
        return estimate.speed_sigma[8, 40], estimate.points[8, 40, 2]

    visual, depth = sigma('visual', None)
    assert visual == pytest.approx(SIGMA[1] * depth / 0.1, rel=0.01)
    assert sigma('given', FORWARD)[0] == pytest.approx(np.hypot(visual, SIGMA[0] * 0.1 / 0.1), rel=0.01)


def test_the_state_continues_over_a_frame_without_flow_and_begins_anew_after_a_gap(path):
    estimator = MonoNetworkFlow(path)
    pipeline = CameraPipeline(estimator, output_on='previous', ego_motion='none')
    run(pipeline, [frame(k) for k in range(4)])
    assert (estimator.num_starts, estimator._state['count'][0]) == (1, 4)
    found = pipeline.estimate(frame(5), frame(6), 0.1)  # frame 4 was dropped: its odometry was missing
    assert (estimator.num_starts, estimator._state['count'][0]) == (1, 6)
    np.testing.assert_allclose(median_velocity(found, 5)[0], [MOVER_SPEED, 0, -EGO_SPEED], atol=0.02)
    for late, said in [((11, 12), '0.50 s between two images'), ((2, 3), '-1.00 s between two images')]:
        assert run(pipeline, [frame(k) for k in late]) == [FrameDrop.FIRST]
        assert estimator._state['count'][0] == 2 and said in estimator.start_reason
    assert estimator.num_starts == 3 and estimator.facts()['state_starts'] == '3'


def test_a_camera_that_changes_begins_anew_and_forgets_its_scale(path):
    estimator = MonoNetworkFlow(path, scale=MetricScale('camera_height', 2.4))
    pipeline = CameraPipeline(estimator, output_on='previous', ego_motion='none')
    run(pipeline, [frame(k) for k in range(9)])
    assert estimator.scale.factor is not None
    other = dataclasses.replace(CAMERA, fx=60.0)
    frames = [MonoFrame(frame(k).image, other, frame(k).stamp_ns) for k in (9, 10)]
    assert run(pipeline, frames) == [FrameDrop.FIRST]
    assert 'the camera changed' in estimator.start_reason and estimator.scale.factor is None


@pytest.mark.parametrize('source, height, motion', [('odometry', 0.0, 2.0), ('camera_height', 2.4, 1.0)])
def test_the_scale_makes_metres_of_lengths(path, source, height, motion):
    """The images show 0.1 m a frame and a floor 1.2 m below; the truth is twice as large."""
    moved = np.eye(4)
    moved[2, 3] = 0.2
    estimator = open_mono_estimator(str(path), scale=source, camera_height=height)
    pipeline = CameraPipeline(estimator, output_on='previous', ego_motion='given')
    found = run(pipeline, [frame(k) for k in range(9)], moved)
    assert found[1] is FrameDrop.NO_SCALE and found.count(FrameDrop.NO_SCALE) == 4
    last = found[-1]
    assert float(estimator.facts()['scale']) == pytest.approx(2.0, abs=0.03)
    assert np.nanmedian(last.points[is_mover(7), 2]) == pytest.approx(2 * 4.3, abs=0.15)
    moving, rest = median_velocity(last, 7)
    np.testing.assert_allclose(moving, [2 * MOVER_SPEED, 0, 0], atol=0.1)
    np.testing.assert_allclose(rest, 0, atol=0.1)


def test_a_standing_camera_keeps_the_scale_and_says_so(path):
    estimator = MonoNetworkFlow(path, scale=MetricScale('odometry'))
    pipeline = CameraPipeline(estimator, output_on='previous', ego_motion='given')
    moved = np.eye(4)
    moved[2, 3] = 0.2
    run(pipeline, [frame(k) for k in range(8)], moved)
    before = estimator.scale.factor
    found = run(pipeline, [frame(k, drives=False) for k in range(8, 30)], np.eye(4))
    assert estimator.scale.factor == before == pytest.approx(2.0, abs=0.02)
    assert 'The camera moved 0.00 m between two frames' in estimator.facts()['scale_kept']
    np.testing.assert_allclose(median_velocity(found[-1], 28, drives=False)[1], 0, atol=1e-3)


def test_grey_images_are_taken(path):
    estimator = MonoNetworkFlow(path)
    frames = [MonoFrame(np.ascontiguousarray(frame(k).image[..., 0]), CAMERA, frame(k).stamp_ns) for k in range(3)]
    pipeline = CameraPipeline(estimator, output_on='previous', ego_motion='none')
    assert run(pipeline, frames)[-1].points.shape == (HEIGHT, WIDTH, 3)


def test_images_of_another_size_than_the_models_are_scaled(path):
    """Twice the size: each pixel of the model is two of the camera."""
    estimator, camera = MonoNetworkFlow(path), CAMERA.scaled(2 * WIDTH, 2 * HEIGHT)
    frames = [MonoFrame(frame(k).image.repeat(2, 0).repeat(2, 1), camera, frame(k).stamp_ns) for k in range(3)]
    last = run(CameraPipeline(estimator, output_on='previous', ego_motion='visual'), frames)[-1]
    inside = is_mover(1).repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(np.nanmedian(last.velocity[inside], axis=0), [MOVER_SPEED, 0, 0], atol=0.05)
    assert np.nanmedian(last.points[inside, 2]) == pytest.approx(4.9, abs=0.01)


def test_corners_stay_on_corners():
    image = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5)
    small = _resized_by_corners(image, 3, 3)
    np.testing.assert_array_equal(small, image[::2, ::2])
    np.testing.assert_array_equal(_resized_by_corners(image, 9, 5)[:, 1::2], image[:, :-1] + 5)


def test_a_result_that_is_not_finite_is_an_error_and_the_state_begins_anew(tmp_path):
    def spoil(proto):
        proto.graph.initializer[1].float_data[0] = np.nan

    estimator = MonoNetworkFlow(write_mono_model(tmp_path / 'm.onnx', spoil=spoil))
    with pytest.raises(ModelError, match='not finite; its state begins anew'):
        estimator.estimate(frame(0), frame(1))
    assert estimator._last is None


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'width': 32}, 'fields call for the inputs'),
        ({'state': {'newer': [1, 8, 8, 3], 'count': [1]}}, 'its card says'),
        ({'state': {'newer': [1, HEIGHT, WIDTH, 3]}}, 'its card says'),
        ({'state': {}}, 'a state has 1 to'),
        ({'estimates_sigma': True}, 'one output'),
    ],
)
def test_a_model_that_does_not_fit_its_card_is_refused(tmp_path, changes, said):
    with pytest.raises(ModelError, match=said):
        MonoNetworkFlow(write_mono_model(tmp_path / 'm.onnx', **changes))


def test_a_changed_file_another_model_and_a_missing_one_are_refused(tmp_path, path):
    changed = tmp_path / 'm.onnx'
    changed.write_bytes(path.read_bytes().replace(b'hand_made', b'hand_mada'))
    with pytest.raises(ModelError, match='damaged'):
        MonoNetworkFlow(changed)
    with pytest.raises(ModelError, match='without the card of a model for stereo cameras'):
        open_stereo_estimator(str(path))
    with pytest.raises(ModelError, match='One camera needs a model file'):
        open_mono_estimator('')
    with pytest.raises(ModelError, match='No model file at'):
        open_mono_estimator(str(tmp_path / 'none.onnx'))
    assert is_mono_model(path) and not is_mono_model(tmp_path / 'none.onnx')


def test_flow_of_the_other_frame_is_refused(path):
    with pytest.raises(ConfigError, match='flow of the previous frame of a pair, not of the latest'):
        CameraPipeline(MonoNetworkFlow(path), output_on='latest')


def test_a_scene_without_one_motion_has_no_visual_ego_motion(path):
    noise = np.random.default_rng(0)
    frames = [MonoFrame(noise.integers(60, 200, (HEIGHT, WIDTH, 3), np.uint8), CAMERA, k * 10**8 + 1) for k in range(3)]
    pipeline = CameraPipeline(MonoNetworkFlow(path), output_on='previous', ego_motion='visual')
    assert run(pipeline, frames[:2]) == [FrameDrop.FIRST]
    with pytest.raises(EgoMotionError, match='do not show the motion of the camera'):
        pipeline.estimate(*frames[1:], 0.1)
