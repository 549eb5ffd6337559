# SPDX-License-Identifier: Apache-2.0
"""From any dataset to scenes of OpenSceneFlow and back."""

import pickle

import numpy as np
import pytest
from argoverse2_files import annotate, write_log
from scenes import write_scene
from tiny_bag import write_bag

from training import to_h5
from training.datasets import open_dataset
from training.datasets.argoverse2_truth import META_CLASS
from training.datasets.pairs import DatasetPair, GroundTruthFlow, MetaClass
from training.to_h5 import CATEGORY_NUMBER, scene_and_stamp, write_scenes
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import SweepPair

NAN_ROW = 7


class Drive:
    """Sweeps of a drive in memory, the true flow of all pairs but the last; a chain that breaks after `break_after`."""

    name = 'drive'

    def __init__(self, num_pairs=3, break_after=None):
        self.num_pairs, self.break_after, self.fails_at = num_pairs, break_after, None

    def __len__(self):
        return self.num_pairs

    def key(self, index):
        return f'{index:06d}_{10**18 + index * 100_000_000}'

    def __getitem__(self, index):
        if index == self.fails_at:
            raise DataError('the disk went away')
        sweeps = []
        for k in (index, index + 1):
            before_break = self.break_after is not None and k == index + 1 and index == self.break_after
            rng = np.random.default_rng(1000 if before_break else k)
            points = rng.uniform(-80, 80, (300 + k, 3)).astype(np.float32)
            points[NAN_ROW] = np.nan
            sweeps.append(points)
        n, m = map(len, sweeps)
        pair = SweepPair(*sweeps, transforms.yaw_translation(0.05, 1.4, -0.1 * index, 0.01), 0.1)
        rng = np.random.default_rng(index)
        kinds = rng.integers(0, len(MetaClass), n).astype(np.uint8)
        truth = GroundTruthFlow(rng.normal(0, 1, (n, 3)).astype(np.float32), kinds, np.arange(n) % 5 > 0)
        times = rng.uniform(0, 0.1, n).astype(np.float32), np.zeros(m, np.float32)
        is_ground = np.arange(n) % 3 == 0, np.arange(m) % 3 == 0
        return DatasetPair(self.key(index), pair, *is_ground, truth if index + 1 < self.num_pairs else None, times)


def check_same(ours: DatasetPair, read: DatasetPair) -> None:
    np.testing.assert_array_equal(read.pair.points0, ours.pair.points0)  # bit for bit, NaN too
    np.testing.assert_array_equal(read.pair.points1, ours.pair.points1)
    np.testing.assert_allclose(read.pair.ego0_T_ego1, ours.pair.ego0_T_ego1, atol=1e-9)
    assert read.pair.dt == pytest.approx(ours.pair.dt, abs=1e-9)
    np.testing.assert_array_equal(read.is_ground0, ours.is_ground0)
    np.testing.assert_array_equal(read.is_ground1, ours.is_ground1)
    if ours.truth is None:
        assert read.truth is None
        return
    known = ours.truth.is_valid & np.isfinite(ours.pair.points0).all(1)
    np.testing.assert_array_equal(read.truth.is_valid, known)
    np.testing.assert_allclose(read.truth.flow[known], ours.truth.flow[known], atol=1e-5)  # m
    np.testing.assert_array_equal(read.truth.meta_class, ours.truth.meta_class)


def test_pairs_come_back_as_they_were(tmp_path):
    drive = Drive()
    [path] = write_scenes(drive, 'drive', tmp_path)
    assert path == tmp_path / 'drive.h5'
    dataset = open_dataset(str(tmp_path))
    assert [dataset.key(k) for k in range(len(dataset))] == [f'drive/{10**18 + k * 100_000_000}' for k in range(3)]
    for k in range(3):
        check_same(drive[k], dataset[k])
    np.testing.assert_array_equal(dataset[0].times[0], drive[0].times[0])


def test_where_the_chain_breaks_the_next_scene_begins(tmp_path):
    drive = Drive(num_pairs=4, break_after=1)
    assert [path.name for path in write_scenes(drive, 'drive', tmp_path)] == ['drive.h5', 'drive_001.h5']
    dataset = open_dataset(str(tmp_path))
    assert len(dataset) == 4 and not dataset.skipped
    for k in range(4):
        check_same(drive[k], dataset[k])


