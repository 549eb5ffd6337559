# SPDX-License-Identifier: Apache-2.0
"""The node as users meet it: a process, real DDS, the model in the package."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import NodeProcess, Vehicle, cloud, column, scene, stamp_of  # noqa: E402
from processes import ROOT, environment, run  # noqa: E402
from rclpy.qos import ReliabilityPolicy  # noqa: E402

from zeroflow_ros.engines.selection import DEFAULT_MODELS, load_engine  # noqa: E402
from zeroflow_ros.lidar.sweep import SweepPair  # noqa: E402
from zeroflow_ros.pipeline import FlowPipeline  # noqa: E402
from zeroflow_ros.ros.publishers import STAGES  # noqa: E402

S = 1_000_000_000
DEBUG = [f'processing_time/{stage}_ms' for stage in STAGES] + ['pipeline_latency_ms', 'dt_s']


@pytest.fixture(scope='module')
def node():
    with NodeProcess('-r', '__ns:=/front', '-p', 'ego_motion:=odometry') as node:
        yield node


@pytest.fixture(scope='module')
def vehicle(node):
    with Vehicle('/front', debug=DEBUG) as vehicle:
        vehicle.connect(node)
        yield vehicle


def pair(vehicle, points0, points1, *, ego_x=0.0, **layout):
    """Send two sweeps, stamped now, and return the flow of the second."""
    vehicle.spin(0.3)  # the first one then pairs with nothing
    stamp_ns = time.time_ns() - S // 10
    vehicle.drive(stamp_ns)
    vehicle.send(cloud(points0, stamp_ns, **layout))
    vehicle.spin(0.1)
    vehicle.drive(stamp_ns + S // 10, ego_x)
    vehicle.send(cloud(points1, stamp_ns + S // 10, **layout))
    flow = vehicle.flow_of(stamp_ns + S // 10)
    assert flow is not None, 'no flow'
    return flow


def test_every_row_comes_back_in_order_with_a_velocity(vehicle):
    near, far = scene(), scene() + np.float32(500)  # the second cluster is beyond the grid
    points = np.stack([near, far], axis=1).reshape(-1, 3)  # in turns
    points[30:36] = np.nan
    points[37, 1] = np.inf
    flow = pair(vehicle, points, points, height=2)
    assert (flow.height, flow.width, flow.header.frame_id, flow.is_dense) == (2, len(points) // 2, 'lidar', False)
    names = [field.name for field in flow.fields]
    assert names == ['x', 'y', 'z', 'intensity', 'vx', 'vy', 'vz', 'speed', 'flow_valid']
    for axis, name in enumerate('xyz'):
        np.testing.assert_array_equal(column(flow, name), points[:, axis])
    np.testing.assert_array_equal(column(flow, 'intensity'), np.arange(len(points)) % 200)
    velocity = np.stack([column(flow, name) for name in ('vx', 'vy', 'vz')], axis=1)
    valid = column(flow, 'flow_valid')
    expected = np.arange(len(points)) % 2 == 0
    expected[30:38] = [False] * 6 + [True, False]
    np.testing.assert_array_equal(valid, expected * 3)  # in the grid, ego motion removed
    np.testing.assert_array_equal(np.isfinite(velocity).all(1), expected)
    assert np.isnan(velocity[~expected]).all()
    np.testing.assert_allclose(column(flow, 'speed'), np.linalg.norm(velocity, axis=1), rtol=1e-5)


def test_ego_motion_reaches_the_model():
    """A static street seen from a moving sensor gives what it gives from a standing one; in float, for 8 bits round."""
    model = f'model_path:={DEFAULT_MODELS["tensorrt"]}'
    with NodeProcess('-r', '__ns:=/float', '-p', 'ego_motion:=odometry', '-p', model) as node:
        with Vehicle('/float') as vehicle:
            vehicle.connect(node)
            standing = pair(vehicle, scene(), scene())
            moving = pair(vehicle, scene() + np.float32([0.5, 0, 0]), scene(), ego_x=0.5)
    for name in ('vx', 'vy', 'vz'):
        difference = np.abs(column(standing, name) - column(moving, name))
        assert np.percentile(difference, 95) < 1e-4  # m/s: a few points change pillars by rounding


def test_debug_topics_and_diagnostics_tell_the_truth(vehicle):
    for _ in range(2):  # an earlier test had more points, and not every cloud is looked at
        pair(vehicle, scene(), scene())
    for values in vehicle.values.values():
        values.clear()
    published = int(next(v.value for v in vehicle.statuses['inference'].values if v.key == 'published'))
    pair(vehicle, scene(), scene())
    assert vehicle.wait_for(lambda: all(vehicle.values.values()), 5), vehicle.values
    latest = {name: values[-1] for name, values in vehicle.values.items()}
    assert latest['dt_s'] == pytest.approx(0.1)
    total = latest['processing_time/total_ms']
    parts = sum(latest[f'processing_time/{stage}_ms'] for stage in STAGES[:-1])
    assert 0 < parts <= total + 1 and latest['pipeline_latency_ms'] >= total - 1  # ms: clocks of two kinds
    status = vehicle.status('inference', lambda _, values: int(values['published']) > published)
    assert status.level == b'\x00' or 'input-to-output latency is' in status.message  # a busy machine may be slow
    assert {name: vehicle.statuses[name].level for name in ('ego_motion', 'model')} == {
        'ego_motion': b'\x00', 'model': b'\x00'}  # fmt: skip
    model = {v.key: v.value for v in vehicle.statuses['model'].values}
    assert model['name'] == 'fastflow3d_lite_5' and len(model['checksum']) == 64
    facts = {v.key: v.value for v in vehicle.statuses['input'].values}
    assert (facts['topic'], facts['reliability']) == ('/front/flow_node/input/pointcloud', 'reliable')
    assert (facts['frame_id'], facts['points'], facts['dropped.malformed_cloud']) == ('lidar', '3000', '0')


def test_arrows_follow_their_parameters(vehicle):
    assert vehicle.set_parameter('min_speed', 0.0).successful
    assert vehicle.set_parameter('max_arrows', 50).successful
    vehicle.markers.clear()
    flow = pair(vehicle, scene(), scene())
    marker = vehicle.wait_for(lambda: next((m for m in vehicle.markers if stamp_of(m) == stamp_of(flow)), None), 5)
    assert marker.type == marker.LINE_LIST and marker.header == flow.header
    assert 2 <= len(marker.points) <= 100 and len(marker.colors) == len(marker.points)
    assert vehicle.set_parameter('max_arrows', 0).successful
    vehicle.markers.clear()
    pair(vehicle, scene(), scene())
    assert vehicle.wait_for(lambda: vehicle.markers, 5)[0].action == marker.DELETE


@pytest.mark.parametrize(
    'name, value, reason',
    [
        ('min_speed', 1000.0, 'out of range'),
        ('min_speed', 1, 'type'),
        ('model_path', 'other.onnx', 'read-only'),
        ('min_sped', 1.0, 'declared'),
    ],
)
def test_bad_change_of_a_parameter_is_refused(vehicle, name, value, reason):
    result = vehicle.set_parameter(name, value)
    assert not result.successful and reason in result.reason


def test_model_runs_only_when_somebody_listens():
    """The last sweep is kept all the same, so that the first listener gets flow at once."""
    with NodeProcess('-r', '__ns:=/rear', '-p', 'ego_motion:=none') as rear:
        with Vehicle('/rear', flow=False, markers=False) as deaf:
            deaf.connect(rear)
            stamp_ns = time.time_ns()
            for k in range(3):
                deaf.send(cloud(scene(), stamp_ns + k * S // 10))
                deaf.spin(0.1)
            skipped = lambda _, v: v['skipped_nobody_listens'] == '2' and v['published'] == '0'  # noqa: E731
            assert deaf.status('inference', skipped), rear.log
            with Vehicle('/rear') as listener:
                listener.connect(rear)
                listener.send(cloud(scene(), stamp_ns + 3 * S // 10))
                flow = listener.flow_of(stamp_ns + 3 * S // 10)
            assert set(column(flow, 'flow_valid')) == {1}  # ego motion was not removed
            assert deaf.set_parameter('always_run', True).successful
            deaf.spin(0.3)
            deaf.send(cloud(scene(), stamp_ns + 4 * S // 10))
            assert deaf.status('inference', lambda _, v: v['published'] == '2')
        code, seconds = rear.stop(signal.SIGTERM)
        assert (code, 'Traceback' in rear.log) == (0, False) and seconds < 3, rear.log  # about 0.5 s when idle


def test_previous_sweep_carries_the_flow_when_asked():
    settings = ['-p', 'output_on:=previous', '-p', 'ego_motion:=none', '-p', 'refinements:=1']
    sweeps = [scene(seed=k, num_points=3000 + k) for k in range(2)]
    with NodeProcess('-r', '__ns:=/previous', *settings) as previous:
        with Vehicle('/previous') as vehicle:
            vehicle.connect(previous)
            stamp_ns = time.time_ns()
            for k, sweep in enumerate(sweeps):
                vehicle.send(cloud(sweep, stamp_ns + k * S // 10))
                vehicle.spin(0.1)
            flow = vehicle.flow_of(stamp_ns)
            assert flow.width == 3000
            np.testing.assert_array_equal(column(flow, 'x'), sweeps[0][:, 0])
    once, refined = (
        FlowPipeline(load_engine(), output_on='previous', refinements=count, ego_motion_removed=False)
        .estimate(SweepPair(*sweeps, np.eye(4), 0.1)).velocity[:, 0]
        for count in (0, 1)
    )  # fmt: skip
    np.testing.assert_allclose(column(flow, 'vx'), refined, atol=1e-4)
    assert np.nanmax(np.abs(refined - once)) > 1e-2  # m/s


def test_best_effort_publisher_is_followed():
    with NodeProcess('-p', 'ego_motion:=none') as node:
        with Vehicle(reliability=ReliabilityPolicy.BEST_EFFORT) as vehicle:
            vehicle.connect(node)
            assert vehicle.status('input', lambda _, v: v['reliability'] == 'best_effort'), node.log
            pair(vehicle, scene(), scene())
        with Vehicle() as vehicle:
            vehicle.connect(node)
            assert vehicle.status('input', lambda _, v: v['reliability'] == 'reliable'), node.log
            pair(vehicle, scene(), scene())
        code, _ = node.stop()
    assert code == 0 and 'Traceback' not in node.log
    assert 'This node now uses best_effort.' in node.log


def test_silence_qos_and_a_missing_clock_are_reported():
    args = ['-p', 'input_timeout_s:=0.4', '-p', 'input_reliability:=reliable', '-p', 'use_sim_time:=true']
    with Vehicle(reliability=ReliabilityPolicy.BEST_EFFORT) as vehicle, NodeProcess(*args) as node:
        shown = lambda text: lambda s, _: text in s.message and s.level == b'\x02'  # noqa: E731
        assert vehicle.status('input', shown('offers reliability best_effort'), 20), node.log
        assert vehicle.status('input', shown('/flow_node/input/pointcloud has 1 publisher: /vehicle_'))
        assert vehicle.status('input', shown('nothing comes on /clock'), 15)
        assert 'input_reliability to auto' in node.log and node.log.count('QoS does not match') == 1
        assert 1 <= node.log.count('No cloud for') <= 2  # a warning and an error, not one a second


@pytest.mark.parametrize(
    'args, said',
    [
        (['-p', 'min_sped:=1.0'], ["'min_sped'", "'min_speed'"]),
        (['-p', 'min_speed:=1'], ['a double', 'like 1.0']),
        (['-p', 'model_path:=nowhere.onnx'], ['No model file at nowhere.onnx']),
        (['-p', 'model_path:=setup.py'], ['setup.py', 'python3 -m export.to_onnx']),
        (['--params-file', 'nowhere.yaml'], ['nowhere.yaml']),
        (['-p', 'qos_overrides./flow_node/output/flow.publisher.reliability:=sure'], ['qos_overrides', 'sure']),
    ],
)
def test_bad_start_is_one_fatal_line_and_exit_code_1(args, said):
    code, text = run('node', '--ros-args', *args)
    lines = [line for line in text.splitlines() if 'FATAL' in line]
    assert code == 1 and len(lines) == 1 and 'Traceback' not in text, text
    assert all(part in lines[0] for part in said), lines


def test_damaged_model_is_refused(tmp_path):
    from zeroflow_ros.engines.selection import DEFAULT_MODEL

    data = bytearray(DEFAULT_MODEL.read_bytes())
    data[len(data) // 2] ^= 1  # in the weights
    (tmp_path / 'model.onnx').write_bytes(data)
    code, text = run('node', '--ros-args', '-p', f'model_path:={tmp_path}/model.onnx')
    assert code == 1 and 'is damaged' in text and 'Traceback' not in text, text


def test_unknown_argument_and_help():
    code, text = run('node', 'points.bag')
    assert code == 1 and '--ros-args' in text and 'Traceback' not in text
    code, text = run('node', '--help')
    assert code == 0 and 'ros2 run zeroflow_ros flow_node' in text


def test_stops_at_once_on_sigint(node, vehicle):
    """Last, for it ends the node of the other tests."""
    assert 'computes velocities for the latest sweep of /front/flow_node' in node.lines[0]
    stamp_ns = time.time_ns()
    for k in range(2):
        vehicle.send(cloud(scene(), stamp_ns + k * S // 10))
    code, seconds = node.stop(signal.SIGINT)
    assert (code, 'Traceback' in node.log) == (0, False), node.log
    assert seconds < 3  # about 0.5 s on an idle machine


TRY_OUT = """
import gc
import sys
from numba.core.registry import CPUDispatcher
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import PointCloud2

