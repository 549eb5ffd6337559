# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at any moment, from the first import on: no traceback from any thread, and the exit status of a regular end.

More moments than a test has time for: python3 test/zeroflow_ros/test_shutdown.py --count 50
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from processes import ROOT, environment
from tiny_bag import write_bag

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import Vehicle, cloud, scene  # noqa: E402
from geometry_msgs.msg import TransformStamped  # noqa: E402

STAND_INS = ROOT / 'test' / 'support' / 'stand_ins'  # tf2_ros
TRACKER_INPUT = '-r ~/input/dynamic_points:=/flow_node/output/flow'
COMMANDS = {
    'tf': 'node --ros-args -p ego_motion:=tf -p always_run:=true',
    'odometry': 'node --ros-args -p always_run:=true',
    'registration': 'node --ros-args -p ego_motion:=registration -p always_run:=true',
    'none': 'node --ros-args -p ego_motion:=none -p deskew:=false',
    'tracker': f'object_tracker --ros-args -p ego_motion:=tf {TRACKER_INPUT}',
    'recorder': 'recorder --out {out}.mcap',
    'replay': 'replay {bag} --loop',
    'offline': 'replay {bag} --offline --out {out}',
}
STATUS = {'recorder': (0, 1), 'offline': (0, 130)}  # 1: no flow came to record; 130: stopped


class Traffic:
    """Clouds, odometry and tf at 20 Hz, until it is closed."""

    def __init__(self):
        self.vehicle = Vehicle(flow=False, markers=False)
        self.tf = self.vehicle.node.create_publisher(TransformStamped, '/tf', 10)
        self.is_open = True
        self.thread = threading.Thread(target=self._send)
        self.thread.start()

    def _send(self):
        points, stamp_ns = scene(num_points=1500), 1_000 * 10**9
        while self.is_open:
            stamp_ns += 100_000_000
            self.vehicle.drive(stamp_ns)
            self.tf.publish(TransformStamped())
            self.vehicle.send(cloud(points, stamp_ns))
            time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.is_open = False
        self.thread.join()
        self.vehicle.close()


@pytest.fixture(scope='module')
def traffic():
    with Traffic() as one:
        yield one


def has_started(process, timeout=20.0) -> bool:
    """Wait until a program imports numpy: an interrupt of Python's own start is not in the program's hands."""
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        with open(f'/proc/{process.pid}/maps') as maps:
            if 'multiarray' in maps.read():
                return True
        time.sleep(0.01)
    return False


def stop_after(delay: float, kind: str, folder, *, second: float | None = None) -> tuple[int, str]:
    """Start a program, send SIGINT some seconds after its first import, and perhaps again; return status and output."""
    line = COMMANDS[kind].format(out=folder / f'{kind}_{delay:.3f}', bag=folder / 'drive')
    path = os.pathsep.join([str(ROOT), str(STAND_INS)])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    try:
        process = subprocess.Popen(
            [sys.executable, '-m', *f'zeroflow_ros.{line}'.split()], env=environment() | {'PYTHONPATH': path},
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert has_started(process)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        if second is not None:
            time.sleep(second)
            process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=30)
        return process.returncode, text
    finally:
        process.kill()
        process.wait()


def check(kind: str, delay: float, folder, second: float | None = None) -> str:
    """Return what is wrong with the end of a program; '' if nothing is."""
    status, text = stop_after(delay, kind, folder, second=second)
    is_right = status in STATUS.get(kind, (0,)) and 'Traceback' not in text and 'Exception' not in text
    return '' if is_right else f'{kind} after {delay:.2f} s ended with {status}:\n{text}'


# Seconds after the first import, and from there to a second Ctrl-C. The imports take some 0.5 s, the model 1 s.
MOMENTS = [
    ('tf', 0.2, None),
    ('tf', 1.2, None),
    ('tf', 2.5, 0.02),
    ('odometry', 0.05, None),
    ('registration', 1.6, None),
    ('none', 0.8, 0.1),
    ('tracker', 0.9, None),
    ('recorder', 0.4, None),
    ('replay', 0.6, None),
    ('offline', 1.0, None),
]


@pytest.mark.parametrize('kind, delay, second', MOMENTS)
def test_ctrl_c_leaves_no_traceback(traffic, tmp_path, kind, delay, second):
    write_bag(tmp_path / 'drive', num_sweeps=10)
    assert not check(kind, delay, tmp_path, second)


if __name__ == '__main__':
    import tempfile
    from pathlib import Path

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--count', type=int, default=20, help='stops of each program')
    parser.add_argument('--kinds', nargs='+', default=list(COMMANDS), choices=COMMANDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Traffic():
        write_bag(Path(folder) / 'drive', num_sweeps=10)
        for one in options.kinds:
            found = [check(one, random.uniform(0.0, 6.0), Path(folder)) for _ in range(options.count)]
            print(one, options.count, 'stops,', sum(map(bool, found)), 'wrong', flush=True)
            print(*filter(None, found), sep='\n', flush=True)
