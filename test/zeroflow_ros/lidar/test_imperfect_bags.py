# SPDX-License-Identifier: Apache-2.0
"""Bags with wrong headers, senseless point times, and points on the own vehicle, offline and as data sets."""

import numpy as np
import pytest
from tiny_bag import CLOUD_TOPIC, write_bag

from training.datasets import open_dataset
from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.engines.selection import DEFAULT_MODELS, load_engine
from zeroflow_ros.errors import ConfigError, DataError
from zeroflow_ros.lidar.own_vehicle import OwnVehicle
from zeroflow_ros.lidar.point_cloud import decode_velocity
from zeroflow_ros.replay import main
from zeroflow_ros.runtime.offline import FLOW_TOPIC, STATIC_TOPIC, OfflineFlow

NUM_POINTS = 4000


@pytest.fixture(scope='module')
def engine():
    return load_engine(DEFAULT_MODELS['tensorrt'])  # in 8 bits, what is nearly the same rounds to something else


def results_of(path, engine, **options):
    with Bag(path) as bag:
        flow = OfflineFlow(bag, engine, **options)
        results = [result for result in flow if result.estimate is not None]
        return results, {finding.kind: finding for finding in flow.health.findings()}


def clouds_of(path, topic):
    with Bag(path) as bag:
        return [decode_message(m.cdr, POINT_CLOUD) for m in bag.messages([topic])]


def without_row_step(number, cloud):
    cloud.row_step = 0


def height_0(number, cloud):
    cloud.height, cloud.row_step = 0, 16 * cloud.width


def swapped(number, cloud):
    cloud.height, cloud.width = cloud.width, 1


@pytest.mark.parametrize('spoil', [without_row_step, height_0, swapped])
def test_wrong_header_gives_the_flow_of_the_right_one(engine, tmp_path, spoil):
    clean, _ = results_of(write_bag(tmp_path / 'clean', num_sweeps=3), engine)
    path = write_bag(tmp_path / 'spoiled', num_sweeps=3, spoil=spoil)
    found, findings = results_of(path, engine)
    assert len(found) == len(clean) == 2
    for ours, theirs in zip(found, clean, strict=True):
        np.testing.assert_array_equal(ours.estimate.velocity, theirs.estimate.velocity)
    assert findings['header'].count == 3 and 'row_step = width * point_step' in findings['header'].text
    pairs = open_dataset(f'bag:{path}')
    assert len(pairs) == 2 and not pairs.skipped


def test_wrong_row_step_is_said_once_and_right_in_the_output(tmp_path, capsys):
    path, out = write_bag(tmp_path / 'bag', num_sweeps=3, spoil=without_row_step), tmp_path / 'flow'
    assert main([str(path), '--offline', '--out', str(out)]) == 0
    assert capsys.readouterr().err.count('does not agree with their 64000 bytes') == 1
    for cloud in clouds_of(out, FLOW_TOPIC):
        assert cloud.row_step == cloud.width * cloud.point_step and len(decode_velocity(cloud)) == NUM_POINTS


def with_wild_times(number, cloud):
    cloud.data.view(np.int32).reshape(-1, 5)[1000 + number :: 1000, 4] = -(2**31)


def test_a_few_senseless_times_cost_neither_flow_nor_the_times_of_a_data_set(engine, tmp_path):
    paths = [write_bag(tmp_path / name, num_sweeps=5, stamped=0.5, spoil=spoil)
             for name, spoil in (('clean', lambda *_: None), ('wild', with_wild_times))]  # fmt: skip
    (clean, nothing), (found, findings) = (results_of(path, engine, deskew=True) for path in paths)
    assert len(found) == len(clean) == 3 and 'lost times' not in nothing
    assert '3 of 4000 points have a time in' in findings['lost times'].text
    for ours, theirs in zip(found, clean, strict=True):
        valid = (ours.estimate.flow_valid > 0) & (theirs.estimate.flow_valid > 0)
        error = np.linalg.norm(ours.estimate.velocity - theirs.estimate.velocity, axis=1)[valid]
        assert valid.mean() > 0.9 and np.median(error) < 0.01  # m/s
    pairs = open_dataset(f'bag:{paths[1]}')
    assert all(pairs[k].times is not None for k in range(4)) and not pairs.times_note


