# SPDX-License-Identifier: Apache-2.0
"""ZeroFlow's files: which point a number in valid_idxes means, and that files of other points are refused."""

import dataclasses

import label_world
import numpy as np
import pytest

from training import zeroflow_labels
from training.datasets.pairs import DatasetPair
from training.labels.label_store import LabelStore
from training.teachers.teacher_input import Crop, teacher_input
from training.zeroflow_labels import labelled_places, padded_rows, read_flow, write_flow, zeroflow_label
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import SweepPair


def small_pair() -> DatasetPair:
    """Row 1 is ground, row 3 is outside: of the padded cloud (rows 0 2 3 4), places 0, 1 and 3 are labelled."""
    points0 = np.float32([[1, 0, 0], [2, 0, -2], [3, 0, 0], [60, 0, 0], [4, 0, -3]])
    is_ground0 = np.array([False, True, False, False, False])
    points1 = np.float32([[2, 0, -2]])
    return DatasetPair('log/1', SweepPair(points0, points1, np.eye(4), 0.1), is_ground0, np.array([True]))


def write(path, valid_idxes=(0, 1, 3), flow=None, **extra):
    if flow is None:
        flow = np.float32([[[0.1, 0, 0], [0.2, 0, 0], [0.3, 0, 0]]])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, flow=flow, valid_idxes=np.array(valid_idxes), delta_time=26.3, **extra)
    return path


def test_a_published_file_is_put_into_the_rows_of_the_sweep(tmp_path):
    item = small_pair()
    flow = read_flow(write(tmp_path / 'a.npz'), item)
    np.testing.assert_array_equal(flow[:, 0], np.float32([0.1, np.nan, 0.2, np.nan, 0.3]))
    label = zeroflow_label(tmp_path / 'a.npz', item)
    np.testing.assert_array_equal(label.flow0[:, 0], np.float32([0.1, 0, 0.2, np.nan, 0.3]))
    np.testing.assert_array_equal(label.flow1, [[0, 0, 0]])
    np.testing.assert_allclose(label.points0[:, 2], [2, 0, 2, 2, -1])  # above the ground at z = -2
    assert label.dt == 0.1  # and not delta_time, which is the teacher's time


@pytest.mark.parametrize('valid_idxes, flow, said', [
    ((0, 1), np.zeros((1, 2, 3)), 'labels 2 entries .* the last 1; log/1 has 3 points'),
    ((0, 1, 2), None, 'labels 3 entries .* the last 2; log/1 has 3 .* the last at 3'),
    ((0, 1, 90_000), None, 'the last 90000'),
    ((), np.zeros((1, 0, 3)), 'labels 0 entries'),
    ((0, 1, 3), np.zeros((3, 3)), r'should have finite flow'),
    ((0, 1, 3), np.full((1, 3, 3), np.nan), r'should have finite flow'),
    ((0, 1, 3), np.zeros((1, 2, 3)), r'should have finite flow'),
])  # fmt: skip
def test_files_of_other_points_are_refused(tmp_path, valid_idxes, flow, said):
    with pytest.raises(DataError, match=said):
        read_flow(write(tmp_path / 'a.npz', valid_idxes, flow), small_pair())


@pytest.mark.parametrize('content', [None, b'', b'PK\x03\x04', b'half a file'])
def test_what_is_no_file_of_theirs(tmp_path, content):
    if content is not None:
        (tmp_path / 'a.npz').write_bytes(content)
    with pytest.raises(DataError, match='is not a ZeroFlow label'):
        read_flow(tmp_path / 'a.npz', small_pair())


def test_a_cloud_that_does_not_fit_is_shuffled_as_zeroflow_does():
    """Its points go through RandomState(length).shuffle as rows of three; we shuffle row numbers."""
    is_ground = np.zeros(1003, bool)
    is_ground[[0, 500, 501]] = True
    points = np.random.default_rng(0).normal(size=(1003, 3))
    theirs = points[~is_ground].copy()
    np.random.RandomState(len(theirs)).shuffle(theirs)
    np.testing.assert_array_equal(points[padded_rows(is_ground, 900)], theirs[:900])
    np.testing.assert_array_equal(padded_rows(is_ground, 1000), np.flatnonzero(~is_ground))
    assert len(padded_rows(np.ones(5, bool))) == 0


