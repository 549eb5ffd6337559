# SPDX-License-Identifier: Apache-2.0
"""Bags whose messages hold part of a revolution, as data sets."""

import json
import pickle

import numpy as np
import pytest
import sweep_parts
import tiny_bag

from training.datasets import open_dataset
from zeroflow_ros.errors import DataError

NUM_SWEEPS = 6
HALVES = sweep_parts.sectors([180, 180])


def sorted_rows(points):
    points = points[np.isfinite(points[:, 0])]
    return points[np.lexsort(points.T)]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return open_dataset(
        f'bag:{sweep_parts.write_bag(tmp_path_factory.mktemp("bags") / "whole", [(-180, 360)], NUM_SWEEPS)}'
    )


@pytest.mark.parametrize('parts', [HALVES, sweep_parts.sectors([30] * 12)], ids=['halves', 'segments'])
def test_pairs_are_those_of_whole_sweeps(parts, whole, tmp_path):
    pairs = open_dataset(f'bag:{sweep_parts.write_bag(tmp_path / "cut", parts, NUM_SWEEPS, moves=False)}')
    assert len(pairs) == len(whole) == NUM_SWEEPS - 1 and not pairs.skipped
    assert f'{len(parts)} messages are joined into one sweep' in pairs.parts_note and not whole.parts_note
    assert [pairs.key(k) for k in range(len(pairs))] == [whole.key(k) for k in range(len(whole))]
    for k in (0, 3):
        found, expected = pickle.loads(pickle.dumps(pairs))[k].pair, whole[k].pair
        assert found.dt == expected.dt and len(found.history) == len(expected.history)
        np.testing.assert_allclose(found.ego0_T_ego1, expected.ego0_T_ego1, atol=1e-9)
        for name in ('points0', 'points1'):
            np.testing.assert_array_equal(sorted_rows(getattr(found, name)), sorted_rows(getattr(expected, name)))
    assert np.isclose(pairs.sensor_height, whole.sensor_height, atol=0.02)


def test_off_pairs_the_messages(tmp_path):
    path = sweep_parts.write_bag(tmp_path / 'cut', HALVES, NUM_SWEEPS)
    pairs = open_dataset(f'bag:{path}?assemble_sweeps=off')
    assert len(pairs) == 2 * NUM_SWEEPS - 1 and not pairs.parts_note


def test_parts_that_are_cut_at_the_seam_are_read_again_as_they_were_joined(tmp_path):
    parts = [sector for k in range(12) for sector in sweep_parts.sectors([150], start=-180 + 150 * k)]
    path = sweep_parts.write_bag(tmp_path / 'slow', parts, 1, moves=False, turns=5)
    pairs = open_dataset(f'bag:{path}?ego_motion=none')  # the street stands still, and so does the sensor
    assert len(pairs) == 4
    street = sorted_rows(tiny_bag.street(0)[:, :3])
    for k in range(4):
        rows = pairs[k].pair.points0
        assert abs(len(rows) - len(street)) < 0.04 * len(street)  # the edge of a sparse part is known to some degrees


def boxes_file(path, num_sweeps):
    box = {'track_id': 1, 'category': 'car', 'center': [8, 3, -0.8], 'size_lwh': [4.4, 2.2, 1.9], 'yaw': 0.0}
    step = (tiny_bag.BOX_SPEED - tiny_bag.EGO_SPEED) * 0.1
    sweeps = [[{**box, 'center': [8 + step * k, 3, -0.8]}] for k in range(num_sweeps)]
    path.write_text(json.dumps({'sweeps': sweeps}))
    return path


def test_boxes_belong_to_revolutions(tmp_path):
    path = sweep_parts.write_bag(tmp_path / 'cut', HALVES, NUM_SWEEPS, moves=False)
    pairs = open_dataset(f'bag:{path}+{boxes_file(tmp_path / "boxes.json", NUM_SWEEPS)}')
    assert [pairs.numbers(k) for k in range(len(pairs))] == [(k, k + 1) for k in range(NUM_SWEEPS - 1)]
    assert pairs[1].truth is not None
    with pytest.raises(DataError, match=f'boxes for {NUM_SWEEPS - 1} sweeps, .* has {NUM_SWEEPS} clouds'):
        open_dataset(f'bag:{path}+{boxes_file(tmp_path / "few.json", NUM_SWEEPS - 1)}')


def test_a_lost_part_is_counted(tmp_path):
    path = sweep_parts.write_bag(tmp_path / 'cut', HALVES, 8, lost=(9,))
    pairs = open_dataset(f'bag:{path}')
    assert pairs.skipped == {'incomplete_revolution': 1} and len(pairs) == 6
    assert [pairs.numbers(k) for k in range(6)] == [(0, 1), (1, 2), (2, 3), (3, 5), (5, 6), (6, 7)]
