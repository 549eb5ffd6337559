# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from training.learning.augmentation import Augmentation

EXACT = Augmentation(height=0, ego_translation=0, ego_yaw=0, thin=0, jitter=0)


def sample(seed=0):
    rng = np.random.default_rng(seed)
    points0 = rng.uniform(-20, 20, (500, 3)).astype(np.float32)
    flow0 = rng.normal(0, 0.5, (500, 3)).astype(np.float32)
    return (points0, points0 + flow0), (flow0, -flow0)


@pytest.mark.parametrize('seed', range(8))
def test_flow_still_leads_from_one_cloud_to_the_other(seed):
    clouds, flows, _ = EXACT(*sample(), np.random.default_rng(seed))
    np.testing.assert_allclose(clouds[0] + flows[0], clouds[1], atol=1e-4)  # m: float32 at 30 m
    np.testing.assert_allclose(clouds[1] + flows[1], clouds[0], atol=1e-4)


def test_an_error_of_the_ego_motion_moves_one_cloud_and_no_flow():
    wrong = dataclasses.replace(EXACT, ego_translation=0.05)
    exact_clouds, exact_flows, _ = EXACT(*sample(), np.random.default_rng(0))
    clouds, flows, _ = wrong(*sample(), np.random.default_rng(0))
    np.testing.assert_array_equal(clouds[0], exact_clouds[0])
    np.testing.assert_array_equal(flows[0], exact_flows[0])
    shift = clouds[1] - exact_clouds[1]
    assert 1e-3 < np.linalg.norm(shift, axis=1).max() < 0.3
    assert np.ptp(shift, axis=0).max() < 1e-3


def test_the_sweeps_of_a_window_move_together_and_drift_apart():
    """The same static points seen five times: without errors they stay in one place, with errors they drift."""
    points = np.random.default_rng(0).uniform(-20, 20, (300, 3)).astype(np.float32)
    flow = np.zeros_like(points)
    tilted = dataclasses.replace(EXACT, tilt=0.05)
    clouds, flows, rows = tilted([points] * 5, (flow, flow), np.random.default_rng(0))
    assert (len(clouds), len(flows), len(rows)) == (5, 2, 5)
    for other in clouds[1:]:
        np.testing.assert_allclose(other, clouds[0], atol=1e-4)
    wrong = dataclasses.replace(tilted, ego_translation=0.05)
    clouds, _, _ = wrong([points] * 5, (flow, flow), np.random.default_rng(0))
    drift = [np.linalg.norm((other - clouds[0]).mean(0)) for other in clouds]
    assert drift[0] == 0 and len(set(drift)) == 5 and max(drift) < 0.6


def test_thinned_rows_go_together():
    thin = dataclasses.replace(EXACT, thin=0.9)
    for seed in range(6):
        clouds, flows, kept = thin(*sample(), np.random.default_rng(seed))
        assert [len(c) for c in clouds] == [len(f) for f in flows] == [len(rows) for rows in kept]
    assert len(clouds[0]) <= 500


def test_the_input_is_not_changed():
    clouds, flows = sample()
    kept = [array.copy() for array in (*clouds, *flows)]
    Augmentation()(clouds, flows, np.random.default_rng(0))
    for array, before in zip((*clouds, *flows), kept, strict=True):
        np.testing.assert_array_equal(array, before)
