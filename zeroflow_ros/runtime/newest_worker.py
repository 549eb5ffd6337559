# SPDX-License-Identifier: Apache-2.0
"""A thread that processes the newest input and survives bad ones: what the workers of the nodes share."""

import threading
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from zeroflow_ros.errors import GpuLostError, ModelError
from zeroflow_ros.runtime.health import Health
from zeroflow_ros.runtime.mailbox import Mailbox

_JUMP_MARGIN_NS = 100_000_000
_OVERTAKEN_TEXT = 'A newer cloud arrived before this one was processed.'


class Stamped(Protocol):
    """Anything with a stamp [ns]."""

    stamp_ns: int


class NewestWorker:
    """Process one input at a time, always the newest; the one before it may still be kept to pair with the newest.

    A worker implements `process`, and may refine `_can_skip` and `_malformed`.

    drops: reasons to drop an input, with the members OVERTAKEN and ENGINE. is_open: returns False once nothing can be
    published any more. now_ns: the clock that the inputs are stamped by.
    """

    def __init__(self, name: str, health: Health, drops: type[Enum], *, is_open: Callable[[], bool],
                 now_ns: Callable[[], int]):  # fmt: skip
        self._health, self._drops, self._is_open, self._now_ns = health, drops, is_open, now_ns
        self._mailbox = Mailbox()
        self._clock_jumped = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.active = False  # whether it publishes; if not, it only keeps the last input
        self.num_failures = 0  # inputs in a row on which the engine failed, since activation
        self.gpu_lost = ''  # why only a new process can use the GPU again
        self._publishing = threading.Lock()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current input."""
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def set_active(self, active: bool) -> None:
        """Start or stop publishing; once it has stopped, nothing more is published after this returns."""
        with self._publishing:
            self.active, self.num_failures = active, 0

    def clock_jumped_back(self) -> None:
        """Record that the clock went back, so that the next input starts over if the last one is now in the future."""
        self._clock_jumped = True

    def process(self, item, received: float, *, overtaken: bool = False) -> None:
        """Process one input, or count why not.

        received: time.perf_counter() when it arrived. overtaken: keep it only to pair with the next one.
        """
        raise NotImplementedError

    def _can_skip(self, item, newest) -> bool:
        """Return whether an overtaken input is not needed to make a pair with the newest one."""
        return False

    def _malformed(self, error: Exception) -> Enum | None:
        """Return the reason where an error is the fault of the input; None where it is ours or the engine's."""
        return None

    def _put(self, item, received: float) -> None:
        """Hand over the newest input; returns at once."""
        if self._mailbox.put((item, received)):
            self._drop_overtaken()

    def _drop_overtaken(self) -> None:
        self._health.record_dropped(self._drops.OVERTAKEN, _OVERTAKEN_TEXT)

    def _work(self) -> None:
        while entries := self._mailbox.take():
            if not self._process_all(entries):
                return

    def _process_all(self, entries: list) -> bool:
        """Process (input, time of arrival), the newest last; return False once nothing can be published any more."""
        for entry in entries:
            item, received = entry
            overtaken = entry is not entries[-1]
            if overtaken and self._can_skip(item, entries[-1][0]):
                self._drop_overtaken()
                continue
            try:
                self.process(item, received, overtaken=overtaken)
            except Exception as error:  # of any kind: drop this input, go on with the next
                if (reason := self._malformed(error)) is not None:
                    self._health.record_dropped(reason, str(error))
                    continue
                self.num_failures += isinstance(error, ModelError)
                self.gpu_lost = str(error) if isinstance(error, GpuLostError) else ''
                if not self._is_open():
                    return False
                text = f'This sweep failed: {type(error).__name__}: {error}'
                self._health.record_dropped(self._drops.ENGINE, text)
        return True

    def _clock_went_back(self, last: Stamped | None, latest: Stamped) -> bool:
        """Return whether the clock went back between the last input and this one."""
        ahead_ns = self._now_ns() + _JUMP_MARGIN_NS
        if not self._clock_jumped or last is None or latest.stamp_ns > ahead_ns:
            return False
        self._clock_jumped = False
        return last.stamp_ns > ahead_ns
