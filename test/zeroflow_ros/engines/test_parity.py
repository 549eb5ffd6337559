# SPDX-License-Identifier: Apache-2.0
"""The clouds on which engines are compared, and the comparison."""

import numpy as np
import pytest

from zeroflow_ros.engines.parity import largest_difference, parity_clouds
from zeroflow_ros.lidar.pillars import PillarGrid


@pytest.mark.parametrize('grid', [PillarGrid(512, 0.2, -3.0, 3.0), PillarGrid(256, 0.4, -2.0, 4.0)])
def test_one_pair_has_a_dense_pillar_far_away(grid):
    clouds = dict(parity_clouds(grid))
    for cloud in clouds['LiDAR-like']:
        cells = grid.assign(cloud)
        counts = np.bincount(cells[cells >= 0], minlength=grid.cells**2)
        far = np.abs(grid.centres[:, :2]).min(axis=1) > 0.7 * grid.half_extent
        assert counts[far].max() >= 500
        assert (cells >= 0).mean() > 0.9 and cloud.dtype == np.float32


def test_models_of_more_sweeps_get_all_of_them_too():
    names = [name for name, clouds in parity_clouds(PillarGrid(64, 0.4, -2.0, 4.0), 5) if len(clouds) == 5]
    assert 'LiDAR-like, 5 sweeps' in names and 'random 0 + 0, 5 sweeps' in names


@pytest.mark.parametrize(
    'first, second, expected',
    [
        (np.zeros((0, 3)), np.zeros((0, 3)), 0.0),
        (np.zeros((2, 3)), np.full((2, 3), 0.25), 0.25),
        (np.full((2, 3), np.nan), np.full((2, 3), np.nan), 0.0),
        (np.full((2, 3), np.nan), np.zeros((2, 3)), np.inf),
    ],
)
def test_differences_in_what_is_nan_are_infinite(first, second, expected):
    assert largest_difference(first, second) == expected
