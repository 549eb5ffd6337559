# SPDX-License-Identifier: Apache-2.0
"""Recorded data sets through the programs: scored, labelled, and written as scenes and bags."""

import json

import numpy as np
import pytest
from nuscenes_files import write_nuscenes
from pandaset_files import write_pandaset
from waymo_files import write_waymo

from training import evaluate, label, to_bag, to_h5
from training.datasets import open_dataset
from training.labels.label_store import LabelStore

WRITERS = {
    'nuscenes': (write_nuscenes, 'rate=10'), 'pandaset': (write_pandaset, 'trust_pickles=true'),
    'waymo': (write_waymo, 'flow=boxes'),
}  # fmt: skip


@pytest.fixture(scope='module', params=list(WRITERS))
def recorded(request, tmp_path_factory):
    """Return the spec of a small data set."""
    root = tmp_path_factory.mktemp(request.param)
    write, options = WRITERS[request.param]
    write(root)
    return f'{request.param}:{root}?{options}'


def test_it_is_scored(recorded, tmp_path):
    out = tmp_path / 'scores.json'
    assert evaluate.main(['--estimator', 'zero', '--dataset', recorded, '--json', str(out)]) == 0
    scores = json.loads(out.read_text())[recorded]['zero']
    assert scores['pairs'] >= 4 and scores['by_class']['car']['dynamic_points'] > 100
    assert 6 < scores['dynamic_speed_mps'] < 9 and scores['static_epe_mps'] < 1e-3  # the car drives 8 m/s
    assert evaluate.main(['--estimator', 'zero', '--dataset', recorded, '--sweep', 'latest', '--pairs', '3']) == 0
    perturbed = ['--perturb', 'rate:5', 'stray:0.02', 'yaw:20']
    assert evaluate.main(['--estimator', 'zero', '--dataset', recorded, *perturbed]) == 0


def test_it_is_labelled(recorded, tmp_path):
    out = tmp_path / 'labels'
    assert label.main([recorded, '--teacher', 'rigid', '--out', str(out), '--pairs', '1']) == 0
    [key] = LabelStore(out).keys()
    assert key.startswith(f'{open_dataset(recorded).key(0).partition("/")[0]}/')


def test_it_becomes_scenes_and_bags(recorded, tmp_path):
    dataset = open_dataset(recorded)
    assert to_h5.main([recorded, '--out', str(tmp_path / 'scenes')]) == 0
    scenes = open_dataset(f'osf:{tmp_path / "scenes"}')
    assert len(scenes) == len(dataset)
    ours, read = dataset[2], scenes[2]
    known = ours.truth.is_valid
    np.testing.assert_allclose(read.truth.flow[known], ours.truth.flow[known], atol=1e-5)  # m
    assert to_bag.main([recorded, '--out', str(tmp_path / 'bags')]) == 0
    [path] = (tmp_path / 'bags').iterdir()
    bag = open_dataset(f'bag:{path}')
    assert len(bag) == len(dataset) and bag.ego_motion == 'odometry'
    np.testing.assert_array_equal(bag[2].pair.points0, ours.pair.points0)
    np.testing.assert_allclose(bag[2].pair.ego0_T_ego1, ours.pair.ego0_T_ego1, atol=1e-9)
    assert bag.key(2).rpartition('_')[2] == dataset.key(2).rpartition('/')[2]
