# SPDX-License-Identifier: Apache-2.0
"""The input of the benchmark: pairs of a bag with their ego motion."""

import numpy as np
import pytest
from tiny_bag import write_bag

from export import benchmark
from zeroflow_ros.errors import ZeroFlowError


@pytest.mark.parametrize('with_odometry, ego_motion, metres', [
    (True, 'auto', 0.5), (True, 'none', 0.0), (False, 'none', 0.0), (False, 'odometry', None),
])  # fmt: skip
def test_pairs_of_a_bag_have_its_ego_motion(tmp_path, with_odometry, ego_motion, metres):
    bag = write_bag(tmp_path / 'bag', num_sweeps=4, odometry=with_odometry)
    if metres is None:
        with pytest.raises(ZeroFlowError, match='no topic of nav_msgs'):
            next(benchmark.bag_pairs(bag, 1, 2, ego_motion))
        return
    pairs = list(benchmark.bag_pairs(bag, 5, 3, ego_motion))
    assert len(pairs) == 5 and [len(pair.history) for pair in pairs] == [0, 1, 1, 0, 1]
    for pair in pairs:
        np.testing.assert_allclose(pair.ego0_T_ego1[:3, 3], [metres, 0, 0], atol=1e-6)
        assert pair.dt == pytest.approx(0.1)
