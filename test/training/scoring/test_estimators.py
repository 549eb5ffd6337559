# SPDX-License-Identifier: Apache-2.0
"""Everything that gives flow gives it for the older sweep, in its frame, with a row for every point."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from point_engine import PointEngine

from training.datasets.pairs import DatasetPair
from training.labels.label_store import LabelStore
from training.learning.checkpoint import Checkpoint
from training.scoring.estimators import (
    ModelEstimator,
    PointEstimator,
    build_estimator,
    checkpoint_engine,
    nearest_neighbour_flow,
)
from training.teachers.pseudo_label import PseudoLabel
from zeroflow_ros import transforms
from zeroflow_ros.engines.selection import load_engine
from zeroflow_ros.errors import ConfigError, DataError, ModelError
from zeroflow_ros.lidar.sweep import SweepPair
from zeroflow_ros.pipeline import FlowPipeline

CLOUD = np.array([[10, 0, 0], [0, 10, 0], [5, 5, 1], [3, 0, -1.7], [np.nan, 0, 0]], np.float32)
GROUND = np.array([False, False, False, True, False])


def drive(moves=((0, 0, 0), (0, 0, 0), (0, 0, 0)), ego0_T_ego1=None) -> DatasetPair:
    """Return a pair of the cloud above, whose first three points move, seen from a vehicle that moves as well."""
    ego0_T_ego1 = np.eye(4) if ego0_T_ego1 is None else ego0_T_ego1
    later = CLOUD.copy()
    later[:3] += np.array(moves, np.float32)
    later = transforms.apply(transforms.invert(ego0_T_ego1), later)
    return DatasetPair('drive/0', SweepPair(CLOUD, later, ego0_T_ego1, 0.1), GROUND, GROUND)


EGO = transforms.yaw_translation(0.1, 1.0, 0.2)


@pytest.mark.parametrize('name', ['zero', 'nearest'])
@pytest.mark.parametrize('label, ego', [('parked', np.eye(4)), ('driving', EGO)])
def test_a_static_world_has_no_flow(name, label, ego):
    flow = build_estimator(name).flow(drive(ego0_T_ego1=ego))
    assert flow.dtype == np.float32 and flow.shape == CLOUD.shape
    np.testing.assert_allclose(flow[:4], 0, atol=1e-5)  # m: float32 at 10 m
    assert np.isnan(flow[4]).all()


def test_nearest_neighbour_finds_what_moved_and_leaves_the_ground():
    moves = np.array([[0.5, 0, 0], [0, -0.3, 0], [0, 0, 0]], np.float32)
    flow = build_estimator('nearest').flow(drive(moves, EGO))
    np.testing.assert_allclose(flow[:4], [*moves, [0, 0, 0]], atol=1e-5)


def test_nearest_neighbour_without_points_on_either_side_is_zero():
    none = np.zeros((0, 3), np.float32)
    assert nearest_neighbour_flow(none, CLOUD[:2]).shape == (0, 3)
    np.testing.assert_array_equal(nearest_neighbour_flow(CLOUD[:2], none), 0)


def test_a_teacher_gets_what_it_is_promised_and_its_flow_finds_its_rows(monkeypatch):
    seen = []

    def label(points0, points1, dt, *, times=None):
        seen.append((points0, points1, dt))
        return np.full_like(points0, 2), np.zeros_like(points1)

    monkeypatch.setattr('training.teachers.build_teacher', lambda name: SimpleNamespace(name=name, label=label))
    flow = build_estimator('teacher:constant').flow(drive(ego0_T_ego1=EGO))
    [(points0, points1, dt)] = seen
    above = CLOUD[:3] + np.float32([0, 0, 1.7])  # the one ground point says how high the ground is
    np.testing.assert_allclose(points0, above, atol=1e-5)  # no ground, all finite, both clouds in ego0
    np.testing.assert_allclose(points1, above, atol=1e-5)
    assert points0.dtype == points1.dtype == np.float32 and dt == 0.1
    np.testing.assert_array_equal(flow, [[2, 2, 2]] * 3 + [[0, 0, 0], [np.nan] * 3])


def test_labels_are_found_by_key(tmp_path):
    item, flow = drive(), np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [np.nan] * 3])
    store = LabelStore.create(tmp_path / 'labels', {'teacher': 'by hand'}, {})
    store.write(PseudoLabel('drive/0', CLOUD, item.pair.points1, flow, np.zeros_like(CLOUD), GROUND, GROUND, 0.1))
    labels = build_estimator(f'labels:{tmp_path / "labels"}')
    np.testing.assert_allclose(labels.flow(item), flow, atol=5e-4)  # m: labels are whole millimetres
    with pytest.raises(DataError, match='no labels of drive/1'):
        labels.flow(DatasetPair('drive/1', item.pair, GROUND, GROUND))
    with pytest.raises(DataError, match='holds no pseudo-labels'):
        build_estimator(f'labels:{tmp_path}')


class Shift(PointEngine):
    """Flow of 0.3 m forward."""

    def flow(self, source, target):
        return np.tile(np.array([0.3, 0, 0], np.float32), (len(source), 1))


def test_a_model_flows_the_older_sweep_forward_in_metres():
    flow = ModelEstimator('shift', Shift(load_engine().card)).flow(drive())
    np.testing.assert_allclose(flow, np.tile([0.3, 0, 0], (5, 1)), atol=1e-6)


def test_a_model_is_asked_again_where_its_options_say_so():
    noise = np.random.default_rng(0).uniform([-50, -50, -1], [50, 50, 3], (2, 5000, 3)).astype(np.float32)
    ground = np.zeros(5000, bool)
    item = DatasetPair('noise/0', SweepPair(*noise, np.eye(4), 0.1), ground, ground)
    once, refined = (build_estimator(spec) for spec in ('embedded', 'embedded?refinements=1'))
    expected = FlowPipeline(load_engine(), output_on='previous', refinements=1).estimate(item.pair).velocity * 0.1
    np.testing.assert_allclose(refined.flow(item), expected, atol=1e-6)
    assert np.abs(refined.flow(item) - once.flow(item)).max() > 1e-3  # m
    assert refined.name == 'embedded?refinements=1'
    with pytest.raises(DataError, match='Known options: refinements'):
        build_estimator('embedded?speed=2')


def test_the_sensor_height_is_remembered_within_a_drive_only(monkeypatch):
    estimator, resets = ModelEstimator('shift', Shift(load_engine().card)), []
    monkeypatch.setattr(estimator._pipeline, 'reset', lambda: resets.append(True))
    first = drive()
    second = DatasetPair('drive/1', SweepPair(first.pair.points1, CLOUD, np.eye(4), 0.1), GROUND, GROUND)
    seen_from_newer = [replace(item, pair=item.pair.reversed()) for item in (first, second)]
    for item, expected in ((first, 1), (second, 1), (second, 2), (seen_from_newer[0], 3), (seen_from_newer[1], 3)):
        estimator.flow(item)
        assert len(resets) == expected


def test_a_model_is_told_the_mount():
    tilt = np.eye(4)
    tilt[:3, :3] = transforms.rotation_matrix([0, 0.5, 0])  # 29 degrees
    engine = Shift(load_engine().card)
    estimator = ModelEstimator('shift', engine)
    for mount in (tilt, None):
        estimator.flow(replace(drive(), mount=mount))
    heights = [source[:4, 2] for source, _ in engine.calls]
    np.testing.assert_allclose(heights, [CLOUD[:4] @ tilt[2, :3], CLOUD[:4, 2]], atol=1e-5)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> Path:
    import torch

    from training.students import build_student

    torch.manual_seed(0)
    student = build_student('fastflow3d_lite')
    about = {'ground': 'keep', 'z_origin': 'ground', 'direction': 'both', 'licence': 'Apache-2.0'}
    path = tmp_path_factory.mktemp('run') / 'last.pt'
    Checkpoint('fastflow3d_lite', student.state_dict(), about).save(path)
    return path


def test_a_checkpoint_flows_as_its_student_does(checkpoint):
    import torch

    from training.learning.checkpoint import load_checkpoint

    rng = np.random.default_rng(0)
    points0, points1 = (rng.uniform([-60, -60, -2], [60, 60, 2], (4000, 3)).astype(np.float32) for _ in range(2))
    points0[0] = np.nan
    none = np.zeros(4000, bool)
    flow = build_estimator(f'{checkpoint}?fit_objects=false').flow(
        DatasetPair('noise/0', SweepPair(points0, points1, EGO, 0.1), none, none)
    )
    outside = ~(np.abs(points0[:, :2]).max(1) < 51.2)
    assert outside[0] and np.isnan(flow[outside]).all() and np.isfinite(flow[~outside]).all()
    with torch.no_grad():
        student = load_checkpoint(checkpoint).build()
        clouds = points0[~outside], transforms.apply(EGO, points1)  # no ground in noise: z as it is
        expected = student(*map(torch.from_numpy, clouds)).numpy()
    np.testing.assert_allclose(flow[~outside], expected, atol=1e-4)  # m: sums of float32 in another order


def test_the_card_of_a_checkpoint_is_that_of_its_training(checkpoint):
    card = checkpoint_engine(checkpoint).card
    assert (card.ground, card.z_origin, card.direction, card.grid.cells) == ('keep', 'ground', 'both', 256)


@pytest.mark.parametrize('spec', ['', 'Zero', 'teacher:', 'labels:', 'model.engine', 'magic'])
def test_an_unknown_estimator_is_refused_with_the_known_ones(spec):
    with pytest.raises(ConfigError, match=r'expected one of: zero, nearest'):
        build_estimator(spec)


@pytest.mark.parametrize('spec', ['none.onnx', 'none.pt'])
def test_a_missing_model_is_named(spec, tmp_path):
    with pytest.raises(ModelError, match='none'):
        build_estimator(str(tmp_path / spec))


def test_a_function_of_points_sees_no_truth():
    arguments = []
    PointEstimator('spy', lambda *given: arguments.append(given) or given[0]).flow(drive())
    assert [type(value) for value in arguments[0]] == [np.ndarray, np.ndarray]
