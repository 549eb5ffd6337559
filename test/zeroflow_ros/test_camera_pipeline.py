# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from stereo_corridor import CAMERA, EGO_SPEED, MOVER, MOVER_SPEED, frame, on_mover

pytest.importorskip('cv2', reason='needs OpenCV')

from zeroflow_ros.camera.classical_flow import ClassicalStereoFlow
from zeroflow_ros.camera_pipeline import CameraPipeline
from zeroflow_ros.errors import ConfigError, EgoMotionError

DT = 0.1
FORWARD = np.eye(4)
FORWARD[2, 3] = EGO_SPEED * DT  # previous_T_latest


@pytest.fixture(scope='module')
def frames():
    return frame(0), frame(1)


def estimate(frames, ego_motion, output_on='latest', **options):
    pipeline = CameraPipeline(ClassicalStereoFlow(), output_on=output_on, ego_motion=ego_motion)
    return pipeline.estimate(*frames, DT, FORWARD if ego_motion == 'given' else None, **options)


@pytest.mark.parametrize('ego_motion, flag', [('given', 3), ('visual', 3), ('none', 1)])
@pytest.mark.parametrize('output_on, seconds', [('latest', DT), ('previous', 0.0)])
def test_the_board_moves_and_the_corridor_does_not(frames, ego_motion, flag, output_on, seconds):
    found = estimate(frames, ego_motion, output_on)
    height, width = CAMERA.height, CAMERA.width
    assert found.points.shape == found.velocity.shape == (height, width, 3) and found.output_on == output_on
    assert found.speed_sigma.shape == found.flow_valid.shape == found.disparity.shape == (height, width)
    assert {a.dtype for a in (found.points, found.velocity, found.speed_sigma)} == {np.dtype(np.float32)}
    moving = on_mover(seconds)
    # Without ego motion all is seen from the camera, which drives forward.
    towards = -EGO_SPEED if ego_motion == 'none' else 0.0
    board, wall = (np.nanmedian(found.velocity[where], axis=0) for where in (moving, ~moving))
    np.testing.assert_allclose(board, [MOVER_SPEED, 0, towards], atol=0.5)  # m/s: 0.1 px of disparity at 4 m
    np.testing.assert_allclose(wall, [0, 0, towards], atol=0.25)
    assert np.nanmedian(found.points[moving, 2]) == pytest.approx(MOVER - EGO_SPEED * seconds, abs=0.1)
    valid = found.flow_valid > 0
    assert set(np.unique(found.flow_valid)) == {0, flag} and valid.mean() > 0.5
    np.testing.assert_array_equal(np.isfinite(found.velocity).all(axis=-1), valid)
    np.testing.assert_array_equal(np.isfinite(found.speed_sigma), valid)
    assert found.dt == DT and {'estimate', 'velocity'} <= set(found.stages_ms)
    if ego_motion == 'none':
        assert found.other_T_reference is None
    else:
        sign = 1 if output_on == 'latest' else -1
        np.testing.assert_allclose(found.other_T_reference[:3, 3], [0, 0, sign * EGO_SPEED * DT], atol=0.03)


def test_what_a_raw_camera_did_not_see_has_no_velocity(frames):
    is_seen = np.ones((CAMERA.height, CAMERA.width), bool)
    is_seen[:, :60] = False
    found = estimate(frames, 'visual', is_seen=is_seen)
    assert not found.flow_valid[:, :60].any() and found.flow_valid[:, 60:].any()
    assert np.isnan(found.velocity[:, :60]).all()


@pytest.mark.parametrize('step', [2, 3])
def test_a_step_gives_the_same_velocities_of_fewer_pixels(frames, step):
    def estimate(step):
        pipeline = CameraPipeline(ClassicalStereoFlow(), ego_motion='visual', step=step)
        return pipeline.estimate(*frames, DT)

    every, some = estimate(1), estimate(step)
    for name in ('points', 'velocity', 'speed_sigma'):
        np.testing.assert_allclose(getattr(some, name), every.image(getattr(every, name))[::step, ::step], rtol=1e-3,
                                   atol=1e-4)  # fmt: skip
    np.testing.assert_array_equal(some.flow_valid, every.flow_valid[::step, ::step])
    np.testing.assert_array_equal(some.disparity, every.disparity)
    np.testing.assert_array_equal(some.image(frames[1].left), frames[1].left[::step, ::step])


def test_ego_motion_is_neither_forgotten_nor_assumed(frames):
    pipeline = CameraPipeline(ClassicalStereoFlow())
    with pytest.raises(EgoMotionError, match="Ego motion 'given'"):
        pipeline.estimate(*frames, DT)
    with pytest.raises(EgoMotionError, match="Ego motion 'visual'"):
        CameraPipeline(ClassicalStereoFlow(), ego_motion='visual').estimate(*frames, DT, FORWARD)
    with pytest.raises(ValueError, match='positive seconds'):
        pipeline.estimate(*frames, 0.0, FORWARD)
    wrong = FORWARD.copy()
    wrong[0, 3] = 2.0  # m in 0.1 s, sideways
    with pytest.raises(EgoMotionError):
        pipeline.estimate(*frames, DT, wrong)


@pytest.mark.parametrize(
    'options, said',
    [({'output_on': 'both'}, 'output_on'), ({'ego_motion': 'imu'}, 'ego_motion'), ({'step': 0}, 'step')],
)
def test_a_wrong_choice_is_an_error(options, said):
    with pytest.raises(ConfigError, match=said):
        CameraPipeline(ClassicalStereoFlow(), **options)
