# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
from stereo_corridor import EGO_SPEED
from stereo_corridor import frame as corridor
from textured_planes import (
    CAMERA,
    DT,
    MOVER,
    STATIC_SCENE,
    WALL,
    Plane,
    camera_motion,
    other_T_reference,
    stereo_pair,
    truth,
)

from zeroflow_ros import transforms
from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.classical_flow import ClassicalConfig, ClassicalStereoFlow
from zeroflow_ros.camera.pixel_velocity import is_moving, pixel_velocity
from zeroflow_ros.camera.stereo import StereoFrame
from zeroflow_ros.camera.stereo_matching import StereoMatcher
from zeroflow_ros.errors import ConfigError, EgoMotionError

CONFIG = ClassicalConfig(scale=1.0)  # the images are as small as half of real ones
POSE = camera_motion((0.002, 0.01, 0), (0.02, 0, 0.5))
SCENE = (*STATIC_SCENE, MOVER)


@pytest.fixture(scope='module')
def pair():
    return stereo_pair(SCENE, POSE)


def velocities(flow, *, reverse=False):
    return pixel_velocity(flow, CAMERA, -DT if reverse else DT)


def world_velocity(plane, pose, *, reverse=False):
    """Return the velocity of a plane in the axes of the reference frame."""
    return (pose[:3, :3].T if reverse else np.eye(3)) @ np.array(plane.velocity)


@pytest.mark.parametrize('scale, step, fill', [(1.0, 1, True), (0.5, 2, False), (0.7, 3, False)])
def test_numba_and_numpy_give_the_same_flow(pair, scale, step, fill, monkeypatch):
    if numba_support.numba_kernels is None:
        pytest.skip('needs numba')
    ego = other_T_reference(POSE)

    def flow():
        estimator = ClassicalStereoFlow(ClassicalConfig(scale=scale, fill=fill))
        return estimator.estimate_every_nth(*pair, ego, step=step)

    fast = flow()
    monkeypatch.setattr(numba_support, 'numba_kernels', None)
    plain = flow()
    assert fast.disparity.shape == (-(-CAMERA.height // step), -(-CAMERA.width // step))
    np.testing.assert_array_equal(fast.disparity, plain.disparity)
    np.testing.assert_array_equal(fast.full_disparity(), plain.full_disparity())
    assert (fast.is_measured != plain.is_measured).mean() < 0.02  # cv2 interpolates in steps of 1/32 px
    both = fast.is_measured & plain.is_measured
    assert both.mean() > 0.4
    for name in ('flow', 'other_disparity', 'motion_sigma'):
        a, b = getattr(fast, name), getattr(plain, name)
        assert (np.isnan(a) == np.isnan(b))[both].mean() > 0.98
        assert np.nanmedian(np.abs(a - b)[both]) < 0.01 if name != 'motion_sigma' else True
        assert np.isnan(a[~fast.is_measured]).all() or fill


@pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'backward'])
@pytest.mark.parametrize('is_given', [False, True], ids=['found', 'given'])
def test_scene_flow_of_a_moving_box_in_both_directions_of_time(pair, is_given, reverse):
    reference, other = pair[::-1] if reverse else pair
    true, ego = truth(SCENE, POSE, reverse=reverse), other_T_reference(POSE, reverse=reverse)
    flow = ClassicalStereoFlow(CONFIG).estimate(reference, other, ego if is_given else None)
    assert np.linalg.norm((flow.other_T_reference - ego)[:3, 3]) < 0.02  # m
    measured = flow.is_measured
    assert measured.mean() > 0.6
    assert (np.abs(flow.disparity - true.disparity)[measured] > 1).mean() < 0.05  # px
    assert (np.linalg.norm(flow.flow - true.flow, axis=-1)[measured] > 2).mean() < 0.05
    assert (np.abs(flow.other_disparity - true.other_disparity)[measured] > 1).mean() < 0.06
    found = velocities(flow, reverse=reverse)
    box = (true.plane == 3) & measured
    assert box.sum() > 0.6 * (true.plane == 3).sum()
    off = np.linalg.norm(found.velocity[box] - world_velocity(MOVER, POSE, reverse=reverse), axis=-1)
    assert np.median(off) < 0.4  # m/s: 0.15 px of 20 px of disparity at 4.5 m, in 0.1 s, over many pixels
    speed = np.linalg.norm(found.velocity, axis=-1)
    static = (true.plane != 3) & measured
    assert (speed[static] > 0.5).mean() < 0.02
    moving = is_moving(speed, found.speed_sigma, min_speed=0.5)
    assert moving[box].mean() > 0.8 and moving[static].mean() < 0.02


