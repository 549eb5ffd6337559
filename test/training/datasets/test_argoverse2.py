# SPDX-License-Identifier: Apache-2.0
"""Argoverse 2 logs: a small one whose poses, ground and boxes are known, and the real one."""

import shutil

import numpy as np
import pytest
from argoverse2_files import POINTS, STAMPS, annotate, write, write_log
from pyarrow import feather

from training.datasets import open_dataset
from training.datasets.argoverse2 import read_labelled_pair
from training.datasets.argoverse2_log import Argoverse2Log, GroundMap
from training.datasets.argoverse2_truth import CATEGORIES, META_CLASS, annotated_flow, labelled_pair
from training.datasets.pairs import MetaClass
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError

AV2_LOG = 'av2/val/7fab2350-7eaf-3b7e-a39d-6937a4c1bede'
# In the vehicle's frame, which is level and 0.3 m above the ground of the city, x = y = 100 m at first.


def test_all_consecutive_pairs_of_all_logs(tmp_path):
    for name in ('b', 'a'):
        write_log(tmp_path / 'train' / name)
    (tmp_path / 'train' / 'notes').mkdir()
    dataset = open_dataset(str(tmp_path / 'train'))
    assert (dataset.name, len(dataset)) == ('train', 4)
    assert [dataset.key(k) for k in range(4)] == ['a/1000', 'a/100001000', 'b/1000', 'b/100001000']
    item = dataset[1]
    assert item.key == 'a/100001000' and item.truth is None and item.pair.dt == pytest.approx(0.1)
    np.testing.assert_allclose(item.pair.ego0_T_ego1[:3, 3], [1, 0, 0], atol=1e-9)
    np.testing.assert_array_equal(item.pair.points0, POINTS.astype(np.float16).astype(np.float32))
    for times in item.times:
        np.testing.assert_allclose(times, np.arange(6) * 1e-3)  # s
    assert len(open_dataset(f'av2:{tmp_path / "train" / "b"}')) == 2
    with pytest.raises(IndexError):
        dataset[4]


