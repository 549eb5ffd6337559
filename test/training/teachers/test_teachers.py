# SPDX-License-Identifier: Apache-2.0
"""Teachers on clouds small enough to know the answer."""

import numpy as np
import pytest
import torch
from processes import ROOT
from scipy.ndimage import distance_transform_edt

from training.config import load_config
from training.teachers import TEACHERS, build_teacher
from training.teachers.coordinate_network import CoordinateNetwork, cores
from training.teachers.distance_field import DistanceField
from training.teachers.early_stopping import EarlyStopping
from training.teachers.fast_nsf import FastNSFConfig
from training.teachers.nearest import NearestTracker, nearest_by_distance
from training.teachers.nsfp import NSFP, NSFPConfig, TruncatedChamfer
from zeroflow_ros.errors import ConfigError, DataError

SMALL = {'width': 32, 'depth': 3, 'max_iterations': 90, 'num_threads': 1}


def box(num_points=200, seed=0):
    """Return points on the faces of a box of 4 x 2 x 1.5 m near (5, 3, 0), (N, 3) float32."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-0.5, 0.5, (num_points, 3))
    axis = rng.integers(3, size=num_points)
    points[np.arange(num_points), axis] = np.sign(points[np.arange(num_points), axis]) / 2
    return (points * [4, 2, 1.5] + [5, 3, 0]).astype(np.float32)


@pytest.mark.parametrize(
    'name, tolerance', [('nsfp', 0.07), ('fast_nsf', 0.09)]
)  # m, of 0.45; 90 steps, and a cell is 0.1 m
def test_a_box_that_moves_gets_its_flow_in_both_directions_of_time(name, tolerance):
    motion = np.array([0.4, -0.2, 0.0], np.float32)
    points0 = box()
    flow0, flow1 = build_teacher(name, SMALL).label(points0, points0[::2] + motion, 0.1)
    assert flow0.shape == (200, 3) and flow1.shape == (100, 3) and flow0.dtype == flow1.dtype == np.float32
    assert np.linalg.norm(flow0 - motion, axis=1).mean() < tolerance
    assert np.linalg.norm(flow1 + motion, axis=1).mean() < tolerance


@pytest.mark.parametrize('name', [name for name in TEACHERS if name != 'dufomap'])  # which knows no flow
@pytest.mark.parametrize('sizes', [(0, 0), (0, 5), (5, 0), (1, 1)])
def test_empty_and_single_points_get_zero_or_finite_flow(name, sizes):
    points0, points1 = (np.ones((size, 3), np.float32) for size in sizes)
    flows = build_teacher(name).label(points0, points1, 0.1) if 0 in sizes else None
    if flows is None:
        flows = build_teacher(name, {'max_iterations': 5} if name in ('nsfp', 'fast_nsf') else {}).label(
            points0, points1, 0.1
        )
        assert all(np.isfinite(flow).all() for flow in flows)
    else:
        assert not any(flow.any() for flow in flows)
    assert [len(flow) for flow in flows] == list(sizes)


def test_the_same_seed_gives_the_same_flow_whatever_ran_before():
    points0, points1 = box(), box(seed=1) + np.float32(0.3)
    labels = []
    for seed, draws in ((0, 0), (0, 5), (1, 0)):
        torch.rand(draws)
        labels.append(build_teacher('nsfp', SMALL | {'seed': seed, 'max_iterations': 20}).label(points0, points1, 0.1))
    assert np.array_equal(labels[0][0], labels[1][0]) and np.array_equal(labels[0][1], labels[1][1])
    assert not np.array_equal(labels[0][0], labels[2][0])


def test_a_teacher_leaves_the_state_of_torch_as_it_was():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    build_teacher('nsfp', {'max_iterations': 2}).label(box(), box(), 0.1)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


def test_the_inverse_network_gives_the_flow_back_in_one_run():
    motion = np.array([0.3, 0.0, 0.0], np.float32)
    points0 = box()
    fit = NSFP(NSFPConfig(**SMALL, backward='inverse')).label(points0, points0 + motion, 0.1)
    assert np.linalg.norm(fit[1] + motion, axis=1).mean() < 0.1  # m, of 0.3; it was never shown points1


CHAMFER = [
    # moving, fixed, loss, gradient of the first moving point
    ('same place', [[0, 0, 0]], [[0, 0, 0]], 0.0, [0, 0, 0]),
    ('1 m apart: 1 + 1', [[1, 0, 0]], [[0, 0, 0]], 2.0, [4, 0, 0]),
    ('1.4 m: 1.96 + 1.96', [[1.4, 0, 0]], [[0, 0, 0]], 3.92, [5.6, 0, 0]),
    ('1.42 m: beyond', [[1.42, 0, 0]], [[0, 0, 0]], 0.0, [0, 0, 0]),
    ('outlier still counted in the mean: 1 / 2 + 1', [[1, 0, 0], [900, 0, 0]], [[0, 0, 0]], 1.5, [3, 0, 0]),
    ('two fixed: 0.25 + (0.25 + 0.25) / 2', [[0.5, 0, 0]], [[0, 0, 0], [1, 0, 0]], 0.5, [1, 0, 0]),
]


@pytest.mark.parametrize('label, moving, fixed, loss, gradient', CHAMFER, ids=[row[0] for row in CHAMFER])
def test_truncated_chamfer_by_hand(label, moving, fixed, loss, gradient):
    moving = torch.tensor(moving, dtype=torch.float32, requires_grad=True)
    found = TruncatedChamfer(2.0)(moving, torch.tensor(fixed, dtype=torch.float32))
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-6)
    # Of two fixed points equally near, either may pull the moving one.
    assert moving.grad[0].abs().tolist() == pytest.approx(gradient, abs=1e-5)


def test_far_outliers_do_not_pull():
    points0 = box()
    far = np.array([[60, 60, 3], [-70, 20, 1]], np.float32)
    flow, _ = build_teacher('nsfp', SMALL).label(points0, np.concatenate([points0 + np.float32([0.4, 0, 0]), far]), 0.1)
    assert np.linalg.norm(flow - [0.4, 0, 0], axis=1).mean() < 0.07  # m, of 0.4


def walk(rng, kind, step):
    """Return what is added to a cloud (N, 3) from one call to the next."""
    size = {'small': 0.005, 'large': 0.3, 'drift': 0.002}[kind]
    return rng.normal(0, size, (2000, 3)) + (0.05 * (kind == 'drift')) * np.array([1, step % 2, 0])


@pytest.mark.parametrize('kind', ['small', 'large', 'drift'])
@pytest.mark.parametrize('moves', ['queries', 'targets', 'both'])
def test_tracked_neighbours_equal_all_pairs(kind, moves):
    rng = np.random.default_rng(0)
    reach = 1.5
    clouds = {name: rng.uniform(-12, 12, (2000, 3)) * [1, 1, 0.1] for name in ('queries', 'targets')}
    clouds['queries'][:5] += 500  # far from everything, and outside the map
    clouds['targets'][:5] += 500.5
    clouds = {name: cloud.astype(np.float32) for name, cloud in clouds.items()}
    tracker = NearestTracker(reach)
    for step in range(12):
        for name in clouds:
            if moves in (name, 'both'):
                clouds[name] = (clouds[name] + walk(rng, kind, step)).astype(np.float32)
        queries, targets = clouds['queries'], clouds['targets']
        found = tracker(queries, targets)
        plain = nearest_by_distance(*map(torch.from_numpy, (queries, targets)), reach, chunk=700).numpy()
        assert np.array_equal(found < 0, plain < 0) and (plain >= 0).any()
        distances = [np.linalg.norm(queries - targets[index], axis=1)[plain >= 0] for index in (found, plain)]
        np.testing.assert_allclose(*distances, atol=1e-4)  # m: float32 at 500 m
    if kind == 'small' and moves == 'queries':
        assert tracker.num_trees == 1 and tracker.num_looks < 4000  # of 24,000 asked


@pytest.mark.parametrize('sizes', [(0, 3), (3, 0), (0, 0)])
def test_nearest_of_nothing(sizes):
    queries, targets = (np.zeros((size, 3), np.float32) for size in sizes)
    for found in (
        NearestTracker(1.0)(queries, targets),
        nearest_by_distance(torch.from_numpy(queries), torch.from_numpy(targets), 1.0).numpy(),
    ):
        assert found.tolist() == [-1] * sizes[0]


@pytest.mark.parametrize('num_points, threads', [(1, 1), (5000, 1), (9000, 2)])
def test_leaving_out_neurons_that_are_off_changes_nothing(num_points, threads):
    points = torch.from_numpy(box(num_points)).double().requires_grad_()  # sums of 9,000 points in another order
    with cores(threads) as map_blocks:
        network = CoordinateNetwork(map_blocks=map_blocks, seed=3).double()
        with torch.no_grad():
            network.layers[2].bias -= 0.3  # a layer with few neurons on
            network.layers[5].bias -= 9.0  # and one with none
        results = []
        for function in (network.dense, network):
            network.zero_grad()
            points.grad = None
            flow = function(points)
            (flow * torch.tensor([1.0, 2.0, 3.0]).double()).square().mean().backward()
            results.append([flow.detach(), points.grad, *(parameter.grad for parameter in network.parameters())])
    for plain, fast in zip(*results, strict=True):
        np.testing.assert_allclose(fast, plain, rtol=1e-9, atol=1e-12 * float(plain.abs().max()))


def test_distance_field_is_the_distance_transform_of_the_grid():
    points = box(50)
    lower, upper, cell = points.min(0) - 1, points.max(0) + 1, 0.25
    field = DistanceField(points, lower, upper, cell)
    free = np.ones(field.shape, bool)
    free[tuple(np.floor((points - lower) / np.float32(cell)).astype(int).T)] = False
    expected = cell * distance_transform_edt(free)
    index = np.stack(np.meshgrid(*map(range, field.shape), indexing='ij'), -1).reshape(-1, 3)
    centres = torch.from_numpy((lower + (index + 0.5) * cell).astype(np.float32))
    np.testing.assert_allclose(field(centres), expected.reshape(-1), atol=1e-4)  # m
    between = field((centres[:1] + centres[1:2]) / 2)
    assert between.item() == pytest.approx(expected.reshape(-1)[:2].mean(), abs=1e-4)
    outside = field(torch.tensor([[-1e4, -1e4, -1e4]]))
    assert outside.item() == pytest.approx(expected[0, 0, 0], abs=1e-4)


def test_distance_field_says_when_the_clouds_reach_too_far():
    with pytest.raises(DataError, match='Crop the clouds'):
        build_teacher('fast_nsf').label(box(), np.float32([[0, 0, 0], [9e4, 9e4, 9e4]]), 0.1)


@pytest.mark.parametrize(
    'losses, stops_at',
    [([1, 1, 1], 3), ([1.0, 0.995, 0.985, 0.985, 0.985], 5), ([float('nan')] * 2, 2), ([3, 2, 1], None)],
)
def test_early_stopping(losses, stops_at):
    stopping = EarlyStopping(patience=2, min_delta=0.01)
    done = [stopping.done(loss) for loss in losses]
    assert (done.index(True) + 1 if True in done else None) == stops_at


@pytest.mark.parametrize('name, kind', [('nsfp', NSFPConfig), ('fast_nsf', FastNSFConfig)])
def test_shipped_settings_are_the_defaults(name, kind):
    assert load_config(kind, ROOT / 'config' / f'teacher_{name}.yaml') == kind()


@pytest.mark.parametrize(
    'name, config, message',
    [
        ('nsf', None, 'nsfp, fast_nsf'),
        ('nsfp', {'patiense': 3}, "did you mean 'patience'"),
        ('nsfp', {'lr': 'fast'}, 'should be a float'),
        ('nsfp', {'backward': 'no'}, "'swap' or 'inverse'"),
        ('nsfp', {'patience': 0}, 'at least 1'),
        ('nsfp', {'truncation': 0}, 'above 0'),
        ('fast_nsf', {'cell': 0}, 'above 0'),
        ('fast_nsf', {'depth': 0}, 'at least 1'),
    ],
)
def test_what_makes_no_sense_is_an_error(name, config, message):
    with pytest.raises(ConfigError, match=message):
        build_teacher(name, config)
