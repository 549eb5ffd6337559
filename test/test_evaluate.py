# SPDX-License-Identifier: Apache-2.0
"""Scores on data whose answer is known: true flow scores 0, zero flow scores what is published for it."""

import json

import numpy as np
import pytest
from point_engine import PointEngine

from training import evaluate
from training.datasets.argoverse2 import read_labelled_pair
from training.datasets.tracked_boxes import box_points, read_boxes
from zeroflow_ros import transforms
from zeroflow_ros.engine import load_engine
from zeroflow_ros.errors import DataError

AV2_LOG = 'av2/val/7fab2350-7eaf-3b7e-a39d-6937a4c1bede'


class ZeroFlow(PointEngine):
    """Zero residual flow everywhere: a world in which only the vehicle moves."""

    def flow(self, source, target):
        return np.zeros_like(source)


def test_zero_flow_scores_its_published_three_way_epe_on_argoverse2(shared_data):
    scores = evaluate.score_argoverse2(ZeroFlow(load_engine().card), shared_data / AV2_LOG)
    assert scores['three_way'] == pytest.approx(0.227, abs=5e-4)
    assert scores['FD'] == pytest.approx(0.674, abs=5e-4)
    assert scores['dynamic_normalised_epe'] == pytest.approx(1.0, abs=1e-6)


def test_argoverse2_residual_flow_of_the_static_world_is_zero(shared_data):
    labelled = read_labelled_pair(shared_data / AV2_LOG)
    still = np.linalg.norm(labelled.flow[~labelled.is_dynamic], axis=1)
    assert np.median(still) < 1e-3 and len(still) > 50_000  # m: labels are float32
    assert labelled.pair.dt == pytest.approx(0.1, abs=1e-3)


def test_a_log_that_lacks_a_file_is_named(tmp_path):
    with pytest.raises(DataError, match='needs two sweeps'):
        read_labelled_pair(tmp_path)


def test_zero_flow_scores_one_on_tracked_boxes(shared_data):
    bags = shared_data / 'bags'
    scores = evaluate.score_boxes(ZeroFlow(load_engine().card), bags / 'kitti_0005_a', bags / 'kitti_0005_a_boxes.json')
    assert scores['zero_flow_epe_mps'] == pytest.approx(3.87, abs=0.01)
    assert scores['mover_normalised_epe'] == pytest.approx(1.0, abs=1e-6)
    assert set(scores['by_category']) == {'Cyclist', 'Pedestrian', 'Van'}
    assert scores['moving_share'] == 0


BOX = {'track_id': 1, 'category': 'Car', 'size_lwh': [4.0, 2.0, 1.5]}


@pytest.mark.parametrize(
    'label, before, ego0_T_ego1, velocity',
    [
        ('at rest', [10, 0, 0], np.eye(4), [0, 0, 0]),
        ('one metre forward in 0.1 s', [9, 0, 0], np.eye(4), [10, 0, 0]),
        # The vehicle drove 1 m towards a box at rest, which was therefore 11 m ahead before.
        ('at rest while the vehicle drives', [11, 0, 0], transforms.yaw_translation(0, 1, 0), [0, 0, 0]),
        # The vehicle turned left by 90 degrees; what moves north (y of ego0) moves along x of ego1.
        ('axes are those of the later sweep', [0, 9, 0], transforms.yaw_translation(np.pi / 2, 0, 0), [10, 0, 0]),
    ],
)
def test_velocity_of_a_box(label, before, ego0_T_ego1, velocity):
    yaw_before = np.pi / 2 if 'axes' in label else 0.0
    now = BOX | {'center': [10, 0, 0], 'yaw': 0.0}
    past = BOX | {'center': before, 'yaw': yaw_before}
    points = np.array([[10, 0, 0.2], [11, 0.5, 0.1], [9, -0.5, 0], [30, 0, 0], [10, 0, -0.74]], np.float32)
    [found] = box_points(points, [now], [past], ego0_T_ego1, 0.1, min_points=3)
    assert found.rows.tolist() == [0, 1, 2]  # neither the point outside nor the one on the ground
    np.testing.assert_allclose(found.velocity, np.tile(velocity, (3, 1)), atol=1e-5)


def test_a_box_without_a_past_or_with_few_points_is_left_out():
    now = BOX | {'center': [10, 0, 0], 'yaw': 0.0}
    points = np.array([[10, 0, 0.2]], np.float32)
    assert box_points(points, [now], [], np.eye(4), 0.1, min_points=1) == []
    assert box_points(points, [now], [now], np.eye(4), 0.1, min_points=2) == []


def test_files_that_are_no_boxes_are_refused(tmp_path):
    (tmp_path / 'b.json').write_text('[]')
    for path in (tmp_path / 'b.json', tmp_path / 'none.json'):
        with pytest.raises(DataError, match='tracked boxes'):
            read_boxes(path)


def test_program_scores_the_simulation_and_writes_json(tmp_path, capsys):
    assert evaluate.main(['--simulation', '1', '--json', str(tmp_path / 'e.json')]) == 0
    scores = json.loads((tmp_path / 'e.json').read_text())['simulation']
    assert {'FD', 'FS', 'BS', 'three_way', 'dynamic_normalised_epe'} <= set(scores)
    assert 'three_way' in capsys.readouterr().out


def test_program_reports_errors_with_exit_status_1(tmp_path, capsys):
    assert evaluate.main(['--av2', str(tmp_path)]) == 1
    assert evaluate.main(['--model', str(tmp_path / 'none.onnx'), '--simulation', '1']) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