def named_age(number, cloud):
    cloud.fields[4].name = 'age'


def test_named_time_field_is_used_offline_and_in_data_sets(engine, tmp_path, capsys):
    clean, _ = results_of(write_bag(tmp_path / 'clean', num_sweeps=4, stamped=0.5), engine, deskew=True)
    path = write_bag(tmp_path / 'named', num_sweeps=4, stamped=0.5, spoil=named_age)
    found, _ = results_of(path, engine, deskew=True, time_name='age', time_unit='ns')
    for ours, theirs in zip(found, clean, strict=True):
        np.testing.assert_array_equal(ours.estimate.velocity, theirs.estimate.velocity)
    _, findings = results_of(path, engine, deskew=True)
    assert "Fields seen: 'x' float32" in findings['no times'].text and "'age' int32" in findings['no times'].text
    pairs = open_dataset(f'bag:{path}?time_field=age&time_unit=ns&deskew=true')
    assert len(pairs) == 2 and pairs[0].times is not None
    assert open_dataset(f'bag:{path}')[0].times is None
    with pytest.raises(DataError, match=r"no field 'years' .time_field"):
        open_dataset(f'bag:{path}?time_field=years&deskew=true')
    with pytest.raises(ConfigError, match='time_unit must be auto, s, ms, us, ns'):
        results_of(path, engine, time_unit='h')


def with_velocity(number, cloud):
    cloud.fields[3].name = 'vx'


def test_input_that_has_velocities_is_told_that_they_are_replaced(engine, tmp_path, capsys):
    path = write_bag(tmp_path / 'bag', num_sweeps=3, spoil=with_velocity)
    assert main([str(path), '--offline', '--out', str(tmp_path / 'flow')]) == 0
    assert capsys.readouterr().err.count('The clouds have fields vx already') == 1
    clean = open_dataset(f'bag:{write_bag(tmp_path / "clean", num_sweeps=3)}')
    pairs = open_dataset(f'bag:{path}')
    np.testing.assert_array_equal(pairs[0].pair.points1, clean[0].pair.points1)
    assert pairs[0].truth is None


def test_static_points_are_written_on_request_and_hold_all_else_byte_for_byte(tmp_path, capsys):
    path, plain, out = write_bag(tmp_path / 'bag', num_sweeps=3), tmp_path / 'plain', tmp_path / 'flow'
    run = [str(path), '--offline', '--out']
    assert main([*run, str(plain)]) == 0 and main([*run, str(out), '--static-points', '--min-range', '3']) == 0
    with Bag(plain) as bag:
        assert STATIC_TOPIC not in [topic.name for topic in bag.topics]
    flows, sent = clouds_of(out, FLOW_TOPIC), clouds_of(path, CLOUD_TOPIC)[1:]
    for flow, static, cloud in zip(flows, clouds_of(out, STATIC_TOPIC), sent, strict=True):
        rows = cloud.data.reshape(-1, 16)
        near = np.linalg.norm(rows.view(np.float32)[:, :3], axis=1) < 3
        velocity = decode_velocity(flow)
        assert near.any() and np.isnan(velocity[near]).all()
        moving = np.linalg.norm(velocity, axis=1) >= 0.4
        points = rows.view(np.float32)[:, :3]
        beside = (np.linalg.norm(points[:, None] - points[moving], axis=2) < 0.9).any(axis=1)
        left = {row.tobytes() for row in static.data.reshape(-1, 16)}
        kept = np.array([row.tobytes() in left for row in rows])
        assert kept[~beside & ~near].all() and not kept[moving | near].any()
        assert 0.3 * NUM_POINTS < np.count_nonzero(kept) < NUM_POINTS - np.count_nonzero(near)
        assert static.data.tobytes() == rows[kept].tobytes() and static.is_dense == cloud.is_dense
        assert [field.name for field in static.fields] == ['x', 'y', 'z', 'intensity']
    assert main([str(path), '--offline', '--view-file', str(tmp_path / 'a.rrd'), '--static-points']) == 1
    assert '--static-points writes into the bag of --out' in capsys.readouterr().err


