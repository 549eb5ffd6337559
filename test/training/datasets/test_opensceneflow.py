# SPDX-License-Identifier: Apache-2.0
"""Scenes of OpenSceneFlow as sweep pairs: frames, truth, what makes no pair, and what is refused."""

import json
import os

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather
from scenes import EGO0_T_EGO1, START, change, stamp, write_scene

from training.datasets import open_dataset
from training.datasets.pairs import MetaClass
from training.datasets.scene_index import INDEX
from training.scoring.scores import Scope
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError

EGO_T_LIDAR = transforms.yaw_translation(-0.0102, 1.35, 0.0, 1.64)  # the upper LiDAR of an Argoverse 2 vehicle


def test_consecutive_sweeps_of_all_scenes(tmp_path):
    for name in ('b', 'a'):
        write_scene(tmp_path / f'{name}.h5')
    dataset = open_dataset(f'osf:{tmp_path}')
    assert [dataset.key(k) for k in range(4)] == [f'{name}/{stamp(k)}' for name in 'ab' for k in range(2)]
    assert len(dataset) == 4 and not dataset.skipped
    item = dataset[1]
    assert item.key == dataset.key(1) and item.pair.dt == pytest.approx(0.1, abs=1e-9)
    assert item.pair.points0.shape == (400, 3) and item.is_ground0.sum() == item.is_ground1.sum() == 50
    np.testing.assert_allclose(item.times[1], np.linspace(0, 0.1, 400))
    assert dataset[1].truth is not None and len(open_dataset(str(tmp_path / 'b.h5'))) == 2
    with pytest.raises(IndexError):
        dataset[4]


def test_the_sweeps_before_and_after_a_pair_come_with_it_but_not_across_a_gap(tmp_path):
    stamps = [stamp(k) for k in (0, 1, 2, 3, 4, 8, 9)]
    write_scene(tmp_path / 'a.h5', stamps=stamps, eval_mask=np.ones(400, bool))
    dataset = open_dataset(f'osf:{tmp_path}?eval_mask=true')
    sizes = [(len(item.pair.history), len(item.pair.future)) for item in dataset]
    assert sizes == [(0, 3), (1, 2), (2, 1), (3, 0), (0, 0)]
    pair = dataset[2].pair  # its vehicle was two steps behind, and will be two steps ahead
    back = np.linalg.inv(EGO0_T_EGO1)
    np.testing.assert_allclose(pair.history[1].ego0_T_ego, back @ back, atol=1e-6)
    np.testing.assert_allclose(pair.future[0].ego0_T_ego, EGO0_T_EGO1 @ EGO0_T_EGO1, atol=1e-6)
    np.testing.assert_array_equal(pair.history[0].points, pair.points0)  # of this scene


def test_sweeps_beside_a_pair_need_no_evaluation_mask_of_their_own(tmp_path):
    write_scene(tmp_path / 'a.h5', num_sweeps=4, eval_mask=np.ones(400, bool))
    for k in (0, 1, 3):
        change(tmp_path / 'a.h5', f'{stamp(k)}/eval_mask', None)
    [item] = open_dataset(f'osf:{tmp_path}?eval_mask=true')
    assert item.key == f'a/{stamp(2)}' and len(item.pair.history) == 2


@pytest.mark.parametrize('pose_type', [np.float32, np.float64])
def test_ego_motion_is_that_of_the_poses_to_a_hundredth_of_a_millimetre(tmp_path, pose_type):
    """Poses in float32 are 0.5 mm apart 5 km from the origin; ego_motion is not."""
    write_scene(tmp_path / 'a.h5', pose_type=pose_type)
    np.testing.assert_allclose(open_dataset(str(tmp_path))[0].pair.ego0_T_ego1, EGO0_T_EGO1, atol=1e-6)


def test_truth_is_what_is_left_without_the_pose_flow(tmp_path):
    residual = write_scene(tmp_path / 'a.h5')
    truth = open_dataset(str(tmp_path))[0].truth
    np.testing.assert_allclose(truth.flow[:399], residual[:399], atol=1e-5)
    assert truth.is_valid.sum() == 399 and not truth.is_valid[399]
    assert set(truth.meta_class[100:200]) == {MetaClass.CAR} and set(truth.meta_class[200:220]) == {MetaClass.IGNORED}
    assert not truth.meta_class[:100].any() and not truth.meta_class[220:].any()


