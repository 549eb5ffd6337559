# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.lidar.sweep_history import SweepHistory

WORLD = np.array([[10, 0, 0], [0, 8, 1], [-6, -3, 0.5], [15, 9, 2]], np.float32)
PLACES = [transforms.yaw_translation(0.1 * k, 1.5 * k, -0.2 * k) for k in range(8)]


def sweep(k, frame_id='lidar'):
    """The static world seen from place k."""
    return Sweep(transforms.apply(transforms.invert(PLACES[k]), WORLD), (k + 1) * 100_000_000, frame_id)


def between(j, k):
    return transforms.invert(PLACES[j]) @ PLACES[k]


def add(history, j, k, **frame):
    return history.pair(sweep(j, **frame), sweep(k, **frame), between(j, k))


@pytest.mark.parametrize('num_sweeps', [2, 3, 5])
def test_a_pair_knows_the_sweeps_before_it_with_their_poses(num_sweeps):
    history = SweepHistory(num_sweeps)
    for k in range(1, 8):
        pair = add(history, k - 1, k)
        assert pair.dt == pytest.approx(0.1) and len(pair.history) == min(k - 1, num_sweeps - 2)
        for older, past in enumerate(pair.history, start=2):
            np.testing.assert_array_equal(past.points, sweep(k - older).points)  # the nearest first
            np.testing.assert_allclose(transforms.apply(past.ego0_T_ego, past.points), pair.points0, atol=1e-4)


def test_a_sweep_without_a_pair_breaks_the_history():
    history = SweepHistory(5)
    add(history, 0, 1)
    assert len(add(history, 1, 2).history) == 1
    assert add(history, 3, 4).history == ()  # 2 to 3: no ego motion, or a gap
    assert len(add(history, 4, 5).history) == 1


def test_another_frame_and_a_reset_break_the_history():
    history = SweepHistory(5)
    add(history, 0, 1)
    assert add(history, 1, 2, frame_id='other').history == ()
    add(history, 2, 3, frame_id='other')
    history.reset()
    assert add(history, 3, 4, frame_id='other').history == ()
