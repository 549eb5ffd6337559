# SPDX-License-Identifier: Apache-2.0
"""The label store and what a teacher sees: round trips, damage, and full rows."""

import dataclasses
import errno
import os

import label_world
import numpy as np
import pytest

from training.datasets.pairs import DatasetPair
from training.labels.label_store import LabelStore
from training.teachers.pseudo_label import PseudoLabel
from training.teachers.teacher import run_teacher
from training.teachers.teacher_input import Crop, checksum, teacher_input
from zeroflow_ros import transforms
from zeroflow_ros.errors import ConfigError, DataError
from zeroflow_ros.lidar.sweep import SweepPair

ABOUT = {'teacher': 'wall', 'config': {'rate': 0.1}, 'crop': {'half_extent': 51.2}, 'datasets': ['world']}
NONE = np.zeros((0, 3), np.float32)


@pytest.fixture
def store(tmp_path):
    return LabelStore.create(tmp_path / 'store', ABOUT, {'commit': 'abc'})


def label(n=500, m=400, key='drive/000001', dtype=np.float32, seed=0):
    """Return a label with everything in it: NaN rows, rows of unknown flow, ground, far points."""
    rng = np.random.default_rng(seed)
    clouds, flows, grounds = [], [], []
    for size in (n, m):
        points = rng.uniform(-200, 200, (size, 3)).astype(dtype)
        flow = rng.normal(0, 1, (size, 3)).astype(dtype)
        is_ground = rng.random(size) < 0.3
        unknown = rng.random(size) < 0.2
        flow[unknown] = np.nan
        points[unknown & (rng.random(size) < 0.5) & ~is_ground] = np.nan
        flow[is_ground] = 0
        clouds, flows, grounds = [*clouds, points], [*flows, flow], [*grounds, is_ground]
    return PseudoLabel(key, *clouds, *flows, *grounds, 0.1, 'c0ffee')


def without_flow(n=500, m=400):
    """Return a label that says which points move, and not how."""
    rng = np.random.default_rng(1)
    dynamic = {f'dynamic{side}': rng.integers(-2, 40_000, size).astype(np.int32) for side, size in enumerate((n, m))}
    return dataclasses.replace(label(n, m), **dynamic)


def arrays(of: PseudoLabel):
    return {field.name: getattr(of, field.name) for field in dataclasses.fields(of)}


@pytest.mark.parametrize('n, m', [(0, 0), (0, 5), (1, 1), (500, 400)])
def test_round_trip_keeps_all_to_half_a_millimetre(store, n, m):
    before = label(n, m)
    store.write(before)
    after = store.read(before.key)
    for name, value in arrays(before).items():
        if not isinstance(value, np.ndarray):
            assert getattr(after, name) == value
        elif value.dtype == bool:
            np.testing.assert_array_equal(getattr(after, name), value)
        else:
            # 0.5 mm of rounding, and 8 um of a float32 at 200 m
            np.testing.assert_allclose(getattr(after, name), value, rtol=0, atol=5.1e-4)
            assert getattr(after, name).dtype == np.float32
    for flow, is_ground in ((after.flow0, after.is_ground0), (after.flow1, after.is_ground1)):
        assert not flow[is_ground].any()


@pytest.mark.parametrize('n, m', [(0, 0), (0, 5), (500, 400)])
def test_labels_of_what_moves_come_back_and_reach_the_training(store, n, m):
    before = without_flow(n, m)
    store.write(before)
    after, pair = store.read(before.key), store.training_pair(before.key)
    for side, sees in ((0, 'points0'), (1, 'points1')):
        dynamic = getattr(before, f'dynamic{side}')
        np.testing.assert_array_equal(getattr(after, f'dynamic{side}'), dynamic)
        kept = np.isfinite(getattr(before, sees)).all(axis=1)
        np.testing.assert_array_equal(getattr(pair, f'dynamic{side}'), dynamic[kept])
    store.write(label())
    assert store.read(before.key).dynamic0 is None and store.training_pair(before.key).dynamic0 is None
    with pytest.raises(ValueError, match='dynamic0'):
        dataclasses.replace(before, dynamic0=np.zeros(n + 1, np.int32))


