# SPDX-License-Identifier: Apache-2.0
"""The node under a lifecycle manager, over real DDS."""

import signal
import time

import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import NodeProcess, Vehicle, cloud, column, scene, stamp_of  # noqa: E402
from lifecycle_manager import (  # noqa: E402
    ACTIVATE,
    ACTIVE,
    CLEANUP,
    CONFIGURE,
    DEACTIVATE,
    FINALIZED,
    INACTIVE,
    UNCONFIGURED,
    Manager,
)  # fmt: skip
from lifecycle_msgs.msg import Transition  # noqa: E402

S = 1_000_000_000
DT_NS = S // 10
STANDING = '-p', 'ego_motion:=none'
MANAGED = *STANDING, '-p', 'autostart:=false'


def drive(vehicle, start_ns: int, sweeps: int) -> list[int]:
    """Send sweeps, 0.1 s apart; return the stamps of all."""
    stamps = [start_ns + k * DT_NS for k in range(sweeps)]
    for stamp_ns in stamps:
        vehicle.send(cloud(scene(), stamp_ns))
        vehicle.spin(0.15)
    return stamps


def test_it_starts_itself_unless_told_not_to():
    with NodeProcess(*STANDING) as node, Vehicle() as vehicle:
        vehicle.connect(node)
        assert Manager(vehicle).state() == ACTIVE
    with NodeProcess(*MANAGED) as node, Vehicle() as vehicle:
        assert Manager(vehicle).state() == UNCONFIGURED
        assert not vehicle.node.count_publishers('/flow_node/output/flow') and node.lines == []
        code, seconds = node.stop(signal.SIGTERM)
        assert code == 0 and seconds < 3 and 'Traceback' not in node.log


def test_a_manager_takes_it_through_its_states():
    with NodeProcess(*MANAGED) as node, Vehicle() as vehicle:
        manager = Manager(vehicle)
        assert manager.change(CONFIGURE) and manager.state() == INACTIVE
        vehicle.connect(node)
        first = drive(vehicle, time.time_ns(), 3)
        kept = lambda _, v: (v['skipped_inactive'], v['published'], v['active']) == ('2', '0', 'False')  # noqa: E731
        assert vehicle.status('inference', kept), node.log
        # The first sweep of an active node makes a pair with the last one that came before.
        assert manager.change(ACTIVATE) and manager.state() == ACTIVE
        (stamp_ns,) = drive(vehicle, first[-1] + DT_NS, 1)
        assert column(vehicle.flow_of(stamp_ns), 'flow_valid').any(), node.log
        assert [stamp_of(flow) for flow in vehicle.flows] == [stamp_ns]
        # Deactivated it falls silent, and goes on to keep sweeps.
        assert manager.change(DEACTIVATE) and manager.state() == INACTIVE
        silent = drive(vehicle, stamp_ns + DT_NS, 2)
        assert [stamp_of(flow) for flow in vehicle.flows] == [stamp_ns]
        assert manager.change(ACTIVATE)
        (stamp_ns,) = drive(vehicle, silent[-1] + DT_NS, 1)
        assert vehicle.flow_of(stamp_ns), node.log
        # Cleaned up it has neither topics nor a thread left, and can be configured again, with counters from zero.
        assert manager.change(DEACTIVATE) and manager.change(CLEANUP) and manager.state() == UNCONFIGURED
        gone = lambda: not vehicle.node.count_publishers('/flow_node/output/flow')  # noqa: E731
        assert vehicle.wait_for(gone, 5) and not vehicle.clouds_out.get_subscription_count()
        vehicle.statuses = {}
        assert manager.change(CONFIGURE) and manager.change(ACTIVATE)
        vehicle.connect(node)
        stamps = drive(vehicle, time.time_ns(), 2)
        assert vehicle.flow_of(stamps[-1]), node.log
        assert vehicle.status('inference', lambda _, v: v['published'] == '1')
        assert manager.change(Transition.TRANSITION_ACTIVE_SHUTDOWN) and manager.state() == FINALIZED
        code, _ = node.stop()
        assert code == 0 and 'Traceback' not in node.log, node.log


def test_what_cannot_be_configured_is_said_and_can_be_tried_again(tmp_path):
    """The remedy is at hand while the node runs: the model file is put where the parameter says."""
    from zeroflow_ros.engines.selection import DEFAULT_MODEL

    model = tmp_path / 'model.onnx'
    with NodeProcess(*MANAGED, '-p', f'model_path:={model}') as node, Vehicle() as vehicle:
        manager = Manager(vehicle)
        assert not manager.change(CONFIGURE) and manager.state() == UNCONFIGURED
        assert vehicle.wait_for(lambda: f'No model file at {model}' in node.log, 5), node.log
        assert not manager.change(ACTIVATE) and manager.state() == UNCONFIGURED
        model.write_bytes(DEFAULT_MODEL.read_bytes())
        assert manager.change(CONFIGURE) and manager.change(ACTIVATE), node.log
        vehicle.connect(node)
        stamps = drive(vehicle, time.time_ns(), 2)
        assert vehicle.flow_of(stamps[-1]), node.log


def test_configured_over_and_over_it_does_not_grow():
    with NodeProcess(*MANAGED) as node, Vehicle() as vehicle:
        manager = Manager(vehicle)
        resident = []
        for _ in range(12):
            assert manager.change(CONFIGURE) and manager.change(ACTIVATE)
            assert manager.change(DEACTIVATE) and manager.change(CLEANUP)
            resident.append(node.resident_mb())
        assert resident[-1] < resident[3] + 80, resident  # MB: an engine that stayed each time would be over 250


def test_two_nodes_in_two_namespaces_keep_apart():
    with NodeProcess('-r', '__ns:=/left', *STANDING) as left, NodeProcess('-r', '__ns:=/right', *MANAGED) as right:
        with Vehicle('/left') as vehicle, Vehicle('/right') as other:
            vehicle.connect(left)
            manager = Manager(other, '/right/flow_node')
            assert manager.change(CONFIGURE) and manager.change(ACTIVATE)
            other.connect(right)
            stamps = drive(vehicle, time.time_ns(), 2)
            assert vehicle.flow_of(stamps[-1]), left.log
            other.spin(0.5)
            assert not other.flows