sys.path.insert(0, 'test/support')
from flow_node import cloud, scene
from zeroflow_ros import node
from zeroflow_ros.lidar import object_motion
from zeroflow_ros.lidar.deskew import Deskew
from zeroflow_ros.engines.selection import load_engine
from zeroflow_ros.pipeline import FlowPipeline
from zeroflow_ros.lidar.point_cloud import decode_cloud, flow_cloud
from zeroflow_ros.lidar.point_times import with_times
from zeroflow_ros.lidar.sweep import SweepPair

def compilations():
    found = [each for each in gc.get_objects() if type(each) is CPUDispatcher]
    ours = [each for each in found if each.py_func.__module__ == 'zeroflow_ros.lidar.numba_kernels']
    return {d.py_func.__name__: len(d.signatures) for d in ours}

pipeline = FlowPipeline(load_engine())
node._warm_up(pipeline)
deskew = Deskew()
before = compilations()
msg = cloud(scene(), 10**9, names=('x', 'y', 'z', 'time'))
msg = deserialize_message(serialize_message(msg), PointCloud2)
sweep = with_times(msg, decode_cloud(msg))
still = lambda _sweep, _other, offsets: node.np.stack([node.np.eye(4)] * len(offsets))
points = deskew.pair(sweep, sweep, still)[0].points
estimate = pipeline.estimate(SweepPair(points, points, node.np.eye(4), 0.1))
flow_cloud(msg, estimate.velocity, estimate.flow_valid)
low = points + node.np.float32([0, 0, 0.4])
assert object_motion.fit_object_motion(
    points, node.np.full_like(points, 0.1), node.np.eye(4), [object_motion.EarlierSweep(low, node.np.eye(4), 1)], 0.1
)
assert compilations() == before, (before, compilations())
del before['transform_point'], before['nearest_point']  # are parts of others
assert before.pop('scatter_pillars') == 0  # is for models without 8-bit tensors
assert len(before) == 15 and all(before.values()), before
"""


def test_nothing_is_compiled_after_the_node_said_it_is_ready():
    pytest.importorskip('numba', reason='without numba nothing is compiled at all')
    done = subprocess.run([sys.executable, '-c', TRY_OUT], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
