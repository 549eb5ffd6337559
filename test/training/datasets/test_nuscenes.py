# SPDX-License-Identifier: Apache-2.0
"""nuScenes: a small one in the official layout, and damaged ones."""

import re

import numpy as np
import pytest
from drive_world import CAR, GROUND, PEDESTRIAN, DriveWorld
from nuscenes_files import KEYFRAMES, NUM_SWEEPS, OWN_POINTS, PERIOD, edit, stamp_us, write_nuscenes

from training.datasets import open_dataset
from training.datasets.nuscenes import meta_class_of
from training.datasets.nuscenes_tables import read_rows
from training.datasets.pairs import HISTORY, MetaClass
from zeroflow_ros.errors import DataError

NUM_EXTRA = len(OWN_POINTS) + 1  # rows of the vehicle, and one without a return
WORLD = DriveWorld()


@pytest.fixture
def root(tmp_path):
    write_nuscenes(tmp_path)
    return tmp_path


def number_of(key):
    """Return the number of the sweep of a key."""
    return round((int(key.rpartition('/')[2]) / 1000 - stamp_us(0)) / 1e6 / PERIOD)


def test_sweeps_are_in_the_ego_frame_with_their_poses(root):
    dataset = open_dataset(f'nuscenes:{root}')
    assert len(dataset) == NUM_SWEEPS - 1 and not dataset.skipped
    assert dataset.key(0) == f'scene-0001/{stamp_us(0) * 1000}'
    for k in (0, 5):
        pair = dataset[k].pair
        expected = WORLD.in_ego(k * PERIOD)
        seen = np.hypot(*expected[:, :2].T) > 4  # no road under the vehicle
        np.testing.assert_allclose(pair.points0[:-NUM_EXTRA][seen], expected[seen], atol=1e-4)
        assert np.isnan(pair.points0[-NUM_EXTRA:]).all()  # the vehicle itself, and 0 0 0
        expected = np.linalg.inv(WORLD.world_T_ego(k * PERIOD)) @ WORLD.world_T_ego((k + 1) * PERIOD)
        np.testing.assert_allclose(pair.ego0_T_ego1, expected, atol=1e-8)
        assert pair.dt == pytest.approx(PERIOD, abs=1e-9)
    item = dataset[5]
    is_ground, kind = item.is_ground0[:-NUM_EXTRA], WORLD.kind
    assert is_ground[kind == GROUND].mean() > 0.6 and is_ground[kind == CAR].mean() < 0.2
    assert [len(beside) for beside in (item.pair.history, item.pair.future)] == [HISTORY, HISTORY]
    for k, sweep in ((4, item.pair.history[0]), (7, item.pair.future[0])):
        expected = np.linalg.inv(WORLD.world_T_ego(5 * PERIOD)) @ WORLD.world_T_ego(k * PERIOD)
        np.testing.assert_allclose(sweep.ego0_T_ego, expected, atol=1e-8)
        np.testing.assert_allclose(sweep.points[:-NUM_EXTRA][kind != GROUND], WORLD.in_ego(k * PERIOD)[kind != GROUND],
                                   atol=1e-4)  # fmt: skip


def test_boxes_between_keyframes_give_the_flow_of_both_ends(root):
    dataset = open_dataset(f'nuscenes:{root}')
    for index in range(len(dataset)):
        for item, (k, other) in ((dataset[index], (index, index + 1)), (dataset.latest(index), (index + 1, index))):
            if not KEYFRAMES[0] <= min(k, other) or not max(k, other) <= KEYFRAMES[-1]:
                assert item.truth is None
                continue
            truth = item.truth
            expected = WORLD.residual_flow(k * PERIOD, other * PERIOD)
            kind, valid = WORLD.kind, truth.is_valid[:-NUM_EXTRA]
            np.testing.assert_allclose(truth.flow[:-NUM_EXTRA][valid], expected[valid], atol=2e-5)  # m
            assert (truth.meta_class[:-NUM_EXTRA][kind == CAR] == MetaClass.CAR).all() and valid[kind == CAR].all()
            known = max(k, other) <= KEYFRAMES[1]  # the pedestrian is missing in the last keyframe
            assert valid[kind == PEDESTRIAN].all() if known else not valid[kind == PEDESTRIAN].any()
            assert valid[kind < CAR].mean() > 0.99 and not truth.is_valid[-NUM_EXTRA:].any()


