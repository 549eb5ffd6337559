# SPDX-License-Identifier: Apache-2.0
"""Messages with part of a revolution: the node over real DDS, offline replay, and data sets give the same flow."""

import numpy as np
import pytest
import sweep_parts
import tiny_bag

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.engines.selection import load_engine
from zeroflow_ros.lidar.point_cloud import decode_cloud
from zeroflow_ros.lidar.sweep import DropReason
from zeroflow_ros.replay import main
from zeroflow_ros.runtime.offline import FLOW_TOPIC, OfflineFlow

PARTS = {'halves': sweep_parts.sectors([180, 180]), 'segments': sweep_parts.sectors([30] * 12),
         'clockwise': sweep_parts.sectors([100, 80, 180], start=60, direction=-1)}  # fmt: skip
WHOLE = [(-180, 360)]
NUM_SWEEPS = 5


@pytest.fixture(scope='module')
def engine():
    return load_engine(num_threads=2)


def flow_of(path, engine, **options) -> tuple[dict, OfflineFlow]:
    """Return {stamp [ns]: (points, velocity)} and the run."""
    with Bag(path) as bag:
        run, found = OfflineFlow(bag, engine, sensor_height=tiny_bag.SENSOR_HEIGHT, **options), {}
        for result in run:
            if result.estimate is not None:
                sweep = decode_cloud(result.message)
                found[sweep.stamp_ns] = sweep.points, result.estimate.velocity
    return found, run


def by_place(points, velocity):
    """Return both with the rows sorted by place, so that the order of parts does not matter."""
    order = np.lexsort(points.T)
    return points[order], velocity[order]


@pytest.fixture(scope='module')
def whole(engine, tmp_path_factory):
    path = sweep_parts.write_bag(tmp_path_factory.mktemp('whole') / 'bag', WHOLE, NUM_SWEEPS)
    return flow_of(path, engine)[0]


@pytest.mark.parametrize('parts', PARTS.values(), ids=PARTS)
def test_parts_have_the_velocities_of_whole_sweeps(parts, whole, engine, tmp_path):
    cut, run = flow_of(sweep_parts.write_bag(tmp_path / 'cut', parts, NUM_SWEEPS, moves=False), engine)
    assert list(cut) == list(whole) and len(whole) == NUM_SWEEPS - 1
    for stamp_ns in whole:
        (points, velocity), (expected_points, expected) = by_place(*cut[stamp_ns]), by_place(*whole[stamp_ns])
        np.testing.assert_array_equal(points, expected_points)
        # Sums over the points of a pillar depend on their order; in 8 bits that may round to something else.
        assert np.nanquantile(np.linalg.norm(velocity - expected, axis=1), 0.95) < 0.1  # m/s
    assert f'{len(parts)} messages are joined into one sweep' in run.parts_note
    assert (
        run.health.drops == {DropReason.FIRST: 1} and run.health.received == NUM_SWEEPS and not run.summary().findings
    )


def test_off_pairs_parts_with_other_parts(engine, tmp_path):
    path = sweep_parts.write_bag(tmp_path / 'cut', PARTS['halves'], NUM_SWEEPS)
    _, run = flow_of(path, engine, assemble_sweeps='off')
    assert run.health.published == 2 * NUM_SWEEPS - 1 and not run.parts_note


@pytest.mark.parametrize('ego_motion', ['odometry', 'registration'])
def test_deskew_moves_parts_to_the_stamp_of_the_sweep(ego_motion, engine, tmp_path, monkeypatch):
    if ego_motion == 'registration':
        pytest.importorskip('small_gicp', reason='needs small_gicp')
    monkeypatch.setattr(tiny_bag, 'EGO_SPEED', 15.0)
    path = sweep_parts.write_bag(tmp_path / 'cut', PARTS['halves'], NUM_SWEEPS)
    seen = []
    with Bag(path) as bag:
        run = OfflineFlow(bag, engine, deskew=True, ego_motion=ego_motion, sensor_height=1.8)
        estimate = run._pipeline.estimate
        monkeypatch.setattr(run._pipeline, 'estimate', lambda pair: seen.append(pair.points1) or estimate(pair))
        assert sum(result.estimate is not None for result in run) == NUM_SWEEPS - 1
    for k, points in enumerate(seen[1:], 2):  # registration does not know the motion of the first two sweeps well
        true = tiny_bag.street(k)[:, :3]
        true = np.concatenate([true[sweep_parts.rows_in(tiny_bag.street(k + share)[:, :3], part)]
                               for share, part in zip((0, 0.5), PARTS['halves'], strict=True)])  # fmt: skip
        is_static = np.abs(true[:, 2] + 1.8) < 1e-3  # the ground: the box drives on between the parts
        error = np.linalg.norm(points - true, axis=1)[is_static]
        assert error.max() < (1e-3 if ego_motion == 'odometry' else 0.1)  # m; 0.75 m without


