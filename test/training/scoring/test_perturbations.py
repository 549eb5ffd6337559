# SPDX-License-Identifier: Apache-2.0
"""Perturbed pairs stay true: a static world is static, ground truth belongs to the points, a sweep is changed alike."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_bag import SENSOR_HEIGHT, street, write_bag

from training import evaluate
from training.datasets import open_dataset
from training.datasets.pairs import DatasetPair, GroundTruthFlow, MetaClass
from training.datasets.rosbag import BagPairs
from training.scoring.evaluation import SCOPES, evaluate_perturbed
from training.scoring.perturbations import KINDS, parse_perturbation, perturbed
from training.scoring.score_picture import draw_perturbations
from training.scoring.score_text import perturbation_text
from training.scoring.scores import FlowScores, Scope
from training.simulation.clips import draw_lidar
from zeroflow_ros import transforms
from zeroflow_ros.errors import ConfigError, DataError
from zeroflow_ros.lidar.sweep import PosedSweep, SweepPair

EXAMPLES = [kind.example for kind in KINDS.values()]
MOUNTS = ['pitch:10', 'pitch:-35', 'roll:10', 'yaw:20', 'upside_down']
ALL = Scope(with_ground=True)
DT, NUM_MOVING = 0.1, 100


def world_pair(moving=(0.8, 0.3, 0.0)):
    """Return six sweeps of the same points: the first ones move by `moving` [m] per sweep, the ego vehicle turns."""
    rng = np.random.default_rng(0)
    world = rng.uniform([-30, -30, -1.7], [30, 30, 3], (1000, 3))
    is_moving = (np.arange(1000) < NUM_MOVING)[:, None]
    poses, sweeps = [], []
    for k in range(6):
        pose = transforms.yaw_translation(0.1 + 0.03 * k, 0.9 * k, 0.1 * k, 0.02 * k)
        pose[:3, :3] = pose[:3, :3] @ transforms.rotation_matrix([0.01 * k, -0.02 * k, 0])  # hills
        poses.append(pose)
        points = world + is_moving * np.array(moving) * k
        sweeps.append(transforms.apply(transforms.invert(pose), points).astype(np.float32))
    ego0_T = [transforms.invert(poses[2]) @ pose for pose in poses]
    history, future = ([PosedSweep(sweeps[k], ego0_T[k]) for k in ks] for ks in ((1, 0), (4, 5)))
    pair = SweepPair(sweeps[2], sweeps[3], ego0_T[3], DT, tuple(history), tuple(future))
    flow = transforms.apply(pair.ego0_T_ego1, pair.points1) - pair.points0
    truth = GroundTruthFlow(flow, is_moving[:, 0].astype(np.uint8), np.arange(1000) % 10 > 0)
    is_ground = pair.points0[:, 2] < -1.5
    return DatasetPair('pair/0', pair, is_ground, pair.points1[:, 2] < -1.5, truth, (np.zeros(1000, np.float32),) * 2)


@pytest.mark.parametrize('name', MOUNTS)
def test_a_turned_sensor_sees_the_same_world(name):
    item = world_pair()
    found = parse_perturbation(name).item(item)
    pair = found.pair
    assert np.abs(pair.points0 - item.pair.points0).max() > 1  # m: it is turned
    ranges = [np.linalg.norm(points, axis=1) for points in (pair.points0, item.pair.points0)]
    np.testing.assert_allclose(*ranges, atol=1e-4)
    # The truth of the turned points is the turned truth; 1e-4 m: float32 at 60 m.
    moved = transforms.apply(pair.ego0_T_ego1, pair.points1) - pair.points0
    np.testing.assert_allclose(found.truth.flow, moved, atol=1e-4)
    assert np.linalg.norm(found.truth.flow[:NUM_MOVING], axis=1) == pytest.approx(np.hypot(0.8, 0.3), abs=1e-4)
    for sweep in pair.history + pair.future:
        still = transforms.apply(sweep.ego0_T_ego, sweep.points)[NUM_MOVING:]
        np.testing.assert_allclose(still, pair.points0[NUM_MOVING:], atol=1e-4)
    np.testing.assert_allclose(transforms.apply(found.mount, pair.points0), item.pair.points0, atol=1e-4)
    np.testing.assert_array_equal(found.is_ground0, item.is_ground0)
    np.testing.assert_array_equal(found.truth.is_valid, item.truth.is_valid)


def test_the_mount_is_told_unless_it_is_untold():
    item, mount = world_pair(), transforms.yaw_translation(1, 0, 0)
    tilted = parse_perturbation('pitch:10').item(replace(item, mount=mount))
    np.testing.assert_allclose(tilted.mount @ parse_perturbation('pitch:10').sensor_T_level, mount, atol=1e-9)
    assert parse_perturbation('decimate:0.5').item(replace(item, mount=mount)).mount is mount
    for told, untold in (('pitch:10', 'pitch:10,untold'), ('upside_down', 'upside_down:untold')):
        (known, unknown) = (parse_perturbation(name).item(replace(item, mount=mount)) for name in (told, untold))
        np.testing.assert_array_equal(known.pair.points0, unknown.pair.points0)
        assert known.mount is not None and unknown.mount is None


@pytest.mark.parametrize(
    'name, expected',
    [
        ('pitch:90', [0, 0, -1]),  # looks up: what was ahead is now below
        ('pitch:-90', [0, 0, 1]),
        ('yaw:90', [0, 1, 0]),  # turned to the right: what was ahead is now on the left
        ('roll:90', [1, 0, 0]),
        ('upside_down', [1, 0, 0]),
    ],
)
def test_where_a_turned_sensor_sees_a_point_ahead(name, expected):
    points, rows = parse_perturbation(name).sweep(np.array([[1, 0, 0]], np.float32))
    np.testing.assert_allclose(points, [expected], atol=1e-6)
    assert rows.tolist() == [0]


def test_a_rolled_sensor_has_its_left_side_lower():
    [[_, _, z]], _ = parse_perturbation('roll:10').sweep(np.array([[0, 1, 0]], np.float32))
    assert z == pytest.approx(np.sin(np.radians(10)))  # what was level on the left is now above


@pytest.mark.parametrize('name', [name for name in EXAMPLES if name.split(':')[0] not in ('odometry', 'rate')])
def test_a_static_world_stays_static(name):
    clean, change = world_pair(moving=(0, 0, 0)), parse_perturbation(name)
    item = change.item(clean)
    assert item.truth.is_valid.sum() > 300
    np.testing.assert_allclose(item.truth.flow[item.truth.is_valid], 0, atol=1e-4)  # m: float32 at 60 m
    rows0, rows1 = (change.sweep(points)[1] for points in (clean.pair.points0, clean.pair.points1))
    _, in0, in1 = np.intersect1d(rows0[rows0 >= 0], rows1[rows1 >= 0], return_indices=True)
    assert len(in0) > 200
    found = transforms.apply(item.pair.ego0_T_ego1, item.pair.points1[in1])
    tolerance = 0.4 if change.kind == 'range_noise' else 1e-4  # m: 5 standard deviations of two noises of 0.05 m
    np.testing.assert_allclose(found, item.pair.points0[in0], atol=tolerance)


@pytest.mark.parametrize(
    'name, shift',
    [
        ('odometry:0.5m/s', [0.05, 0, 0]),
        ('odometry:-2m/s', [-0.2, 0, 0]),
        ('odometry:1.1', [0.1, 0, 0]),  # of 1 m per sweep
    ],
)
def test_wrong_odometry_moves_a_static_world_more_with_each_sweep(name, shift):
    step = transforms.yaw_translation(0, 1, 0)
    points = np.zeros((1, 3), np.float32)
    poses = {k: np.linalg.matrix_power(step, k) if k >= 0 else transforms.invert(step) for k in (-1, 0, 1, 2)}
    poses[-2] = poses[-1] @ poses[-1]
    history, future = ([PosedSweep(points, poses[k]) for k in ks] for ks in ((-1, -2), (2,)))
    pair = SweepPair(points, points, poses[1], DT, tuple(history), tuple(future))
    item = DatasetPair('pair/0', pair, np.zeros(1, bool), np.zeros(1, bool))
    change = parse_perturbation(name)
    found = change.item(item).pair
    for k, pose in ((1, found.ego0_T_ego1), (2, found.future[0].ego0_T_ego), (-1, found.history[0].ego0_T_ego),
                    (-2, found.history[1].ego0_T_ego)):  # fmt: skip
        np.testing.assert_allclose(pose[:3, 3] - poses[k][:3, 3], np.multiply(shift, k), atol=1e-9)
    # The same odometry is as wrong where the pair is seen from its newer sweep.
    latest = change.item(replace(item, pair=pair.reversed()), is_latest=True).pair
    np.testing.assert_allclose(latest.ego0_T_ego1, transforms.invert(found.ego0_T_ego1), atol=1e-9)


def test_a_turn_of_the_odometry_is_in_degrees_per_second_to_the_left():
    item = world_pair()
    found = parse_perturbation('odometry:1.02,30deg/s').item(item).pair.ego0_T_ego1
    error = transforms.invert(item.pair.ego0_T_ego1) @ found
    np.testing.assert_allclose(transforms.rotation_vector(error), [0, 0, np.radians(3)], atol=1e-9)
    lengths = [np.linalg.norm(pose[:3, 3]) for pose in (found, item.pair.ego0_T_ego1)]
    assert lengths[0] / lengths[1] == pytest.approx(1.02)


def test_stray_returns_are_near_and_all_around_and_have_no_truth():
    item = world_pair()
    points = street(0, num_points=8000)[:, :3]
    found, rows = parse_perturbation('stray:0.5').sweep(points)
    stray = found[rows < 0]
    assert len(stray) == round(0.5 * np.isfinite(points).all(1).sum())
    np.testing.assert_array_equal(found[: len(points)], points)  # also those without a return
    distance, azimuth = np.hypot(stray[:, 0], stray[:, 1]), np.arctan2(stray[:, 1], stray[:, 0])
    assert distance.min() >= 1.99 and distance.mean() == pytest.approx(10, abs=0.5)  # m; 8 / sqrt(3920) = 0.13
    assert np.histogram(azimuth, 8, (-np.pi, np.pi))[0].min() > 0.1 * len(stray)
    assert -1.5 <= stray[:, 2].min() < -1.4 and 1.9 < stray[:, 2].max() <= 2
    low = points + np.float32([0, 0, SENSOR_HEIGHT - 0.3])  # the frame of a vehicle, 0.3 m above the ground
    found, rows = parse_perturbation('stray:0.5').sweep(low)
    assert found[rows < 0][:, 2].min() > -0.35  # none below the ground

    changed = parse_perturbation('stray:0.1').item(item)
    np.testing.assert_array_equal(changed.truth.is_valid[:1000], item.truth.is_valid)
    assert not changed.truth.is_valid[1000:].any() and len(changed.truth.is_valid) == 1100
    assert (changed.truth.meta_class[1000:] == MetaClass.IGNORED).all()
    assert not changed.is_ground0[1000:].any() and not changed.is_ground1[1000:].any()
    assert [len(times) for times in changed.times] == [1100, 1100]
    assert [len(sweep.points) for sweep in changed.pair.history] == [1100, 1100]


def test_without_ground_the_rest_stays_with_its_truth():
    points = street(0)[:, :3]
    left, rows = parse_perturbation('ground_removed').sweep(points)
    assert left[:, 2].min() > 0.25 - SENSOR_HEIGHT
    np.testing.assert_array_equal(left, points[rows])
    above = np.nan_to_num(points[:, 2], nan=-9) > 0.35 - SENSOR_HEIGHT
    assert np.isin(np.flatnonzero(above), rows).mean() > 0.9  # all but what stands on a box or a wall


@pytest.mark.parametrize('share', [0.1, 0.5, 0.75])
def test_the_same_rings_are_lost_in_all_sweeps(share):
    elevation, azimuth = np.meshgrid(np.radians(np.linspace(-24.8, 2, 64)), np.linspace(-3, 3, 90), indexing='ij')
    change, kept = parse_perturbation(f'rings:{share}'), []
    for distance in (5, 40):
        points = distance * np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth),
                                      np.sin(elevation)], axis=-1).reshape(-1, 3).astype(np.float32)  # fmt: skip
        found, rows = change.sweep(np.concatenate([points, np.full((1, 3), np.nan, np.float32)]))
        counts = np.bincount(rows[:-1] // 90, minlength=64)
        assert set(counts) == {0, 90} and np.isnan(found[-1]).all()  # whole rings; a row without a return stays
        kept.append(np.flatnonzero(counts))
    np.testing.assert_array_equal(*kept)
    assert 1 - len(kept[0]) / 64 == pytest.approx(share, abs=0.1)


def test_decimation_and_range_noise_have_their_strength():
    points = world_pair().pair.points0
    left, rows = parse_perturbation('decimate:0.3').sweep(points)
    assert len(left) == pytest.approx(700, abs=60)  # 4 standard deviations
    np.testing.assert_array_equal(left, points[rows])
    noisy, rows = parse_perturbation('range_noise:0.2').sweep(points)
    distances = [np.linalg.norm(part, axis=1) for part in (noisy, points)]
    assert (distances[0] - distances[1]).std() == pytest.approx(0.2, abs=0.02)
    assert (np.einsum('ij,ij->i', noisy, points) / distances[0] / distances[1]).min() == pytest.approx(1, abs=1e-5)


def test_a_voxel_holds_one_point_with_the_truth_of_the_nearest():
    nan = np.nan
    points = np.array([[0.1, 0.1, 0.1], [nan] * 3, [0.3, 0.1, 0.1], [0.9, 0.1, 0.1], [1.1, 0, 0], [-0.1, 0, 0]])
    found, rows = parse_perturbation('voxel:1').sweep(points.astype(np.float32))
    order = found[:, 0].argsort()
    np.testing.assert_allclose(found[order], [[-0.1, 0, 0], [1.3 / 3, 0.1, 0.1], [1.1, 0, 0]], atol=1e-6)
    assert rows[order].tolist() == [5, 2, 4]


def test_random_numbers_depend_on_the_seed_the_name_and_the_sweep():
    item = world_pair()
    for kind in ('stray', 'decimate', 'range_noise', 'rings'):
        one, other = parse_perturbation(f'{kind}:0.5'), parse_perturbation(f'{kind}:0.501')
        points, again = (one.sweep(item.pair.points0)[0] for _ in range(2))
        np.testing.assert_array_equal(points, again)
        for different in (one.sweep(item.pair.points0, seed=1)[0], other.sweep(item.pair.points0)[0]):
            assert points.shape != different.shape or (points != different).any()
    # A sweep is changed in the same way as sweep 1 of a pair, as sweep 0 of the next, and in the history.
    change = parse_perturbation('stray:0.1')
    pair = change.item(item).pair
    shifted = SweepPair(
        item.pair.points1, item.pair.points0, np.eye(4), DT, (PosedSweep(item.pair.points1, np.eye(4)),)
    )
    after = change.item(replace(item, pair=shifted)).pair
    np.testing.assert_array_equal(after.points0, pair.points1)
    np.testing.assert_array_equal(after.history[0].points, pair.points1)
    assert not np.array_equal(pair.points0[-100:], pair.points1[-100:])  # other rain in another sweep


@pytest.mark.parametrize('name', ['', 'snow:1', 'Stray:0.01', 'stray', 'stray:much', 'stray:0', 'stray:-1', 'stray:nan',
                                  'decimate:1', 'decimate:0.5,untold', 'upside_down:1', 'pitch:untold', 'pitch:200',
                                  'voxel:0', 'odometry:', 'odometry:1km/h', 'odometry:1,2', 'rate:0'])  # fmt: skip
def test_a_bad_kind_is_refused_with_the_list_of_kinds(name):
    with pytest.raises(ConfigError) as error:
        parse_perturbation(name)
    assert repr(name) in str(error.value) and all(example in str(error.value) for example in EXAMPLES)


def test_the_program_names_all_kinds():
    assert all(example in evaluate.__doc__ for example in EXAMPLES)


def runs(dataset, name, scope, index=0):
    """Check a perturbed pair from both sides: what is scored is finite and was scored before."""
    change = parse_perturbation(name)
    changed = perturbed(dataset, change, scope)
    clean = dataset.every(2) if change.kind == 'rate' else dataset
    for read, before in ((changed.__getitem__, clean.__getitem__), (changed.latest, clean.latest)):
        item, scored = read(index), scope.rows(before(index)).sum()
        assert 0 < item.truth.is_valid.sum() <= scored
        if change.kind not in ('rings', 'decimate', 'voxel', 'ground_removed'):
            assert item.truth.is_valid.sum() == scored
        scores = FlowScores(ALL)
        scores.add(item, item.truth.flow)
        assert scores.report()['epe'] == 0 and scores.report()['points'] <= scored
        assert item.key == before(index).key + change.key('')


@pytest.mark.parametrize('name', [name for name in EXAMPLES if name != 'rate:5'])
def test_every_kind_on_a_simulated_pair(name, clips):
    runs(open_dataset(f'simulation:0@{clips}'), name, SCOPES['simulation'])


@pytest.fixture(scope='module')
def kitti(shared_data):
    bags = shared_data / 'bags'
    return open_dataset(f'bag:{bags / "kitti_0005_a"}+{bags / "kitti_0005_a_boxes.json"}')


@pytest.mark.parametrize('name', EXAMPLES)
def test_every_kind_on_a_pair_of_kitti(name, kitti):
    runs(kitti, name, SCOPES['bag'], index=10)


def test_5_hz_is_every_other_sweep_with_the_flow_over_both(kitti):
    slow = perturbed(kitti, parse_perturbation('rate:5'), ALL)
    assert len(slow) == len(kitti) // 2 and len(kitti) > 40
    item, first, second = slow[10], kitti[20], kitti[21]
    assert item.pair.dt == pytest.approx(0.2, abs=0.02)
    np.testing.assert_array_equal(item.pair.points0, first.pair.points0)
    np.testing.assert_array_equal(item.pair.points1, second.pair.points1)
    np.testing.assert_allclose(item.pair.ego0_T_ego1, first.pair.ego0_T_ego1 @ second.pair.ego0_T_ego1, atol=1e-9)
    np.testing.assert_array_equal(item.pair.history[0].points, kitti[18].pair.points0)
    speeds = [
        np.linalg.norm(part.truth.flow[part.truth.is_valid], axis=1).max() / part.pair.dt for part in (item, first)
    ]
    assert speeds[0] > 3 and speeds[0] == pytest.approx(speeds[1], rel=0.1)  # m/s: the same car


def test_a_rate_that_the_data_cannot_give_is_refused(tmp_path, clips):
    bag = BagPairs(write_bag(tmp_path / 'bag', num_sweeps=5))
    assert [parts for parts in map(bag.every(2).numbers, range(2))] == [(0, 2), (2, 4)]
    assert len(perturbed(bag, parse_perturbation('rate:10'), ALL)) == 4
    for name in ('rate:20', 'rate:7'):
        with pytest.raises(DataError, match=f'has 10 sweeps per second and cannot give {name}.*rate:5'):
            perturbed(bag, parse_perturbation(name), ALL)
    with pytest.raises(DataError, match='no 11 consecutive sweeps'):
        perturbed(bag, parse_perturbation('rate:1'), ALL)
    with pytest.raises(DataError, match='simulation_0-0 cannot give 5 sweeps per second without a folder'):
        perturbed(open_dataset('simulation:0'), parse_perturbation('rate:5'), ALL)
    with pytest.raises(DataError, match=r'rate is the sweeps per second.*got -1'):
        open_dataset(f'simulation:0@{clips}?rate=-1')


def test_clips_are_simulated_at_another_rate(tmp_path):
    seed = next(seed for seed in range(100) if draw_lidar(seed) == 'hdl32_20hz')
    dataset = perturbed(open_dataset(f'simulation:{seed}@{tmp_path}?num_sweeps=2'), parse_perturbation('rate:5'), ALL)
    item = dataset[0]
    assert item.pair.dt == pytest.approx(0.2) and item.key == f'clip_{seed:06d}_rate_5'
    assert [path.name for path in tmp_path.iterdir()] == [f'clip5hz_{seed:06d}_2.npz']
    again = open_dataset(f'simulation:{seed}@{tmp_path}?rate=5')[0]
    np.testing.assert_array_equal(again.truth.flow, item.truth.flow)


class Oracle:
    """Knows half of the flow, but nothing about clouds that are upside down."""

    name = 'half'

    def flow(self, item):
        if item.pair.points0[item.is_ground0, 2].mean() > 0:
            raise DataError('the ground is above')
        return item.truth.flow / 2


def test_the_table_and_the_picture_show_what_failed(clips, tmp_path):
    dataset = open_dataset(f'simulation:0@{clips}')
    changes = [parse_perturbation(name) for name in ('stray:0.1', 'upside_down')]
    found = evaluate_perturbed(dataset, [Oracle()], SCOPES['simulation'], changes, sweep='latest')
    assert list(found) == ['clean', 'stray:0.1', 'upside_down']
    assert found['clean']['half']['points'] == found['stray:0.1']['half']['points']
    assert found['clean']['half']['scope'] == found['stray:0.1']['half']['scope']
    assert found['stray:0.1']['half']['dynamic_normalised_epe'] == pytest.approx(0.5)
    assert found['upside_down']['half'] == {'error': 'the ground is above'}
    text = perturbation_text('street', found).splitlines()
    rows = {line.split()[0]: line.split()[2:] for line in text if line.startswith('    ') and line.strip()}
    assert rows['stray:0.1'][:2] == ['0.5000', '1.00'] and rows['upside_down'] == ['-', '-', '-']
    assert text[-1] == '  half, upside_down: the ground is above'
    draw_perturbations({'street': found}, tmp_path / 'new' / 'p.png')
    assert (tmp_path / 'new' / 'p.png').read_bytes().startswith(b'\x89PNG')
