# SPDX-License-Identifier: Apache-2.0
"""Datasets by one line of text: the registry, and simulated clips, of which everything is known."""

import subprocess
import sys

import numpy as np
import pytest
from processes import ROOT
from tiny_bag import write_bag

from training.datasets import open_dataset
from training.datasets.clip_store import ClipStore
from training.datasets.pairs import MetaClass, evenly_spread
from training.simulation.sensors.lidar import Category
from zeroflow_ros import transforms
from zeroflow_ros.errors import ConfigError, DataError

SEED = 7


def test_importing_the_registry_loads_nothing_heavy():
    heavy = {'numpy', 'rosbags', 'pyarrow', 'tqdm', 'torch'}
    lines = f'import sys, training.datasets\nprint(*sorted({heavy} & set(sys.modules)))'
    found = subprocess.run(
        [sys.executable, '-c', lines], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.split() == []


@pytest.mark.parametrize(
    'spec, said',
    [
        ('', 'simulation:..., bag:..., av2:...'),
        ('kitti:drive', 'simulation:..., bag:..., av2:...'),
        ('no/such/path', 'simulation:..., bag:..., av2:...'),
        ('bag:no/such/path', 'There is no bag'),
        ('av2:no/such/path', 'not an Argoverse 2 log'),
        ('simulation:', 'FIRST-LAST'),
        ('simulation:a-b', 'FIRST-LAST'),
        ('simulation:0-9?num_sweeps=4', 'of the clips in a folder'),
        ('simulation:0-9@clips?num_sweeps=1', '2 or more, got 1'),
        ('bag:drive?deskew=maybe', r'deskew \(bool\)'),
        ('simulation:9-0', '0 <= FIRST <= LAST, got 9-0'),
        ('bag:drive?topci=/points', "'topci=/points' .* is not a valid option. Known options: topic"),
        ('bag:drive?sensor_height=high', 'sensor_height'),
    ],
)
def test_what_is_no_dataset_is_refused_with_what_would_be(spec, said):
    with pytest.raises(DataError, match=said):
        open_dataset(spec)


def test_a_path_is_recognised_by_what_it_is(tmp_path):
    bag = write_bag(tmp_path / 'bag', num_sweeps=3)
    [file] = bag.glob('*.mcap')
    for spec in (str(bag), str(file), f'bag:{bag}'):
        assert len(open_dataset(spec)) == 2
    with pytest.raises(DataError, match='needs two sweeps'):  # recognised as a log, and found wanting
        (tmp_path / 'split' / 'log' / 'sensors' / 'lidar').mkdir(parents=True)
        open_dataset(str(tmp_path / 'split'))


@pytest.fixture(scope='module')
def simulated():
    return open_dataset(f'simulation:{SEED}')[0]


def test_simulated_truth_is_exact(simulated):
    truth, pair = simulated.truth, simulated.pair
    speed = np.linalg.norm(truth.flow, axis=1) / pair.dt
    assert truth.is_valid.all()
    assert not speed[simulated.is_ground0].any() and not speed[truth.meta_class == MetaClass.BACKGROUND].any()
    assert (truth.meta_class[speed > 0] != MetaClass.BACKGROUND).all() and (speed > 0.5).sum() > 50
    assert not (truth.meta_class == MetaClass.IGNORED).any()  # the vehicle itself is left out
    for points, is_ground in ((pair.points0, simulated.is_ground0), (pair.points1, simulated.is_ground1)):
        assert np.median(points[is_ground, 2]) < np.median(points[~is_ground, 2]) - 1
    # What moves arrives where the newer sweep has points: half of it within 0.2 m, the gap between two beams.
    ego1_T_ego0 = transforms.invert(pair.ego0_T_ego1)
    arrived = transforms.apply(ego1_T_ego0, pair.points0 + truth.flow)[speed > 0.5][:300]
    distance = np.linalg.norm(arrived[:, None] - pair.points1[None, ~simulated.is_ground1], axis=2).min(1)
    assert np.median(distance) < 0.2


def test_a_folder_keeps_clips_and_replaces_those_without_categories(tmp_path, simulated):
    np.savez(tmp_path / f'clip_{SEED:06d}_2.npz', points_0=simulated.pair.points0)  # as files once were, or damaged
    dataset = open_dataset(f'simulation:{SEED}-{SEED + 1}@{tmp_path}')
    assert (len(dataset), dataset.key(1), dataset.store) == (2, f'clip_{SEED + 1:06d}', ClipStore(tmp_path, 2))
    stored = dataset[0]
    written = (tmp_path / f'clip_{SEED:06d}_2.npz').stat().st_mtime_ns
    np.testing.assert_array_equal(stored.pair.points0, simulated.pair.points0)
    np.testing.assert_array_equal(stored.pair.ego0_T_ego1, simulated.pair.ego0_T_ego1)
    np.testing.assert_allclose(stored.truth.flow, simulated.truth.flow, rtol=1e-3, atol=1e-6)  # kept as float16
    np.testing.assert_array_equal(stored.truth.meta_class, simulated.truth.meta_class)
    np.testing.assert_array_equal(stored.is_ground1, simulated.is_ground1)
    np.testing.assert_array_equal(dataset[0].truth.flow, stored.truth.flow)
    assert (tmp_path / f'clip_{SEED:06d}_2.npz').stat().st_mtime_ns == written  # read, not simulated again


def test_a_folder_of_clips_of_two_lengths_wants_to_know_which(tmp_path):
    for name in ('clip_000001_2.npz', 'clip_000001_4.npz'):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r'clips of \[2, 4\] sweeps.*simulation:0-1@.*\?num_sweeps=2'):
        open_dataset(f'simulation:0-1@{tmp_path}')
    assert open_dataset(f'simulation:0-1@{tmp_path}?num_sweeps=4').store == ClipStore(tmp_path, 4)