def test_own_vehicle_gets_no_velocity_and_changes_nothing_far_away(engine, tmp_path):
    path = write_bag(tmp_path / 'bag', num_sweeps=3)
    plain, _ = results_of(path, engine)
    box = OwnVehicle((-3.0, 3.0, -2.0, 2.0, -2.0, 1.0))
    found, findings = results_of(path, engine, own_vehicle=box, sensor_height=1.8)
    for ours, theirs in zip(found, plain, strict=True):
        assert len(ours.own_rows) and not ours.estimate.flow_valid[ours.own_rows].any()
        assert np.isnan(ours.estimate.velocity[ours.own_rows]).all()
        others = np.setdiff1d(np.arange(NUM_POINTS), ours.own_rows)
        same = (ours.estimate.flow_valid == theirs.estimate.flow_valid)[others]
        assert same.all()
    assert "nothing says how it is mounted on 'base_link'" in findings['ego_box'].text
    _, findings = results_of(path, engine, own_vehicle=box, base_T_lidar=np.eye(4))
    assert 'ego_box' not in findings


@pytest.mark.parametrize('option, near', [
    ('ego_box=-3,3,-2,2,-2,1', lambda x, y, z: (np.abs(x) <= 3) & (np.abs(y) <= 2) & (z >= -2) & (z <= 1)),
    ('ego_box=-3,3,-2,2,-0.1,1&base_T_lidar=1,0,1.8,0,0,0,1',
     lambda x, y, z: (np.abs(x + 1) <= 3) & (np.abs(y) <= 2) & (z >= -1.9) & (z <= -0.8)),
    # Upside down: y and z of the base are those of the sensor, negated.
    ('ego_box=-3,3,0,2,3,4.5&base_T_lidar=0,0,1.8,1,0,0,0',
     lambda x, y, z: (np.abs(x) <= 3) & (y <= 0) & (y >= -2) & (z >= -2.7) & (z <= -1.2)),
    ('min_range=4', lambda x, y, z: x * x + y * y + z * z < 16),
])  # fmt: skip
def test_a_data_set_has_no_points_on_the_own_vehicle(tmp_path, option, near):
    path = write_bag(tmp_path / 'bag', num_sweeps=3)
    item = open_dataset(f'bag:{path}?{option}&sensor_height=1.8')[1]
    for k, points in ((1, item.pair.points0), (2, item.pair.points1)):
        xyz = clouds_of(path, CLOUD_TOPIC)[k].data.view(np.float32).reshape(-1, 4)[:, :3]
        with np.errstate(invalid='ignore'):
            own = near(*xyz.T)
        assert own.any()
        np.testing.assert_array_equal(np.isnan(points[:, 0]), own | np.isnan(xyz[:, 0]))
    with pytest.raises(ConfigError, match='ego_box must be'):
        open_dataset(f'bag:{path}?ego_box=1,2')
    with pytest.raises(DataError, match='ego_box should be'):
        open_dataset(f'bag:{path}?ego_box=car')


def test_a_box_around_everything_says_why_no_sweep_gets_flow(tmp_path, capsys):
    path = write_bag(tmp_path / 'bag', num_sweeps=3)
    box = ['--ego-box', '-100', '100', '-100', '100', '-100', '100']
    assert main([str(path), '--offline', '--out', str(tmp_path / 'flow'), *box]) == 1
    assert '3920 of its points are in ego_box' in capsys.readouterr().err.replace('--ego-box', 'ego_box')
