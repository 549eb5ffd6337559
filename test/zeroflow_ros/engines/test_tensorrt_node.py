# SPDX-License-Identifier: Apache-2.0
"""The node with its model on a GPU that the CPU plays, over real DDS."""

import signal

import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import NodeProcess, Vehicle, cloud, column, scene  # noqa: E402
from lifecycle_manager import ACTIVATE, ACTIVE, INACTIVE, Manager  # noqa: E402
from processes import ROOT  # noqa: E402

from zeroflow_ros.engines.selection import DEFAULT_MODELS  # noqa: E402

DT_NS = 100_000_000
OK, WARN, ERROR = b'\0', b'\1', b'\2'
GPU = '-p', 'engine:=tensorrt', '-p', 'ego_motion:=none', '-p', 'max_points:=90000'


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('engines')


def gpu_node(cache, *ros_args):
    program = (str(ROOT / 'test' / 'support' / 'gpu_node.py'),)
    return NodeProcess(*GPU, '-p', f'engine_cache:={cache}', *ros_args, program=program)


def flow_of_next(vehicle, stamp_ns):
    """Send the sweep of a stamp and return its flow."""
    vehicle.send(cloud(scene(), stamp_ns))
    return vehicle.flow_of(stamp_ns, timeout=10)


def test_flow_comes_from_the_gpu(cache):
    with gpu_node(cache, '-p', f'model_path:={DEFAULT_MODELS["tensorrt"]}') as node, Vehicle() as vehicle:
        vehicle.connect(node, timeout=60)
        assert 'can take minutes' in node.log and 'tensorrt 11.0.0 on Simulated GPU' in node.log
        vehicle.send(cloud(scene(), DT_NS))
        vehicle.spin(0.3)
        flow = flow_of_next(vehicle, 2 * DT_NS)
        assert flow is not None, node.log
        assert column(flow, 'flow_valid').any()
        status = vehicle.status('model', lambda status, values: 'Simulated GPU' in values.get('engine', ''))
        assert status and status.level == OK
        assert node.stop()[0] == 0


@pytest.mark.parametrize('has_fallback', [True, False])
def test_a_gpu_that_breaks_in_the_middle_of_a_drive(cache, has_fallback):
    fallback = ('-p', 'cpu_fallback:=true') if has_fallback else ()
    with gpu_node(cache, *fallback) as node, Vehicle() as vehicle:
        vehicle.connect(node, timeout=60)
        vehicle.send(cloud(scene(), DT_NS))
        vehicle.spin(0.3)
        assert flow_of_next(vehicle, 2 * DT_NS) is not None, node.log
        node.process.send_signal(signal.SIGUSR1)
        vehicle.spin(0.2)
        flow = flow_of_next(vehicle, 3 * DT_NS) if has_fallback else vehicle.send(cloud(scene(), 3 * DT_NS))
        if has_fallback:
            assert flow is not None, node.log
            status = vehicle.status('model', lambda status, values: status.level == WARN)
            assert status and 'onnxruntime' in status.message
        else:
            status = vehicle.status('inference', lambda status, values: values.get('dropped.engine_failed') == '1')
            assert status and status.level == ERROR and 'failed twice' in status.message, node.log
            node.process.send_signal(signal.SIGUSR2)
            vehicle.spin(0.2)
            assert flow_of_next(vehicle, 4 * DT_NS) is not None, node.log
        assert node.process.poll() is None


def test_a_gpu_that_stays_broken_makes_the_node_inactive(cache):
    with gpu_node(cache) as node, Vehicle() as vehicle:
        vehicle.connect(node, timeout=60)
        manager = Manager(vehicle)
        vehicle.send(cloud(scene(), DT_NS))
        vehicle.spin(0.3)
        assert flow_of_next(vehicle, 2 * DT_NS) is not None, node.log
        node.process.send_signal(signal.SIGUSR1)
        vehicle.spin(0.2)
        for k in (3, 4):
            vehicle.send(cloud(scene(), k * DT_NS))
            vehicle.spin(0.3)
        status = vehicle.status('model', lambda status, values: status.level == ERROR)
        assert status and 'failed on 2 sweeps in a row' in status.message, node.log
        assert manager.state() == INACTIVE
        node.process.send_signal(signal.SIGUSR2)
        vehicle.spin(0.2)
        assert manager.change(ACTIVATE)
        assert flow_of_next(vehicle, 5 * DT_NS) is not None, node.log
        assert manager.state() == ACTIVE and node.process.poll() is None


def test_a_lost_gpu_ends_the_process_so_that_a_new_one_can_use_it(cache):
    with gpu_node(cache) as node, Vehicle() as vehicle:
        vehicle.connect(node, timeout=60)
        vehicle.send(cloud(scene(), DT_NS))
        vehicle.spin(0.3)
        assert flow_of_next(vehicle, 2 * DT_NS) is not None, node.log
        node.process.send_signal(signal.SIGRTMIN)
        vehicle.spin(0.2)
        vehicle.send(cloud(scene(), 3 * DT_NS))
        assert node.process.wait(10) == 1, node.log
        assert 'takes no more calls of this process' in node.log and 'Traceback' not in node.log


def test_a_lost_gpu_is_left_to_the_cpu_where_that_is_allowed(cache):
    with gpu_node(cache, '-p', 'cpu_fallback:=true') as node, Vehicle() as vehicle:
        vehicle.connect(node, timeout=60)
        vehicle.send(cloud(scene(), DT_NS))
        vehicle.spin(0.3)
        assert flow_of_next(vehicle, 2 * DT_NS) is not None, node.log
        node.process.send_signal(signal.SIGRTMIN)
        vehicle.spin(0.2)
        assert flow_of_next(vehicle, 3 * DT_NS) is not None, node.log
        assert node.process.poll() is None


def test_build_only_builds_and_ends(tmp_path):
    with gpu_node(tmp_path, '-p', 'build_only:=true') as node:
        assert node.process.wait(60) == 0, node.log
        assert 'Ready: tensorrt 11.0.0' in node.log
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    'arguments, says',
    [
        (('-p', 'engine:=tensorrt'), 'set engine to onnxruntime'),
        (('-p', 'engine:=tensorrt', '-p', 'build_only:=true'), 'set engine to onnxruntime'),
        (('-p', 'build_only:=true'), 'build_only and cpu_fallback are for engine tensorrt'),
    ],
)
def test_without_a_gpu_it_ends_with_the_remedy(arguments, says):
    with NodeProcess(*arguments) as node:
        assert node.process.wait(60) == 1, node.log
        assert says in node.log and 'Traceback' not in node.log
