# SPDX-License-Identifier: Apache-2.0
"""What breaks around the node, or the node itself: a second after the next good input it serves again.

Disks that are full: test_recorder.py. Clocks that jump: test_node_bad_input.py. Models that do not open:
test_lifecycle.py.
"""

import signal
import time

import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import Drive, NodeProcess, Vehicle, cloud  # noqa: E402

ODOMETRY = '-p', 'ego_motion:=odometry', '-p', 'ego_motion_timeout_s:=0.05'


def serve_within_a_second(drive) -> None:
    """Send good sweeps; the second one must have flow within a second."""
    start = time.monotonic()
    drive.serve()
    assert time.monotonic() - start < 1.0 + 1.0, drive.node.log  # the first one makes no pair: serve() waits 1 s for it


def wait_until_clouds_arrive(drive) -> None:
    """Send good sweeps until the node reports one: DDS loses those that come before it has matched both sides."""
    arrived = lambda _, values: values['received'] != '0'  # noqa: E731
    for _ in range(25):
        drive.good()
        if drive.vehicle.status('input', arrived, 0.2):
            return
    raise AssertionError(f'no cloud arrives within 5 s: {drive.node.log}')


def test_killed_and_started_again_it_serves_the_same_topics():
    with Vehicle(markers=False) as vehicle:
        for _ in range(2):
            with NodeProcess(*ODOMETRY) as node:
                vehicle.spin(0.3)  # takes the last reports of the killed node
                vehicle.statuses = {}  # DDS remembers a killed node for 20 s: only this one's reports say that it is up
                vehicle.connect(node)
                drive = Drive(node, vehicle)
                wait_until_clouds_arrive(drive)
                serve_within_a_second(drive)
                node.process.send_signal(signal.SIGKILL)
                node.process.wait(5)


def test_a_driver_that_vanishes_and_returns_is_served_again():
    with NodeProcess(*ODOMETRY, '-p', 'input_timeout_s:=0.5') as node:
        with Vehicle(markers=False) as vehicle:
            vehicle.connect(node)
            serve_within_a_second(Drive(node, vehicle))
        with Vehicle(markers=False) as vehicle:
            shown = lambda status, _: 'No cloud for' in status.message  # noqa: E731
            assert vehicle.status('input', shown, 15), node.log
            vehicle.connect(node)
            drive = Drive(node, vehicle)
            drive.now_ns += 3600 * 10**9
            serve_within_a_second(drive)


def test_odometry_that_stops_fails_closed_and_recovers():
    with NodeProcess(*ODOMETRY) as node, Vehicle(markers=False) as vehicle:
        vehicle.connect(node)
        drive = Drive(node, vehicle)
        drive.serve()
        vehicle.flows.clear()
        for _ in range(12):
            drive.now_ns += 10**8
            vehicle.send(cloud(drive.points, drive.now_ns))
            vehicle.spin(0.1)
        shown = lambda s, v: int(v['dropped.no_ego_motion']) >= 10 and s.level == b'\x02'  # noqa: E731
        assert vehicle.status('ego_motion', shown), node.log
        assert not vehicle.flows
        serve_within_a_second(drive)
        assert vehicle.status('ego_motion', lambda s, _: s.level == b'\x00', 10), vehicle.statuses


def test_a_model_file_that_is_removed_while_it_runs_is_not_missed(tmp_path):
    from zeroflow_ros.engines.selection import DEFAULT_MODEL

    model = tmp_path / 'model.onnx'
    model.write_bytes(DEFAULT_MODEL.read_bytes())
    with NodeProcess(*ODOMETRY, '-p', f'model_path:={model}') as node, Vehicle(markers=False) as vehicle:
        vehicle.connect(node)
        drive = Drive(node, vehicle)
        drive.serve()
        model.unlink()
        serve_within_a_second(drive)
