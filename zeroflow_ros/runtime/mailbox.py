# SPDX-License-Identifier: Apache-2.0
"""A one-item mailbox: a callback puts without waiting, a worker takes the newest item."""

import threading
from collections import deque


class Mailbox:
    """A slot for the newest item, and the one that it overtook."""

    def __init__(self):
        self._changed = threading.Condition()
        self._items: deque = deque(maxlen=2)
        self._closed = False

    def put(self, item) -> bool:
        """Leave an item; return whether one fell out for it."""
        with self._changed:
            is_full = len(self._items) == 2
            self._items.append(item)
            self._changed.notify()
        return is_full

    def take(self) -> list:
        """Wait for an item and return all there is, the newest last; nothing once the mailbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items)
            items = [] if self._closed else list(self._items)
            self._items.clear()
        return items

    def close(self) -> None:
        """Let take() return at once, for good."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
