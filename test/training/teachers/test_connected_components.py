# SPDX-License-Identifier: Apache-2.0
"""Components of sparse voxels are those of a dense grid."""

import numpy as np
import pytest
from scipy import ndimage

from training.teachers.connected_components import connected_components


@pytest.mark.parametrize('num_points', [1, 40, 400, 4000])
def test_components_and_their_order_are_those_of_a_dense_grid(num_points):
    points = np.random.default_rng(num_points).uniform(0, 5, (num_points, 3)) * [1, 1.4, 0.6]
    voxel = np.array([0.2, 0.2, 0.3])
    index = ((points - points.min(0)) / voxel).astype(int)
    occupied = np.zeros(index.max(0) + 1, bool)
    occupied[tuple(index.T)] = True
    expected = ndimage.label(occupied, np.ones((3, 3, 3)))[0][tuple(index.T)] - 1
    np.testing.assert_array_equal(connected_components(points, voxel), expected)


def test_voxels_at_opposite_edges_do_not_touch():
    points = np.array([[0.5, y + 0.5, z + 0.5] for y in (0, 3) for z in (0, 3)])
    assert len(set(connected_components(points, np.ones(3)))) == 4