def test_every_second_sweep_on_request(root):
    dataset = open_dataset(f'nuscenes:{root}?rate=10')
    assert len(dataset) == 6 and dataset[0].pair.dt == pytest.approx(0.1)
    expected = WORLD.residual_flow(4 * PERIOD, 6 * PERIOD)
    truth = dataset[2].truth
    valid = truth.is_valid[:-NUM_EXTRA]
    np.testing.assert_allclose(truth.flow[:-NUM_EXTRA][valid], expected[valid], atol=2e-5)
    assert open_dataset(f'nuscenes:{root}').every(2)[2].key == dataset[2].key


def test_scenes_are_chosen_by_name_and_the_folder_is_recognised(tmp_path):
    write_nuscenes(tmp_path, scenes=('scene-0002', 'scene-0001'), annotated=False)
    dataset = open_dataset(str(tmp_path))
    assert len(dataset) == 2 * (NUM_SWEEPS - 1) and dataset.key(0).startswith('scene-0001/')
    assert dataset[4].truth is None  # the test split has no boxes
    assert len(dataset[NUM_SWEEPS - 1].pair.history) == 0  # another scene
    assert {key.partition('/')[0] for key in map(dataset.key, range(len(dataset)))} == {'scene-0001', 'scene-0002'}
    one = open_dataset(f'nuscenes:{tmp_path}?scene=scene-0002')
    assert len(one) == NUM_SWEEPS - 1
    without = open_dataset(f'nuscenes:{tmp_path}?scene=scene-0002&ego_box=')
    assert np.isfinite(without[0].pair.points0[:-1]).all()


def test_missing_and_cut_sweeps_are_counted(root):
    files = sorted((root / 'sweeps' / 'LIDAR_TOP').iterdir())
    files[0].unlink()  # sweep 0
    [cut] = [file for file in files if file.name.endswith(f'{stamp_us(4)}.pcd.bin')]
    cut.write_bytes(cut.read_bytes()[:-7])
    edit(root, 'sample_data', lambda rows: rows[2 * 8 + 1].update(ego_pose_token='nowhere'))
    edit(root, 'sample_data', lambda rows: rows[2 * 9 + 1].update(calibrated_sensor_token='nowhere'))
    dataset = open_dataset(f'nuscenes:{root}')
    assert dataset.skipped == {'missing_file': 1, 'malformed_cloud': 1, 'unknown_token': 2}
    assert [number_of(dataset.key(k)) for k in range(len(dataset))] == [1, 2, 3, 5, 6, 7, 10, 11]
    assert dataset[2].pair.dt == pytest.approx(2 * PERIOD)  # over the gap
    text = '\n'.join(dataset.summary.dataset_lines())
    assert (
        "refers to calibrated_sensor 'nowhere'" in text
        and 'it is cut' in text
        and 'There is no ' in text
        and files[0].name in text
    )


def test_a_sweep_cut_after_opening_is_an_error(root):
    dataset = open_dataset(f'nuscenes:{root}')
    [file] = (root / 'sweeps' / 'LIDAR_TOP').glob(f'*{stamp_us(5)}*')
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match='it is cut'):
        dataset[5]


def _shift(rows):
    for row in rows:
        row['timestamp'] *= 1000


def _reorder_quaternions(rows):
    for row in rows:
        w, x, y, z = row['rotation']
        row['rotation'] = [x, y, z, w]


def _swap_axes(rows):
    for row in rows:
        x, y, z = row['translation']
        row['translation'] = [y, x, z]  # left-handed


