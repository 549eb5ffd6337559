# SPDX-License-Identifier: Apache-2.0
"""True depth from clouds: of a bag beside a stereo bag, and of drives of KITTI raw data."""

import numpy as np
import pytest
import stereo_bag
from kitti_files import FOCAL, HEIGHT, WIDTH, png, write, write_drive
from stereo_bag import START_NS, write_stereo_bag

from training.datasets import STEREO, open_dataset
from training.datasets.lidar_depth import depth_image
from zeroflow_ros.bags.bag import BagWriter
from zeroflow_ros.bags.cdr import POINT_CLOUD, typestore
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import DataError

CAMERA = StereoCamera(8, 4, 10.0, 10.0, 4.0, 2.0, 0.5)


def test_the_nearest_point_of_a_pixel_counts_and_the_rest_is_unknown():
    points = np.array([[0, 0, 10], [0, 0, 5], [0, 0, -5], [np.nan, 0, 5], [50, 0, 5], [-1.5, 0, 5.1]], np.float32)
    expected = np.full((4, 8), np.nan, np.float32)
    expected[2, 4], expected[2, 1] = 5, 5.1
    np.testing.assert_array_equal(depth_image(points, CAMERA), expected)
    assert np.isnan(depth_image(np.zeros((0, 3)), CAMERA)).all()


def write_clouds(path, points, offsets_ns, frame_id='base_link'):
    """Write a bag of the same cloud, (N, 3) [m], at some times after the first image."""
    types = typestore().types
    fields = [types['sensor_msgs/msg/PointField'](name, 4 * i, 7, 1) for i, name in enumerate('xyz')]
    data = np.asarray(points, np.float32)
    with BagWriter(path) as writer:
        for offset_ns in offsets_ns:
            stamp_ns = START_NS + offset_ns
            stamp = types['builtin_interfaces/msg/Time'](stamp_ns // 10**9, stamp_ns % 10**9)
            message = types[POINT_CLOUD](
                types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame_id), 1, len(data), fields, False, 12,
                12 * len(data), data.view(np.uint8).ravel(), True,
            )  # fmt: skip
            writer.write('/points', POINT_CLOUD, stamp_ns, bytes(typestore().serialize_cdr(message, POINT_CLOUD)))
    return path


def test_clouds_of_the_same_drive_give_the_depth_of_a_stereo_bag(tmp_path):
    bag = write_stereo_bag(tmp_path / 'drive', 4)
    # In base_link; the camera is 0.3 m before it, 0.1 m to its left, 1.2 m above. The second cloud is 9 ms late.
    clouds = write_clouds(tmp_path / 'clouds', [[6.3, 0.1, 1.2], [6.3, -0.9, 1.2]], [0, 109_000_000])
    dataset = open_dataset(f'stereo:{bag}?clouds={clouds}', (STEREO,))
    for index in range(2):
        depth = dataset[index].depth
        assert np.count_nonzero(np.isfinite(depth)) == 2
        row, centre = stereo_bag.HEIGHT // 2, stereo_bag.WIDTH // 2
        assert depth[row, centre] == pytest.approx(6) and depth[row, centre + 5] == pytest.approx(6)
    assert dataset[2].depth is None  # no cloud at its time
    assert dataset.latest(0).depth is not None and dataset[0].truth is None


def test_clouds_without_a_mount_are_refused_with_the_remedy(tmp_path):
    bag = write_stereo_bag(tmp_path / 'drive', 2)
    clouds = write_clouds(tmp_path / 'clouds', [[6, 0, 1]], [0], frame_id='elsewhere')
    with pytest.raises(DataError, match=r"'elsewhere', with the left images, in 'left_optical'. Name the bag .*mount="):
        open_dataset(f'stereo:{bag}?clouds={clouds}', (STEREO,))[0]


def test_the_images_before_a_pair_are_the_left_ones_oldest_first(tmp_path):
    dataset = open_dataset(f'stereo:{write_stereo_bag(tmp_path / "drive", 4)}', (STEREO,))
    assert dataset[0].earlier(3) == []
    for count, numbers in ((1, [1]), (5, [0, 1])):
        found = dataset[2].earlier(count)
        assert len(found) == len(numbers)
        for image, number in zip(found, numbers, strict=True):
            np.testing.assert_array_equal(image, stereo_bag.picture(number, 0))
    assert dataset.latest(2).earlier is None


def test_drives_of_kitti_raw_have_depth_from_clouds_or_from_the_depth_benchmark(tmp_path):
    drive = write_drive(tmp_path / '2011_09_26')
    with pytest.raises(DataError, match='lacks the folder velodyne_points/data'):
        open_dataset(f'kitti_raw:{drive}?depth=velodyne', (STEREO,))
    with pytest.raises(DataError, match="one of none, velodyne, improved, got 'lidar'"):
        open_dataset(f'kitti_raw:{drive}?depth=lidar', (STEREO,))
    # Camera 2 is 0.27 m before the LiDAR, 0.06 m to the left of camera 0, which is 0.08 m above the LiDAR.
    points = np.array([[8.27, 0.06, -0.08, 0.5]], np.float32)
    folder = drive / 'velodyne_points' / 'data'
    write(folder / '0000000000.bin', points.tobytes())
    write(folder / '0000000001.bin', points.tobytes()[:-1])
    dataset = open_dataset(f'kitti_raw:{drive}?depth=velodyne', (STEREO,))
    depth = dataset[0].depth
    assert np.isfinite(depth).sum() == 1
    row, column = np.argwhere(np.isfinite(depth))[0]
    assert depth[row, column] == pytest.approx(8, abs=0.3) and abs(row - HEIGHT / 2) <= 1
    assert abs(column - WIDTH / 2) <= FOCAL * 0.15 / 8 + 1
    with pytest.raises(DataError, match='has 15 bytes, expected 16 for each point'):
        dataset[1]
    improved = np.zeros((HEIGHT, WIDTH), np.uint16)
    improved[3, 4] = 256 * 12
    write(drive / 'proj_depth' / 'groundtruth' / 'image_02' / '0000000001.png', png(improved))
    dataset = open_dataset(f'kitti_raw:{drive}?depth=improved', (STEREO,))
    assert dataset[0].depth is None and dataset[1].depth[3, 4] == 12 and np.isfinite(dataset[1].depth).sum() == 1
    assert [len(dataset[index].earlier(3)) for index in range(2)] == [0, 1]
