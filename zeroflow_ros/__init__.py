# SPDX-License-Identifier: Apache-2.0
"""Real-time LiDAR scene flow on the vehicle: numpy, one engine, and ROS 2 at the edges."""

import os
import re
import signal
import sys
import threading

__version__ = '0.1.0'

# Programs that Ctrl-C stops in the regular way; their exit status is then 0.
_LIVE = ('node', 'flow_node', 'object_tracker', 'recorder', 'replay')
_OFFLINE = ('--offline', '--view', '--view-file')  # of replay
_INTERRUPTED = 130  # 128 + SIGINT, as in a shell
_ENTRY_POINT = re.compile(rb'zeroflow[-_]ros.*console_scripts|from zeroflow_ros\.\w+ import main')  # colcon's, pip's


def exit_status_at_start(command: list[str]) -> int | None:
    """Return the exit status of a program that is stopped before it runs; None for a process of another program.

    command: the command line of the process, sys.orig_argv.
    """
    program = ''
    for k, argument in enumerate(command[1:], start=1):
        if argument == '-m':
            package, _, program = ''.join(command[k + 1 : k + 2]).partition('.')
            program = program if package == 'zeroflow_ros' else ''
        elif not argument.startswith('-'):
            program = os.path.basename(argument) if _is_entry_point(argument) else ''
        if argument in ('-m', '-c') or not argument.startswith('-'):
            break
    if program in _LIVE and not any(argument.split('=')[0] in _OFFLINE for argument in command):
        return 0
    return _INTERRUPTED if program in (*_LIVE, 'demo') else None


def _is_entry_point(path: str) -> bool:
    """Return whether a script is an installed program of this package, not one of the same name."""
    try:
        with open(path, 'rb') as file:
            return _ENTRY_POINT.search(file.read(4096)) is not None
    except OSError:
        return False


def _end_quietly_on_interrupt() -> None:
    """Let Ctrl-C end a program of this package without a traceback until it handles Ctrl-C: imports take a second."""
    status = exit_status_at_start(sys.orig_argv)
    is_main = threading.current_thread() is threading.main_thread()
    if status is not None and is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(status))


_end_quietly_on_interrupt()  # does nothing in any other process
