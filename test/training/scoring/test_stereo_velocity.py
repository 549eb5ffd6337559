# SPDX-License-Identifier: Apache-2.0
"""Velocities of movers and of what stands, against values computed by hand."""

import numpy as np
import pytest

from training.datasets.stereo_pairs import StereoBox, StereoDatasetPair, StereoTruth
from training.scoring.stereo_velocity import VelocityScores
from zeroflow_ros.camera.pixel_velocity import PixelVelocity
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame

NAN = np.nan
BOX = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 10], [0, 0, 0, 1]], float)  # 10 m ahead, x forward, z up
IN_BOX = np.array([[0, 0, 8.5], [0.5, 0, 9], [-0.5, 0.1, 10], [0, -0.3, 11], [0.8, 0, 11.5]])
OTHERS = np.array([[0, 0.7, 10], [1.3, 0, 10], [5, 0, 20], [5, 0, 40], [NAN] * 3])
POINTS = np.vstack([IN_BOX, OTHERS])  # then: its lowest part, near it, background, out of range, not measured


def report(velocity, step, *, ego=None, dt=0.1, sigma=0.01) -> dict:
    """Score velocities (10, 3) of POINTS with a box that moves `step` metres forward until the other frame."""
    other = BOX.copy()
    other[2, 3] += step
    scores = VelocityScores()
    measured = PixelVelocity(
        POINTS[None].astype(np.float32), np.asarray(velocity, np.float32)[None], np.full((1, 10), sigma, np.float32)
    )
    box = StereoBox('Car', np.array([4.0, 2.0, 1.5]), BOX, other)
    scores.add_boxes(measured, (box,), np.eye(4) if ego is None else ego, dt)
    return scores.report()


def test_the_velocity_of_a_moving_box_is_scored_on_its_points():
    velocity = np.zeros((10, 3))
    velocity[:5, 2] = [10, 8, 10, 0.4, NAN]  # of 10 m/s: errors 0, 2, 0, 9.6, 10
    found = report(velocity, step=1.0)
    assert (found['mover_points'], found['resting_box_points'], found['static_points']) == (5, 0, 1)
    assert found['mover_normalised_epe'] == pytest.approx(21.6 / 50)
    assert (found['mover_epe_mps'], found['mover_speed_mps']) == (pytest.approx(21.6 / 5), pytest.approx(10))
    assert (found['mover_with_velocity_share'], found['mover_found_share'], found['share_of_boxes_seen']) == (
        0.8,
        0.6,
        1,
    )
    assert report(velocity, step=1.0, sigma=3)['mover_found_share'] == 0.4  # 8 m/s is less than 3 sigmas


def test_what_stands_and_is_said_to_move_is_counted():
    velocity = np.zeros((10, 3))
    velocity[[0, 5, 6, 7], 0] = 0.6  # one point of a resting box, one of the background; two belong to neither
    velocity[1] = NAN  # nothing is said of it
    found = report(velocity, step=0.0)
    assert (found['resting_box_fast_share'], found['background_fast_share']) == (0.25, 1)
    assert found['static_fast_share'] == found['static_moving_share'] == pytest.approx(2 / 5)
    assert found['mover_points'] == 0 and np.isnan(found['mover_normalised_epe'])
    uncertain = report(velocity, step=0.0, sigma=0.3)
    assert uncertain['static_fast_share'] == pytest.approx(2 / 5) and uncertain['static_moving_share'] == 0


def test_ego_motion_is_removed_from_the_velocity_of_a_box():
    ego = np.eye(4)
    ego[2, 3] = -1  # the camera drives 1 m ahead: what stands is 1 m closer in the other frame
    found = report(np.zeros((10, 3)), step=-1.0, ego=ego)
    assert found['mover_points'] == 0 and found['resting_box_epe_mps'] == pytest.approx(0, abs=1e-6)
    # Seen from the newer frame, 1 m further back in the past is 10 m/s away from there.
    backwards = report(np.tile([0, 0, 10], (10, 1)), step=-1.0, dt=-0.1)
    assert backwards['mover_normalised_epe'] == pytest.approx(0, abs=1e-6)


def test_without_boxes_all_is_background():
    scores = VelocityScores()
    velocity = np.zeros((1, 10, 3), np.float32)
    scores.add_boxes(PixelVelocity(POINTS[None], velocity, velocity[..., 0]), (), np.eye(4), 0.1)
    found = scores.report()
    assert (found['static_points'], found['mover_points']) == (8, 0) and np.isnan(found['share_of_boxes_seen'])


def test_the_truth_of_pixels_says_what_moves():
    # Depth 2 m at 5 px; the camera stands. The second pixel comes 1 m closer, the third is not known.
    camera = StereoCamera(4, 1, 10.0, 10.0, 0.0, 0.0, 1.0)
    disparity = np.array([[5, 5, 5, 0.3]], np.float32)  # the last one is 33 m away
    other, flow = disparity.copy(), np.zeros((1, 4, 2), np.float32)
    other[0, 1], flow[0, 1, 0], other[0, 2] = 10, 1, NAN
    known, none = np.isfinite(other), np.zeros((1, 4), bool)
    moves = np.array([[False, True, False, False]])
    truth = StereoTruth(disparity, other, flow, ~none, known, ~none, none, moves)
    frame = StereoFrame(np.zeros((1, 4), np.uint8), np.zeros((1, 4), np.uint8), camera)
    item = StereoDatasetPair('0', frame, frame, np.eye(4), 0.1, truth)
    velocity = np.array([[[0.6, 0, 0], [0, 0, -8], [9, 9, 9], [9, 9, 9]]], np.float32)
    scores = VelocityScores()
    scores.add_truth(PixelVelocity(velocity, velocity, np.zeros((1, 4), np.float32)), truth, item)
    found = scores.report()
    # Pixel 1 is at x = 0.2 m and stays there: (1 + 1) px at 1 m.
    assert (found['mover_points'], found['static_points'], found['static_fast_share']) == (1, 1, 1)
    assert found['mover_speed_mps'] == pytest.approx(10) and found['mover_epe_mps'] == pytest.approx(2)
