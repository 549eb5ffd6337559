# SPDX-License-Identifier: Apache-2.0
"""The exact truth of simulated stereo images agrees with the images, with geometry, and with the motion of bodies."""

import numpy as np
import pytest

pytest.importorskip('embreex', reason='ray casting needs embreex: pip install embreex')
pytest.importorskip('cv2', reason='simulated images need OpenCV')

from dataclasses import replace

import cv2

from training.simulation.cameras.pixel_motion import NO_BODY, STATIC_WORLD, pixel_points
from training.simulation.cameras.stereo_drive import simulate_stereo
from training.simulation.cameras.stereo_rig import CameraFaults
from training.simulation.sensors.lidar import Category
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError

SEED = 12  # a street with traffic; the ego vehicle drives


@pytest.fixture(scope='module')
def drive():
    """A drive of two frames with a perfect camera."""
    made = simulate_stereo(SEED, camera='kitti_quarter')
    made.rig = replace(made.rig, faults=CameraFaults.none())
    return made


@pytest.fixture(scope='module')
def frames(drive):
    return drive.frame(0), drive.frame(1)


def photometric_error(image, other, u, v):
    """Return the mean absolute difference (H, W) of an image and another one looked up at (u, v) (H, W)."""
    looked_up = cv2.remap(other, np.float32(np.nan_to_num(u)), np.float32(np.nan_to_num(v)), cv2.INTER_LINEAR)
    return np.abs(image.astype(float) - looked_up).mean(axis=2)


@pytest.mark.parametrize('match', ['right', 'other left', 'other right'])
def test_what_is_visible_looks_the_same_where_the_truth_says_it_is(drive, frames, match):
    reference, other = frames
    motion, (seen_left, seen_right) = drive.motion(reference, 1), drive.visibility(reference, 1)
    v, u = np.mgrid[: drive.rig.camera.height, : drive.rig.camera.width].astype(float)
    moved_u, moved_v = u + motion.flow[..., 0], v + motion.flow[..., 1]
    image, at_u, at_v, visible = {
        'right': (reference.right, u - reference.disparity, v, reference.is_visible_right),
        'other left': (other.left, moved_u, moved_v, seen_left),
        'other right': (other.right, moved_u - motion.other_disparity, moved_v, seen_right),
    }[match]
    error = photometric_error(reference.left, image, at_u, at_v)
    unmoved = photometric_error(reference.left, image, u, v)
    # Of 255: interpolation of fine textures costs some grey levels; a wrong match costs tens.
    assert np.median(error[visible]) < 5 and error[visible].mean() < 13
    assert error[visible].mean() < 0.45 * unmoved[visible].mean()
    hidden = ~visible & np.isfinite(at_u) & (at_u >= 0) & (at_u <= u.max()) & (at_v >= 0) & (at_v <= v.max())
    assert hidden.mean() > 0.005
    assert error[hidden].mean() > 2 * error[visible].mean()


def test_disparity_is_that_of_the_surface_on_the_ray(drive, frames):
    """The ground below the ego vehicle is where the mount says it is."""
    frame = frames[0]
    points = transforms.apply(drive.rig.base_T_left, pixel_points(drive.rig.camera, frame.disparity).reshape(-1, 3))
    ground = (frame.category == Category.GROUND).ravel() & (np.linalg.norm(points, axis=1) < 8)
    # 15 cm: slope, camber and roughness of the road over 8 m
    assert ground.sum() > 100 and np.abs(points[ground, 2]).max() < 0.15
    assert np.isnan(frame.disparity[frame.body == NO_BODY]).all() and (frame.disparity[frame.body >= 0] > 0).all()


def test_a_static_world_moves_as_depth_and_ego_motion_say(drive, frames):
    reference, other = frames
    camera, motion = drive.rig.camera, drive.motion(reference, 1)
    static = reference.body == STATIC_WORLD
    assert not motion.is_moving[static].any()
    other_T_reference = transforms.invert(other.odom_T_left) @ reference.odom_T_left
    assert np.linalg.norm(other_T_reference[:3, 3]) > 0.1
    points = transforms.apply(other_T_reference, camera.points(reference.disparity)[static].astype(np.float64))
    pixels, disparity = camera.project(points)
    v, u = np.nonzero(static)
    valid = points[:, 2] > 0.5
    # 1/100 px: float32 of points at up to 150 m
    np.testing.assert_allclose(motion.flow[static][valid], (pixels - np.stack([u, v], 1))[valid], atol=0.01)
    np.testing.assert_allclose(motion.other_disparity[static][valid], disparity[valid], atol=0.01)


