# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from training.learning.disturbances import Disturbances, stray_returns

KINDS = ('stray', 'ground_removed', 'rings', 'sector', 'no_height')


def clouds(number=3):
    """Clouds whose rows are all different: ground and a wall."""
    rng = np.random.default_rng(0)
    ground = np.column_stack([rng.uniform(-30, 30, (1500, 2)), rng.normal(0, 0.02, 1500)])
    wall = np.column_stack([rng.uniform(5, 6, 500), rng.uniform(-20, 20, 500), rng.uniform(0, 4, 500)])
    return [np.concatenate([ground, wall + k]).astype(np.float32) for k in range(number)]


def always(kind):
    return dataclasses.replace(Disturbances(), **{kind: 1.0})


def test_none_changes_nothing():
    given = clouds()
    found, rows = Disturbances()(given, np.random.default_rng(0))
    for points, expected, kept in zip(found, given, rows, strict=True):
        assert points is expected
        np.testing.assert_array_equal(kept, np.arange(len(points)))


@pytest.mark.parametrize('kind', KINDS)
def test_every_row_says_where_it_comes_from(kind):
    given, lift = clouds(), None
    found, rows = always(kind)(given, np.random.default_rng(1))
    for points, before, kept in zip(found, given, rows, strict=True):
        assert len(points) == len(kept)
        own = kept >= 0
        change = points[own] - before[kept[own]]
        lift = change[0] if lift is None else lift
        np.testing.assert_allclose(change, np.broadcast_to(lift, change.shape), atol=1e-6)  # the same in all sweeps
    assert (np.abs(lift) > 0).any() == (kind == 'no_height') and not lift[:2].any()
    assert any(len(points) != len(before) for points, before in zip(found, given, strict=True)) != (kind == 'no_height')
    if kind != 'stray':
        assert all((kept >= 0).all() for kept in rows)


def test_a_removed_ground_is_gone_and_the_wall_is_not():
    found, _ = always('ground_removed')(clouds(), np.random.default_rng(2))
    assert all(points[:, 2].min() > 0.05 and len(points) > 350 for points in found)


def test_a_lost_sector_is_lost_in_all_sweeps():
    found, _ = always('sector')(clouds(), np.random.default_rng(3))
    azimuths = [np.sort(np.arctan2(points[:, 1], points[:, 0])) for points in found]
    gaps = [(np.diff(azimuth).max(), azimuth[np.diff(azimuth).argmax()]) for azimuth in azimuths]
    assert min(width for width, _ in gaps) > 0.19 and np.ptp([start for _, start in gaps]) < 0.1


@pytest.mark.parametrize('clustered', [0.0, 0.5])
def test_stray_returns_thin_out_with_distance_or_lie_at_objects(clustered):
    points = np.full((100, 3), 40, np.float32)
    stray = stray_returns(points, 4000, 8.0, clustered, np.random.default_rng(0))
    assert stray.shape == (4000, 3) and stray.dtype == np.float32
    at_objects = np.linalg.norm(stray - 40, axis=1) < 4
    assert at_objects.mean() == pytest.approx(clustered, abs=0.01)
    distance = np.hypot(*stray[~at_objects, :2].T)
    assert np.median(distance) == pytest.approx(1 + 8 * np.log(2), abs=0.5) and distance.min() >= 1


def test_without_a_point_there_are_no_stray_returns_at_objects():
    assert len(stray_returns(np.zeros((0, 3), np.float32), 10, 8.0, 0.5, np.random.default_rng(0))) == 10
