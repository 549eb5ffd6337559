# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import time

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import Drive, NodeProcess, Vehicle, cloud, column, stamp_of  # noqa: E402
from point_engine import PointEngine  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from timed_clouds import T0, odom_T_ego, seen, timed_message, world  # noqa: E402

from zeroflow_ros.ego_motion.trajectory import Trajectory  # noqa: E402
from zeroflow_ros.engines.selection import DEFAULT_MODELS, load_engine  # noqa: E402
from zeroflow_ros.lidar.sweep import DropReason  # noqa: E402
from zeroflow_ros.pipeline import FlowPipeline  # noqa: E402
from zeroflow_ros.ros.ego_motion_sources import NoMotion  # noqa: E402
from zeroflow_ros.ros.parameters import Parameters  # noqa: E402
from zeroflow_ros.runtime.flow_worker import FlowWorker  # noqa: E402
from zeroflow_ros.runtime.health import Health, Level  # noqa: E402

S = 1_000_000_000
DT_NS = S // 10
POINTS = Drive.points


class Listener:
    """A sink that keeps what it gets; the first flow fails, as when a transport breaks."""

    def __init__(self):
        self.flows, self.fails = [], True

    def has_subscribers(self):
        return True

    def ok(self):
        return True

    def publish_flow(self, msg, velocity, flow_valid):
        if self.fails:
            self.fails = False
            raise OSError('the line is cut')
        self.flows.append((stamp_of(msg), velocity, flow_valid))

    def publish_dynamic_points(self, msg, points, velocity):
        pass

    def publish_static_points(self, msg, velocity, own_rows):
        pass

    def publish_arrows(self, msg, points, velocity):
        pass

    def publish_debug(self, msg, stages_ms, dt):
        pass


def test_whatever_fails_in_a_sweep_is_counted_and_the_next_one_is_served():
    lines, listener = [], Listener()
    health = Health(lambda severity, text: lines.append((severity, text)))
    parameters = Parameters(ego_motion='none')
    worker = FlowWorker(FlowPipeline(load_engine(), sensor_height=1.8), NoMotion(), health, listener,
                        parameters=lambda: parameters, now_ns=lambda: S)  # fmt: skip
    worker.start()
    worker.set_active(True)
    for k in range(3):
        worker.put(cloud(POINTS, S + k * DT_NS))
        deadline = time.monotonic() + 10
        while health.published + health.drops.total() <= k and time.monotonic() < deadline:
            time.sleep(0.005)
    worker.stop()
    assert health.drops == {DropReason.FIRST: 1, DropReason.ENGINE: 1} and (health.received, health.published) == (3, 1)
    assert ('error', 'This sweep failed: OSError: the line is cut') in lines
    ((stamp_ns, velocity, flow_valid),) = listener.flows
    assert stamp_ns == S + 2 * DT_NS and np.isfinite(velocity[flow_valid > 0]).all() and flow_valid.any()


class Driven(NoMotion):
    """Ego motion of a drive along a curve, from poses that end at `until` seconds."""

    def __init__(self, until=1.0):
        self._trajectory = Trajectory()
        for t in np.arange(-0.2, until, 0.01):
            self._trajectory.add(T0 + round(t * S), odom_T_ego(t))

    def between(self, sweep0, sweep1, *, timeout, offset_ns):
        return self._trajectory.between(sweep0.stamp_ns, sweep1.stamp_ns)

    def poses_at_offsets(self, sweep, other, offsets_ns, *, timeout, offset_ns):
        return self._trajectory.poses_at_offsets(sweep.stamp_ns, offsets_ns)


def timed_cloud(k, values=None, *, has_times=True, skewed=True):
    """Return sweep k of the drive, stamped at its end; values: in the place of the times in seconds.

    skewed: each point is seen at its time, else all of them at the stamp.
    """
    points = world(6000)
    times = np.random.default_rng(k).integers(0, 1000, len(points)) * 1e-4 - 0.1
    values = (times if values is None else values) if has_times else None
    return timed_message(seen(points, 0.1 * k, times * skewed), T0 + k * DT_NS, values, name='time', dtype='f4')


class RowByRow(PointEngine):
    """Knows that each row is the same point in every sweep, so its flow is exact."""

    def flow(self, source, target):
        return target - source


def deskewing_worker(motion, *, deskew=True, make_engine=None, **options):
    lines, listener = [], Listener()
    listener.fails = False
    health = Health(lambda severity, text: lines.append((severity, text)))
    parameters = Parameters(deskew=deskew, **options)
    engine = load_engine(DEFAULT_MODELS['tensorrt'])  # float: 8 bits round what is nearly the same to something else
    if make_engine:
        engine = make_engine(engine.card)
    worker = FlowWorker(FlowPipeline(engine, sensor_height=1.8), motion, health, listener,
                        parameters=lambda: parameters, now_ns=lambda: T0)  # fmt: skip
    worker.set_active(True)
    return worker, health, listener, lines


