# SPDX-License-Identifier: Apache-2.0
"""Windows of labels: labels that share a sweep are joined in one frame, and no others."""

import dataclasses

import numpy as np
import pytest
from tiny_bag import BOX_SPEED, EGO_SPEED, street

from training.datasets.pairs import DatasetPair
from training.datasets.rosbag import BagPairs
from training.labels.label_store import LabelStore
from training.labels.label_windows import LabelChain, rigid_transform
from training.learning.pair_sources import RehearsalSource, split_labels
from training.learning.train_config import TrainConfig
from training.teachers.teacher_input import Crop, teacher_input
from zeroflow_ros import transforms
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.lidar.sweep import SweepPair

NUM_STATIC = 3000  # rows of a sweep before the box, of 4000
TURN = 0.05  # rad per sweep
BOX_FLOW = 0.1 * BOX_SPEED  # m per pair, along x of the world


def world_T_ego(k):
    return transforms.yaw_translation(TURN * k, 0.1 * EGO_SPEED * k, 0.0)


def sweep(k):
    """Return sweep k of a street from a vehicle that turns, (4000, 3) float32 in its own frame."""
    in_world_axes = street(k)[:, :3]
    return transforms.apply(transforms.yaw_translation(-TURN * k, 0.0, 0.0), in_world_axes)


def label(k, key='', lift=0.0, step=1):
    """Return the label of the sweeps k and k + step with the true flow; lift: error of the ground height [m]."""
    ego0_T_ego1 = transforms.invert(world_T_ego(k)) @ world_T_ego(k + step)
    clouds = sweep(k), sweep(k + step)
    grounds = [np.isfinite(points[:, 2]) & (np.arange(len(points)) < 2000) for points in clouds]
    seen = teacher_input(
        DatasetPair(key or f'drive/{k:03d}', SweepPair(*clouds, ego0_T_ego1, 0.1 * step), *grounds), Crop()
    )
    flow = np.zeros((2, 4000, 3), np.float32)
    flow[0, NUM_STATIC:] = transforms.invert(world_T_ego(k))[:3, :3] @ [BOX_FLOW * step, 0, 0]
    flow[1] = -flow[0]
    made = seen.to_pseudo_label(flow[0][seen.rows0], flow[1][seen.rows1])
    lifted = [points + np.float32([0, 0, lift]) for points in (made.points0, made.points1)]
    return dataclasses.replace(made, points0=lifted[0], points1=lifted[1])


@pytest.fixture
def store(tmp_path):
    """Seven labels of eight sweeps; the ground height of one is wrong by 0.1 m."""
    store = LabelStore.create(tmp_path / 'store', {'teacher': 'true flow'}, {})
    for k in range(7):
        store.write(label(k, lift=0.1 * (k == 3)))
    return store


