# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip('matplotlib', reason='needs matplotlib')

from zeroflow_ros.bags.bag import BagWriter
from zeroflow_ros.bags.cdr import POINT_CLOUD, encode_message, flow_cloud_message, typestore
from zeroflow_ros.camera.pixel_cloud import pixel_cloud
from zeroflow_ros.views.camera_plot import (
    _focal_length,
    depth_colors,
    motion_colors,
    moving_mask,
    plot_camera_frame,
)
from zeroflow_ros.views.recorded_flow import count_moving, count_valid, draw_busy_frame

H, W, FOCAL = 24, 60, 50.0
PNG = b'\x89PNG'


@pytest.fixture
def frame():
    """Return (image, points, velocity, sigma): a wall 10 m ahead, with a square that moves to the right."""
    u, v = np.meshgrid(np.arange(W) - W / 2, np.arange(H) - H / 2)
    points = np.stack([u * 10 / FOCAL, v * 10 / FOCAL, np.full((H, W), 10)], axis=-1).astype(np.float32)
    velocity = np.zeros((H, W, 3), np.float32)
    velocity[8:16, 20:30, 0] = 3.0
    velocity[:3] = points[:3] = np.nan
    sigma = np.where(np.isnan(velocity[..., 0]), np.float32(np.nan), np.float32(0.2))
    sigma[8:10, 20:30] = 2.0  # not sure to move
    return np.full((H, W, 3), 200, np.uint8), points, velocity, sigma


def test_what_surely_moves_is_coloured_and_what_is_unknown_is_dark(frame):
    image, _, velocity, sigma = frame
    moving = moving_mask(velocity, sigma, 0.5, 3.0)
    assert moving.sum() == 6 * 10 and moving[10:16, 20:30].all()
    shown = motion_colors(image, velocity, moving, 0.5, 5.0)
    grey, dark, coloured = shown[20, 5], shown[0, 5], shown[12, 25]
    assert len(set(grey)) == 1 and len(set(dark)) == 1 and grey[0] > 2 * dark[0] > 0
    assert int(coloured.max()) - int(coloured.min()) > 50
    assert not moving_mask(velocity[:0], sigma[:0], 0.5, 3.0).size


def test_depth_is_black_where_it_is_not_known():
    colors = depth_colors(np.array([[np.nan, -1.0, 2.0, 80.0]], np.float32))
    assert not colors[0, :2].any() and colors[0, 2:].any(axis=1).all() and (colors[0, 2] != colors[0, 3]).any()


def test_the_focal_length_is_read_from_the_points(frame):
    assert _focal_length(frame[1]) == pytest.approx(FOCAL, rel=1e-4)
    assert _focal_length(np.full((H, W, 3), np.nan, np.float32)) is None


@pytest.mark.parametrize('grey', [False, True])
def test_a_picture_is_written_also_where_nothing_moves(frame, tmp_path, grey):
    image, points, velocity, sigma = frame
    image = image[..., 0] if grey else image
    plot_camera_frame(image, points, velocity, sigma, tmp_path / 'flow.png', title='A board')
    plot_camera_frame(image, points, np.zeros_like(velocity), sigma, tmp_path / 'still.png')
    pictures = [(tmp_path / name).read_bytes() for name in ('flow.png', 'still.png')]
    assert all(picture.startswith(PNG) for picture in pictures) and pictures[0] != pictures[1]


def test_a_recorded_frame_is_drawn_and_counted(frame, tmp_path):
    image, points, velocity, sigma = frame
    types = typestore().types
    path = tmp_path / 'flow.mcap'
    with BagWriter(path) as writer:
        for k in range(2):
            cloud = pixel_cloud(points, image, velocity * k, sigma, np.isfinite(sigma).astype(np.uint8))
            header = types['std_msgs/msg/Header'](types['builtin_interfaces/msg/Time'](5 + k, 0), 'optical')
            writer.write('/flow', POINT_CLOUD, 5 + k, encode_message(flow_cloud_message(header, cloud), POINT_CLOUD))
    num_moving = count_moving(path)
    assert num_moving == [0, 60] and count_valid(path) == (2 * (H - 3) * W,) * 2
    draw_busy_frame(path, num_moving, tmp_path / 'flow.png', 'A board')
    assert (tmp_path / 'flow.png').read_bytes().startswith(PNG)
