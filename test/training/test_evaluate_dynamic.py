# SPDX-License-Identifier: Apache-2.0
"""Scores of what moves."""

import json

import numpy as np
import pytest

pytest.importorskip('embreex', reason='simulation needs embreex')
pytest.importorskip('torch', reason='training needs torch')

from training.datasets.simulated_pairs import ClipDrive, SimulatedPairs
from training.evaluate_dynamic import DynamicScores, main, score
from training.simulation.clips import simulate_clip
from training.teachers.dynamic_labels import from_motion
from training.teachers.pseudo_label import PseudoLabel
from zeroflow_ros import transforms

SEED = 1_000_002  # a sensor of 31,000 points


@pytest.fixture(scope='module')
def drive():
    return ClipDrive(simulate_clip(SEED, num_sweeps=3))


class Knowing:
    """A DriveTeacher that has seen the answer, and doubts a share of it."""

    name, config = 'knowing', None

    def __init__(self, doubts=0.0):
        self.doubts = doubts

    def label_in_drive(self, drive, index, item, seen):
        moves = np.linalg.norm(item.truth.flow, axis=1) / seen.dt > 0.5
        moves[np.flatnonzero(moves)[: int(self.doubts * moves.sum())]] = False
        labels = [from_motion(seen.points0, moves, seen.is_ground0), np.zeros(len(seen.points1), np.int32)]
        flows = [np.zeros_like(points) for points in (seen.points0, seen.points1)]
        return PseudoLabel(
            seen.key, seen.points0, seen.points1, *flows, seen.is_ground0, seen.is_ground1, seen.dt, '', *labels
        )


@pytest.mark.parametrize(
    'label, moves, said, precision, recall, iou',
    [
        ('no points', [], [], np.nan, np.nan, np.nan),
        ('nothing moves, nothing said', [0, 0], [0, 0], np.nan, np.nan, np.nan),
        ('one of each', [1, 0, 1, 0], [1, 1, 0, 0], 1 / 2, 1 / 2, 1 / 3),
        ('all right', [1, 0], [1, 0], 1, 1, 1),
        ('all wrong', [1, 0], [0, 1], 0, 0, 0),
    ],
)
def test_scores(label, moves, said, precision, recall, iou):
    scores = DynamicScores()
    scores.add(np.array(moves, bool), np.array(said, bool))
    report = scores.report()
    np.testing.assert_equal([report[name] for name in ('precision', 'recall', 'iou')], [precision, recall, iou])


def test_a_teacher_that_knows_scores_one_and_one_that_doubts_less(drive):
    scores = {doubts: DynamicScores() for doubts in (0.0, 0.5)}
    for doubts, counted in scores.items():
        score(Knowing(doubts), drive, counted)
    assert scores[0.0].hits > 100 and scores[0.0].report()['iou'] == 1 and scores[0.0].sweeps == 3
    assert 0.2 < scores[0.5].report()['recall'] < 0.8 and scores[0.5].report()['precision'] == 1


def test_the_sweeps_of_a_clip_follow_each_other(drive):
    first, second = drive[0], drive[1]
    assert len(drive) == 2 and first.key != second.key
    np.testing.assert_array_equal(first.pair.points1, second.pair.points0)
    moves = np.linalg.norm(second.truth.flow, axis=1) > 0.1
    assert moves.any() and not moves[second.is_ground0].any()
    ego = drive.clip.sweeps
    expected = transforms.invert(ego[1].odom_T_lidar) @ ego[2].odom_T_lidar
    np.testing.assert_allclose(second.pair.ego0_T_ego1, expected)
    alone = SimulatedPairs(SEED, SEED)[0]
    again = ClipDrive(simulate_clip(SEED, num_sweeps=2))[0]
    np.testing.assert_array_equal(alone.truth.flow, again.truth.flow)


def test_the_program_prints_a_line_for_each_teacher(tmp_path, capsys):
    path = tmp_path / 'scores.json'
    assert main(['--teacher', 'rigid', '--seeds', str(SEED), '--sweeps', '2', '--json', str(path)]) == 0
    assert 'rigid' in capsys.readouterr().out
    assert set(json.loads(path.read_text())['rigid']) == {'precision', 'recall', 'iou', 'seconds_a_sweep'}


@pytest.mark.parametrize('words', [['--seeds', 'a-b'], ['--sweeps', '1'], ['--seeds', '']])
def test_wrong_words_end_with_exit_status_2(words):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2


@pytest.mark.parametrize('words', [['--seeds', '5-4'], ['--teacher', 'oracle']])
def test_what_cannot_be_scored_ends_with_exit_status_1(words, capsys):
    assert main(words) == 1
    assert 'training.evaluate_dynamic:' in capsys.readouterr().err
