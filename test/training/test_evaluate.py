# SPDX-License-Identifier: Apache-2.0
"""Scores on data whose answer is known: true flow scores 0, zero flow scores what is published for it."""

import json

import numpy as np
import pytest
from scipy.spatial import cKDTree

from training import evaluate
from training.datasets import open_dataset
from training.datasets.argoverse2 import read_labelled_pair
from training.datasets.pairs import DatasetPair, GroundTruthFlow, MetaClass
from training.datasets.tracked_boxes import box_points, read_boxes
from training.scoring import evaluation
from training.scoring.estimators import build_estimator
from training.scoring.scores import FlowScores, Scope
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import SweepPair

AV2_LOG = 'av2/val/7fab2350-7eaf-3b7e-a39d-6937a4c1bede'
KITTI = 'bags/kitti_0005_a', 'bags/kitti_0005_a_boxes.json'


class Oracle:
    """Knows the truth, times a factor."""

    def __init__(self, name, factor):
        self.name = name
        self.factor = factor

    def flow(self, item):
        return np.where(item.truth.is_valid[:, None], item.truth.flow * np.float32(self.factor), np.nan)


class Boxes:
    """Pairs of two sweeps in memory, a car of 100 points moves 1 m before a wall; the last one is unlabelled."""

    name = 'boxes'

    def __init__(self, num_labelled=3, num_pairs=4):
        self.num_labelled = num_labelled
        self.num_pairs = num_pairs
        self.read = []

    def __len__(self):
        return self.num_pairs

    def key(self, index):
        return f'boxes/{index}'

    def __getitem__(self, index):
        self.read.append(index)
        rng = np.random.default_rng(index)
        points = rng.uniform(-20, 20, (400, 3)).astype(np.float32)
        is_car = np.arange(400) < 100
        flow = np.where(is_car[:, None], np.float32([1, 0, 0]), np.float32(0))
        truth = GroundTruthFlow(flow, is_car.astype(np.uint8) * np.uint8(MetaClass.CAR), np.ones(400, bool))
        pair = SweepPair(points, points + flow, np.eye(4), 0.1)
        return DatasetPair(
            self.key(index),
            pair,
            np.zeros(400, bool),
            np.zeros(400, bool),
            truth if index < self.num_labelled else None,
        )


def test_true_flow_scores_0_zero_flow_1_and_half_flow_a_half():
    found = evaluation.evaluate(
        Boxes(), [Oracle(name, k) for name, k in (('true', 1), ('zero', 0), ('half', 0.5))], Scope()
    )
    assert [found[name]['dynamic_normalised_epe'] for name in ('true', 'zero', 'half')] == pytest.approx([0, 1, 0.5])
    assert [found[name]['three_way']['FD'] for name in ('true', 'zero', 'half')] == pytest.approx([0, 1, 0.5])
    assert [found[name]['moving_share'] for name in ('true', 'zero', 'half')] == pytest.approx([0.25, 0, 0.25])
    assert found['true']['pairs'] == 3  # without the unlabelled one


def test_pairs_are_spread_over_the_dataset():
    dataset = Boxes(num_labelled=9, num_pairs=9)
    assert evaluation.evaluate(dataset, [Oracle('true', 1)], Scope(), num_pairs=3)['true']['pairs'] == 3
    assert dataset.read == [0, 4, 8]


@pytest.mark.parametrize('dataset, message', [(Boxes(0, 0), 'no pairs'), (Boxes(0, 2), 'None of 2 pairs')])
def test_a_dataset_without_truth_is_refused(dataset, message):
    with pytest.raises(DataError, match=message):
        evaluation.evaluate(dataset, [Oracle('true', 1)], Scope())


def test_zero_flow_scores_its_published_three_way_epe_on_argoverse2(shared_data, tmp_path, capsys):
    out = tmp_path / 'e.json'
    assert evaluate.main(['--estimator', 'zero', '--dataset', f'av2:{shared_data / AV2_LOG}', '--json', str(out)]) == 0
    [scores] = json.loads(out.read_text()).values()
    assert scores['zero']['three_way']['mean'] == pytest.approx(0.227, abs=5e-4)
    assert scores['zero']['three_way']['FD'] == pytest.approx(0.674, abs=5e-4)
    assert scores['zero']['dynamic_normalised_epe'] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize('name, error', [('embedded', 0.029), ('teacher:rigid', 0.013)])