def test_a_static_world_has_less_speed_when_deskewed():
    speeds, points = {}, {}
    for name, skewed, deskew in (('never skewed', False, False), ('skewed', True, False), ('deskewed', True, True)):
        worker, health, listener, lines = deskewing_worker(Driven(), deskew=deskew, make_engine=RowByRow)
        listener.publish_arrows = lambda msg, points_, velocity, name=name: points.update({name: points_})
        for k in range(3):
            worker.process(timed_cloud(k, skewed=skewed), time.perf_counter())
        assert health.published == 2 and [stamp_ns for stamp_ns, _, _ in listener.flows] == [T0 + DT_NS, T0 + 2 * DT_NS]
        speeds[name] = np.mean([np.linalg.norm(v[valid > 0], axis=1).mean() for _, v, valid in listener.flows])
        assert any('set deskew to true' in text for _, text in lines) == (not deskew)
        assert ('deskew' in health.percentiles()) == deskew
    assert speeds['never skewed'] < 1e-3 and speeds['skewed'] > 5, speeds  # m/s
    assert speeds['deskewed'] < 0.003 * speeds['skewed'], speeds  # poses between those of the odometry are on chords
    # Arrows begin where the cloud shows the points.
    np.testing.assert_array_equal(points['deskewed'], points['skewed'])


@pytest.mark.parametrize('deskew', [False, True])
def test_the_history_has_its_poses_and_starts_over_after_a_gap(deskew):
    """The static world of the drive lies in one place in all sweeps that the network sees."""
    worker, health, _, _ = deskewing_worker(
        Driven(until=1.3), deskew=deskew, make_engine=lambda card: RowByRow(dataclasses.replace(card, num_sweeps=4))
    )
    for k in (0, 1, 2, 3, 4, 8, 9, 10):
        worker.process(timed_cloud(k, skewed=deskew), time.perf_counter())
    engine = worker._pipeline.engine
    assert [len(older) for older in engine.older] == [0, 1, 2, 2, 0, 1]
    for (source, _), older in zip(engine.calls, engine.older, strict=True):
        for points in older:
            np.testing.assert_allclose(points, source, atol=0.02)  # m: poses between those of the odometry
    values = next(s for s in health.statuses() if s.part == 'inference').values
    assert (values['published'], values['short_history']) == ('6', '4')
    assert health.drops == {DropReason.FIRST: 1, DropReason.GAP: 1}


def test_clouds_without_times_are_taken_as_they_are_with_a_warning():
    worker, health, _, lines = deskewing_worker(Driven())
    for k in range(3):
        worker.process(timed_cloud(k, has_times=False), time.perf_counter())
    assert health.published == 2 and health.drops == {DropReason.FIRST: 1}
    assert sum('have no field t, time' in text for severity, text in lines if severity == 'warning') == 1
    status = next(s for s in health.statuses() if s.part == 'input')
    assert status.level == Level.WARN and 'or switch deskew off' in status.message


def test_a_few_senseless_times_cost_no_sweep_and_a_named_field_is_used():
    flows = []
    for spoiled, options in ((False, {}), (True, {}), (True, {'time_field': 'age', 'time_unit': 's'})):
        worker, health, listener, _ = deskewing_worker(Driven(), make_engine=RowByRow, **options)
        for k in range(3):
            msg = timed_cloud(k)
            values = msg.data.reshape(6000, -1)[:, -4:]
            if spoiled:
                values[100 * k + 7 :: 2000] = np.frombuffer(np.float32(1e30).tobytes(), np.uint8)
            msg.fields[4].name = options.get('time_field', 'time')
            worker.process(msg, time.perf_counter())
        assert health.published == 2 and health.drops == {DropReason.FIRST: 1}
        assert (worker.input_checks.facts['lost_times'] == 3) == spoiled
        flows.append(listener.flows[-1][1])
    kept = np.ones(6000, bool)
    for k in (1, 2):
        kept[100 * k + 7 :: 2000] = False
    np.testing.assert_array_equal(flows[1][kept], flows[0][kept])
    np.testing.assert_array_equal(flows[2], flows[1])


def test_times_without_sense_drop_the_sweep_and_the_next_pair_goes_around_it():
    worker, health, _, lines = deskewing_worker(Driven())
    for k in range(3):
        worker.process(timed_cloud(k, np.full(6000, 7.0) if k == 1 else None), time.perf_counter())
    assert health.drops == {DropReason.FIRST: 1, DropReason.MALFORMED: 1} and health.published == 1
    assert any(severity == 'error' and 'all the same' in text for severity, text in lines)