def test_truth_does_not_mind_points_in_the_frame_of_the_lidar(tmp_path):
    """As in its Argoverse 2 scenes, where the poses say that all that stands moves by 5 cm in a turn of 2 degrees."""
    residual = write_scene(tmp_path / 'a.h5', ego_T_lidar=EGO_T_LIDAR)
    item = open_dataset(str(tmp_path))[0]
    np.testing.assert_allclose(item.truth.flow[:399], residual[:399], atol=2e-5)
    expected = transforms.apply(transforms.invert(EGO_T_LIDAR), write_points(tmp_path / 'b.h5'))
    np.testing.assert_allclose(item.pair.points0, expected, atol=1e-5)  # as stored


def write_points(path):
    write_scene(path)
    return open_dataset(str(path))[0].pair.points0


def test_with_the_calibration_points_go_into_the_frame_of_the_vehicle(tmp_path):
    scenes, logs = tmp_path / 'scenes', tmp_path / 'logs'
    scenes.mkdir()
    residual = write_scene(scenes / 'a.h5', ego_T_lidar=EGO_T_LIDAR)
    with pytest.raises(DataError, match=r'lacks calibration/egovehicle_SE3_sensor\.feather'):
        open_dataset(f'osf:{scenes}?calibration={logs}')
    qx, qy, qz, qw = transforms.to_quaternion(EGO_T_LIDAR)
    x, y, z = EGO_T_LIDAR[:3, 3]
    (logs / 'a' / 'calibration').mkdir(parents=True)
    table = {'sensor_name': ['ring_front_center', 'up_lidar'], 'qw': [1, qw], 'qx': [0, qx], 'qy': [0, qy],
             'qz': [0, qz], 'tx_m': [9, x], 'ty_m': [9, y], 'tz_m': [9, z]}  # fmt: skip
    feather.write_feather(pa.table(table), logs / 'a' / 'calibration' / 'egovehicle_SE3_sensor.feather')
    dataset = open_dataset(f'osf:{scenes}?calibration={logs}')
    item = dataset[0]
    np.testing.assert_allclose(item.pair.points0, write_points(tmp_path / 'b.h5'), atol=1e-5)
    np.testing.assert_allclose(item.truth.flow[:399], residual[:399], atol=1e-5)
    assert dataset.in_vehicle_frame and not open_dataset(str(scenes)).in_vehicle_frame


def test_only_what_the_mask_says_is_scored_when_asked_for(tmp_path):
    mask = np.arange(400) % 2 == 0
    write_scene(tmp_path / 'a.h5', eval_mask=mask)
    write_scene(tmp_path / 'b.h5')
    item = open_dataset(f'osf:{tmp_path}')[0]
    assert Scope().rows(item).sum() == 349  # neither ground nor the one that is not valid
    dataset = open_dataset(f'osf:{tmp_path}?eval_mask=true')
    assert [dataset.key(k)[0] for k in range(len(dataset))] == ['a', 'a'] and dataset.skipped == {'no_eval_mask': 2}
    assert Scope().rows(dataset[0]).tolist() == (mask & (np.arange(400) >= 50)).tolist()
    with pytest.raises(DataError, match='2 no_eval_mask'):
        open_dataset(f'osf:{tmp_path / "b.h5"}?eval_mask=true')


@pytest.mark.parametrize(
    'stamps',
    [
        ['315966265000000000', '315966265100000000'],  # ns: Argoverse 2
        ['15966265000000000', '15966265001000000'],  # 0.1 us: ZOD
        ['1550083467346370', '1550083467446370'],  # us: Waymo, nuScenes, TruckScenes
        ['0', '100000000'],  # ns from 0: simulation
    ],
)
def test_the_unit_of_stamps_is_seen_by_their_size(tmp_path, stamps):
    write_scene(tmp_path / 'a.h5', stamps=stamps)
    assert open_dataset(str(tmp_path))[0].pair.dt == pytest.approx(0.1)
    with pytest.raises(DataError, match=r'1 gap_too_long.*if a unit is 1 s; if it is not, set \?tick=SECONDS'):
        open_dataset(f'osf:{tmp_path}?tick=1')


