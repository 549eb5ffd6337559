# SPDX-License-Identifier: Apache-2.0
"""Run several programs of this package as subprocesses: log files, supervision, guaranteed end."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from zeroflow_ros.errors import ZeroFlowError

_LOG_TAIL = 30  # lines
_POLL = 0.1  # s


class ProgramError(ZeroFlowError):
    """A program that failed or timed out."""


class StoppedError(Exception):
    """The user wants to stop."""


class ProcessGroup:
    """Runs `python -m MODULE` by name; leaving the `with` block ends all of them.

    folder: for their logs, NAME.log. environment: variables added to those of this process. deadline:
    time.monotonic() at which every wait ends. stop: ends every wait when set.
    """

    def __init__(self, folder: Path, environment: dict, deadline: float, stop: threading.Event):
        self._folder, self._environment, self.deadline, self._stop = folder, environment, deadline, stop
        self._running: dict[str, subprocess.Popen] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> 'ProcessGroup':
        return self

    def __exit__(self, *_) -> None:
        for number in (signal.SIGINT, signal.SIGKILL):
            for process in self._running.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)  # and its children
            end = time.monotonic() + 3.0
            for process in self._running.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))

    def start(self, name: str, module: str, *args) -> subprocess.Popen:
        """Start a program; its output goes to its log."""
        with self.log(name).open('w') as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, '-m', module, *map(str, args)], stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env={**os.environ, 'PYTHONUNBUFFERED': '1', **self._environment},
                start_new_session=True,  # Ctrl-C reaches only this process, which interrupts the others
            )  # fmt: skip
        return self._running[name]

    def log(self, name: str) -> Path:
        """Return the path of a program's log."""
        return self._folder / f'{name}.log'

    def wait_until(self, condition: Callable[[], bool], what: str, *, timeout: float = float('inf')) -> None:
        """Wait for a condition while every program runs or has ended with status 0.

        Raises: ProgramError, with the ends of the logs, when a program fails or time is up; StoppedError when stopped.
        """
        end = min(self.deadline, time.monotonic() + timeout)
        while not condition():
            if self._stop.wait(_POLL):
                raise StoppedError
            for name, process in self._running.items():
                if process.poll():
                    raise self.failure(name, f'ended with status {process.returncode}')
            if time.monotonic() > end:
                raise ProgramError(
                    f'Time is up while waiting for {what}. The logs are in {self._folder}:{self._tails()}'
                )

    def wait_for_exit(self, name: str, what: str, *, timeout: float = float('inf')) -> None:
        """Wait for the end of a program. Raises: as `wait_until`."""
        self.wait_until(lambda: self._running[name].poll() == 0, what, timeout=timeout)

    def interrupt(self, name: str) -> None:
        """Send SIGINT to a program, as Ctrl-C does."""
        if self._running[name].poll() is None:
            self._running[name].send_signal(signal.SIGINT)

    def is_running(self, name: str) -> bool:
        """Return whether a program has not ended."""
        return self._running[name].poll() is None

    def failure(self, name: str, what: str) -> ProgramError:
        """Return the error of one program, with the end of its log."""
        return ProgramError(f'The {name} {what}. {self.log(name)} ends with:\n{self._tail(name)}')

    def _tail(self, name: str) -> str:
        return '\n'.join(f'  {line}' for line in self.log(name).read_text(errors='replace').splitlines()[-_LOG_TAIL:])

    def _tails(self) -> str:
        return ''.join(f'\n{name}:\n{self._tail(name)}' for name in self._running)


def resident_megabytes(pid: int) -> float | None:
    """Return the resident memory of a process [MB]; None when it has ended."""
    try:
        for line in Path(f'/proc/{pid}/status').read_text().splitlines():
            if line.startswith('VmRSS:'):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    return None
