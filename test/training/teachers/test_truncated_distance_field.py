# SPDX-License-Identifier: Apache-2.0
"""Mean distances under many translations, beside those of a k-d tree."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from training.teachers.truncated_distance_field import TruncatedDistanceField, disc

CUT, CELL = 0.5, 0.05


@pytest.mark.parametrize('num_points', [3, 8, 60])
def test_the_mean_distance_is_that_of_a_tree_within_a_voxel(num_points):
    rng = np.random.default_rng(0)
    cloud, points = rng.uniform(0, 2, (50, 3)), rng.uniform(-0.2, 2.2, (num_points, 3))
    translations = disc(0.8, 0.4)
    moved = points + np.column_stack([translations, np.zeros(len(translations))])[:, None]
    expected = np.minimum(cKDTree(cloud).query(moved)[0], CUT).mean(1)
    means = TruncatedDistanceField(cloud, 1.5, CUT, CELL).mean_distance(points, translations)
    assert means.dtype == np.float32 and means.shape == (len(translations),)
    np.testing.assert_allclose(means, expected, atol=CELL)
    assert np.ptp(expected) > CELL
