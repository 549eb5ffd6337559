# SPDX-License-Identifier: Apache-2.0
"""End a launch when one of its nodes ends by itself, with the node's own reason as the last line.

Imported by launch files only: it needs ROS's launch.
"""

import re
import signal
from collections import defaultdict, deque
from collections.abc import Iterable

_NUM_KEPT = 50  # last lines of each node
_SEVERE = re.compile(r'\[(?:FATAL|ERROR)\] \[[\d.]+\] \[[^\]]*\]: (.*)')  # as rcutils writes them
_COLOUR = re.compile(r'\x1b\[\d*m')


def reason_in_log(lines: Iterable[str]) -> str:
    """Return the last error of a log without its prefix; the last line if there is no error, '' for no log."""
    lines = [_COLOUR.sub('', line).strip() for line in lines]
    lines = [line for line in lines if line]
    severe = [match[1] for line in lines if (match := _SEVERE.search(line))]
    return (severe or lines or [''])[-1]


def end_text(name: str, status: int, reason: str) -> str:
    """Return one sentence on how a process ended. status: as of subprocess, negative for a signal."""
    if status >= 0:
        how = f'has ended with exit status {status}'
    else:
        number = -status
        known = number in {one.value for one in signal.Signals}
        how = f'was ended by {signal.Signals(number).name if known else f"signal {number}"}'
        if number == signal.SIGKILL:
            how += ', as when memory runs out'
    return f'{name} {how}: {reason}' if reason else f'{name} {how}.'


class RequiredNodes:
    """Watches nodes of one launch description. The first one that fails ends the launch, whose status is then 1.

    Its reason is repeated when the last process has ended. Ctrl-C is no failure.
    """

    def __init__(self):
        self._watched: dict = {}  # action of a node: reason to shut down when it ends without an error, or None
        self._logs = defaultdict(lambda: deque(maxlen=_NUM_KEPT))
        self._running: set[int] = set()  # process IDs
        self._failure = ''

    def watch(self, node, *, reason: str | None = 'has ended'):
        """Watch a node and return it. reason: of the shutdown when it ends without an error; None: no shutdown."""
        self._watched[node] = reason
        return node

    def handlers(self) -> list:
        """Return the actions that register the event handlers; they go before the nodes."""
        from launch import Event, EventHandler
        from launch.actions import EmitEvent, OpaqueFunction, RegisterEventHandler, Shutdown
        from launch.event_handlers import OnProcessExit, OnProcessIO, OnProcessStart

        class AllEnded(Event):
            """After a failure the last process has ended."""

            name = 'zeroflow_ros.AllEnded'

        def is_watched(action) -> bool:
            return action in self._watched

        def on_start(event, context) -> None:
            self._running.add(event.pid)

        def on_output(event) -> None:
            self._logs[event.action].extend(event.text.decode(errors='replace').splitlines())

        def on_exit(event, context) -> list:
            self._running.discard(event.pid)
            actions = []
            if is_watched(event.action) and not context.is_shutdown:
                if event.returncode:
                    log = reason_in_log(self._logs[event.action])
                    self._failure = self._failure or end_text(event.process_name, event.returncode, log)
                    actions = [Shutdown(reason=self._failure)]
                elif self._watched[event.action] is not None:
                    actions = [Shutdown(reason=f'{event.process_name} {self._watched[event.action]}')]
            if self._failure and not self._running:
                actions.append(EmitEvent(event=AllEnded()))  # after the other handlers of this exit
            return actions

        def fail(context) -> None:
            failure, self._failure = self._failure, ''
            if failure:
                raise RuntimeError(failure)  # launch logs it and returns 1

        return [
            RegisterEventHandler(OnProcessStart(on_start=on_start)),
            RegisterEventHandler(OnProcessIO(target_action=is_watched, on_stdout=on_output, on_stderr=on_output)),
            RegisterEventHandler(OnProcessExit(on_exit=on_exit)),
            RegisterEventHandler(
                EventHandler(
                    matcher=lambda event: isinstance(event, AllEnded), entities=[OpaqueFunction(function=fail)]
                )
            ),
        ]
