# SPDX-License-Identifier: Apache-2.0
"""Stereo estimators whose answer is known, scored over a dataset."""

from dataclasses import replace

import numpy as np
import pytest

from training.datasets.stereo_pairs import StereoBox, StereoDatasetPair, StereoTruth
from training.labels.stereo_label_store import StereoLabelStore
from training.scoring.score_text import stereo_score_text
from training.scoring.stereo_estimators import build_stereo_estimator
from training.scoring.stereo_evaluation import evaluate_stereo
from zeroflow_ros import transforms
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow, StereoFrame
from zeroflow_ros.errors import ConfigError, DataError, EgoMotionError, ModelError

CAMERA = StereoCamera(8, 4, 10.0, 10.0, 3.5, 1.5, 1.0)
FRAME = StereoFrame(np.zeros((4, 8), np.uint8), np.zeros((4, 8), np.uint8), CAMERA)
EGO = transforms.yaw_translation(0, 0, 0, -1.0)  # the camera drives 1 m forward
# Everything is 2 m away: what stands is 1 m away in the other frame, and the box on the left half keeps its distance.
DEPTH, STEP = 2.0, 1.0
IS_BOX = np.arange(8) < 4
POINTS = CAMERA.rays * np.float32(DEPTH)
MOVED = (POINTS + np.where(IS_BOX, STEP, 0)[None, :, None] * np.array([0, 0, 1]) - [0, 0, 1]).astype(np.float32)
PIXELS, OTHER_DISPARITY = CAMERA.project(MOVED)
GRID = np.stack(np.meshgrid(np.arange(8), np.arange(4)), axis=-1)
FLOW = (PIXELS - GRID).astype(np.float32)
DISPARITY = np.full((4, 8), 5, np.float32)
ALL = np.ones((4, 8), bool)
TRUTH = StereoTruth(DISPARITY, OTHER_DISPARITY, FLOW, ALL, ALL, ALL, np.tile(IS_BOX, (4, 1)))
BOX_POSE = np.eye(4)
BOX_POSE[:3, :3] = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]
BOX_POSE[:3, 3] = -1.0, 0, DEPTH  # pixels at or left of x = 0
BOX = StereoBox('Car', np.array([1.0, 1.7, 4.0]), BOX_POSE, BOX_POSE)


class Pairs:
    """Three pairs: with truth, with boxes, with neither."""

    name, sensor = 'pairs', 'stereo'

    def __init__(self, number=3, is_labelled=True):
        self.number, self.is_labelled = number, is_labelled

    def __len__(self):
        return self.number

    def key(self, index):
        return f'{index:06d}_10'

    def __getitem__(self, index):
        truth = TRUTH if index == 0 and self.is_labelled else None
        boxes = (BOX,) if index == 1 and self.is_labelled else None
        return StereoDatasetPair(self.key(index), FRAME, FRAME, EGO, 0.1, truth, boxes)


class Oracle:
    """Knows the scene flow, or says that all stands."""

    def __init__(self, name, knows=True):
        self.name, self.knows, self.told = name, knows, []

    def estimate(self, reference, other, other_T_reference=None):
        self.told.append(other_T_reference)
        sigma = np.ones_like(DISPARITY)
        found = StereoFlow(DISPARITY, OTHER_DISPARITY, FLOW, sigma, sigma, sigma, ALL)
        if self.knows:
            return found
        pixels, disparity = CAMERA.project(POINTS - np.float32([0, 0, 1]))
        return replace(found, flow=(pixels - GRID).astype(np.float32), other_disparity=disparity)


def test_the_truth_scores_0_and_a_standing_world_misses_what_moves():
    true, standing = Oracle('true'), Oracle('standing', knows=False)
    reports = evaluate_stereo(Pairs(), [true, standing])
    assert reports['true']['pixels']['outliers_percent']['occ']['SF']['all'] == 0
    assert reports['true']['velocity']['mover_normalised_epe'] == pytest.approx(0, abs=1e-5)
    found = reports['standing']
    assert found['pixels']['outliers_percent']['occ']['D2'] == {'bg': 0, 'fg': 100, 'all': 50}  # 10 px, not 5
    assert found['velocity']['mover_normalised_epe'] == pytest.approx(1, abs=1e-5)
    assert found['velocity']['mover_speed_mps'] == pytest.approx(10, abs=1e-5)
    assert found['velocity']['static_fast_share'] == 0 and found['ms_per_pair'] >= 0
    assert len(true.told) == 2 and true.told[0] is not None  # the pair with neither is not estimated
    text = stereo_score_text('pairs', reports)
    assert 'pairs: 1 pairs, 32 pixels' in text and 'points of movers' in text
    row = next(line.split() for line in text.splitlines() if line.split()[0] == 'standing')
    assert row[1:3] == ['0.00', '50.00']  # D1, D2


