# SPDX-License-Identifier: Apache-2.0
"""Our metrics are those of the official packages, av2 and bucketed-scene-flow-eval.

`make test` installs the two without their dependencies, which are over a gigabyte; what of these they import but do not
use here (open3d, opencv, ...) is stood in for. Where the packages are absent, figures that they gave once are compared.
"""

import importlib
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from training.datasets import argoverse2, argoverse2_truth, open_dataset
from training.datasets.pairs import DatasetPair, GroundTruthFlow, MetaClass
from training.scoring import metrics
from training.scoring.scores import FlowScores, Scope
from zeroflow_ros.lidar.sweep import SweepPair

NOT_USED = ('click', 'cv2', 'fvcore', 'open3d', 'pandas', 'pyquaternion', 'rich', 'rich.progress', 'upath')
CHILDREN = {  # of each meta-class, two official ones where there are several: theirs are summed as ours
    MetaClass.BACKGROUND: ('BACKGROUND',),
    MetaClass.CAR: ('REGULAR_VEHICLE',),
    MetaClass.OTHER_VEHICLES: ('BUS', 'TRUCK'),
    MetaClass.PEDESTRIAN: ('PEDESTRIAN', 'STROLLER'),
    MetaClass.WHEELED_VRU: ('BICYCLIST', 'MOTORCYCLE'),
    MetaClass.IGNORED: ('SIGN',),
}
NAMES = [name for names in CHILDREN.values() for name in names]
META_CLASS = np.array([kind for kind, names in CHILDREN.items() for _ in names], np.uint8)
IDENTICAL = {'abs': 1e-6, 'nan_ok': True}  # m, rad, or a share

# What the packages gave on random_frames(0), 35 m box for the bucketed and three-way ones.
EXPECTED = {
    'epe': 0.063232179,
    'acc_strict': 0.377888889,
    'acc_relaxed': 0.803444444,
    'angle': 0.334308321,
    'iou': 0.636217304,
    'static BACKGROUND': 0.067631687,
    'dynamic BACKGROUND': 0.153997587,
    'static CAR': 0.064092926,
    'dynamic CAR': 0.179658413,
    'static OTHER_VEHICLES': 0.066292433,
    'dynamic OTHER_VEHICLES': 0.147111998,
    'static PEDESTRIAN': 0.063555629,
    'dynamic PEDESTRIAN': 0.145981632,
    'static WHEELED_VRU': 0.061801036,
    'dynamic WHEELED_VRU': 0.126694341,
    'FS': 0.064012138,
    'FD': 0.062619292,
    'BS': 0.066955176,
}