@pytest.mark.parametrize(
    'pose', [camera_motion(), camera_motion((0.005, 0.03, 0.01))], ids=['standing', 'pure rotation']
)
def test_what_stands_has_no_speed_when_the_camera_stands_or_turns(pose):
    flow = ClassicalStereoFlow(CONFIG).estimate(*stereo_pair(STATIC_SCENE, pose))
    found = velocities(flow)
    assert np.linalg.norm((flow.other_T_reference - other_T_reference(pose))[:3, 3]) < 0.02
    assert np.isfinite(found.velocity).all(axis=-1).mean() > 0.6
    assert np.nanmax(np.linalg.norm(found.velocity, axis=-1)) < 0.05  # m/s


def test_a_mover_is_found_while_the_camera_stands():
    flow = ClassicalStereoFlow(CONFIG).estimate(*stereo_pair(SCENE, np.eye(4)))
    box = (truth(SCENE, np.eye(4)).plane == 3) & flow.is_measured
    assert np.median(np.linalg.norm(velocities(flow).velocity[box] - MOVER.velocity, axis=-1)) < 0.4


def test_half_the_size_gives_maps_of_the_full_size(pair):
    flow, true = ClassicalStereoFlow(ClassicalConfig(fill=True)).estimate(*pair), truth(SCENE, POSE)
    for values in (flow.disparity, flow.other_disparity, flow.disparity_sigma, flow.is_measured, flow.motion_sigma):
        assert values.shape == (CAMERA.height, CAMERA.width)
    assert flow.flow.shape == (CAMERA.height, CAMERA.width, 2)
    assert np.isfinite(flow.disparity).all() and np.isfinite(flow.flow).all()  # filled
    measured = flow.is_measured & (true.plane != 3)
    assert np.median(np.abs(flow.disparity - true.disparity)[measured]) < 0.6  # px of the full size
    assert np.median(np.linalg.norm(flow.flow - true.flow, axis=-1)[measured]) < 0.5


def test_without_filling_only_what_is_measured_is_known(pair):
    flow = ClassicalStereoFlow(CONFIG).estimate(*pair)
    assert np.isnan(flow.flow[~flow.is_measured]).all() and np.isfinite(flow.flow[flow.is_measured]).all()
    np.testing.assert_array_equal(np.isfinite(flow.disparity), flow.is_disparity_measured)


def test_each_frame_is_matched_once(pair):
    estimator = ClassicalStereoFlow(CONFIG)
    matched = []
    for matcher in estimator._matchers:
        matcher.disparity = lambda *images, do=matcher.disparity: matched.append(images) or do(*images)
    first = estimator.estimate(*pair)
    estimator.estimate(*pair[::-1])
    again = estimator.estimate(*pair)
    assert len(matched) == 2
    np.testing.assert_array_equal(first.disparity, again.disparity)


def test_colour_is_as_good_as_grey(pair):
    coloured = [
        StereoFrame(*(np.repeat(image[..., None], 3, axis=2) for image in (frame.left, frame.right)), CAMERA)
        for frame in pair
    ]
    estimator = ClassicalStereoFlow(CONFIG)
    np.testing.assert_array_equal(estimator.estimate(*coloured).disparity, estimator.estimate(*pair).disparity)


def uniform(brightness):
    image = np.full((CAMERA.height, CAMERA.width), brightness, np.uint8)
    return StereoFrame(image, image, CAMERA)


@pytest.mark.parametrize('brightness', [0, 120, 255], ids=['black', 'textureless', 'saturated'])
def test_images_that_show_nothing_give_an_error_without_ego_motion_and_no_velocity_with_it(brightness):
    frames, estimator = (uniform(brightness), uniform(brightness)), ClassicalStereoFlow(CONFIG)
    with pytest.raises(EgoMotionError, match='at least 100 pixels'):
        estimator.estimate(*frames)
    flow = estimator.estimate(*frames, other_T_reference(POSE))
    assert not flow.is_measured.any()
    assert np.isnan(velocities(flow).velocity).all()


