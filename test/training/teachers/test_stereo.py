# SPDX-License-Identifier: Apache-2.0
"""The stereo teacher on scenes with exact scene flow."""

from dataclasses import replace

import numpy as np
import pytest
from textured_planes import (
    CAMERA,
    DT,
    MOVER,
    STATIC_SCENE,
    WALL,
    camera_motion,
    other_T_reference,
    stereo_pair,
    truth,
)

from training.teachers import build_teacher
from training.teachers.stereo import StereoTeacher, StereoTeacherConfig
from zeroflow_ros.camera.stereo import StereoFrame
from zeroflow_ros.errors import ConfigError, DataError, EgoMotionError

POSE = camera_motion((0.002, 0.01, 0), (0.02, 0, 0.5))
SCENE = (*STATIC_SCENE, MOVER)


@pytest.fixture(scope='module')
def teacher():
    return build_teacher('stereo', {'matching': {'max_disparity': 48}, 'planes': {'superpixels': {'side': 12}}})


@pytest.fixture(scope='module')
def pair():
    return stereo_pair(SCENE, POSE)


@pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'backward'])
def test_labels_of_a_static_scene_and_a_mover(teacher, pair, reverse):
    reference, other = pair[::-1] if reverse else pair
    true, ego = truth(SCENE, POSE, reverse=reverse), other_T_reference(POSE, reverse=reverse)
    flow = teacher.label(reference, other, -DT if reverse else DT, None if reverse else ego)
    assert np.linalg.norm((flow.other_T_reference - ego)[:3, 3]) < 0.02  # m
    measured = flow.is_measured
    assert measured.mean() > 0.55 and (measured <= flow.is_disparity_measured).all()
    for values, expected in (
        (flow.disparity, true.disparity), (flow.other_disparity, true.other_disparity), (flow.flow, true.flow)
    ):  # fmt: skip
        error = np.abs(values - expected).reshape(*measured.shape, -1).max(axis=-1)
        assert (error[measured] > 1.5).mean() < 0.03  # px
        assert (error > 3).mean() < 0.1  # filled pixels included
    mover = (true.plane == 3) & measured
    assert mover.sum() > 0.5 * (true.plane == 3).sum()


def test_pixels_that_the_other_images_do_not_show_are_no_labels(teacher, pair):
    flow = teacher.label(*pair, DT)
    true = truth(SCENE, POSE)
    columns = np.arange(CAMERA.width)
    beyond = columns - true.disparity < -1
    assert beyond.any() and not flow.is_measured[beyond].any()
    assert np.isfinite(flow.disparity).all() and np.isfinite(flow.flow).all()


def test_flow_that_the_images_do_not_show_makes_no_piece(teacher, pair, monkeypatch):
    """Optical flow that is wrong in a region must not give that region a motion."""
    real = teacher._flow.forward

    def wrong(left, other_left):
        flow = real(left, other_left)
        flow[10:50, 190:240] += (4, 0)
        return flow

    monkeypatch.setattr(teacher._flow, 'forward', wrong)
    monkeypatch.setattr(teacher._flow, 'is_consistent', lambda flow, backward: np.ones(flow.shape[:2], bool))
    flow, true = teacher.label(*pair, DT), truth(SCENE, POSE)
    region = np.s_[14:46, 194:236]
    assert not flow.is_measured[region].any()
    assert np.nanmedian(np.linalg.norm(flow.flow - true.flow, axis=-1)[region]) < 0.5  # px


def test_bad_pairs_are_refused(teacher, pair):
    reference, other = pair
    black = StereoFrame(np.zeros_like(reference.left), np.zeros_like(reference.right), CAMERA)
    moved = replace(CAMERA, baseline=0.3)
    with pytest.raises(DataError, match='too few for a label'):
        teacher.label(black, black, DT)
    with pytest.raises(DataError, match='of one camera'):
        teacher.label(reference, StereoFrame(other.left, other.right, moved), DT)
    for dt in (0.0, np.nan):
        with pytest.raises(DataError, match='different, finite times'):
            teacher.label(reference, other, dt)
    with pytest.raises(EgoMotionError, match='Check the odometry'):
        teacher.label(*stereo_pair((WALL, *STATIC_SCENE[1:]), POSE), DT, other_T_reference(camera_motion((0, 0.2, 0))))


def test_colour_images_and_grey_ones_are_labelled(teacher, pair):
    colour = [StereoFrame(np.dstack([f.left] * 3), np.dstack([f.right] * 3), CAMERA) for f in pair]
    grey, coloured = teacher.label(*pair, DT), teacher.label(*colour, DT)
    np.testing.assert_array_equal(grey.disparity, coloured.disparity)
    np.testing.assert_array_equal(grey.is_measured, coloured.is_measured)


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match='agreement of the stereo teacher'):
        StereoTeacherConfig(agreement=0)
    with pytest.raises(ConfigError, match='did you mean'):
        build_teacher('stereo', {'agrement': 1})
    assert StereoTeacher().name == 'stereo'