def test_scores_on_argoverse2_are_those_of_the_readme(name, error, shared_data):
    dataset = open_dataset(f'av2:{shared_data / AV2_LOG}')
    scores = evaluation.evaluate(dataset, [build_estimator(name)], evaluation.SCOPES['av2'])[name]
    assert scores['three_way']['mean'] == pytest.approx(error, abs=2e-3)  # m


def test_zero_flow_scores_one_on_tracked_boxes(shared_data):
    bag, boxes = (shared_data / path for path in KITTI)
    dataset = open_dataset(f'bag:{bag}+{boxes}')
    scores = evaluation.evaluate(dataset, [build_estimator('zero')], evaluation.SCOPES['bag'], num_pairs=6)['zero']
    assert scores['dynamic_normalised_epe'] == pytest.approx(1.0, abs=1e-6)
    assert 3 < scores['dynamic_speed_mps'] < 5 and scores['moving_share'] == 0  # 3.91 over all pairs
    assert set(scores['by_class']) == {'car', 'pedestrian', 'wheeled_vru'}


def test_the_teacher_moves_a_cyclist_whom_one_direction_of_time_misses(shared_data):
    bag, boxes = (shared_data / path for path in KITTI)
    item, scores = open_dataset(f'bag:{bag}+{boxes}')[43], FlowScores(evaluation.SCOPES['bag'])
    scores.add(item, build_estimator('teacher:rigid').flow(item))
    by_class = scores.report()['by_class']
    assert by_class['wheeled_vru']['normalised_epe'] < 0.2  # 1.0 without what the other direction cuts out
    assert by_class['car']['normalised_epe'] < 0.3


def test_argoverse2_residual_flow_of_the_static_world_is_zero(shared_data):
    labelled = read_labelled_pair(shared_data / AV2_LOG)
    still = np.linalg.norm(labelled.flow[~labelled.is_dynamic], axis=1)
    assert np.median(still) < 1e-3 and len(still) > 50_000  # m: labels are float32
    assert labelled.pair.dt == pytest.approx(0.1, abs=1e-3)


def test_a_log_that_lacks_a_file_is_named(tmp_path):
    with pytest.raises(DataError, match='needs two sweeps'):
        read_labelled_pair(tmp_path)


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


def test_program_scores_the_simulation_and_writes_json_and_a_picture(tmp_path, capsys):
    spec, out, picture = 'simulation:1000000-1000000', tmp_path / 'e.json', tmp_path / 'new' / 'e.png'
    arguments = ['--estimator', 'zero', 'embedded', '--dataset', spec, '--json', str(out), '--picture', str(picture)]
    assert evaluate.main(arguments) == 0
    scores = json.loads(out.read_text(), parse_constant=pytest.fail)[spec]  # strict JSON: null, not NaN
    assert scores['zero']['dynamic_normalised_epe'] == pytest.approx(1)
    assert scores['embedded']['dynamic_normalised_epe'] < 1
    assert len(scores['zero']['bucketed']['buckets']['car']) == 51
    assert picture.read_bytes().startswith(b'\x89PNG')
    text = capsys.readouterr().out
    assert all(word in text for word in ('3-way', 'embedded', 'by class', 'by distance', str(picture)))