@pytest.mark.parametrize('make', [label, without_flow])
def test_what_was_read_and_is_written_again_is_the_same_file(store, make):
    path = store.write(make())
    first = path.read_bytes()
    store.write(store.read('drive/000001'))
    assert path.read_bytes() == first


def test_values_beyond_a_world_are_unknown(store):
    far = np.float32([[2.2e6, 0, 0], [np.inf, 1, 1], [2.1e6, -2.1e6, 0]])
    still = np.zeros((3, 3), np.float32)
    nothing = np.zeros(3, bool)
    store.write(PseudoLabel('far', far, NONE, still, NONE, nothing, nothing[:0], 0.1))
    points = store.read('far').points0
    np.testing.assert_array_equal(np.isnan(points), [[1, 0, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(points[2], far[2])


def test_a_training_pair_has_no_rows_without_return_and_keeps_unknown_flow(store):
    before = label()
    store.write(before)
    pair = store.training_pair(before.key)
    kept = np.isfinite(before.points0[:, 0])
    assert 0 < np.isnan(before.flow0[kept]).sum() and len(pair.points0) == len(pair.flow0) == kept.sum() < 500
    np.testing.assert_allclose(pair.flow0, before.flow0[kept], rtol=0, atol=5.1e-4)
    assert np.isfinite(pair.points1).all() and pair.dt == before.dt


DAMAGE = {
    'empty': lambda content: b'',
    'half': lambda content: content[: len(content) // 2],
    'longer': lambda content: content + b'x',
    'other magic': lambda content: b'X' + content[1:],
    'other checksum': lambda content: content[:8] + b'X' + content[9:],
    'other header': lambda content: content.replace(b'"dt": 0.1', b'"dt": 0.2'),
    'other number': lambda content: content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
    'zeros': lambda content: bytes(len(content)),
}


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found(store, damage):
    path = store.write(label())
    assert store.is_intact('drive/000001')
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert path.read_bytes() != content
    assert not store.is_intact('drive/000001')
    with pytest.raises(DataError, match=r'damaged|schema'):
        store.read('drive/000001')
    store.write(label())
    assert store.is_intact('drive/000001')


def test_a_label_under_another_name_is_refused(store):
    path = store.write(label())
    path.rename(path.with_name('000002.label'))
    assert not store.is_intact('drive/000002')
    with pytest.raises(DataError, match='is the label of drive/000001'):
        store.read('drive/000002')
    with pytest.raises(DataError, match='No label of drive/000001'):
        store.read('drive/000001')


def test_keys_are_in_order_and_leave_out_what_is_half_written(store):
    assert store.keys() == []
    for key in ('b/2', 'a.x/1', 'b/10', 'top'):
        store.write(label(3, 3, key))
    (store.folder / 'labels' / 'b' / '.3.label.17.partial').write_bytes(b'half')
    (store.folder / 'labels' / 'b' / '.4.label').write_bytes(b'hidden')
    assert store.keys() == ['a.x/1', 'b/10', 'b/2', 'top']
    assert not store.is_intact('b/3')


@pytest.mark.parametrize('key', ['', '/', '/a', 'a/', '../a', 'a/../b', '.a', 'a//b', 'a b', 'a\n', 'ä'])
def test_what_is_no_key_is_refused(store, key):
    with pytest.raises(DataError, match='is not a key'):
        store.path(key)


def test_leftovers_of_a_killed_job_go_when_the_label_is_redone(store):
    leftover = store.path('drive/000001').with_name('.000001.label.17.partial')
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b'half')
    store.write(label())
    assert [path.name for path in leftover.parent.iterdir()] == ['000001.label']


@pytest.mark.parametrize('function', ['fsync', 'replace'])
def test_a_full_disk_is_said_and_leaves_no_half_file(store, monkeypatch, function):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        with pytest.raises(DataError, match=r'No space left on device.*run the same command again'):
            store.write(label())
    assert store.keys() == [] and not list(store.path('drive/000001').parent.iterdir())


@pytest.mark.parametrize('name, value', [
    ('teacher', 'other'), ('config', {'rate': 0.2}), ('crop', {'half_extent': 25.6}), ('datasets', ['world', 'more']),
])  # fmt: skip
def test_labels_made_otherwise_are_refused(store, name, value):
    assert LabelStore.create(store.folder, ABOUT, {'commit': 'later'}).about['code'] == {'commit': 'abc'}
    with pytest.raises(DataError, match=rf'labels of other settings \({name}: .* there, .* now\)'):
        LabelStore.create(store.folder, ABOUT | {name: value}, {})
    assert LabelStore(store.folder).about[name] == ABOUT[name]


@pytest.mark.parametrize('content, said', [
    (None, 'holds no pseudo-labels'), ('{', 'is damaged'), ('[]', 'is damaged'), ('{"schema": 99}', 'has schema 99'),
])  # fmt: skip
def test_what_is_no_store_is_refused(tmp_path, content, said):
    if content is not None:
        (tmp_path / 'store.json').write_text(content)
    with pytest.raises(DataError, match=said):
        LabelStore(tmp_path)


@pytest.mark.parametrize('change', [
    {'flow0': NONE}, {'points0': np.zeros((500, 3))}, {'is_ground1': np.zeros(400, np.uint8)}, {'dt': 0.0},
    {'dt': float('nan')}, {'flow0': np.ones((500, 3), np.float32)}, {'flow0': np.full((500, 3), np.nan, np.float32)},
])  # fmt: skip
def test_a_label_checks_itself(change):
    with pytest.raises(ValueError, match=r'flow0|points0|is_ground1|dt'):
        dataclasses.replace(label(), **change)


def test_a_teacher_sees_both_sweeps_on_the_ground_of_ego0_and_its_flow_comes_back_in_full_rows():
    item = label_world.pair('drive/0', 40)
    points0 = item.pair.points0.copy()
    points0[-1], points0[-2] = np.nan, [51.3, 0, 0]  # no return; outside
    item = dataclasses.replace(item, pair=dataclasses.replace(item.pair, points0=points0))
    seen = teacher_input(item, Crop())
    cloud0, cloud1 = seen.clouds
    expected = points0[~item.is_ground0][:-2] + np.float32([0, 0, label_world.HEIGHT])
    np.testing.assert_allclose(cloud0, expected, rtol=0, atol=2e-3)  # 2 mm: how well a plane is fitted to a plane
    moved = transforms.apply(item.pair.ego0_T_ego1, item.pair.points1)[~item.is_ground1]
    np.testing.assert_allclose(cloud1, moved + np.float32([0, 0, label_world.HEIGHT]), rtol=0, atol=2e-3)
    np.testing.assert_allclose(seen.points0[item.is_ground0][:, 2], 0, atol=2e-3)

    flow0 = np.arange(cloud0.size, dtype=np.float32).reshape(-1, 3) + 1
    made = seen.to_pseudo_label(flow0, -np.ones_like(cloud1))
    np.testing.assert_array_equal(made.flow0[~item.is_ground0][:-2], flow0)
    assert np.isnan(made.flow0[-2:]).all() and np.isnan(made.points0[-1]).all() and np.isfinite(made.points0[-2]).all()
    assert not made.flow0[item.is_ground0].any() and (made.flow1[~item.is_ground1] == -1).all()
    assert made.dt == 0.1 and made.input_sha256 == checksum(item) != checksum(label_world.pair('a', 40))
    for wrong in (flow0[1:], np.where(flow0 == 1, np.nan, flow0)):
        with pytest.raises(DataError, match='the teacher should return finite flow'):
            seen.to_pseudo_label(wrong, -np.ones_like(cloud1))


def test_a_teacher_hears_when_the_points_that_it_sees_were_measured():
    item = label_world.pair('drive/0', 40)
    times = tuple(np.arange(len(ground), dtype=np.float32) for ground in (item.is_ground0, item.is_ground1))
    timed, heard = dataclasses.replace(item, times=times), []

    class Listener:
        def label(self, points0, points1, dt, *, times=None):
            heard.append(times)
            return np.zeros_like(points0), np.zeros_like(points1)

    for each in (item, timed):
        run_teacher(Listener(), teacher_input(each, Crop()))
    assert heard[0] is None
    np.testing.assert_array_equal(heard[1][0], np.flatnonzero(~item.is_ground0))
    np.testing.assert_array_equal(heard[1][1], np.flatnonzero(~item.is_ground1))
    assert checksum(timed) != checksum(item)  # other times, other labels
    with pytest.raises(ValueError, match='times'):
        dataclasses.replace(item, times=(times[0][1:], times[1]))


@pytest.mark.parametrize('pitch', [0, 10])
@pytest.mark.parametrize('height', [0.0, 1.73, 2.5])
def test_what_a_teacher_sees_does_not_depend_on_how_the_sensor_is_mounted(height, pitch):
    rng = np.random.default_rng(0)
    ground = np.c_[rng.uniform(-50, 50, (8000, 2)), rng.normal(0, 0.01, 8000)]
    walls = np.c_[rng.uniform(-50, 50, 2000), rng.choice([-12.0, 12.0], 2000), rng.uniform(0, 2.9, 2000)]
    is_ground, frame = np.arange(10_000) < 8000, transforms.yaw_translation(0, 0, 0, height)
    frame[:3, :3] = transforms.rotation_matrix([0, np.radians(-pitch), 0])  # level_T_sensor
    points = transforms.apply(transforms.invert(frame), np.concatenate([ground, walls])).astype(np.float32)
    item = DatasetPair('street', SweepPair(points, points, np.eye(4), 0.1), is_ground, is_ground)
    seen = teacher_input(item, Crop())
    assert len(seen.rows0) > 0.99 * len(walls) and not seen.is_ground0[seen.rows0].any()
    near = np.hypot(*seen.points0[:, :2].T) < 3
    assert np.abs(seen.points0[is_ground & near][:, 2]).max() < 0.7  # m: 10 degrees at 3 m


def test_the_crop_takes_the_lower_edge_and_leaves_the_upper():
    points = np.float32(
        [[-51.2, 0, 0], [51.2, 0, 0], [0, -51.2, 0], [0, 51.2, 0], [0, 0, -3], [0, 0, 3], [np.nan, 0, 0]]
    )
    np.testing.assert_array_equal(Crop().contains(points), [1, 0, 1, 0, 1, 0, 0])
    assert Crop().contains(NONE).shape == (0,)
    for wrong in ((0.0, -3.0, 3.0), (10.0, 3.0, 3.0)):
        with pytest.raises(ConfigError, match='A crop needs'):
            Crop(*wrong)


def bare(points0, points1, is_ground):
    flags = (np.full(len(points), is_ground) for points in (points0, points1))
    return DatasetPair('bare', SweepPair(points0, points1, np.eye(4), 0.1), *flags)


def test_sweeps_without_points_without_ground_and_of_ground_alone():
    plane = label_world.sweep(0, np.random.default_rng(0))[0]
    few = np.float32([[5, 0, -1.5], [6, 0, -1.7], [7, 1, -1.9]])
    for item, height in ((bare(NONE, NONE, False), 0.0), (bare(plane, plane, True), 1.7), (bare(few, NONE, True), 1.7)):
        seen = teacher_input(item, Crop())
        assert [len(cloud) for cloud in seen.clouds] == [0, 0]
        made = seen.to_pseudo_label(NONE, NONE)
        assert not made.flow0.any() and len(made.flow0) == len(item.pair.points0)
        np.testing.assert_allclose(made.points0, item.pair.points0 + np.float32([0, 0, height]), rtol=0, atol=2e-3)
    assert len(teacher_input(bare(NONE, plane, True), Crop()).points1) == len(plane)
    with pytest.raises(
        DataError,
        match=r'bare: the ground height below the vehicle cannot be estimated: too few points.*, and no ground point',
    ):
        teacher_input(bare(few, few, False), Crop())
