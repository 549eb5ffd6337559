# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from odometry_drive import poses, street, sweep

from zeroflow_ros.ego_motion.structure_alignment import UprightCells
from zeroflow_ros.transforms import invert

DRIVE = poses(6, speed=6.0, turn=0.1)
OLDER, NEWER = (UprightCells(sweep(k, DRIVE[k], street()).points) for k in (0, 5))
BETWEEN = invert(DRIVE[0]) @ DRIVE[5]
TRUE = np.array([BETWEEN[0, 3], BETWEEN[1, 3], np.arctan2(BETWEEN[1, 0], BETWEEN[0, 0])])


@pytest.mark.parametrize(
    'points',
    [
        np.zeros((0, 3)),
        np.ones((1, 3)),
        np.full((50, 3), np.nan),
        np.full((50, 3), np.inf),
        np.full((50, 3), 1e30),
        np.c_[np.random.default_rng(0).uniform(-30, 30, (5000, 2)), np.full(5000, -1.8)],
    ],
)
def test_without_upright_structure_there_is_too_little_to_align(points):
    cells = UprightCells(points.astype(np.float32))
    assert not cells.is_enough
    assert cells.quality(OLDER, np.zeros(3)) == 0.0 and OLDER.quality(cells, np.zeros(3)) == 0.0
    np.testing.assert_array_equal(OLDER.align(cells, TRUE).motion, TRUE)


@pytest.mark.parametrize('offset', [(0, 0, 0), (0.25, 0, 0), (-0.25, 0.1, 0), (0.1, -0.2, 0.02), (0, 0, -0.03)])
def test_the_motion_of_a_drive_is_found_to_two_centimetres(offset):
    found = OLDER.align(NEWER, TRUE + offset)
    np.testing.assert_allclose(found.motion, TRUE, atol=0.02)  # rounding to cells, and 2 cm of noise
    assert abs(found.motion[2] - TRUE[2]) < 0.002  # rad, a step that counts as converged
    assert found.quality > 0.6 and found.quality == OLDER.quality(NEWER, found.motion)


def test_a_wrong_motion_has_a_lower_quality():
    assert OLDER.quality(NEWER, TRUE + [0.4, 0, 0]) < 0.6 * OLDER.quality(NEWER, TRUE)
    assert OLDER.quality(NEWER, TRUE + [200.0, 0, 0]) == 0.0