def test_longer_clips_give_their_first_two_sweeps(tmp_path):
    from training.simulation.clips import simulate_clip

    dataset = open_dataset(f'simulation:{SEED}@{tmp_path}?num_sweeps=4')
    item, clip = dataset[0], simulate_clip(SEED, num_sweeps=4)
    assert [path.name for path in tmp_path.iterdir()] == [f'clip_{SEED:06d}_4.npz']
    kept = [sweep.category != Category.EGO for sweep in clip.sweeps[:2]]
    np.testing.assert_array_equal(item.pair.points0, clip.sweeps[0].points[kept[0]])
    np.testing.assert_array_equal(item.pair.points1, clip.sweeps[1].points[kept[1]])
    np.testing.assert_allclose(item.truth.flow, clip.flow(0, 1)[kept[0]], rtol=1e-3, atol=1e-6)  # kept as float16
    again = open_dataset(f'simulation:{SEED}@{tmp_path}')  # one length: no need to name it
    assert again.store == dataset.store


def test_a_pair_of_a_clip_knows_the_sweeps_beside_it(tmp_path):
    spec = f'simulation:1@{tmp_path}?num_sweeps=5&at=2'
    first, clips = open_dataset(spec)[0], open_dataset(spec)
    assert [len(beside) for beside in (first.pair.history, first.pair.future)] == [2, 1]
    with np.load(next(tmp_path.glob('clip_*_5.npz'))) as arrays:
        poses = arrays['odom_T_lidar']
        for k, sweep in {**dict(zip((1, 0), first.pair.history, strict=True)), 4: first.pair.future[0]}.items():
            np.testing.assert_array_equal(sweep.points, arrays[f'points_{k}'])
            np.testing.assert_allclose(sweep.ego0_T_ego, np.linalg.inv(poses[2]) @ poses[k], atol=1e-9)
        latest = clips.latest(0)
        np.testing.assert_array_equal(latest.pair.points0, arrays['points_3'])
        np.testing.assert_array_equal(latest.pair.future[0].points, arrays['points_1'])
        np.testing.assert_allclose(latest.pair.future[0].ego0_T_ego, np.linalg.inv(poses[3]) @ poses[1], atol=1e-9)


@pytest.mark.parametrize(
    'spec, said',
    [
        ('simulation:1@{}?num_sweeps=3&at=2', 'at goes from 0 to 1'),
        ('simulation:1@{}?num_sweeps=3&alongside=2', 'alongside is 0 or 1'),
        ('simulation:1?at=1', 'of the clips in a folder'),
    ],
)
def test_a_place_that_no_clip_has_is_refused(tmp_path, spec, said):
    with pytest.raises(DataError, match=said):
        open_dataset(spec.format(tmp_path))


def test_a_seed_gives_another_street_for_each_number_of_sweeps():
    """Why clips of one length must not stand in for those of another."""
    from training.simulation.clips import simulate_clip

    two, four = (simulate_clip(1, num_sweeps=num_sweeps).sweeps[0].points for num_sweeps in (2, 4))
    assert len(two) != len(four)


@pytest.mark.parametrize(
    'total, count, expected',
    [
        (5, 1, [0]),
        (5, 2, [0, 4]),
        (5, 3, [0, 2, 4]),
        (5, 9, [0, 1, 2, 3, 4]),
        (3, 0, [0, 1, 2]),
        (0, 0, []),
        (0, 2, []),
    ],
)
def test_pairs_are_chosen_evenly(total, count, expected):
    assert evenly_spread(total, count) == expected


def test_less_than_no_pair_is_refused():
    with pytest.raises(ConfigError, match=r'0 \(all\) or more, got -1'):
        evenly_spread(5, -1)
