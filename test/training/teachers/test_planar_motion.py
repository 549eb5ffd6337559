# SPDX-License-Identifier: Apache-2.0
"""Fits of planar motions."""

import math

import numpy as np
import pytest

from training.teachers.planar_motion import apply, fit_motion, geman_mcclure_weight, undo

LAG = 0.2


def body(num_points=30):
    return np.random.default_rng(0).uniform(-1, 1, (num_points, 4)) * [2, 1, 1, 0]


def turned(points, yaw, x, y):
    motion = math.cos(yaw), math.sin(yaw), x, y
    moved = points.copy()
    moved[:, 0], moved[:, 1] = apply(motion, points[:, 0], points[:, 1])
    return motion, moved


def test_the_motion_between_two_copies_is_found_beside_outliers_without_weight():
    source = body()
    motion, target = turned(source, 0.1, 3.0, -2.0)
    target[20:] += 7
    weight = np.where(np.arange(30) < 20, 0.5, 0.0)
    np.testing.assert_allclose(fit_motion(source, target, weight, 30, LAG, True), motion, atol=1e-12)
    np.testing.assert_allclose(fit_motion(source, target, np.ones(30), 20, LAG, True), motion, atol=1e-12)


@pytest.mark.parametrize('yaw, may_rotate', [(0.1, False), (0.3, True)])
def test_a_yaw_that_is_not_allowed_becomes_a_translation(yaw, may_rotate):
    source = body()
    source[:, :2] -= source[:, :2].mean(0)
    _, target = turned(source, yaw, 3.0, -2.0)
    motion = fit_motion(source, target, np.ones(30), 30, LAG, may_rotate)
    np.testing.assert_allclose(motion, (1, 0, 3, -2), atol=1e-12)


def test_a_point_measured_late_shows_more_than_the_motion_between_the_stamps():
    source, target = body(), body()
    target[:, 3] = np.where(np.arange(30) % 2, 0.5, -0.25) * LAG
    target[:, 0] += 2 * (1 + target[:, 3] / LAG)
    np.testing.assert_allclose(fit_motion(source, target, np.ones(30), 30, LAG, False), (1, 0, 2, 0), atol=1e-12)


def test_undo_is_the_inverse_and_the_kernel_is_where_a_quarter_is_left():
    motion = math.cos(0.4), math.sin(0.4), 1.5, -0.5
    np.testing.assert_allclose(undo(motion, *apply(motion, 3.0, 2.0)), (3, 2), atol=1e-12)
    assert geman_mcclure_weight(0.04, 0.2) == pytest.approx(0.25) and geman_mcclure_weight(0.0, 0.2) == 1