def test_unknown_motion_within_a_sweep_drops_the_pair():
    worker, health, _, lines = deskewing_worker(Driven(until=0.13))
    for k in range(3):
        worker.process(timed_cloud(k), time.perf_counter())
    assert health.drops == {DropReason.FIRST: 1, DropReason.EGO_MOTION: 1} and health.published == 1
    assert any(severity == 'warning' and 'needs a pose at' in text for severity, text in lines)


def test_node_deskews_with_odometry():
    with NodeProcess('-r', '__ns:=/skew', '-p', 'deskew:=true') as node, Vehicle('/skew', markers=False) as vehicle:
        vehicle.connect(node)
        layout = {'types': ('f4', 'f4', 'f4', 'f4'), 'names': ('x', 'y', 'z', 'time')}
        for k in range(3):
            for tick in range(11):  # 100 Hz, up to the end of the sweep
                vehicle.drive(S + k * DT_NS + tick * DT_NS // 10, 1e-9 * (k * DT_NS + tick * DT_NS // 10))
            vehicle.send(msg := cloud(POINTS, S + k * DT_NS, **layout))
            vehicle.spin(0.1)
        flow = vehicle.flow_of(S + 2 * DT_NS)
        assert flow is not None, node.log
        for name in layout['names']:
            np.testing.assert_array_equal(column(flow, name), column(msg, name))
        assert vehicle.status('inference', lambda _, values: 'deskew_ms.p50_p95_p99' in values), node.log
        assert 'unless they come in deskewed' not in node.log


def test_clock_that_goes_back_starts_over_even_by_less_than_a_second():
    args = ['-p', 'ego_motion:=none', '-p', 'use_sim_time:=true']
    with NodeProcess('-r', '__ns:=/loop', *args) as node, Vehicle('/loop', markers=False) as vehicle:
        clock_out = vehicle.node.create_publisher(Clock, '/clock', 1)
        vehicle.connect(node)
        for lap in range(2):
            for k in range(4):
                stamp_ns = 100 * S + k * DT_NS
                clock = Clock()
                clock.clock.sec, clock.clock.nanosec = divmod(stamp_ns, S)
                clock_out.publish(clock)
                vehicle.spin(0.1)
                vehicle.send(cloud(POINTS, stamp_ns))
                if k:
                    assert vehicle.flow_of(stamp_ns, timeout=5), f'lap {lap}, sweep {k}: {node.log}'
            vehicle.flows.clear()
        assert vehicle.status('input', lambda _, v: v['dropped.time_went_back'] == '1'), node.log
        assert 'Time went back by 0.300 s' in node.log and 'another clock' not in node.log


def test_large_cloud_is_subsampled_when_asked():
    args = ['-p', 'ego_motion:=none', '-p', 'max_points:=1000', '-p', 'over_max_points:=subsample']
    with NodeProcess('-r', '__ns:=/small', *args) as node, Vehicle('/small', markers=False) as vehicle:
        vehicle.connect(node)
        for stamp_ns in (S, S + DT_NS):
            vehicle.send(cloud(POINTS, stamp_ns))
            vehicle.spin(0.1)
        flow = vehicle.flow_of(S + DT_NS)
        np.testing.assert_array_equal(column(flow, 'flow_valid') > 0, np.arange(len(POINTS)) % 2 == 0)
        assert vehicle.status('input', lambda s, _: 'Only every n-th point' in s.message)


def test_model_that_computes_nan_is_an_error(tmp_path):
    onnx = pytest.importorskip('onnx', reason='needs onnx to write a broken model')
    from zeroflow_ros.engines.model_card import METADATA_KEY, ModelCard, stamp_checksum
    from zeroflow_ros.engines.selection import DEFAULT_MODEL

    model = onnx.load(DEFAULT_MODEL)
    (card,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    values = json.loads(card.value)
    values |= {'head_bias': [float('nan')] * 3, 'checksum': '0' * 64}
    card.value = json.dumps(values)
    path = tmp_path / 'nan.onnx'
    onnx.save(model, path)
    stamp_checksum(path, ModelCard.from_json(card.value))
    args = ['-p', 'ego_motion:=none', '-p', f'model_path:={path}']
    with NodeProcess('-r', '__ns:=/nan', *args) as node, Vehicle('/nan', markers=False) as vehicle:
        vehicle.connect(node)
        for stamp_ns in (S, S + DT_NS):
            vehicle.send(cloud(POINTS, stamp_ns))
            vehicle.spin(0.1)
        flow = vehicle.flow_of(S + DT_NS)
        assert not column(flow, 'flow_valid').any() and np.isnan(column(flow, 'vx')).all()
        text = 'is NaN or infinite for 1500 of 1500 points in its grid'
        status = vehicle.status('inference', lambda s, _: text in s.message)
        assert status.level == b'\x02', node.log