@pytest.mark.parametrize(
    'table, change, said',
    [
        ('sample_data', _shift, r'should be microseconds since 1970.*got 15318835304'),
        ('sample', lambda rows: rows[0].update(timestamp=1531883530.4), 'should be microseconds'),
        ('sample_annotation', lambda rows: rows[1].update(instance_token='x'), 'is of instance x, which'),
        ('sample_annotation', lambda rows: rows[1].update(sample_token='x'), 'of sample x, which does not exist'),
        ('sample_annotation', lambda rows: rows[1].update(size=[1, 0, 2]), 'three lengths above 0'),
        ('sample_annotation', lambda rows: rows[1].pop('rotation'), 'row 1 lacks rotation'),
        ('instance', lambda rows: rows.clear(), 'instance.json and category.json do not describe'),
        ('ego_pose', lambda rows: rows[3].update(rotation=[0, 0, 0, 0]), 'quaternion of length 1'),
        ('ego_pose', lambda rows: rows[3].update(rotation=[2, 0, 0, 0]), 'length 1, got one of length 2'),
        ('ego_pose', lambda rows: rows[3].update(rotation=[[1, 0], [0, -1]]), 'rotation of .* should be 4 numbers'),
        ('calibrated_sensor', lambda rows: rows[1].update(rotation=[0.2, 0, 0, 0.9]), 'quaternion of length 1'),
        ('ego_pose', _reorder_quaternions, '12 no_ego_motion.*z of the vehicle points up to .* in 13 of 13 poses'),
        ('ego_pose', _swap_axes, 'drives 6. degrees to the side .* right-handed frames'),
        ('ego_pose', lambda rows: rows[3].update(translation=[1, 2]), 'translation of scene-0001-pose3 should be 3'),
        ('ego_pose', lambda rows: rows.clear(), 'no sweep pair in 1 drives .13 unknown_token'),
        ('sensor', lambda rows: rows.pop(), 'no calibrated_sensor of the channel LIDAR_TOP'),
    ],
)  # fmt: skip
def test_tables_that_contradict_each_other_are_refused(root, table, change, said):
    edit(root, table, change)
    with pytest.raises(DataError, match=said):
        open_dataset(f'nuscenes:{root}')


@pytest.mark.parametrize(
    'options, said',
    [
        ('?version=v1.0-test', 'no folder v1.0-test. It has: v1.0-mini'),
        ('?scene=scene-9', "no scene 'scene-9'. It has 1: scene-0001"),
        ('?rate=-1', 'rate is in sweeps a second'),
        ('?ego_box=1,2', 'ego_box must be'),
        ('?scenes=a', 'not a valid option'),
    ],
)
def test_wrong_options_say_what_there_is(root, options, said):
    with pytest.raises(Exception, match=re.escape(said)):
        open_dataset(f'nuscenes:{root}{options}')


def test_a_folder_without_tables_or_with_two_versions_is_refused(root):
    (root / 'v1.0-trainval').mkdir()
    (root / 'v1.0-trainval' / 'sample_data.json').write_text('[]')
    with pytest.raises(DataError, match=r'found v1.0-mini, v1.0-trainval. Choose one: nuscenes:.*\?version=v1.0-mini'):
        open_dataset(f'nuscenes:{root}')
    with pytest.raises(DataError, match=r'lacks the table scene\.json'):
        open_dataset(f'nuscenes:{root}?version=v1.0-trainval')
    with pytest.raises(DataError, match='found none'):
        open_dataset(f'nuscenes:{root / "samples"}')


@pytest.mark.parametrize(
    'text, said',
    [
        ('', 'should be a JSON array'),
        ('{"a": 1}', 'should be a JSON array'),
        ('[{"a": 1}, {"a"', 'is cut or damaged after row 1'),
        ('[{"a": 1}', 'is cut or damaged after row 1'),
        ('[{"a": 1}, 5]', 'row 1 lacks all columns'),
        ('[{"b": 1}]', 'row 0 lacks a'),
        ('[{"a": 1, "token": {}}]', r'token of row 0 should be a text, got \{\}'),
    ],
)
def test_a_damaged_table_names_the_row(tmp_path, text, said):
    (tmp_path / 'table.json').write_text(text)
    with pytest.raises(DataError, match=said):
        list(read_rows(tmp_path / 'table.json', 'a token' if 'token' in text else 'a'))


def test_rows_of_long_tables_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr('training.datasets.nuscenes_tables._CHUNK', 5)
    (tmp_path / 'table.json').write_text('[\n{"a": 1, "b": [1, 2]},\n\n {"a": "]}"}\n]')
    assert [row['a'] for row in read_rows(tmp_path / 'table.json', 'a')] == [1, ']}']
    (tmp_path / 'table.json').write_text(' []')
    assert list(read_rows(tmp_path / 'table.json', 'a')) == []


@pytest.mark.parametrize(
    'category, expected',
    [
        ('vehicle.car', MetaClass.CAR),
        ('vehicle.bus.rigid', MetaClass.OTHER_VEHICLES),
        ('human.pedestrian.stroller', MetaClass.PEDESTRIAN),
        ('human.pedestrian.personal_mobility', MetaClass.WHEELED_VRU),
        ('vehicle.bicycle', MetaClass.WHEELED_VRU),
        ('movable_object.barrier', MetaClass.IGNORED),
        ('animal', MetaClass.IGNORED),
    ],
)
def test_categories_have_the_classes_of_the_scores(category, expected):
    assert meta_class_of(category) == expected
