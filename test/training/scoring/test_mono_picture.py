# SPDX-License-Identifier: Apache-2.0
"""Pictures of one camera: the motion without that of the camera, and what is drawn."""

import numpy as np
import pytest

pytest.importorskip('matplotlib', reason='pictures need matplotlib')

from training.scoring.mono_picture import draw_mono, motion_3d
from training.scoring.stereo_metrics import moved_points
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow

CAMERA = StereoCamera(96, 48, 60.0, 60.0, 47.5, 20.0, 0.54)
CAR = (slice(10, 30), slice(60, 80))


def scene(car=(0.4, 0.0, 0.0), step=0.5) -> StereoFlow:
    """Return the exact flow of a street and walls: the camera drives forward, a box moves by `car` [m] beside that."""
    v, u = np.indices((48, 96), np.float32)
    depth = np.minimum(
        np.minimum(25 + 0 * v, np.where(v > 22, 60 * 1.5 / (v - 20 + 1e-9), 99)), 4 + 0.35 * np.abs(u - 48)
    )
    depth[CAR] = 12
    points = CAMERA.rays * depth[..., None]
    moved = points - [0, 0, step]
    moved[CAR] += car
    pixels, other = CAMERA.project(moved)
    ones, disparity = np.ones_like(v), CAMERA.disparity(depth)
    flow = (pixels - np.stack([u, v], -1)).astype(np.float32)
    return StereoFlow(disparity, other, flow, ones, ones, ones, np.ones(v.shape, bool))


def test_the_motion_is_without_that_of_the_camera():
    found = motion_3d(CAMERA, scene())
    assert found.camera_moved == pytest.approx(0.5, abs=0.02) and found.share > 0.8
    inside = np.zeros((48, 96), bool)
    inside[CAR] = True
    np.testing.assert_allclose(np.median(found.motion[inside], axis=0), [0.4, 0, 0], atol=0.03)
    assert np.median(np.linalg.norm(found.motion[~inside], axis=-1)) < 0.02


def test_without_agreement_the_motion_contains_that_of_the_camera():
    flow = scene()
    noise = np.random.default_rng(0).normal(0, 60, flow.flow.shape).astype(np.float32)
    mixed = StereoFlow(flow.disparity, flow.other_disparity, flow.flow + noise, *[flow.disparity] * 3, flow.is_measured)
    found = motion_3d(CAMERA, mixed)
    assert found.camera_moved is None
    total = moved_points(CAMERA, mixed.flow, mixed.other_disparity) - CAMERA.points(mixed.disparity)
    np.testing.assert_array_equal(found.motion, total)


def test_a_picture_has_a_block_for_each_estimator(tmp_path):
    image = np.full((48, 96, 3), 90, np.uint8)
    nothing = np.full((48, 96), np.nan, np.float32)
    blank = StereoFlow(nothing, nothing, np.repeat(nothing[..., None], 2, -1), *[nothing] * 3, np.zeros((48, 96), bool))
    paths = tmp_path / 'one.png', tmp_path / 'two.png'
    draw_mono(image[..., 0], {'scene': scene()}, CAMERA, paths[0], title='one', interval=0.1)
    draw_mono(image, {'scene': scene(), 'nothing known': blank}, CAMERA, paths[1], title='two')
    one, two = (load_opencv().imread(str(path)) for path in paths)
    assert two.shape[1] == one.shape[1] and 1.8 < two.shape[0] / one.shape[0] < 2
    # Depth, flow and motion are coloured; of nothing known they are dark.
    upper, lower = two[: one.shape[0]], two[one.shape[0] :]
    half = slice(two.shape[1] // 3, two.shape[1] * 2 // 3)
    assert np.ptp(upper[:, half], axis=-1).mean() > 20 > np.ptp(lower[60:, half], axis=-1).mean()
