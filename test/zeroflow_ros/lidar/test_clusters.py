# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros.lidar import clusters
from zeroflow_ros.lidar.clusters import _components, cluster_moving

RNG = np.random.default_rng(0)
NONE = np.zeros((0, 3), np.float32)


@pytest.fixture(params=['compiled', 'numpy'], autouse=True)
def arithmetic(request, monkeypatch):
    if request.param == 'numpy':
        monkeypatch.setattr(clusters, 'numba_kernels', None)


def block(x, y, length, width, num_points, velocity):
    """Return (points, velocity) of a block with its middle at x, y [m], evenly filled."""
    points = RNG.uniform([x - length / 2, y - width / 2, 0], [x + length / 2, y + width / 2, 1.5], (num_points, 3))
    return points.astype(np.float32), np.tile(np.float32([*velocity, 0]), (num_points, 1))


def car(x=10.0, y=0.0, velocity=(8, 0)):
    return block(x, y, 4, 1.8, 400, velocity)


def person(x=10.0, y=1.3, velocity=(-1.2, 0)):
    return block(x, y, 0.5, 0.5, 60, velocity)


def spoilt(body, row, value):
    points, velocity = (array.copy() for array in body)
    points[row, 1] = value
    return points, velocity


def noisy(body, sigma):
    return body[0], body[1] + RNG.normal(0, sigma, body[1].shape).astype(np.float32)


@pytest.mark.parametrize(
    'label, bodies, sizes',
    [
        ('nothing', [(NONE, NONE)], []),
        ('one point', [block(0, 0, 0, 0, 1, (5, 0))], []),
        ('one too few', [block(0, 0, 0.1, 0.1, 7, (5, 0))], []),
        ('just enough', [block(0, 0, 0.1, 0.1, 8, (5, 0))], [8]),
        ('a car', [car()], [400]),
        ('a car whose velocity is noisy by 5 %', [noisy(car(), 0.4)], [400]),
        ('a pedestrian 0.15 m from a car that goes elsewhere', [car(), person()], [400, 60]),
        ('a pedestrian who goes along', [car(velocity=(1, 0)), person(velocity=(1, 0))], [460]),
        ('two cars alike, 2.5 m apart', [car(), car(y=4.3)], [400, 400]),
        ('two cars alike, 0.1 m apart', [car(), car(y=1.9)], [800]),
        ('far away, and behind', [car(-900, -900)], [400]),
        ('rows without a place or a velocity', [spoilt(car(), 3, np.nan), spoilt(person(y=5), 0, np.inf)], [399, 59]),
        ('a place that no number of a cell reaches', [spoilt(car(), 0, 1e30)], [399]),
    ],
)  # fmt: skip
def test_points_become_bodies(label, bodies, sizes):
    points, velocity = (np.concatenate(part) for part in zip(*bodies, strict=True))
    labels = cluster_moving(points, velocity)
    assert labels.dtype == np.int32 and labels.shape == (len(points),)
    assert np.bincount(labels[labels >= 0]).tolist() == sizes
    if len(sizes) == len(bodies):  # each body has one number for itself
        of_body = np.split(labels, np.cumsum([len(p) for p, _ in bodies])[:-1])
        assert all(len(set(one[one >= 0])) == 1 for one in of_body)


def test_order_of_the_points_does_not_matter():
    points, velocity = (np.concatenate(part) for part in zip(car(), person(), person(y=-9), strict=True))
    order = RNG.permutation(len(points))
    np.testing.assert_array_equal(
        cluster_moving(points[order], velocity[order]), cluster_moving(points, velocity)[order]
    )


def test_who_touches_a_car_is_not_part_of_it():
    """Of those who share a cell of 0.17 m some points are of nobody; the rest is told apart."""
    points, velocity = (np.concatenate(part) for part in zip(car(), person(y=1.1), strict=True))
    labels = cluster_moving(points, velocity)
    assert np.mean(labels[:400] == 0) > 0.9 and np.mean(labels[400:] == 1) > 0.6
    assert not (labels[:400] == 1).any() and not (labels[400:] == 0).any()


def test_a_long_body_that_turns_is_one():
    """A bus on a bend: velocities at its ends differ by far more than two neighbours may."""
    points, _ = block(20, 0, 12, 2.5, 2000, (0, 0))
    velocity = np.zeros_like(points)
    velocity[:, 0], velocity[:, 1] = 6, 0.5 * (points[:, 0] - 14)  # turns with 0.5 rad/s about its rear axle
    assert set(cluster_moving(points, velocity)) == {0}


def components_one_by_one(num_nodes, edges):
    numbers = list(range(num_nodes))
    for _ in range(num_nodes):
        for a, b in edges:
            numbers[a] = numbers[b] = min(numbers[a], numbers[b])
    return np.unique(numbers, return_inverse=True)[1]


@pytest.mark.parametrize('num_nodes, num_edges', [(1, 0), (5, 0), (2, 1), (30, 15), (30, 40), (60, 45)])
def test_components_are_those_of_the_plain_way(num_nodes, num_edges):
    edges = RNG.integers(0, num_nodes, (num_edges, 2))
    found = _components(num_nodes, edges[:, 0], edges[:, 1])
    np.testing.assert_array_equal(found, components_one_by_one(num_nodes, edges.tolist()))


def test_compiled_and_numpy_clusters_are_the_same(monkeypatch):
    points = RNG.uniform([-20, -20, 0], [20, 20, 1], (3000, 3)).astype(np.float32)
    velocity = np.round(RNG.uniform(-2, 2, (3000, 3)), 1).astype(np.float32)
    found = cluster_moving(points, velocity, min_points=2)
    monkeypatch.setattr(clusters, 'numba_kernels', None)
    assert 100 < found.max()
    np.testing.assert_array_equal(found, cluster_moving(points, velocity, min_points=2))
