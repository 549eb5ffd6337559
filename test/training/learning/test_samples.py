# SPDX-License-Identifier: Apache-2.0
"""Training samples: where they come from, what they hold, who gets which."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy.spatial import cKDTree
from train_world import GRID, TINY, Labels, source

from training.datasets.clip_store import ClipStore
from training.learning.batch import collate
from training.learning.disturbances import Disturbances
from training.learning.pair_sources import ClipSource, split_labels
from training.learning.samples import PairSamples
from training.learning.train_config import TrainPhase
from zeroflow_ros.errors import ConfigError, DataError


def test_samples_are_a_function_of_their_number(clips):
    samples = PairSamples(TINY, source(clips), GRID)
    for number in ((0, 0), (2, 0), (3, 0)):
        first, again = samples[number], samples[number]
        for one, other in zip(
            first.clouds + first.rows + first.flows, again.clouds + again.rows + again.flows, strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(samples[0, 0].clouds[0], samples[0, 1].clouds[0])


def test_samples_lie_in_the_grid_of_their_phase(clips):
    samples = PairSamples(TINY, source(clips), GRID)
    for step in (0, 2, 3):
        sample, grid = samples[step, 0], TINY.phase(step).grid(GRID)
        for points, rows, flow in zip(sample.clouds, sample.rows, sample.flows, strict=True):
            assert len(points) and (grid.assign(points) >= 0).all()
            assert len(rows) == len(flow) and (np.diff(rows) > 0).all()
    assert [len(step) for step in itertools.islice(samples.batches(1), 3)] == [2, 1, 1]


def test_flow_of_a_crop_leads_to_the_other_cloud(clips):
    exact = dataclasses.replace(
        TINY.augmentation, height=0.0, ego_translation=0.0, ego_yaw=0.0, thin=0.0, jitter=0.0, scale=0.0
    )
    samples = PairSamples(dataclasses.replace(TINY, augmentation=exact), source(clips), GRID)
    sample = samples[0, 0]
    moving = np.linalg.norm(sample.flows[0], axis=1) > 0.1
    assert moving.any()
    moved = sample.clouds[0][sample.rows[0]] + sample.flows[0]

    def nearest(points):
        return np.median(np.linalg.norm(points[:, None] - sample.clouds[1][None], axis=2).min(1))

    still = sample.clouds[0][sample.rows[0]]
    assert nearest(moved[moving][:200]) < 0.5 * nearest(still[moving][:200])


@pytest.fixture(scope='module')
def windows(tmp_path_factory):
    """Windows of three sweeps of one clip."""
    return ClipSource(ClipStore(tmp_path_factory.mktemp('windows'), 3), 1, window=3)


def test_a_window_leads_from_both_ends_to_the_neighbours(windows):
    window = windows[0]
    assert len(windows) == 1 and len(window.clouds) == 3
    for points, flow, neighbour in (
        (window.points0, window.flow0, window.between[0]), (window.points1, window.flow1, window.between[-1])
    ):  # fmt: skip
        moving = np.linalg.norm(flow, axis=1) > 0.1
        tree = cKDTree(neighbour)
        moved, left = (np.median(tree.query(at[moving])[0]) for at in (points + flow, points))
        assert moving.sum() > 50 and moved < 0.5 * left


def test_samples_of_windows_are_disturbed_and_sometimes_short(windows):
    disturbances = Disturbances(stray=0.5, rings=0.5, sector=0.5, ground_removed=0.5)
    config = dataclasses.replace(TINY, num_sweeps=3, disturbances=disturbances, short_history=0.5)
    samples = PairSamples(config, windows, GRID)
    drawn = [samples[step, k] for step in (0, 2, 3) for k in range(4)]
    assert {sample.used for sample in drawn} == {2, 3}
    for sample in drawn:
        assert (len(sample.clouds), len(sample.rows), len(sample.flows)) == (3, 2, 2)
        for points, rows, flow in zip((sample.clouds[0], sample.clouds[-1]), sample.rows, sample.flows, strict=True):
            assert rows.max() < len(points) and len(rows) == len(flow) and np.isfinite(flow).all()
    batch = collate(drawn)
    assert batch.used == [sample.used for sample in drawn] and len(batch.flow) == sum(
        len(rows) for sample in drawn for rows in sample.rows
    )


def test_clips_shorter_than_a_window_are_refused(clips):
    with pytest.raises(ConfigError, match='takes 5 sweeps and the clips have 2'):
        ClipSource(ClipStore(clips, 2), 1, window=5)


def test_pairs_are_read_once_as_long_as_there_is_room(clips):
    class Counting:
        def __init__(self):
            self.about, self.read = {'data': 'counted'}, []

        def __len__(self):
            return 3

        def in_use(self, step):
            return 3

        def __getitem__(self, index):
            self.read.append(index)
            return ClipStore(clips, 2).window(0, 0)

    for room, num_read in ((3, 3), (0, 6)):
        counting = Counting()
        config = dataclasses.replace(TINY, warm_up=TrainPhase(0, 2, 32), crops=TrainPhase(0, 2, 32),
                                     full=TrainPhase(9, 1, 256), cached_pairs=room)  # fmt: skip
        samples = PairSamples(config, counting, GRID)
        first = [samples[step, 0] for step in range(6)]  # each of the three twice
        assert len(counting.read) == num_read
        again = PairSamples(dataclasses.replace(config, cached_pairs=9), Counting(), GRID)
        np.testing.assert_array_equal(first[5].clouds[0], again[5, 0].clouds[0])


def test_a_damaged_clip_is_simulated_again(clips, tmp_path):
    store = ClipStore(tmp_path, 2)
    path = store.ensure(0)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    pair = store.window(0, 0)
    again = ClipStore(clips, 2).window(0, 0)
    np.testing.assert_array_equal(pair.points0, again.points0)
    np.testing.assert_array_equal(pair.flow1, again.flow1)


def test_a_batch_that_cannot_be_shared_is_refused(clips):
    samples = PairSamples(TINY, source(clips), GRID)
    with pytest.raises(ConfigError, match='multiple of 2'):
        samples.batches(0, world=2)


def test_unknown_flow_is_seen_and_not_scored(labels):
    samples = PairSamples(dataclasses.replace(TINY, scored_points=0), split_labels(labels, 0.0)[0], GRID)
    sample = samples[3, 0]
    assert 0 < len(sample.rows[0]) < len(sample.clouds[0]) and len(sample.rows[1]) == len(sample.clouds[1])
    assert all(np.isfinite(flow).all() for flow in sample.flows)


def test_the_last_pairs_are_held_out_and_at_least_one_is_left(labels):
    train_on, held_out = split_labels(labels, 0.15)
    assert train_on.keys == tuple(f'drive/{k:02d}' for k in range(8)) and held_out.keys == ('drive/08', 'drive/09')
    with pytest.raises(DataError, match='none is left'):
        split_labels(Labels({}), 0.1)


def test_an_epoch_sees_each_pair_once(labels):
    config = dataclasses.replace(TINY, full=TrainPhase(steps=4, batch=5, cells=256), cached_pairs=0)
    samples = PairSamples(config, split_labels(labels, 0.0)[0], GRID)
    drawn = []
    samples.source.store.training_pair = lambda key: drawn.append(key) or labels.pairs[key]
    for step in range(7):
        for i in range(config.phase(step).batch):
            samples._pair(step, i // 2 if step < 3 else i, 0)  # two crops share a pair
    assert len(drawn) == 1 + 1 + 1 + 4 * 5
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == sorted(labels.keys()) and drawn[:10] != drawn[10:20]