@pytest.mark.parametrize('max_points', [90_000, 25])
def test_what_is_written_is_read(tmp_path, max_points):
    item = label_world.pair('log/1', 40)
    flow = np.random.default_rng(0).normal(size=item.pair.points0.shape).astype(np.float32)
    path = tmp_path / 'log' / '0000000000_000.npz'
    write_flow(path, flow, item, seconds=26.3, max_points=max_points)
    with np.load(path) as arrays:
        assert arrays['flow'].shape == (1, min(max_points, 40), 3) and arrays['flow'].dtype == np.float32
        assert arrays['delta_time'] == 26.3 and (np.diff(arrays['valid_idxes']) > 0).all()
    again = read_flow(path, item, max_points)
    known = np.isfinite(again).all(axis=1)
    assert known.sum() == min(max_points, 40) and not known[item.is_ground0].any()
    np.testing.assert_array_equal(again[known], flow[known])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_flow_that_zeroflow_wants_and_we_have_not(tmp_path):
    item = label_world.pair('log/1', 40)
    flow = np.zeros(item.pair.points0.shape, np.float32)
    flow[-2:] = np.nan
    with pytest.raises(DataError, match='ZeroFlow labels 40 points, and 2 of them have no flow'):
        write_flow(tmp_path / 'a.npz', flow, item)
    assert not list(tmp_path.iterdir())


class Logs(label_world.World):
    """Pairs 0 to 2 in one log, the rest in another."""

    def key(self, index):
        return f'log{index // 3}/{index}'


def fill(store, dataset, crop, indices):
    for index in indices:
        seen = teacher_input(dataset[index], crop)
        flow0, flow1 = (np.full(cloud.shape, index / 8, np.float32) for cloud in seen.clouds)
        store.write(seen.to_pseudo_label(flow0, flow1))


def test_a_store_goes_out_and_comes_in_again(tmp_path, monkeypatch, capsys):
    dataset = Logs(5)
    monkeypatch.setattr('training.datasets.open_dataset', lambda spec: dataset, raising=False)
    store = LabelStore.create(tmp_path / 'ours', {'teacher': 'wall'}, {})
    fill(store, dataset, Crop(z_min=-4, z_max=4), range(4))
    theirs, again = str(tmp_path / 'theirs'), str(tmp_path / 'again')
    assert zeroflow_labels.main(['export', str(store.folder), 'logs', '--out', theirs]) == 0
    names = sorted(str(path.relative_to(theirs)) for path in (tmp_path / 'theirs').rglob('*.npz'))
    assert names == [f'log{log}/{k:010d}_000.npz' for log, k in ((0, 0), (0, 1), (0, 2), (1, 0))]
    for _ in range(2):
        assert zeroflow_labels.main(['import', theirs, 'logs', '--out', again]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f'{again}: 4 labels of 5 pairs'
    for key in store.keys():
        ours, read = store.read(key), LabelStore(again).read(key)
        np.testing.assert_array_equal(read.flow0, ours.flow0)
        np.testing.assert_array_equal(read.points1, ours.points1)
        assert read.input_sha256 == ours.input_sha256 and np.isnan(read.flow1[~read.is_ground1]).all()


def test_a_gap_in_a_log_is_refused_for_only_the_order_of_files_counts(tmp_path):
    dataset = Logs(5)
    store = LabelStore.create(tmp_path / 'ours', {'teacher': 'wall'}, {})
    fill(store, dataset, Crop(z_min=-4, z_max=4), (0, 2))
    with pytest.raises(DataError, match='log0/1 has no intact label, but later pairs of log0 do'):
        zeroflow_labels.export_store(store, dataset, tmp_path / 'theirs')


def test_a_folder_of_other_logs_or_of_other_points(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('training.datasets.open_dataset', lambda spec: Logs(2), raising=False)
    arguments = ['import', str(tmp_path / 'theirs'), 'logs', '--out', str(tmp_path / 'out')]
    assert zeroflow_labels.main(arguments) == 1
    assert 'has no <log_id>/*.npz for the logs log0' in capsys.readouterr().err
    write(tmp_path / 'theirs' / 'log0' / 'a.npz')
    assert zeroflow_labels.main(arguments) == 1
    assert 'belongs to another pair' in capsys.readouterr().err


def test_height_counts_from_the_vehicle_frame():
    item = small_pair()
    np.testing.assert_array_equal(labelled_places(item), [0, 1, 3])
    lower = dataclasses.replace(item.pair, points0=item.pair.points0 - np.float32([0, 0, 0.001]))
    np.testing.assert_array_equal(labelled_places(dataclasses.replace(item, pair=lower)), [0, 1])