def test_program_scores_under_perturbations_and_writes_one_table_and_one_picture(clips, tmp_path, capsys):
    spec, out, picture = f'simulation:0@{clips}', tmp_path / 'p.json', tmp_path / 'p.png'
    arguments = ['--estimator', 'zero', 'embedded', '--dataset', spec, '--json', str(out)]
    arguments += ['--picture', str(picture), '--perturb', 'stray:0.3', 'decimate:0.5', 'stray:0.3']
    assert evaluate.main(arguments) == 0
    scores = json.loads(out.read_text(), parse_constant=pytest.fail)[spec]
    assert list(scores) == ['clean', 'stray:0.3', 'decimate:0.5']
    assert scores['stray:0.3']['zero']['dynamic_normalised_epe'] == pytest.approx(1)
    embedded = {name: scores[name]['embedded']['dynamic_normalised_epe'] for name in scores}
    assert embedded['stray:0.3'] > embedded['clean'] != embedded['decimate:0.5']
    assert picture.read_bytes().startswith(b'\x89PNG')
    text = capsys.readouterr().out
    assert text.count('stray:0.3  ') == 1 and 'norm. EPE   / clean   >0.5m/s' in text
    assert '3-way' not in text


def test_a_bad_perturbation_is_refused_with_the_list_of_kinds(capsys):
    assert evaluate.main(['--dataset', 'simulation:0', '--perturb', 'pitch:10', 'snow:0.1']) == 1
    said = capsys.readouterr().err
    assert "Unknown perturbation 'snow:0.1'" in said and '  stray:0.01 ' in said and '  rate:5 ' in said


def test_program_reports_errors_with_exit_status_1(tmp_path, capsys):
    assert evaluate.main(['--dataset', f'av2:{tmp_path}']) == 1
    assert evaluate.main(['--dataset', 'simulation:0-0', '--estimator', str(tmp_path / 'none.onnx')]) == 1
    assert evaluate.main(['--dataset', 'simulation:0-0', '--estimator', 'magic']) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 3


def test_the_latest_sweep_of_a_pair_has_the_flow_back_in_time(clips):
    dataset = open_dataset(f'simulation:0@{clips}')
    older, latest = dataset[0], dataset.latest(0)
    assert latest.key == 'clip_000000_latest' and latest.pair.dt == older.pair.dt
    np.testing.assert_array_equal(latest.pair.points0, older.pair.points1)
    np.testing.assert_array_equal(latest.is_ground0, older.is_ground1)
    np.testing.assert_allclose(latest.pair.ego0_T_ego1 @ older.pair.ego0_T_ego1, np.eye(4), atol=1e-9)
    speeds = [np.linalg.norm(item.truth.flow, axis=1).max() / item.pair.dt for item in (older, latest)]
    assert speeds[0] > 1 and speeds[1] == pytest.approx(speeds[0], rel=0.1)  # m/s: an actor of this clip moves
    moves = np.linalg.norm(latest.truth.flow, axis=1) > 0.1
    before = cKDTree(transforms.apply(latest.pair.ego0_T_ego1, latest.pair.points1))
    points, flow = latest.pair.points0[moves], latest.truth.flow[moves]
    gaps = [np.median(before.query(points + k * flow)[0]) for k in (1, 0, -1)]  # m to the older sweep
    assert gaps[0] < 0.6 * gaps[1] < gaps[2]


def test_the_latest_sweep_is_scored_where_its_truth_is_known(clips):
    dataset, oracles = open_dataset(f'simulation:0@{clips}'), [Oracle('true', 1), Oracle('half', 0.5)]
    found = evaluation.evaluate(dataset, oracles, Scope(), sweep='latest')
    assert [found[name]['dynamic_normalised_epe'] for name in ('true', 'half')] == pytest.approx([0, 0.5])
    with pytest.raises(DataError, match='boxes has ground truth of the older sweep of a pair only'):
        evaluation.evaluate(Boxes(), oracles, Scope(), sweep='latest')


@pytest.mark.parametrize('sweep, error', [('older', 0.121), ('latest', 0.121)])
def test_scores_on_kitti_are_those_of_the_readme(sweep, error, shared_data):
    bag, boxes = (shared_data / path for path in KITTI)
    dataset = open_dataset(f'bag:{bag}+{boxes}')
    scores = evaluation.evaluate(dataset, [build_estimator('embedded')], evaluation.SCOPES['bag'], sweep=sweep)
    assert scores['embedded']['dynamic_normalised_epe'] == pytest.approx(error, abs=2e-3)