def test_sweeps_with_a_gap_between_make_no_pair_and_are_counted(tmp_path):
    path = tmp_path / 'a.h5'
    write_scene(path, with_flow=False, stamps=[str(START + k * 100_000_000) for k in (0, 1, 3, 4)])
    dataset = open_dataset(str(tmp_path))
    assert len(dataset) == 2 and dataset.skipped == {'gap_too_long': 1}
    assert len(open_dataset(f'osf:{tmp_path}?max_dt=0.25')) == 3


def test_a_lost_sweep_is_seen_by_the_ego_motion(tmp_path):
    """With stamps 0.1 s apart: the stored flow would be to a sweep that is not there."""
    write_scene(tmp_path / 'a.h5', num_sweeps=4)
    write_scene(tmp_path / 'b.h5')
    far = np.linalg.inv(EGO0_T_EGO1 @ EGO0_T_EGO1).astype(np.float32)
    change(tmp_path / 'a.h5', f'{stamp(1)}/ego_motion', far)
    dataset = open_dataset(str(tmp_path))
    assert len(dataset) == 4 and dataset.skipped == {'no_ego_motion': 1}


POSE = np.eye(4, dtype=np.float32)


@pytest.mark.parametrize(
    'name, value, said',
    [
        ('lidar', None, "lacks the dataset 'lidar'; it has .*pose"),
        ('ground_mask', None, "lacks the dataset 'ground_mask'"),
        ('pose', None, "lacks the dataset 'pose'"),
        ('pose', POSE[:3], r'pose should be \(4, 4\), got \(3, 4\)'),
        ('pose', POSE * np.nan, 'pose should be a finite rotation'),
        ('pose', POSE * 2, 'pose should be a finite rotation'),
        ('pose', POSE @ np.diag([1, -1, 1, 1]), 'pose is mirrored'),
        ('lidar', np.zeros((400, 2), np.float32), r'lidar should be \(N, 3 or more\)'),
        ('lidar', np.zeros((0, 3), np.float32), r'with N from 1 to 1e7, got \(0, 3\)'),
        ('pose', b'none', r'pose should be an array of numbers'),
        ('ground_mask', np.zeros(399, bool), r'ground_mask should have 400 rows as lidar has, got the shape \(399,\)'),
    ],
)
def test_a_sweep_that_is_no_good_makes_no_pair(tmp_path, name, value, said):
    write_scene(tmp_path / 'a.h5', num_sweeps=4)
    change(tmp_path / 'a.h5', f'{stamp(0)}/{name}', value)
    dataset = open_dataset(str(tmp_path))
    assert len(dataset) == 2 and dataset.skipped == {'malformed_cloud': 1}
    change(tmp_path / 'a.h5', f'{stamp(2)}/{name}', value)
    with pytest.raises(DataError, match=f'holds no sweep pair in 1 scenes .3 malformed_cloud.*{said}'):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize(
    'name, value, said',
    [
        (
            'flow',
            np.zeros((399, 3), np.float32),
            r'flow should have 400 rows as lidar has, of 3, got the shape \(399, 3',
        ),
        ('flow_is_valid', None, "lacks the dataset 'flow_is_valid'"),
        ('flow_is_valid', np.ones(4, bool), 'flow_is_valid should have 400 rows'),
        ('flow_category_indices', None, "lacks the dataset 'flow_category_indices'"),
        ('flow_category_indices', np.full(400, 31, np.uint8), 'has category 31, expected 0 to 30'),
        ('flow_category_indices', np.full(400, -1, np.int8), 'has category -1, expected 0 to 30'),
        ('lidar_dt', np.zeros(4, np.float32), 'lidar_dt should have 400 rows'),
        ('flow', np.ones((400, 3), np.float32), r'the background flows by .* m more than the poses say'),
    ],
)
def test_what_does_not_fit_is_named_when_the_pair_is_read(tmp_path, name, value, said):
    write_scene(tmp_path / 'a.h5')
    change(tmp_path / 'a.h5', f'{stamp(0)}/{name}', value)
    dataset = open_dataset(str(tmp_path))
    with pytest.raises(DataError, match=said):
        dataset[0]
    assert dataset[1].truth is not None


