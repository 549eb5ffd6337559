# SPDX-License-Identifier: Apache-2.0
"""Waymo Open perception data as Parquet tables: the drive of the TFRecords, and damaged tables."""

import numpy as np
import pytest
from waymo_files import CONTEXT, NUM_FRAMES, START_US, write_tables, write_waymo

from training.datasets import open_dataset
from zeroflow_ros.errors import DataError

VEHICLE_POSE = '[VehiclePoseComponent].world_from_vehicle.transform'
POINTS, POSES = '[LiDARComponent].range_image_return1', '[LiDARPoseComponent].range_image_return1'


def test_tables_and_records_give_the_same_pairs(tmp_path):
    true = write_tables(tmp_path / 'tables')
    write_waymo(tmp_path / 'records')
    tables = open_dataset(f'waymo:{tmp_path / "tables"}?flow=boxes')
    records = open_dataset(f'waymo:{tmp_path / "records"}?flow=boxes')
    assert len(tables) == len(records) == NUM_FRAMES - 1 and tables.key(1) == records.key(1)
    ours, theirs = tables[1], records[1]
    np.testing.assert_allclose(ours.pair.points0, true[1].points, atol=2e-5)  # m
    np.testing.assert_array_equal(ours.pair.points0, theirs.pair.points0)
    np.testing.assert_allclose(ours.pair.ego0_T_ego1, theirs.pair.ego0_T_ego1, atol=1e-12)
    np.testing.assert_allclose(ours.truth.flow, theirs.truth.flow, atol=1e-6)
    np.testing.assert_array_equal(ours.truth.is_valid, theirs.truth.is_valid)
    top = open_dataset(f'waymo:{tmp_path / "tables"}?lidars=top&returns=first')
    np.testing.assert_allclose(
        top[0].pair.points0, true[0].points[(true[0].laser == 1) & ~true[0].is_second], atol=2e-5
    )


def test_tables_have_neither_labels_nor_a_map(tmp_path):
    write_tables(tmp_path)
    dataset = open_dataset(str(tmp_path))  # recognised
    assert dataset[0].truth is None
    assert 'frames have no scene flow labels' in '\n'.join(dataset.summary.dataset_lines())
    with pytest.raises(DataError, match=f'{CONTEXT} at {START_US} holds no map'):
        open_dataset(f'waymo:{tmp_path}?ground=map')[0]


def test_frames_without_a_pose_and_boxes_that_are_missing(tmp_path):
    def change(tables):
        del tables['vehicle_pose'][0]
        tables['lidar_box'].clear()

    write_tables(tmp_path, change)
    dataset = open_dataset(f'waymo:{tmp_path}?flow=boxes')
    assert len(dataset) == NUM_FRAMES - 2 and dataset.skipped == {'no_ego_motion': 1}
    assert dataset[0].truth is None


def _drop(name):
    return lambda tables: tables[name].clear()


def _set(name, row, column, value):
    def change(tables):
        tables[name][row][column] = value

    return change


@pytest.mark.parametrize(
    'change, said',
    [
        (_drop('vehicle_pose'), r'There is no .*vehicle_pose/.*\.parquet: the drive needs lidar, lidar_pose'),
        (_drop('lidar_pose'), r'There is no .*lidar_pose'),
        (_drop('lidar_calibration'), r'There is no .*lidar_calibration'),
        (lambda tables: tables['lidar_calibration'].pop(0), 'TOP: there is no calibration'),
        (lambda tables: tables['lidar_pose'].pop(0), 'TOP: the range image lacks the poses of its cells'),
        (_set('lidar', 0, f'{POINTS}.shape', (3, 3, 4)), r'has the shape \[3, 3, 4\]'),
        (_set('vehicle_pose', 1, VEHICLE_POSE, np.ones(16)), 'should be a rotation and a translation'),
        (_set('lidar_box', 0, '[LiDARBoxComponent].box.size.x', None), "the box 'car' lacks a position or a size"),
        (lambda tables: [row.pop(f'{POSES}.shape') for row in tables['lidar_pose']], 'lacks the columns'),
    ],
)  # fmt: skip
def test_damaged_tables_are_named(tmp_path, change, said):
    write_tables(tmp_path, change)
    with pytest.raises(DataError, match=said):
        open_dataset(f'waymo:{tmp_path}?flow=boxes')[0]


def test_a_file_that_is_cut_is_named(tmp_path):
    write_tables(tmp_path)
    path = tmp_path / 'lidar' / f'{CONTEXT}.parquet'
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r'is no Parquet table, it may be cut'):
        open_dataset(f'waymo:{tmp_path}')