def test_a_pair_whose_ego_motion_is_not_found_counts_as_wrong():
    class Lost(Oracle):
        def estimate(self, reference, other, other_T_reference=None):
            raise EgoMotionError('Too dark.')

    report = evaluate_stereo(Pairs(), [Lost('lost')])['lost']
    assert report['failed_pairs'] == 2 and report['failures'][0] == '000000_10: Too dark.'
    assert report['pixels']['outliers_percent']['occ']['SF']['all'] == 100
    assert report['velocity']['mover_points'] == report['velocity']['share_of_boxes_seen'] == 0
    assert '2 pairs failed, for example 000000_10: Too dark.' in stereo_score_text('pairs', {'lost': report})


def test_the_truth_of_pixels_gives_velocities_where_it_says_what_moves():
    class Moving(Pairs):
        def __getitem__(self, index):
            truth = replace(TRUTH, is_moving=np.tile(IS_BOX, (4, 1)))
            return replace(super().__getitem__(index), truth=truth)

    found = evaluate_stereo(Moving(1), [Oracle('true'), Oracle('standing', knows=False)])
    assert found['true']['velocity']['mover_normalised_epe'] == pytest.approx(0, abs=1e-5)
    assert found['standing']['velocity']['mover_normalised_epe'] == pytest.approx(1, abs=1e-5)
    assert found['standing']['velocity']['mover_points'] == 16


def test_what_cannot_be_scored_is_said():
    for pairs, said in ((Pairs(0), 'has no pairs'), (Pairs(3, False), 'None of 3 pairs of pairs has ground truth')):
        with pytest.raises(DataError, match=said):
            evaluate_stereo(pairs, [Oracle('true')])
    with pytest.raises(DataError, match='ground truth of the older frame of a pair only'):
        evaluate_stereo(Pairs(), [], sweep='latest')
    with pytest.raises(ConfigError, match="Unknown estimator of stereo pairs 'embedded'; expected one of"):
        build_stereo_estimator('embedded')


def test_an_estimator_is_named_by_its_spec():
    for spec in ('classical', 'classical?scale=1', 'teacher:stereo'):
        assert build_stereo_estimator(spec).name == spec
    assert build_stereo_estimator('classical?scale=0.25').config.scale == 0.25
    with pytest.raises(ModelError, match=r'none\.onnx'):
        build_stereo_estimator('none.onnx')
    with pytest.raises(ConfigError, match="'rigid' is no teacher of stereo pairs; these are stereo"):
        build_stereo_estimator('teacher:rigid')
    assert build_stereo_estimator('teacher:lidar?clouds=bag').config.clouds == 'bag'


def test_stored_labels_are_scored_on_the_pairs_that_were_labelled(tmp_path):
    StereoLabelStore.create(tmp_path, {'sensor': 'stereo'}, {})
    store, label = StereoLabelStore(tmp_path), Oracle('true').estimate(None, None)
    measured = ALL.copy()
    measured[:, 0] = False
    store.write(Pairs()[0], replace(label, is_measured=measured))
    estimator = build_stereo_estimator(f'labels:{tmp_path}')
    found = evaluate_stereo(Pairs(1), [estimator])[f'labels:{tmp_path}']['pixels']
    assert found['density']['SF'] == pytest.approx(7 / 8)  # the first column is filled, and still right within 3 px
    assert found['outliers_percent_measured']['occ']['SF']['all'] == 0
    with pytest.raises(DataError, match=r'has no labels of 000001_10 \(it has 1 pairs\)'):
        evaluate_stereo(Pairs(2), [estimator])
