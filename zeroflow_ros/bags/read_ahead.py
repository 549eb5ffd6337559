# SPDX-License-Identifier: Apache-2.0
"""Read the next items of an iterator in a background thread."""

import contextlib
import queue
import threading
from collections.abc import Iterator

_CAPACITY = 16  # items; 64 MB for clouds of 4 MB each


class ReadAhead:
    """Iterates in its own thread, so that reading and decompression do not delay the consumer."""

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
        except Exception as error:  # raised again in `__iter__`
            self._put(('error', error))

    def _put(self, entry) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(entry, timeout=0.1)
                return True
        return False
