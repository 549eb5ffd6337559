# SPDX-License-Identifier: Apache-2.0
"""A mailbox of two items: a callback puts without waiting, a worker takes the newest items."""

import threading
from collections import deque


class Mailbox:
    """Holds the newest item and the one before it."""

    def __init__(self):
        self._changed = threading.Condition()
        self._items: deque = deque(maxlen=2)
        self._closed = False

    def put(self, item) -> bool:
        """Put an item; return whether the oldest one was discarded for it."""
        with self._changed:
            is_full = len(self._items) == 2
            self._items.append(item)
            self._changed.notify()
        return is_full

    def take(self) -> list:
        """Wait for an item; return all items, the newest last, or none once the mailbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items)
            items = [] if self._closed else list(self._items)
            self._items.clear()
        return items

    def close(self) -> None:
        """Make take() return at once from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