def test_replay_says_that_it_joins_and_writes_one_cloud_per_revolution(tmp_path, capsys):
    path, out = sweep_parts.write_bag(tmp_path / 'cut', PARTS['halves'], NUM_SWEEPS), tmp_path / 'flow'
    assert main([str(path), '--offline', '--out', str(out), '--sensor-height', '1.8']) == 0
    assert 'Each message holds about 180 degrees of a revolution; 2 messages' in capsys.readouterr().err
    with Bag(out) as bag:
        flows = [decode_message(message.cdr, POINT_CLOUD) for message in bag.messages([FLOW_TOPIC])]
    assert [flow.header.stamp.nanosec for flow in flows] == [k * tiny_bag.PERIOD_NS for k in range(1, NUM_SWEEPS)]
    assert all(flow.height == 1 and flow.header.frame_id == 'lidar' for flow in flows)


def test_the_node_and_offline_replay_agree_on_parts(engine, tmp_path):
    pytest.importorskip('rclpy', reason='needs rclpy')
    from flow_node import NodeProcess, Vehicle, column
    from sensor_msgs.msg import PointCloud2, PointField

    fields = [PointField(name=name, offset=4 * k, datatype=7, count=1) for k, name in enumerate(sweep_parts.FIELDS)]

    def drive(vehicle, node, parts, frame_id, later_ns):
        """Send the recording; return {stamp [ns]: flow cloud}."""
        for k, (stamp_ns, points) in enumerate(sweep_parts.street_parts(parts, NUM_SWEEPS), 1):
            msg = PointCloud2(height=1, width=len(points), fields=fields, point_step=16, row_step=16 * len(points))
            msg.header.frame_id = frame_id
            msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(stamp_ns + later_ns, 10**9)
            msg.data = np.ascontiguousarray(points, np.float32).tobytes()
            vehicle.send(msg)
            vehicle.spin(0.1 / len(parts))
            if k % len(parts) == 0 and k > len(parts):  # else a slow machine pairs other sweeps than offline
                last_ns = tiny_bag.START_NS + (k // len(parts) - 1) * tiny_bag.PERIOD_NS + later_ns
                assert vehicle.flow_of(last_ns), node.log
        stamps = [flow.header.stamp.sec * 10**9 + flow.header.stamp.nanosec - later_ns for flow in vehicle.flows]
        return dict(zip(stamps, vehicle.flows, strict=True))

    with NodeProcess('-p', 'ego_motion:=none', '-p', 'sensor_height:=1.8') as node, Vehicle(markers=False) as vehicle:
        vehicle.connect(node)
        for name, later_ns in (('halves', 0), ('segments', 10 * 10**9)):
            path = sweep_parts.write_bag(tmp_path / name, PARTS[name], NUM_SWEEPS)
            offline, _ = flow_of(path, engine, ego_motion='none')
            vehicle.flows.clear()
            live = drive(vehicle, node, PARTS[name], name, later_ns)
            assert list(live) == list(offline) and len(live) == NUM_SWEEPS - 1
            for stamp_ns, (points, velocity) in offline.items():
                columns = {field: column(live[stamp_ns], field) for field in ('x', 'y', 'z', 'vx', 'vy', 'vz')}
                found = np.stack(list(columns.values()), axis=1)
                np.testing.assert_array_equal(found, np.concatenate([points, velocity], axis=1))
            said = f'{len(PARTS[name])} messages are joined into one sweep, stamped as its first part'
            assert vehicle.wait_for(lambda said=said: said in node.log, 5)