def random_frames(seed: int, num_frames: int = 3, num_points: int = 3000) -> list[dict]:
    """Return frames of points, official class ids, true and predicted flow; some speeds and places lie on an edge."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(num_frames):
        speed = rng.exponential(0.4, num_points) * (rng.random(num_points) < 0.6)
        speed[:51] = metrics.SPEED_EDGES[:-1]
        direction = np.eye(3)[rng.integers(0, 3, num_points)]  # along an axis, so that a norm is exact
        truth = speed[:, None] * direction
        points = rng.uniform(-60, 60, (num_points, 3)).astype(np.float32)
        points[60:70, 0] = 35.0
        frames.append({
            'points': points,
            'ids': rng.integers(0, len(NAMES), num_points).astype(np.int8),
            'truth': truth.astype(np.float32).astype(np.float64),
            'flow': (truth + rng.normal(0, 0.05, truth.shape) * (rng.random(num_points) < 0.8)[:, None]),
        })  # fmt: skip
    return frames


def scored(frames: list[dict], scope: Scope) -> dict:
    """Return our report."""
    scores = FlowScores(scope)
    for k, frame in enumerate(frames):
        n = len(frame['points'])
        pair = SweepPair(frame['points'], frame['points'][:1], np.eye(4), 0.1)
        truth = GroundTruthFlow(frame['truth'], META_CLASS[frame['ids']], np.ones(n, bool))
        scores.add(DatasetPair(f'random/{k}', pair, np.zeros(n, bool), np.zeros(1, bool), truth), frame['flow'])
    return scores.report()


def ours(frames: list[dict], meta_class_of: np.ndarray = META_CLASS) -> dict:
    """Return our figures under the names of `official`. meta_class_of: each official class id."""
    everything = {name: np.concatenate([frame[name] for frame in frames]) for name in frames[0]}
    flow, truth, points = everything['flow'], everything['truth'], everything['points']
    near = (np.abs(points[:, :2]) < metrics.NEAR_BOX).all(1)
    kind = meta_class_of[everything['ids'][near]]
    bucketed = metrics.bucketed_epe(flow[near], truth[near], kind)
    known, foreground = kind != MetaClass.IGNORED, kind != MetaClass.BACKGROUND
    dynamic = np.linalg.norm(truth, axis=1) >= metrics.DYNAMIC
    three = metrics.three_way_epe(flow[near][known], truth[near][known], foreground[known], dynamic[near][known])
    found = np.linalg.norm(flow, axis=1) >= metrics.DYNAMIC
    return {
        'epe': metrics.epe(flow, truth).mean(),
        'acc_strict': metrics.is_accurate(flow, truth, metrics.STRICT).mean(),
        'acc_relaxed': metrics.is_accurate(flow, truth, metrics.RELAXED).mean(),
        'angle': metrics.angle_error(flow, truth).mean(),
        'iou': metrics.dynamic_iou(found, dynamic),
        **{f'static {kind.name}': value for kind, value in zip(metrics.CLASSES, bucketed.static, strict=True)},
        **{f'dynamic {kind.name}': value for kind, value in zip(metrics.CLASSES, bucketed.dynamic, strict=True)},
        **{name: three[name] for name in ('FD', 'FS', 'BS')},
    }


@pytest.fixture(scope='module')
def packages():
    """Return av2's and bucketed-scene-flow-eval's evaluation; skips where they are not installed."""
    for name in ('av2', 'bucketed_scene_flow_eval'):
        if find_spec(name) is None:
            pytest.skip(f'needs the package {name}; `make test` installs it')
    with pytest.MonkeyPatch.context() as patch:
        absent = [name for name in NOT_USED if find_spec(name.split('.')[0]) is None]  # before any has a stand-in
        for name in absent:
            patch.setitem(sys.modules, name, MagicMock())
        yield (
            importlib.import_module('av2.evaluation.scene_flow.eval'),
            importlib.import_module('bucketed_scene_flow_eval.eval'),
            importlib.import_module('bucketed_scene_flow_eval.datastructures'),
        )


def official(packages, frames: list[dict], folder, names=NAMES, children=CHILDREN) -> dict:
    """Return the figures of the packages. names: of the official class ids. children: of each meta-class."""
    av2, bucketed, structures = packages
    everything = {name: np.concatenate([frame[name] for frame in frames]) for name in frames[0]}
    flow, truth = everything['flow'], everything['truth']
    found, dynamic = (np.linalg.norm(part, axis=1) >= 0.05 for part in (flow, truth))
    hits, false_alarms, misses = (
        count(found, dynamic)
        for count in (av2.compute_true_positives, av2.compute_false_positives, av2.compute_false_negatives)
    )
    figures = {
        'epe': av2.compute_end_point_error(flow, truth).mean(),
        'acc_strict': av2.compute_accuracy_strict(flow, truth).mean(),
        'acc_relaxed': av2.compute_accuracy_relax(flow, truth).mean(),
        'angle': av2.compute_angle_error(flow, truth).mean(),
        'iou': hits / (hits + false_alarms + misses),
    }
    foreground = [name for kind in metrics.CLASSES[1:] for name in children[kind]]
    boards = {
        'bucketed': (bucketed.BucketedEPEEvaluator, {kind.name: list(children[kind]) for kind in metrics.CLASSES}),
        'three-way': (bucketed.ThreeWayEPEEvaluator, {'BACKGROUND': ['BACKGROUND'], 'FOREGROUND': foreground}),
    }
    found = {}
    for board, (evaluator, lookup) in boards.items():
        board_ = evaluator(
            class_id_to_name=dict(enumerate(names)), meta_class_lookup=lookup, output_path=folder / board
        )
        for frame in frames:
            # Without their loaders and poses: the one step of `eval` that scores.
            points = structures.PointCloud(frame['points'])
            board_.eval_frame_results.append(
                board_._build_eval_frame_results(points, frame['ids'], frame['truth'], frame['flow'])
            )
        found[board] = board_.compute_results(save_results=False)
    for kind in metrics.CLASSES:
        figures[f'static {kind.name}'], figures[f'dynamic {kind.name}'] = found['bucketed'].get(
            kind.name, (np.nan,) * 2
        )
    figures['FS'], figures['FD'] = found['three-way']['FOREGROUND']
    figures['BS'] = found['three-way']['BACKGROUND'][0]
    return {name: float(value) for name, value in figures.items()}


def check(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, **IDENTICAL), name


def test_random_flows_score_what_the_packages_gave_once():
    check(ours(random_frames(0)), EXPECTED)


@pytest.mark.parametrize('seed', [0, 1])
def test_random_flows_score_what_the_packages_give(packages, seed, tmp_path, capsys):
    frames = random_frames(seed)
    found = official(packages, frames, tmp_path)
    check(ours(frames), found)
    if seed == 0:
        check(EXPECTED, found)


def test_summed_scores_are_those_of_the_packages():
    report = scored(random_frames(0), Scope(half_extent=metrics.NEAR_BOX))
    for kind in metrics.CLASSES:
        for part in ('static', 'dynamic'):
            value = report['bucketed_35m'][part][kind.name.lower()]
            assert value == pytest.approx(EXPECTED[f'{part} {kind.name}'], **IDENTICAL)
    for name in ('FD', 'FS', 'BS'):
        assert report['three_way'][name] == pytest.approx(EXPECTED[name], **IDENTICAL)


def test_flows_of_a_labelled_pair_score_what_the_packages_give(packages, shared_data, tmp_path, capsys):
    [log] = sorted((shared_data / 'av2' / 'val').iterdir())
    item = open_dataset(f'av2:{log}')[0]
    labels = argoverse2.read_labelled_pair(log)
    categories = importlib.import_module('av2.datasets.sensor.constants').AnnotationCategories
    official_lists = (
        Path(find_spec('bucketed_scene_flow_eval').origin).parent / 'datasets/argoverse2/av2_metacategories.py'
    )
    lists = runpy.run_path(str(official_lists))['BUCKETED_METACATAGORIES']
    rows = item.truth.is_valid & ~item.is_ground0
    truth = item.truth.flow[rows].astype(np.float64)
    rng = np.random.default_rng(0)
    for factor, noise in ((0.0, 0.0), (0.9, 0.03)):  # zero flow, and an estimate
        frames = [{
            'points': item.pair.points0[rows],
            'ids': labels.classes[rows].astype(np.int8),
            'truth': truth,
            'flow': factor * truth + rng.normal(0, noise, truth.shape),
        }]  # fmt: skip
        found = official(packages, frames, tmp_path, ['BACKGROUND', *(category.value for category in categories)],
                         {kind: lists[kind.name] for kind in metrics.CLASSES})  # fmt: skip
        check(ours(frames, argoverse2_truth.META_CLASS), found)
        assert found['dynamic CAR'] < 0.5 or factor == 0