def test_what_stands_is_at_one_place_and_flow_leads_to_the_neighbour(store):
    chain = LabelChain(store, store.keys())
    for last in (4, 5, 6):
        window = chain.training_pair(f'drive/{last:03d}', 5)
        assert len(window.clouds) == 5 and window.dt == pytest.approx(0.1)
        static = np.arange(NUM_STATIC - NUM_STATIC // 50)  # rows without return are gone, the same of each sweep
        for points in window.clouds:  # 5 mm: each label rounds to 0.5 mm, and a far point sees it turn
            np.testing.assert_allclose(points[static], window.points1[static], rtol=0, atol=5e-3)
        box = np.arange(len(static), len(window.points1))
        np.testing.assert_allclose((window.points0 + window.flow0)[box], window.between[0][box], rtol=0, atol=5e-3)
        np.testing.assert_allclose((window.points1 + window.flow1)[box], window.between[-1][box], rtol=0, atol=5e-3)
        assert np.abs(window.points0[box] - window.points1[box]).max() > 3.9 * BOX_FLOW / 2
        assert not window.flow0[window.is_ground0].any() and len(window.is_ground1) == len(window.flow1)
    frame = store.training_pair('drive/006')
    np.testing.assert_array_equal(window.points1, frame.points1)  # the frame is that of the last label


def test_windows_are_as_long_as_the_labels_go_back(store):
    chain = LabelChain(store, store.keys())
    lengths = [len(chain.training_pair(key, 5).clouds) for key in store.keys()]
    assert lengths == [2, 3, 4, 5, 5, 5, 5]
    assert [len(chain.window('drive/006', size)) for size in (2, 3, 8, 20)] == [1, 2, 7, 7]


def test_a_gap_in_the_labels_gives_a_pair(store):
    store.path('drive/003').unlink()
    chain = LabelChain(store, store.keys())
    assert [len(chain.training_pair(key, 5).clouds) for key in store.keys()] == [2, 3, 4, 2, 3, 4]
    only = LabelChain(store, ['drive/000', 'drive/002'])  # a label between them exists, and is not to be used
    assert [len(only.window(key, 5)) for key in ('drive/000', 'drive/002')] == [1, 1]


def test_the_order_of_keys_does_not_matter(store, tmp_path):
    mixed = LabelStore.create(tmp_path / 'mixed', {'teacher': 'true flow'}, {})
    for k, name in zip(range(4), 'dbca', strict=True):
        mixed.write(label(k, name))
    chain = LabelChain(mixed, mixed.keys())
    assert [name for name, _ in chain.window('a', 5)] == ['d', 'b', 'c', 'a']


def test_a_pair_of_another_length_in_time_begins_a_new_window(tmp_path):
    store = LabelStore.create(tmp_path, {'teacher': 'true flow'}, {})
    store.write(label(0))
    store.write(label(1, step=2))
    store.write(label(3))
    chain = LabelChain(store, store.keys())
    assert [len(chain.window(key, 5)) for key in store.keys()] == [1, 1, 1]


def test_a_sensor_that_repeats_its_cloud_gives_pairs(tmp_path):
    store = LabelStore.create(tmp_path, {'teacher': 'none'}, {})
    stuck = label(0)
    for k in range(3):
        store.write(dataclasses.replace(stuck, key=f'drive/{k}', points1=stuck.points0.copy(), flow1=stuck.flow0,
                                        is_ground1=stuck.is_ground0))  # fmt: skip
    chain = LabelChain(store, store.keys())
    assert [len(chain.window(key, 5)) for key in store.keys()] == [1, 1, 1]


def test_sources_say_how_many_windows_are_full_and_hold_out_whole_sweeps(store):
    train, held_out = split_labels(store, 0.4, window=4)
    assert '4 pairs to train on' in train.about['data'] and train.about['data'].endswith(
        '; 2 with 2 sweeps before them, 2 with fewer'
    )
    assert [len(train[k].clouds) for k in range(len(train))] == [2, 3, 4, 4]
    assert [len(held_out[k].clouds) for k in range(len(held_out))] == [2, 3, 4]
    pairs, _ = split_labels(store, 0.4)
    assert {len(pairs[k].clouds) for k in range(len(pairs))} == {2} and 'before them' not in pairs.about['data']


def test_rehearsal_adds_clips_to_labels_by_its_share(store, tmp_path):
    labels, _ = split_labels(store, 0.4, window=4)
    clips = [f'window {k}' for k in range(3)]
    for share, places in ((0.5, [0, 1, 2, 0]), (0.2, [0]), (0.0, [])):
        source = RehearsalSource(labels, clips, share)
        assert len(source) == source.in_use(0) == 4 + len(places)
        assert [source[4 + k] for k in range(len(places))] == [clips[place] for place in places]
        np.testing.assert_array_equal(source[3].points1, labels[3].points1)
    with pytest.raises(ConfigError, match='rehearsal is a share'):
        TrainConfig(rehearsal=1)


def test_poses_between_labels_of_a_recorded_drive_are_those_of_the_drive(shared_data, tmp_path):
    """Apollo at 14 m/s; the teacher does not matter."""
    drive = BagPairs(shared_data / 'bags' / 'apollo_columbia_park')
    store, ground_T_ego = LabelStore.create(tmp_path, {'teacher': 'zero'}, {}), []
    for k in range(3):
        item = drive[k]
        seen = teacher_input(item, Crop())
        store.write(seen.to_pseudo_label(*(np.zeros_like(points) for points in seen.clouds)))
        lift = np.nanmedian(seen.points0[:, 2] - item.pair.points0[:, 2])
        ground_T_ego.append(transforms.yaw_translation(0.0, 0.0, 0.0, lift))
    (_, last_T_first), *_ = LabelChain(store, store.keys()).window(store.keys()[-1], 5)
    ego2_T_ego0 = transforms.invert(drive.motion(0)[0] @ drive.motion(1)[0])
    expected = ground_T_ego[2] @ ego2_T_ego0 @ transforms.invert(ground_T_ego[0])
    # 1 mm and 0.1 mrad: labels round to the millimetre.
    np.testing.assert_allclose(last_T_first[:3, 3], expected[:3, 3], rtol=0, atol=1e-3)
    np.testing.assert_allclose(last_T_first[:3, :3], expected[:3, :3], rtol=0, atol=1e-4)
    assert abs(last_T_first[0, 3]) > 2


@pytest.mark.parametrize('points, found', [
    (np.zeros((0, 3)), False), (np.zeros((5, 3)), False),
    (np.outer(np.arange(50.0), [1, 2, 3]), False),  # a line
    (np.random.default_rng(0).uniform(-9, 9, (50, 3)) * [1, 1, 0], True),  # a plane
    (np.random.default_rng(0).uniform(-9, 9, (50, 3)), True),
])  # fmt: skip
def test_rigid_transforms(points, found):
    wanted = transforms.yaw_translation(0.3, 1.0, -2.0, 0.5)
    estimate = rigid_transform(points, points @ wanted[:3, :3].T + wanted[:3, 3])
    assert (estimate is not None) == found
    if found:
        np.testing.assert_allclose(estimate, wanted, atol=1e-9)