def test_bodies_that_move_differ_from_the_static_world(drive, frames):
    reference, other = frames
    motion = drive.motion(reference, 1)
    assert motion.is_moving.mean() > 0.01
    bodies = np.unique(reference.body[motion.is_moving])
    assert (bodies > STATIC_WORLD).all()
    for number in bodies:
        actor = drive.street.actors[number - 1]
        assert actor.is_moving
        rows = reference.body == number
        assert (reference.category[rows] == actor.category).all()
        # The same spots of the body, in its own frame, at both times
        before = transforms.apply(reference.odom_T_left, pixel_points(drive.rig.camera, reference.disparity)[rows])
        v, u = np.nonzero(rows)
        camera, flow = drive.rig.camera, motion.flow[rows].astype(np.float64)
        depth = camera.depth(motion.other_disparity[rows]).astype(np.float64)
        x, y = (u + flow[:, 0] - camera.cx) / camera.fx, (v + flow[:, 1] - camera.cy) / camera.fy
        after = transforms.apply(other.odom_T_left, np.stack([x * depth, y * depth, depth], axis=1))
        now, then = transforms.invert(actor.odom_T_body[0]), transforms.invert(actor.odom_T_body[1])
        # 1 mm at 10 m: float32 disparity
        difference = transforms.apply(then, after) - transforms.apply(now, before)
        assert (np.abs(difference) < 1e-4 * (10 + depth[:, None])).all()


def test_velocity_is_that_of_the_bodies(drive, frames):
    reference = frames[0]
    velocity, motion = drive.velocity(reference, 1), drive.motion(reference, 1)
    speed = np.linalg.norm(velocity, axis=2)
    assert (speed[np.isfinite(speed) & ~motion.is_moving] < 1e-6).all() and np.isnan(speed[reference.body < 0]).all()
    for number in np.unique(reference.body[motion.is_moving]):
        poses = drive.street.actors[number - 1].odom_T_body
        expected = np.linalg.norm(poses[1, :3, 3] - poses[0, :3, 3]) * 10
        # 0.5 m/s: the far end of a turning body is faster than its middle
        assert np.median(speed[reference.body == number]) == pytest.approx(expected, abs=0.5)


def test_no_motion_without_time(drive, frames):
    motion = drive.motion(frames[0], 0)
    seen_left, seen_right = drive.visibility(frames[0], 0)
    there = np.isfinite(frames[0].disparity)
    assert np.abs(motion.flow[there]).max() < 1e-3 and not motion.is_moving.any()
    np.testing.assert_allclose(motion.other_disparity[there], frames[0].disparity[there], atol=1e-4)
    # The camera sees what it saw; a few pixels on edges round to the other side.
    assert seen_left[there].mean() > 0.998
    np.testing.assert_array_equal(seen_right, frames[0].is_visible_right)


def test_points_beyond_the_left_edge_of_the_right_image_are_not_visible_there(drive, frames):
    frame = frames[0]
    u = np.arange(drive.rig.camera.width) - frame.disparity
    assert not frame.is_visible_right[u < -0.6].any() and (u < -0.6).sum() > 50


def test_a_frame_depends_on_the_seed_alone(frames):
    again = simulate_stereo(SEED, camera='kitti_quarter')
    again.rig = replace(again.rig, faults=CameraFaults.none())
    frame = again.frame(1)  # without frame 0 before it
    for name in ('left', 'right', 'disparity', 'body', 'category', 'is_visible_right', 'odom_T_left'):
        np.testing.assert_array_equal(getattr(frame, name), getattr(frames[1], name))


def test_images_are_neither_dark_nor_flat(frames):
    for frame in frames:
        for image in (frame.left, frame.right):
            assert image.dtype == np.uint8 and 50 < image.mean() < 200 and image.std() > 25
        assert abs(frame.left.mean() - frame.right.mean()) < 12


def test_faults_change_the_images_and_not_the_truth(drive, frames):
    faults = replace(
        CameraFaults.draw(np.random.default_rng(0)), right_rotation=np.radians([0.3, 0, 0]), read_noise=0.01, gamma=2.0
    )
    rig, made = drive.rig, frames[0]
    drive.rig = replace(rig, faults=faults)
    try:
        frame = drive.frame(0)
    finally:
        drive.rig = rig
    for name in ('disparity', 'body', 'is_visible_right'):
        np.testing.assert_array_equal(getattr(frame, name), getattr(made, name))
    v, u = np.mgrid[: rig.camera.height, : rig.camera.width].astype(float)
    # Pitch of the right camera by 0.3 degrees moves what it sees by 0.94 px at a focal length of 180 px.
    shift = np.tan(np.radians(0.3)) * rig.camera.fy
    errors = [
        photometric_error(frame.left, frame.right, u - frame.disparity, v + by)[frame.is_visible_right].mean()
        for by in (-shift, 0, shift)
    ]
    assert min(errors[0], errors[2]) < errors[1] - 1


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [({'camera': 'kiti'}, 'kitti_half'), ({'num_frames': 1}, 'two frames'), ({'seed': -1}, 'seed of 0')],
)
def test_bad_requests_are_refused(arguments, match):
    with pytest.raises(DataError, match=match):
        simulate_stereo(**{'seed': 0} | arguments)
