# SPDX-License-Identifier: Apache-2.0
"""True flow inside tracked boxes: how a box moves is known, what lies in none is not."""

import json

import numpy as np
import pytest

from training.datasets.pairs import MetaClass
from training.datasets.tracked_boxes import TrackedBoxes
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import SweepPair

BOX = {'track_id': 1, 'category': 'Car', 'center': [10, 0, 0], 'size_lwh': [4.0, 2.0, 1.5], 'yaw': 0.0}
# In the box, at its edge, in its lowest 0.15 m, outside, without a return.
POINTS = np.array([[10, 0, 0], [11.9, 0.9, 0.7], [10, 0, -0.7], [30, 0, 0], [np.nan] * 3], np.float32)


def read(folder, *sweeps, **more) -> TrackedBoxes:
    path = folder / 'boxes.json'
    path.write_text(json.dumps({'sweeps': sweeps} | more))
    return TrackedBoxes.read(path)


def pair_of(points, ego0_T_ego1=None):
    return SweepPair(points, points[:1], np.eye(4) if ego0_T_ego1 is None else ego0_T_ego1, 0.1)


QUARTER = transforms.yaw_translation(np.pi / 2, 0, 0)


@pytest.mark.parametrize(
    'label, change, ego0_T_ego1, flow',
    [
        ('at rest', {}, None, [[0, 0, 0], [0, 0, 0]]),
        ('one metre ahead', {'center': [11, 0, 0]}, None, [[1, 0, 0], [1, 0, 0]]),
        ('at rest while the vehicle drives 1 m', {'center': [9, 0, 0]}, transforms.yaw_translation(0, 1, 0),
         [[0, 0, 0], [0, 0, 0]]),
        # The vehicle turned left; what is now 12 m to its right is where 12 m ahead was.
        ('axes are those of the older sweep', {'center': [0, -12, 0], 'yaw': -np.pi / 2}, QUARTER,
         [[2, 0, 0], [2, 0, 0]]),
        ('turns about its middle', {'yaw': np.pi / 2}, None, [[0, 0, 0], [-0.9 - 1.9, 1.9 - 0.9, 0]]),
    ],
)  # fmt: skip
def test_points_move_with_their_box(tmp_path, label, change, ego0_T_ego1, flow):
    truth = read(tmp_path, [BOX], [BOX | change]).ground_truth_flow(pair_of(POINTS, ego0_T_ego1), 0, 1)
    assert truth.is_valid.tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(truth.flow[:2], flow, atol=1e-6)
    assert truth.meta_class[:2].tolist() == [MetaClass.CAR] * 2 and truth.flow.dtype == np.float32


@pytest.mark.parametrize(
    'label, sweeps',
    [
        ('no boxes', ([], [])),
        ('a box that is gone', ([BOX], [])),
        ('a box that has just come', ([], [BOX])),
        ('another track', ([BOX], [BOX | {'track_id': 2}])),
        ('two boxes', ([BOX, BOX | {'track_id': 2}], [BOX, BOX | {'track_id': 2, 'center': [11, 0, 0]}])),
    ],
)
def test_where_motion_is_not_known_nothing_is_valid(tmp_path, label, sweeps):
    assert not read(tmp_path, *sweeps).ground_truth_flow(pair_of(POINTS), 0, 1).is_valid.any()


def test_sweeps_are_those_that_were_paired(tmp_path):
    boxes = read(tmp_path, [BOX], [], [BOX | {'center': [12, 0, 0]}])
    np.testing.assert_allclose(boxes.ground_truth_flow(pair_of(POINTS), 0, 2).flow[0], [2, 0, 0], atol=1e-6)


def test_points_outside_the_image_are_not_known(tmp_path):
    # A camera that looks along x, 100 pixels to the unit of slope, 40 x 20 pixels around the axis.
    camera = {'lidar_to_image_3x4': [[20, -100, 0, 0], [10, 0, -100, 0], [1, 0, 0, 0]], 'image_size_wh': [40, 20]}
    behind = BOX | {'track_id': 2, 'center': [-10, 0, 0]}
    points = np.array([[10, 0, 0], [10, 1.05, 0], [9, -2.05, 0], [10, 0, 0.74], [-10, 0, 0]], np.float32)
    wide = BOX | {'size_lwh': [4, 6, 3]}
    boxes = read(tmp_path, [wide, behind], [wide, behind], **camera)
    assert boxes.ground_truth_flow(pair_of(points), 0, 1).is_valid.tolist() == [True, True, False, True, False]
    boxes = read(tmp_path, [wide, behind], [wide, behind])
    assert boxes.ground_truth_flow(pair_of(points), 0, 1).is_valid.all()


@pytest.mark.parametrize(
    'sweeps, more, said',
    [
        ([[BOX | {'category': 'Dragon'}]], {}, "a box of category 'Dragon'. Known categories: car"),
        ([[{'track_id': 1}]], {}, 'a box needs track_id'),
        ([[BOX | {'center': [1, 2]}]], {}, 'a box needs'),
        ([[BOX | {'yaw': float('nan')}]], {}, 'a box needs'),
        ([['car']], {}, 'a box needs'),
        ([[BOX | {'yaw': 10**400}]], {}, 'a box needs'),
        ([[BOX | {'center': '123'}]], {}, 'a box needs'),
        ([[BOX | {'center': [1e308, 0, 0]}]], {}, 'a box needs'),
        ([[BOX | {'track_id': [1]}]], {}, 'a box needs'),
        ([5], {}, 'should be a JSON file of tracked boxes'),
        ([[BOX]], {'lidar_to_image_3x4': [[1, 2], [3, 4]]}, 'should be 3 rows of 4'),
        ([[BOX]], {'lidar_to_image_3x4': [[10**400] * 4] * 3}, 'should be 3 rows of 4'),
        ([[BOX]], {'lidar_to_image_3x4': np.eye(3, 4).tolist()}, 'image_size_wh'),
    ],
)
def test_what_are_no_boxes_is_refused(tmp_path, sweeps, more, said):
    with pytest.raises(DataError, match=said):
        read(tmp_path, *sweeps, **more)


def test_brackets_in_brackets_are_no_boxes(tmp_path):
    (tmp_path / 'boxes.json').write_text('[' * 100_000)
    with pytest.raises(DataError, match='should be a JSON file of tracked boxes'):
        TrackedBoxes.read(tmp_path / 'boxes.json')
