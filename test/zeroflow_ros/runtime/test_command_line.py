# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
import threading

import pytest
from processes import ROOT

from zeroflow_ros import exit_status_at_start
from zeroflow_ros.runtime.command_line import interrupt_normally, split_ros_args, stop_on_signals

# The main thread is inside wait() nearly all of the time, where a handler that takes the event's lock waits forever.
_MANY_SIGNALS = """
import os, signal, threading, time
from zeroflow_ros.runtime.command_line import stop_on_signals
for _ in range(300):
    with stop_on_signals() as stop:
        sender = threading.Thread(target=lambda: (time.sleep(0.002), os.kill(os.getpid(), signal.SIGINT)))
        sender.start()
        while not stop.is_set():
            stop.wait(0)
        sender.join()
"""


def test_a_signal_in_the_middle_of_a_wait_stops_it():
    ended = subprocess.run(
        [sys.executable, '-c', _MANY_SIGNALS], cwd=ROOT, timeout=60, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, '')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_handlers_are_put_back(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(5)
    assert signal.getsignal(number) == before
    assert 'signals' not in {thread.name for thread in threading.enumerate()}


def test_without_a_signal_nothing_is_set():
    with stop_on_signals() as stop:
        pass
    assert not stop.is_set()


def test_ros_arguments_are_told_apart():
    assert split_ros_args(['a', '--ros-args', '-r', 'x:=y', '--', '--rate', '2']) == (
        ['a', '--rate', '2'],
        ['--ros-args', '-r', 'x:=y'],
    )
    assert split_ros_args(['a']) == (['a'], [])
    assert split_ros_args(['--ros-args', '-p', 'b:=1']) == ([], ['--ros-args', '-p', 'b:=1'])


@pytest.mark.parametrize(
    'line, status',
    [
        ('python -m zeroflow_ros.node --ros-args', 0),
        ('python -u -m zeroflow_ros.object_tracker', 0),
        ('python -m zeroflow_ros.replay drive', 0),
        ('python -m zeroflow_ros.replay drive --offline --out x', 130),
        ('python -m zeroflow_ros.demo', 130),
        ('python -m zeroflow_ros.parameters', None),
        ('python -m pytest test/zeroflow_ros/test_node.py', None),
        ('python -m training.train --config replay', None),
        ('python -m other.node', None),
        ('python -c pass', None),
        ('python', None),
    ],
)
def test_a_program_of_this_package_is_known_by_its_command_line(line, status):
    assert exit_status_at_start(line.split()) == status


@pytest.mark.parametrize(
    'name, text, more, status',
    [
        ('flow_node', "load_entry_point('zeroflow-ros', 'console_scripts', 'flow_node')()", '--ros-args', 0),
        ('recorder', 'from zeroflow_ros.recorder import main', '--out x', 0),
        ('replay', 'from zeroflow_ros.replay import main', 'drive --view-file=x.rrd', 130),
        ('recorder', 'from zeroflow_ros.bags.bag import Bag', '', None),  # of somebody else
        ('recorder', "load_entry_point('other', 'console_scripts', 'recorder')()", '', None),
        ('pytest', 'from zeroflow_ros.replay import main', 'replay', None),
    ],
)
def test_an_installed_program_is_told_from_others_of_its_name(tmp_path, name, text, more, status):
    (tmp_path / name).write_text(f'#!/usr/bin/python3\n{text}\n')
    assert exit_status_at_start(['python3', str(tmp_path / name), *more.split()]) == status


def test_another_process_keeps_its_ctrl_c():
    before = signal.getsignal(signal.SIGINT)
    interrupt_normally()
    assert signal.getsignal(signal.SIGINT) is before
