# SPDX-License-Identifier: Apache-2.0
"""Read in the background what will be needed next."""

import contextlib
import queue
import threading
from collections.abc import Iterator

_CAPACITY = 16  # items; 64 MB when they are clouds of 4 MB


class ReadAhead:
    """Iterates in a thread of its own, so that reading and decompressing do not disturb the timing of the reader."""

    def __init__(self, source: Iterator, capacity: int = _CAPACITY):
        self._queue: queue.Queue = queue.Queue(capacity)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(source,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator:
        while True:
            kind, value = self._queue.get()
            if kind == 'item':
                yield value
            elif kind == 'end':
                return
            else:
                raise value

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()

    def _read(self, source) -> None:
        try:
            for item in source:
                if not self._put(('item', item)):
                    return
            self._put(('end', None))
        except Exception as error:  # belongs to whoever iterates
            self._put(('error', error))

    def _put(self, entry) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(entry, timeout=0.1)
                return True
        return False
