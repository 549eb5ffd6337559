# SPDX-License-Identifier: Apache-2.0
"""Drives of KITTI raw data: images, times, and poses of GPS and IMU."""

import shutil

import numpy as np
import pytest
from kitti_files import IMU_T_CAMERA, photo, png, write, write_drive

from training.datasets import STEREO, open_dataset
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError


def read(drive, options=''):
    return open_dataset(f'kitti_raw:{drive}{options}', (STEREO,))


def test_a_drive_is_read_as_it_was_written(tmp_path):
    dataset = read(write_drive(tmp_path))
    assert len(dataset) == 2 and not dataset.skipped
    item = dataset[1]
    assert item.key == dataset.key(1) == '0000000001_1317042145350000000'  # 2011-09-26 13:02:25.35
    assert item.dt == pytest.approx(0.1) and item.truth is item.boxes is None
    for frame, number in ((item.reference, 1), (item.other, 2)):
        np.testing.assert_array_equal(frame.left, photo(10 * number + 2))
        np.testing.assert_array_equal(frame.right, photo(10 * number + 3))
    assert item.reference.camera.baseline == pytest.approx(0.5)


def camera_motion(motion, k):
    """Return the pose of the camera at frame k in that at frame k + 1, from metres to the east and heading."""
    world_T_camera = [transforms.yaw_translation(yaw, east, 0) @ IMU_T_CAMERA for east, yaw in motion]
    return transforms.invert(world_T_camera[k + 1]) @ world_T_camera[k]


@pytest.mark.parametrize(
    'label, motion',
    [
        ('at rest', [(0, 0), (0, 0)]),
        ('straight on', [(0, 0), (1.5, 0)]),
        ('a turn on the spot moves the camera sideways', [(0, 0), (0, 0.1)]),
        ('a turn while driving', [(3, 0.2), (4, 0.25)]),
    ],
)
def test_ego_motion_is_that_of_the_left_camera(tmp_path, label, motion):
    item = read(write_drive(tmp_path, motion))[0]
    np.testing.assert_allclose(item.other_T_reference, camera_motion(motion, 0), atol=1e-5)  # m: the earth is round
    if label == 'straight on':
        np.testing.assert_allclose(item.other_T_reference[:3, 3], [0, 0, -1.5], atol=1e-5)


def test_poses_are_interpolated_at_the_times_of_the_images(tmp_path):
    motion = [(0, 0), (1, 0), (3, 0), (6, 0)]
    dataset = read(write_drive(tmp_path, motion, delay_ms=30))
    # At 30 % of the way: 0.3, 1.6, 3.9; the last image is 30 ms after the last pose, at the speed of the last step.
    for index, step in enumerate((1.3, 2.3, 3.0)):
        assert dataset[index].other_T_reference[2, 3] == pytest.approx(-step, abs=1e-4)


def test_seen_from_the_newer_frame_time_runs_back(tmp_path):
    dataset = read(write_drive(tmp_path))
    item, latest = dataset[0], dataset.latest(0)
    assert latest.dt == -item.dt and latest.key == item.key + '_latest'
    np.testing.assert_array_equal(latest.reference.left, item.other.left)
    np.testing.assert_allclose(latest.other_T_reference @ item.other_T_reference, np.eye(4), atol=1e-9)
    option = read(tmp_path / '2011_09_26_drive_0005_sync', '?latest=true')
    assert option.key(0) == option[0].key == option.latest(0).key == latest.key and option[0].dt == latest.dt


def test_without_poses_there_is_no_ego_motion(tmp_path):
    drive = write_drive(tmp_path)
    shutil.rmtree(drive / 'oxts')
    with pytest.raises(DataError, match='lacks the folder oxts/data'):
        read(drive)
    assert read(drive, '?ego_motion=none')[0].other_T_reference is None


def test_a_pose_that_jumps_costs_its_pairs(tmp_path):
    dataset = read(write_drive(tmp_path, [(0, 0), (1, 0), (500, 0), (3, 0), (4, 0)]))
    assert [dataset.key(index)[:10] for index in range(len(dataset))] == ['0000000000', '0000000003']
    assert dataset.skipped == {'no_ego_motion': 2}


def test_a_gap_makes_no_pair(tmp_path):
    drive = write_drive(tmp_path, [(k, 0) for k in range(5)])
    for eye in (2, 3):
        (drive / f'image_0{eye}' / 'data' / '0000000002.png').unlink()
    dataset = read(drive, '?max_dt=0.15')
    assert [dataset.key(index)[:10] for index in range(len(dataset))] == ['0000000000', '0000000003']
    assert dataset.skipped == {'gap_too_long': 1} and dataset.warnings == ['1 frames make no pair (gap_too_long).']


@pytest.mark.parametrize(
    'label, change, said',
    [
        ('no right images', lambda drive: shutil.rmtree(drive / 'image_03'), 'lacks the folder image_03/data'),
        ('a missing right image', lambda drive: (drive / 'image_03/data/0000000001.png').unlink(),
         'lacks 1 right images, for example .*image_03/data/0000000001.png'),
        ('no times', lambda drive: (drive / 'image_02/timestamps.txt').unlink(), 'timestamps.txt cannot be read'),
        ('times of another form', lambda drive: write(drive / 'image_02/timestamps.txt', '1317042145.35\n'),
         "lines like 2011-09-26 .* got '1317042145.35'"),
        ('times that go back', lambda drive: write(drive / 'oxts/timestamps.txt', '2011-09-26 13:02:25.3\n' * 2),
         'a later time on each line'),
        ('poses of another time',
         lambda drive: write(drive / 'image_02/timestamps.txt',
                             ''.join(f'2011-09-26 13:02:{k}.25\n' for k in (25, 26, 27))), 'has no pose at'),
        ('no calibration of the IMU', lambda drive: (drive.parent / 'calib_imu_to_velo.txt').unlink(),
         'calib_imu_to_velo.txt should be a calibration file'),
        ('an altitude that cannot be', lambda drive: write(drive / 'oxts/data/0000000001.txt', '49 8 1e6 0 0 0'),
         'should start with latitude'),
        ('sensors that are far apart',
         lambda drive: write(drive.parent / 'calib_velo_to_cam.txt', 'R: 1 0 0 0 1 0 0 0 1\nT: 0 900 0'),
         'the sensors are 900 m apart'),
        ('half a pose', lambda drive: write(drive / 'oxts/data/0000000001.txt', '49 8'), 'should start with latitude'),
        ('no number', lambda drive: write(drive / 'oxts/data/0000000001.txt', 'lat'), 'a line of 30 numbers'),
        ('no rotation', lambda drive: write(drive.parent / 'calib_velo_to_cam.txt', 'R: 1 0 0 0 1 0 0 0 2\nT: 0 0 0'),
         'R is not a rotation'),
        ('another size', lambda drive: write(drive / 'image_02/data/0000000000.png', png(photo(1, 12, 10))),
         'image_02/data/0000000000.png is 12 x 10 pixels, expected 24 x 10'),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_named(tmp_path, label, change, said):
    drive = write_drive(tmp_path)
    change(drive)
    with pytest.raises(DataError, match=said):
        read(drive)[0]
