# SPDX-License-Identifier: Apache-2.0
"""From any dataset to bags, and from those to the flow that the dataset itself gives."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from argoverse2_files import annotate, write_log
from rosbags.highlevel import AnyReader
from scenes import write_scene
from tiny_bag import write_bag

from training import to_bag
from training.datasets import open_dataset
from training.datasets.pairs import DatasetPair, GroundTruthFlow, from_latest
from training.scoring.estimators import ModelEstimator
from training.to_bag import write_bags
from zeroflow_ros import transforms
from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.engines.selection import load_engine
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import SweepPair
from zeroflow_ros.runtime.offline import estimate_flow

NAN_ROW = 7
START = 10**18
HEIGHT = '?sensor_height=1.8'  # random points show no ground


class Drive:
    """Sweeps in memory; the vehicle drives 1 m along x and turns; the chain breaks after pair `break_after`."""

    name = 'drive'
    mount = None

    def __init__(self, num_pairs=3, break_after=None):
        self.num_pairs, self.break_after, self.fails_at = num_pairs, break_after, None

    def __len__(self):
        return self.num_pairs

    def key(self, index):
        return f'{index:06d}_{START + index * 100_000_000}'

    def __getitem__(self, index):
        if index == self.fails_at:
            raise DataError('the disk went away')
        sweeps = []
        for k in (index, index + 1):
            broken = self.break_after is not None and k == index + 1 and index == self.break_after
            rng = np.random.default_rng(1000 if broken else k)
            points = rng.uniform([-40, -40, -2], [40, 40, 2], (300 + k, 3)).astype(np.float32)
            points[NAN_ROW] = np.nan
            sweeps.append(points)
        n, m = map(len, sweeps)
        pair = SweepPair(*sweeps, transforms.yaw_translation(0.05, 1.0, 0.1), 0.1)
        flow = np.tile(np.float32([0.1, 0.2, -0.3]), (n, 1))
        truth = GroundTruthFlow(flow, np.full(n, 3, np.uint8), np.arange(n) % 5 > 0)
        times = np.linspace(0, 0.09, n, dtype=np.float32), np.linspace(0, 0.09, m, dtype=np.float32)
        return DatasetPair(self.key(index), pair, np.zeros(n, bool), np.zeros(m, bool), truth, times, self.mount)


def read(path):
    """Return the messages of a bag by topic, read by rosbags."""
    found = {}
    with AnyReader([path]) as reader:
        for connection, time_ns, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            found.setdefault(connection.topic, []).append((time_ns, message))
    return found


def column(cloud, name):
    """Return a field of a cloud, (N,)."""
    [field] = [field for field in cloud.fields if field.name == name]
    dtype = {7: '<f4', 2: 'u1'}[field.datatype]
    layout = np.dtype({'names': [name], 'formats': [dtype], 'offsets': [field.offset], 'itemsize': cloud.point_step})
    return np.frombuffer(cloud.data, layout)[name]


def pose_of(pose):
    position, quaternion = (getattr(pose, name) for name in ('position', 'orientation'))
    return transforms.from_quaternion(
        [position.x, position.y, position.z], [quaternion.x, quaternion.y, quaternion.z, quaternion.w]
    )


def test_clouds_times_and_poses_are_those_of_the_dataset(tmp_path):
    drive = Drive()
    [path], omitted = write_bags(drive, 'drive', tmp_path)
    assert path == tmp_path / 'drive' and [one.name for one in tmp_path.iterdir()] == ['drive']
    messages = read(path)
    assert {topic: len(found) for topic, found in messages.items()} == {
        '/lidar/points': 4, '/odometry': 4, '/tf': 4
    }  # fmt: skip
    for k, (time_ns, cloud) in enumerate(messages['/lidar/points']):
        stamp_ns = cloud.header.stamp.sec * 10**9 + cloud.header.stamp.nanosec
        assert time_ns == stamp_ns == START + k * 100_000_000 and cloud.header.frame_id == 'lidar'
        item = drive[min(k, 2)]
        points, times = (item.pair.points0, item.times[0]) if k < 3 else (item.pair.points1, item.times[1])
        np.testing.assert_array_equal(np.stack([column(cloud, axis) for axis in 'xyz'], 1), points)  # NaN too
        np.testing.assert_array_equal(column(cloud, 'time'), times)
        assert not cloud.is_dense and cloud.width == len(points)
    poses = [pose_of(odometry.pose.pose) for _, odometry in messages['/odometry']]
    for before, after in pairwise(poses):
        np.testing.assert_allclose(np.linalg.inv(before) @ after, drive[0].pair.ego0_T_ego1, atol=1e-9)
    twist = messages['/odometry'][0][1].twist.twist
    assert (twist.linear.x, twist.angular.z) == (pytest.approx(10.0), pytest.approx(0.5))
    assert omitted.lines()[0] == 'Left out: 3 sweeps with ground-truth flow (--ground-truth keeps it)'
    dataset = open_dataset(f'bag:{path}{HEIGHT}')
    assert len(dataset) == 3 and dataset.ego_motion == 'odometry' and dataset.has_times
    np.testing.assert_allclose(dataset[1].pair.ego0_T_ego1, drive[1].pair.ego0_T_ego1, atol=1e-9)
    np.testing.assert_allclose(dataset[1].times[0], drive[1].times[0], atol=1e-7)


def test_ground_truth_becomes_fields_on_request(tmp_path):
    [path], omitted = write_bags(Drive(), 'drive', tmp_path, ground_truth=True)
    clouds = [cloud for _, cloud in read(path)['/lidar/points']]
    velocity = np.stack([column(clouds[1], f'true_v{axis}') for axis in 'xyz'], 1)
    known = np.arange(len(velocity)) % 5 > 0
    np.testing.assert_allclose(velocity[known], [[1, 2, -3]] * known.sum(), rtol=1e-6)  # m/s
    assert np.isnan(velocity[~known]).all() and (column(clouds[1], 'true_class') == 3).all()
    assert np.isnan(column(clouds[3], 'true_vx')).all()  # the last sweep has none
    assert not [line for line in omitted.lines() if 'truth' in line]


def test_a_known_mount_is_a_static_transform(tmp_path):
    drive = Drive()
    drive.mount = transforms.from_quaternion([1.0, 0.0, 2.0], [1.0, 0.0, 0.0, 0.0])  # upside down
    [path], _ = write_bags(drive, 'drive', tmp_path)
    messages = read(path)
    [(_, static)] = messages['/tf_static']
    assert [(t.header.frame_id, t.child_frame_id) for t in static.transforms] == [('base_link', 'lidar')]
    moving = messages['/tf'][1][1].transforms[0]
    assert (moving.header.frame_id, moving.child_frame_id) == ('odom', 'base_link')  # one parent for each frame
    expected = drive[0].pair.ego0_T_ego1 @ np.linalg.inv(drive.mount)
    np.testing.assert_allclose(moving.transform.translation.z, expected[2, 3], atol=1e-9)
    assert open_dataset(f'bag:{path}{HEIGHT}&ego_motion=tf').ego_motion == 'tf'


def test_a_gap_starts_the_next_bag(tmp_path):
    paths, _ = write_bags(Drive(num_pairs=4, break_after=1), 'drive', tmp_path)
    assert [path.name for path in paths] == ['drive', 'drive_001']
    assert [len(open_dataset(f'bag:{path}{HEIGHT}')) for path in paths] == [2, 2]


def test_nothing_is_overwritten_and_a_finished_bag_is_kept(tmp_path):
    drive = Drive()
    [path], _ = write_bags(drive, 'drive', tmp_path)
    before = (path / 'metadata.yaml').stat().st_mtime_ns
    assert write_bags(drive, 'drive', tmp_path)[0] == []
    for spec, options in (('other', {}), ('drive', {'ground_truth': True})):
        with pytest.raises(DataError, match="made from 'drive', not from"):
            write_bags(drive, spec, tmp_path, **options)
    assert (path / 'metadata.yaml').stat().st_mtime_ns == before
    foreign = write_bag(tmp_path / 'there' / 'drive', num_sweeps=2)
    with pytest.raises(DataError, match='something else'):
        write_bags(drive, 'drive', foreign.parent)


def test_a_failure_leaves_nothing_behind(tmp_path):
    drive = Drive()
    drive.fails_at = 2
    with pytest.raises(DataError, match='disk'):
        write_bags(drive, 'drive', tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('kind', ['av2', 'osf', 'bag', 'simulation'])
def test_every_kind_of_dataset_becomes_a_bag(tmp_path, clips, kind, capsys):
    if kind == 'av2':
        log = write_log(tmp_path / 'log')
        annotate(log, [(0, 'bus', 'BUS', 5, 0), (1, 'bus', 'BUS', 5, 0)])
    elif kind == 'osf':
        write_scene(tmp_path / 'scene.h5', num_sweeps=3)
    elif kind == 'bag':
        write_bag(tmp_path / 'bag', num_sweeps=4)
    spec = {
        'av2': f'av2:{tmp_path / "log"}', 'osf': f'osf:{tmp_path}', 'bag': f'bag:{tmp_path / "bag"}',
        'simulation': f'simulation:0@{clips}',
    }[kind]  # fmt: skip
    out = tmp_path / 'out'
    assert to_bag.main([spec, '--out', str(out)]) == 0
    said = capsys.readouterr().out
    assert 'Left out: ground flags and intensities' in said and '1 bags written' in said
    [path] = out.iterdir()
    assert json.loads((path / 'source.json').read_text())['dataset'] == spec
    dataset = open_dataset(spec)
    with Bag(path) as bag:
        assert sum(topic.num_messages for topic in bag.topics if topic.name == '/lidar/points') == len(dataset) + 1
    clouds = [cloud for _, cloud in read(path)['/lidar/points']]
    for k, cloud in enumerate(clouds[:-1]):
        points = np.stack([column(cloud, axis) for axis in 'xyz'], 1)
        np.testing.assert_array_equal(points, dataset[k].pair.points0)


def test_replay_of_the_bag_gives_the_flow_of_the_dataset(tmp_path):
    engine = load_engine()
    dataset = open_dataset(f'bag:{write_bag(tmp_path / "bag", num_sweeps=2)}')
    [path], _ = write_bags(dataset, 'spec', tmp_path / 'out')
    latest = from_latest(dataset[0])
    flow = ModelEstimator('embedded', engine).flow(latest)  # of the newer sweep, back in time
    with Bag(path) as bag:
        [(message, estimate)] = estimate_flow(bag, engine)
    assert message.width == len(flow)
    valid = np.isfinite(flow).all(1)
    np.testing.assert_array_equal(estimate.flow_valid > 0, valid)
    assert np.linalg.norm(flow[valid], axis=1).max() > 0.3  # m: the box moves by 0.8 m
    # m: the same sweeps, and the same level of the ground
    np.testing.assert_allclose(estimate.velocity[valid] * dataset[0].pair.dt, -flow[valid], atol=1e-5)


def test_a_wrong_dataset_is_a_sentence(tmp_path, capsys):
    assert to_bag.main(['bag:none', '--out', str(tmp_path / 'out')]) == 1
    assert 'training.to_bag: There is no bag' in capsys.readouterr().err
    assert not Path(tmp_path / 'out').exists()
