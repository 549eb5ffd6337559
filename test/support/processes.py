# SPDX-License-Identifier: Apache-2.0
"""ProcessGroup of this package as separate processes, on a ROS domain that no other test uses."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOMAIN_ID = 1 + os.getpid() % 100  # parallel test workers are processes, so each has its own domain


def environment() -> dict:
    """Return the environment for a process on the private domain."""
    return {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'ROS_DOMAIN_ID': str(DOMAIN_ID),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'PYTHONUNBUFFERED': '1',
    }


@contextmanager
def started(module: str, *args):
    """Start `python -m zeroflow_ros.<module>` and kill it at the end, also when the test fails."""
    command = [sys.executable, '-m', f'zeroflow_ros.{module}', *map(str, args)]
    # A suite in the background ignores SIGINT, and its children would inherit that; they must react to Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(module: str, *args, timeout: float = 60.0) -> tuple[int, str]:
    """Run `python -m zeroflow_ros.<module>` to its end; return its exit status and output."""
    with started(module, *args) as process:
        text, _ = process.communicate(timeout=timeout)
        return process.returncode, text