def test_one_black_frame_gives_an_error_or_no_velocity(pair):
    estimator = ClassicalStereoFlow(CONFIG)
    for frames in ((pair[0], uniform(0)), (uniform(0), pair[0])):
        with pytest.raises(EgoMotionError):
            estimator.estimate(*frames)
        flow = estimator.estimate(*frames, other_T_reference(POSE))
        assert flow.is_measured.mean() < 0.02


def test_when_all_move_differently_there_is_no_ego_motion():
    speeds = ((6, 0, 0), (-6, 0, 3), (0, 5, -5), (0, -6, 0), (5, 5, 0), (-5, 3, 0))
    planes = tuple(
        Plane(((k % 3 - 1) * 2.4, (k // 3 - 0.5) * 2.4, 6.0), (1.2, 1.2), speed, seed=k)
        for k, speed in enumerate(speeds)
    )
    with pytest.raises(EgoMotionError, match=r'of the pixels agree'):
        ClassicalStereoFlow(CONFIG).estimate(*stereo_pair(planes, np.eye(4)))


def test_a_given_motion_that_the_images_contradict_is_an_error(pair):
    wrong = transforms.invert(other_T_reference(POSE))
    with pytest.raises(EgoMotionError, match='Check the odometry'):
        ClassicalStereoFlow(CONFIG).estimate(*pair, wrong)


def test_a_truck_that_hides_the_static_scene_is_no_ego_motion_where_the_motion_is_given():
    truck = Plane((-1.0, 0, 5), (2.2, 1.0), (4.0, 0, 0), seed=5)
    planes = (WALL, *STATIC_SCENE[1:], truck)
    flow = ClassicalStereoFlow(CONFIG).estimate(*stereo_pair(planes, np.eye(4)), np.eye(4))
    assert np.linalg.norm(flow.other_T_reference[:3, 3]) < 0.02
    true = truth(planes, np.eye(4))
    speed = np.linalg.norm(velocities(flow).velocity, axis=-1)
    assert np.nanmedian(speed[true.plane == 3]) == pytest.approx(4.0, abs=0.4)
    assert np.nanmedian(speed[true.plane == 0]) < 0.05


def test_frames_of_two_cameras_are_refused(pair):
    other = replace(pair[1], camera=replace(CAMERA, baseline=0.5))
    with pytest.raises(ConfigError, match='one camera'):
        ClassicalStereoFlow(CONFIG).estimate(pair[0], other)


def test_images_that_are_too_small_are_refused():
    small = replace(CAMERA, width=40, height=24)
    image = np.zeros((24, 40), np.uint8)
    frame = StereoFrame(image, image, small)
    with pytest.raises(ConfigError, match=r'too small: 20 x 12 at the scale 0\.5, at least 16'):
        ClassicalStereoFlow().estimate(frame, frame)


def test_a_scale_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match='scale'):
        ClassicalConfig(scale=2.0)


def test_a_mover_before_a_flat_wall_is_not_taken_for_the_motion_of_the_camera():
    """The wall and the mover agree with a motion aside, more pixels than the wall and what stands before it."""
    estimator = ClassicalStereoFlow()
    for number in (0, 7, 8, 9):
        found = estimator.estimate(corridor(number + 1), corridor(number)).other_T_reference
        np.testing.assert_allclose(found[:3, 3], [0, 0, 0.1 * EGO_SPEED], atol=0.04)  # m


def test_a_prepared_frame_is_not_matched_again(pair, monkeypatch):
    estimator, matched = ClassicalStereoFlow(CONFIG), []
    match = StereoMatcher.disparity
    monkeypatch.setattr(StereoMatcher, 'disparity', lambda *given: matched.append(1) or match(*given))
    reference, other = pair
    estimator.prepare(other)
    assert len(matched) == 1
    prepared = estimator.estimate(reference, other, other_T_reference(POSE))
    assert len(matched) == 2
    plain = ClassicalStereoFlow(CONFIG).estimate(reference, other, other_T_reference(POSE))
    np.testing.assert_allclose(prepared.disparity, plain.disparity, atol=1e-5)
    assert (prepared.is_measured == plain.is_measured).mean() > 0.99
