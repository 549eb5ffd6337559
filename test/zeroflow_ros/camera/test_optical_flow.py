# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from textured_planes import MOVER, STATIC_SCENE, camera_motion, stereo_pair, truth

from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.optical_flow import FlowConfig, OpticalFlow, targets
from zeroflow_ros.errors import ConfigError

POSE = camera_motion((0.002, 0.01, 0), (0.02, 0, 0.5))
SCENE = (*STATIC_SCENE, MOVER)


def test_flow_is_that_of_the_planes_where_the_backward_flow_confirms_it():
    (first, second), true = stereo_pair(SCENE, POSE), truth(SCENE, POSE)
    search = OpticalFlow()
    flow = search.forward(first.left, second.left)
    consistent = search.is_consistent(flow, search.backward(first.left, second.left))
    error = np.linalg.norm(flow - true.flow, axis=-1)
    assert consistent.mean() > 0.7
    assert np.median(error[consistent]) < 0.25 and (error[consistent] > 2).mean() < 0.03  # px
    assert (error[~consistent] > 2).mean() > 3 * (error[consistent] > 2).mean()
    assert (consistent & (true.plane == 3)).sum() > 0.6 * (true.plane == 3).sum()


def test_flow_out_of_the_image_is_not_consistent():
    flow = np.zeros((8, 16, 2), np.float32)
    flow[:, 8:, 0] = 20
    consistent = OpticalFlow().is_consistent(flow, np.zeros_like(flow))
    assert consistent[:, :8].all() and not consistent[:, 8:].any()


def test_the_kernel_checks_as_numpy_does(monkeypatch):
    if numba_support.numba_kernels is None:
        pytest.skip('needs numba')
    rng = np.random.default_rng(0)
    flow = (rng.normal(0, 6, (24, 32, 1, 2)) + rng.normal(0, 0.4, (24, 32, 2, 2))).astype(np.float32)
    disparity = rng.uniform(1, 30, (24, 32)).astype(np.float32)
    disparity[3] = np.nan
    flow, backward = flow[:, :, 0].copy(), np.full((24, 32, 2), 0.3, np.float32)
    flow[5, 5] = np.nan
    fast, fast_disparity = OpticalFlow(FlowConfig(max_error=4.0)).check(flow, backward, disparity)
    monkeypatch.setattr(numba_support, 'numba_kernels', None)
    plain, plain_disparity = OpticalFlow(FlowConfig(max_error=4.0)).check(flow, backward, disparity)
    assert 0.1 < fast.mean() < 0.9 and not fast[5, 5] and np.isnan(fast_disparity[5, 5])
    assert (fast != plain).mean() < 0.01  # cv2 takes steps of 1/32 px
    inside = fast & plain
    same = (fast_disparity == plain_disparity) | (np.isnan(fast_disparity) & np.isnan(plain_disparity))
    assert same[inside].mean() > 0.97  # at half a pixel, cv2 rounds the other way


def test_targets_are_the_pixels_plus_the_flow():
    columns, rows = targets(np.full((2, 3, 2), (0.5, -1.0), np.float32))
    assert columns.tolist() == [[0.5, 1.5, 2.5]] * 2 and rows.tolist() == [[-1.0] * 3, [0.0] * 3]


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match='ultrafast, fast, medium'):
        FlowConfig(preset='slow')