def test_the_sweeps_before_and_after_a_pair_come_with_it(tmp_path):
    first, second = open_dataset(str(write_log(tmp_path / 'log')))
    assert [len(pair.history) for pair in (first.pair, second.pair)] == [0, 1]
    assert [len(pair.future) for pair in (first.pair, second.pair)] == [1, 0]
    np.testing.assert_allclose(second.pair.history[0].ego0_T_ego[:3, 3], [-1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(first.pair.future[0].ego0_T_ego[:3, 3], [2, 0, 0], atol=1e-9)
    np.testing.assert_array_equal(second.pair.history[0].points, first.pair.points0)


def test_each_sweep_is_read_once(tmp_path, monkeypatch):
    from training.datasets import argoverse2_log

    dataset, read = open_dataset(str(write_log(tmp_path / 'log'))), []

    def read_columns(log, name, columns):
        read.append(str(name))
        return original(log, name, columns)

    original = argoverse2_log.read_columns
    monkeypatch.setattr(argoverse2_log, 'read_columns', read_columns)
    first, second = dataset[0], dataset[1]
    assert sorted(name for name in read if 'lidar' in name) == sorted(
        f'sensors/lidar/{stamp}.feather' for stamp in STAMPS
    )
    first.pair.points1[:], first.times[1][:] = 0, 0  # what one reader does to its arrays is no other's business
    np.testing.assert_array_equal(second.pair.points0, dataset[1].pair.points0)
    assert dataset[1].pair.points0.any() and dataset[1].times[0].any()


def test_ground_is_what_is_at_most_30_cm_above_the_map_or_what_is_asked_for(tmp_path):
    write_log(tmp_path / 'log')
    # On it, 0.35 m above, 0.55 m above, below, off the map, and where the map does not know.
    item = open_dataset(f'av2:{tmp_path / "log"}')[0]
    assert item.is_ground0.tolist() == [True, False, False, True, False, False]
    item = open_dataset(f'av2:{tmp_path / "log"}?ground_margin=0.4')[0]
    assert item.is_ground0.tolist() == [True, True, False, True, False, False]
    with pytest.raises(DataError, match='Known options: ground_margin'):
        open_dataset(f'av2:{tmp_path / "log"}?ground=0.4')
    heights = tmp_path / 'log' / 'map' / 'log_ground_height_surface____PIT.npy'
    shutil.copytree(tmp_path / 'log', tmp_path / 'sloped')
    sloped = np.load(heights)
    sloped[:, 30:] += 1  # from x = 105 m on, seen 5 m ahead at first: a pixel further on it is a rise
    np.save(tmp_path / 'sloped' / 'map' / heights.name, sloped)
    item = open_dataset(f'av2:{tmp_path / "sloped"}')[0]
    assert item.is_ground0.tolist() == [True, True, True, True, False, False]
    assert item.is_ground1.tolist() == [True, True, True, True, False, False]


def test_boxes_of_annotations_give_truth(tmp_path):
    points = np.array([[10, 0, 0], [12.05, 0, 0], [10, 20, 0], [0, 30, 0], [-10, 0, 0], [10, 40, 0]], np.float32)
    log = write_log(tmp_path / 'log', points)
    annotate(log, [
        (0, 'parked', 'REGULAR_VEHICLE', 10, 0), (1, 'parked', 'REGULAR_VEHICLE', 9, 0),  # the vehicle drove 1 m
        (0, 'bus', 'BUS', 10, 20), (1, 'bus', 'BUS', 10, 20),  # as fast as the vehicle
        (0, 'gone', 'PEDESTRIAN', 0, 30), (0, 'sign', 'SIGN', 10, 40), (1, 'sign', 'SIGN', 9, 40),
    ])  # fmt: skip
    dataset = open_dataset(f'av2:{log}')
    truth = dataset[0].truth
    np.testing.assert_allclose(truth.flow, [[0] * 3, [0] * 3, [1, 0, 0], [0] * 3, [0] * 3, [0] * 3], atol=1e-6)
    assert truth.is_valid.tolist() == [True, True, True, False, True, True]
    car, bus, walker, ignored = MetaClass.CAR, MetaClass.OTHER_VEHICLES, MetaClass.PEDESTRIAN, MetaClass.IGNORED
    assert truth.meta_class.tolist() == [car, car, bus, walker, MetaClass.BACKGROUND, ignored]
    assert dataset[1].truth is None  # the third sweep is not annotated


def test_labels_give_truth(tmp_path):
    log = write_log(tmp_path / 'log')
    n = np.zeros(6)
    columns = {'flow_tx_m': n - [1, 1, 0, 1, 1, 1], 'flow_ty_m': n, 'flow_tz_m': n,
               'dynamic': n > 0, 'is_ground_0': n > 0,
               'classes': np.array([0, 0, 19, 5, 30, 17], np.uint8)}  # fmt: skip
    write(log / 'flow_labels.feather', **columns)
    dataset = open_dataset(f'av2:{log}')
    truth = dataset[0].truth
    expected = np.zeros((6, 3))
    expected[2, 0] = 1  # the others stand: their flow is that of the vehicle, backwards
    np.testing.assert_allclose(truth.flow, expected, atol=1e-6)
    assert truth.meta_class.tolist() == [
        0,
        0,
        MetaClass.CAR,
        MetaClass.IGNORED,
        MetaClass.WHEELED_VRU,
        MetaClass.PEDESTRIAN,
    ]
    assert truth.is_valid.all() and dataset[1].truth is None
    write(log / 'flow_labels.feather', **{name: column[:5] for name, column in columns.items()})
    with pytest.raises(DataError, match='has 5 rows, the sweep 6'):
        dataset[0]
    write(log / 'flow_labels.feather', **columns | {'classes': np.full(6, 31, np.uint8)})
    with pytest.raises(DataError, match='has class 31, expected 0 to 30'):
        dataset[0]


def drop_pose(log):
    table = feather.read_table(log / 'city_SE3_egovehicle.feather')
    feather.write_feather(table.slice(0, 3), log / 'city_SE3_egovehicle.feather')


@pytest.mark.parametrize(
    'damage, said',
    [
        (lambda log: (log / 'city_SE3_egovehicle.feather').unlink(), r'log lacks city_SE3_egovehicle\.feather'),
        (lambda log: (log / 'city_SE3_egovehicle.feather').write_text('no'), 'should be a feather file with columns'),
        (lambda log: write(log / 'city_SE3_egovehicle.feather', qw=[1.0]), 'should be a feather file with columns'),
        (drop_pose, 'no pose at the sweep 100001000'),
        (lambda log: shutil.rmtree(log / 'map'), 'exactly one map/.*ground_height.*found none'),
        (lambda log: shutil.copy(log / 'map' / 'log_ground_height_surface____PIT.npy',
                                 log / 'map' / 'log_ground_height_surface____WDC.npy'), 'one .*PIT.npy, .*WDC.npy'),
        (lambda log: (log / 'map' / 'log___img_Sim2_city.json').unlink(), 'img_Sim2_city.json, found none'),
        (lambda log: [(log / f'sensors/lidar/{k}.feather').unlink() for k in STAMPS[1:]], 'two sweeps.*found 1'),
    ],
)  # fmt: skip
def test_what_a_log_lacks_is_named_when_it_is_opened(tmp_path, damage, said):
    log = write_log(tmp_path / 'log')
    damage(log)
    with pytest.raises(DataError, match=said):
        open_dataset(f'av2:{log}')


@pytest.mark.parametrize(
    'damage, said',
    [
        (lambda log: (log / 'sensors' / 'lidar' / '1000.feather').write_text('no'), '1000.feather should be a feather'),
        (lambda log: (log / 'map' / 'log___img_Sim2_city.json').write_text('{}'), 'should be a raster and its R, t, s'),
        (lambda log: annotate(log, [(0, 'a', 'UFO', 0, 0), (1, 'a', 'UFO', 0, 0)]), "the category 'UFO'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, damage, said):
    log = write_log(tmp_path / 'log')
    damage(log)
    with pytest.raises(DataError, match=said):
        open_dataset(f'av2:{log}')[0]


def test_classes_are_those_of_the_official_scores():
    members = {
        meta: {name for name, own in zip(CATEGORIES, META_CLASS[1:], strict=True) if own == meta} for meta in MetaClass
    }
    assert META_CLASS[0] == MetaClass.BACKGROUND and list(CATEGORIES) == sorted(CATEGORIES) and len(CATEGORIES) == 30
    assert [len(members[meta]) for meta in MetaClass] == [0, 1, 9, 4, 6, 10]
    assert {'SIGN', 'CONSTRUCTION_CONE', 'DOG', 'TRAFFIC_LIGHT_TRAILER'} < members[MetaClass.IGNORED]


def test_the_real_log_agrees_with_its_labels(shared_data):
    log = Argoverse2Log(shared_data / AV2_LOG)
    labelled, item = labelled_pair(log), open_dataset(str(shared_data / AV2_LOG))[0]
    np.testing.assert_array_equal(labelled.flow, read_labelled_pair(shared_data / AV2_LOG).flow)
    np.testing.assert_array_equal(item.truth.flow, labelled.flow)
    in_city = transforms.apply(log.city_T_ego[0], labelled.pair.points0.astype(np.float64))
    of_map = GroundMap(log.path).is_ground(in_city)
    assert (of_map == labelled.is_ground).mean() > 0.998
    np.testing.assert_array_equal(item.is_ground0, labelled.is_ground)  # what the published scores leave out
    truth = annotated_flow(log, 0, labelled.pair)
    error = np.linalg.norm(truth.flow - labelled.flow, axis=1)
    assert (truth.meta_class == item.truth.meta_class).mean() > 0.9999 and truth.is_valid.all()
    assert (error > 1e-3).sum() < 20  # of 99,229 points: those on the edge of two boxes
