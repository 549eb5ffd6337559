# SPDX-License-Identifier: Apache-2.0
"""How a program that runs a node ends. Ctrl-C at any moment: test_shutdown.py."""

import subprocess
import sys

import pytest
from processes import environment

pytest.importorskip('rclpy', reason='needs rclpy')

PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from zeroflow_ros.ros.ros_program import run_node
def make():
    {body}
sys.exit(run_node('program', ['program'], make))
"""
STOP = 'os.kill(os.getpid(), signal.SIGINT); time.sleep(5)'


@pytest.mark.parametrize(
    'label, body, status',
    [
        ('Ctrl-C while the node is made', STOP, 0),
        # Imports and numba run text with exec(); CPython then ends the process by SIGINT, although it was handled.
        ('inside exec()', f"exec('{STOP}', globals())", 0),
        ('an error that came of it', f'try:\n        {STOP}\n    except KeyboardInterrupt:\n        raise OSError', 0),
        ('an argument that ROS refuses', "raise RuntimeError('bad')", 1),
    ],
)
def test_a_stopped_start_ends_with_status_0(tmp_path, label, body, status):
    (tmp_path / 'program.py').write_text(PROGRAM.format(body=body))
    done = subprocess.run(
        [sys.executable, '-m', 'program'], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, 'Traceback' in done.stderr) == (status, False), done.stderr
