# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros.camera.metric_scale import MetricScale, ground_height
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.transforms import yaw_translation

CAMERA = StereoCamera(64, 48, 60.0, 60.0, 31.5, 23.5, 1.0)


def moved(z, x=0.0):
    motion = np.eye(4)
    motion[:3, 3] = x, 0, z
    return motion


def floor(height=1.5, pitch=0.0, obstacle=0.0):
    """Return the disparity (H, W) of a floor below a camera that looks down by `pitch` [rad]; above it, a wall.

    obstacle: share of the columns in which a wall hides the floor.
    """
    rays = CAMERA.rays.astype(np.float64)
    inverse = (rays[..., 1] * np.cos(pitch) + np.sin(pitch)) / height
    depth = np.minimum(1 / np.maximum(inverse, 1e-3), 30.0)
    depth[:, : round(obstacle * CAMERA.width)] = 4.0
    return CAMERA.disparity(depth)


@pytest.mark.parametrize('pitch', [0.0, 0.2, -0.1])
@pytest.mark.parametrize('height', [0.4, 1.5])
def test_the_height_above_a_floor_is_found(height, pitch):
    disparity = floor(height, pitch)
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(disparity.shape)
    everywhere = np.ones(disparity.shape, bool)
    assert ground_height(CAMERA, disparity, everywhere) == pytest.approx(height, rel=1e-3)
    assert ground_height(CAMERA, (disparity * noise).astype(np.float32), everywhere) == pytest.approx(height, rel=0.02)


def test_obstacles_hide_a_part_of_it_and_a_wall_is_no_floor():
    everywhere = np.ones((CAMERA.height, CAMERA.width), bool)
    assert ground_height(CAMERA, floor(obstacle=0.4), everywhere) == pytest.approx(1.5, rel=1e-2)
    wall = np.full(everywhere.shape, 15.0, np.float32)
    assert ground_height(CAMERA, wall, everywhere) is None
    assert ground_height(CAMERA, floor(), ~everywhere) is None
    noise = np.random.default_rng(0).uniform(5, 50, everywhere.shape).astype(np.float32)
    assert ground_height(CAMERA, noise, everywhere) is None


def test_the_scale_of_the_model_is_one():
    scale = MetricScale()
    assert scale.factor == 1.0 and scale.facts() == {'scale': '1.000', 'scale_source': 'model'}


def test_the_scale_is_the_median_of_distances_while_the_camera_moves():
    scale = MetricScale('odometry')
    for k in range(5):
        assert scale.factor is None and f'{k} of 5 measurements' in scale.missing()
        scale.measure_motion(moved(0.5 if k else 0.8), moved(1.0))
    assert scale.factor == 2.0 and scale.facts()['scale_kept'] == ''


@pytest.mark.parametrize(
    'own, odometry, said',
    [
        (moved(0.0), moved(0.1), 'moved 0.10 m between two frames, less than 0.15 m'),
        (yaw_translation(0.2, 0.0, 0.0, 0.0), yaw_translation(0.2, 0.0, 0.0, 0.0), 'moved 0.00 m'),
        (None, moved(1.0), 'do not show the motion'),
        (moved(0.01), moved(1.0), 'by the images it stood'),
        (moved(0.0, 1.0), moved(1.0), 'a direction 90 degrees from'),
        (moved(-1.0), moved(1.0), 'a direction 180 degrees from'),
        (moved(0.1), moved(1.0), 'A factor of 10.00 is not plausible'),
    ],
)
def test_what_has_no_scale_changes_nothing_and_is_said(own, odometry, said):
    scale = MetricScale('odometry')
    for _ in range(5):
        scale.measure_motion(moved(0.5), moved(1.0))
    for _ in range(100):
        scale.measure_motion(own, odometry)
    assert scale.factor == 2.0 and said in scale.facts()['scale_kept'] and scale.num_measured == 5
    scale.reset()
    assert scale.factor is None


def test_the_height_of_the_camera_gives_the_scale():
    scale = MetricScale('camera_height', 1.65)
    everywhere = np.ones((CAMERA.height, CAMERA.width), bool)
    for _ in range(5):
        scale.measure_ground(CAMERA, floor(1.5), everywhere)
    assert scale.factor == pytest.approx(1.1, rel=1e-3)
    scale.measure_ground(CAMERA, floor(1.5), ~everywhere)
    assert scale.factor == pytest.approx(1.1, rel=1e-3) and 'No plane fits' in scale.facts()['scale_kept']


@pytest.mark.parametrize(
    'arguments, said',
    [(('gps',), 'one of model, odometry, camera_height'), (('camera_height',), 'got 0.0'),
     (('camera_height', np.nan), 'got nan'), (('camera_height', -1.0), 'got -1.0')],
)  # fmt: skip
def test_wrong_arguments_are_said(arguments, said):
    with pytest.raises(ConfigError, match=said):
        MetricScale(*arguments)