def test_flow_and_points_that_are_nan_are_not_valid(tmp_path):
    import h5py

    write_scene(tmp_path / 'a.h5')
    with h5py.File(tmp_path / 'a.h5', 'r+') as file:
        file[f'{stamp(0)}/flow'][300] = np.nan
        file[f'{stamp(0)}/lidar'][301] = np.nan
    item = open_dataset(str(tmp_path))[0]
    assert np.flatnonzero(~item.truth.is_valid).tolist() == [300, 301, 399]
    assert np.isfinite(item.truth.flow).all() and np.isnan(item.pair.points0[301]).all()  # rows stay where they are


def test_times_that_make_no_sense_are_not_known(tmp_path):
    for times in (np.full(400, np.nan), np.full(400, 3e5)):
        write_scene(tmp_path / 'a.h5')
        change(tmp_path / 'a.h5', f'{stamp(1)}/lidar_dt', times.astype(np.float32))
        assert open_dataset(str(tmp_path))[0].times is None


def test_a_scene_of_one_sweep_or_none_is_said_to_be_so(tmp_path):
    write_scene(tmp_path / 'a.h5', num_sweeps=1)
    write_scene(tmp_path / 'b.h5', num_sweeps=0)
    with pytest.raises(DataError, match=r'holds no sweep pair in 2 scenes \(fewer than two sweeps\)'):
        open_dataset(str(tmp_path))


def test_a_file_that_was_cut_short_is_named(tmp_path):
    write_scene(tmp_path / 'a.h5')
    whole = (tmp_path / 'a.h5').read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / 'a.h5').write_bytes(whole[:size])
        with pytest.raises(DataError, match=r'a\.h5 cannot be read as HDF5.*make it again'):
            open_dataset(str(tmp_path))


def test_a_folder_without_scenes_is_none(tmp_path):
    for text in (tmp_path, tmp_path / 'none'):
        with pytest.raises(DataError, match='holds no scene of OpenSceneFlow'):
            open_dataset(f'osf:{text}')
    write_scene(tmp_path / 'a.h5')
    with pytest.raises(DataError, match='There is no scene'):
        open_dataset(f'osf:{tmp_path / "b.h5"}')


class Bomb:
    """Unpickled, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ('exploded',)


def test_a_pickle_beside_the_scenes_is_never_loaded(tmp_path, monkeypatch):
    import pickle

    monkeypatch.chdir(tmp_path)
    write_scene(tmp_path / 'a.h5')
    for name in ('index_total.pkl', 'index_flow.pkl', 'index_eval.pkl'):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    assert open_dataset(str(tmp_path))[0].truth is not None
    assert not (tmp_path / 'exploded').exists()
    pickle.loads((tmp_path / 'index_total.pkl').read_bytes())  # it would have
    assert (tmp_path / 'exploded').exists()


def test_the_index_is_kept_and_made_again_for_what_changed(tmp_path, monkeypatch):
    from training.datasets import scene_index

    indexed = []
    index_scene = scene_index._index_scene
    monkeypatch.setattr(scene_index, '_index_scene', lambda path: indexed.append(path.name) or index_scene(path))
    for name in 'ab':
        write_scene(tmp_path / f'{name}.h5')
    assert len(open_dataset(str(tmp_path))) == len(open_dataset(str(tmp_path))) == 4 and indexed == ['a.h5', 'b.h5']
    write_scene(tmp_path / 'b.h5', num_sweeps=5)
    assert len(open_dataset(str(tmp_path))) == 6 and indexed == ['a.h5', 'b.h5', 'b.h5']
    (tmp_path / 'a.h5').unlink()
    assert len(open_dataset(str(tmp_path))) == 4 and len(indexed) == 3
    for damaged in ('{', '[]', json.dumps({'version': 1, 'scenes': {'b': {'mark': [1], 'sweeps': [{}]}}})):
        (tmp_path / INDEX).write_text(damaged)
        assert len(open_dataset(str(tmp_path))) == 4
    assert len(indexed) == 6 and not list(tmp_path.glob('*.partial'))


def test_without_h5py_it_says_what_to_install(tmp_path, monkeypatch):
    write_scene(tmp_path / 'a.h5')
    monkeypatch.setitem(__import__('sys').modules, 'h5py', None)
    with pytest.raises(DataError, match="Run 'pip install h5py'"):
        open_dataset(str(tmp_path))