def test_argoverse2_bags_and_simulation(tmp_path, clips):
    log = write_log(tmp_path / 'log')
    annotate(log, [(0, 'bus', 'BUS', 5, 0), (1, 'bus', 'BUS', 5, 0)])
    bag, out = write_bag(tmp_path / 'bag', num_sweeps=4), tmp_path / 'scenes'
    specs = [f'av2:{log}', f'bag:{bag}', f'simulation:0@{clips}']
    assert to_h5.main([*specs, '--out', str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        'bag.h5', 'clip_000000.h5', 'index_flow.pkl', 'index_total.pkl', 'log.h5'
    ]  # fmt: skip
    for spec, scene in zip(specs, ('log', 'bag', 'clip_000000'), strict=True):
        ours, read = open_dataset(spec), open_dataset(str(out / f'{scene}.h5'))
        assert len(ours) == len(read)
        for k in range(len(ours)):
            check_same(ours[k], read[k])


def test_the_lists_for_their_tools_name_all_sweeps_and_those_with_flow(tmp_path):
    write_scenes(Drive(), 'drive', tmp_path)
    to_h5.write_pickles(tmp_path)
    stamps = [str(10**18 + k * 100_000_000) for k in range(4)]
    for name, expected in (('index_total.pkl', stamps), ('index_flow.pkl', stamps[:2])):
        assert pickle.loads((tmp_path / name).read_bytes()) == [['drive', stamp] for stamp in expected]


def test_types_and_names_are_those_of_the_process_scripts(tmp_path):
    import h5py

    [path] = write_scenes(Drive(), 'drive', tmp_path)
    with h5py.File(path) as file:
        found = {name: (value.dtype, value.shape) for name, value in file[str(10**18)].items()}
        assert set(file[str(10**18 + 300_000_000)]) == {'lidar', 'ground_mask', 'pose', 'lidar_dt'}  # the last sweep
    float32, boolean = np.dtype(np.float32), np.dtype(bool)
    assert found == {
        'lidar': (float32, (300, 3)), 'ground_mask': (boolean, (300,)), 'pose': (np.dtype(np.float64), (4, 4)),
        'lidar_dt': (float32, (300,)), 'flow': (float32, (300, 3)), 'flow_is_valid': (boolean, (300,)),
        'flow_category_indices': (np.dtype(np.uint8), (300,)), 'ego_motion': (float32, (4, 4)),
    }  # fmt: skip


def test_a_stored_flow_is_total(tmp_path):
    """Hand-computed: the vehicle drives 1 m ahead and turns left by 90 degrees; a point at (3, 2, 1) goes 2 m along y.

    It is at (3, 4, 1) in ego0, so 2 m ahead and 4 m to the left of the vehicle before it turned: (4, -2, 1) in ego1.
    """
    import h5py

    points = np.array([[3, 2, 1], [3, 2, 1]], np.float32)
    truth = GroundTruthFlow(np.array([[0, 2, 0], [0, 0, 0]], np.float32), np.array([1, 0], np.uint8), np.ones(2, bool))
    pair = SweepPair(points, points, transforms.yaw_translation(np.pi / 2, 1, 0), 0.1)

    class One(list):
        name = 'one'

        def key(self, index):
            return self[index].key

    flat = np.zeros(2, bool)
    [path] = write_scenes(One([DatasetPair('log/1000', pair, flat, flat, truth)]), 'one', tmp_path)
    assert path.name == 'log.h5'
    with h5py.File(path) as file:
        np.testing.assert_allclose(file['1000/flow'], [[1, -4, 0], [-1, -4, 0]], atol=1e-6)
        np.testing.assert_allclose(file['1000/ego_motion'] @ np.array([3, 4, 1, 1]), [4, -2, 1, 1], atol=1e-6)
        assert file['1000/flow_category_indices'][:].tolist() == [19, 0]


def test_what_is_there_is_kept_and_what_is_another_is_refused(tmp_path):
    [path] = write_scenes(Drive(), 'bag:a', tmp_path)
    written = path.stat().st_mtime_ns
    assert write_scenes(Drive(), 'bag:a', tmp_path) == [] and path.stat().st_mtime_ns == written
    with pytest.raises(DataError, match="was made from 'bag:a', not from 'bag:b'"):
        write_scenes(Drive(), 'bag:b', tmp_path)
    (tmp_path / 'theirs').mkdir()
    write_scene(tmp_path / 'theirs' / 'drive_001.h5')
    with pytest.raises(DataError, match="was made from 'unknown'"):
        write_scenes(Drive(break_after=1), 'bag:a', tmp_path / 'theirs')
    assert [file.name for file in (tmp_path / 'theirs').iterdir()] == ['drive_001.h5']
    with pytest.raises(DataError, match='already consists of scenes'):
        write_scenes(open_dataset(str(tmp_path)), 'osf:x', tmp_path / 'again')


def test_a_dataset_that_breaks_off_leaves_no_scene(tmp_path, capsys):
    drive = Drive()
    drive.fails_at = 2
    with pytest.raises(DataError, match='the disk went away'):
        write_scenes(drive, 'drive', tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert to_h5.main(['bag:none', '--out', str(tmp_path)]) == 1
    assert 'There is no bag' in capsys.readouterr().err


@pytest.mark.parametrize(
    'key, expected',
    [
        ('log/1000', ('log', 1000)),
        ('a/b/1000', ('a_b', 1000)),
        ('000007_1000', ('name', 1000)),
        ('clip_000007', ('clip_000007', 0)),
    ],
)
def test_scene_and_stamp_of_a_key(key, expected):
    assert scene_and_stamp('name', key) == expected


def test_categories_lead_back_to_their_classes():
    assert META_CLASS[CATEGORY_NUMBER].tolist() == list(MetaClass)
