# SPDX-License-Identifier: Apache-2.0
import threading
import time

from zeroflow_ros.runtime.mailbox import Mailbox


def test_mailbox_keeps_the_newest_and_the_one_before():
    mailbox = Mailbox()
    assert not mailbox.put('a') and mailbox.take() == ['a']
    assert [mailbox.put(item) for item in 'bcde'] == [False, False, True, True]
    assert mailbox.take() == ['d', 'e']
    mailbox.put('f')
    mailbox.close()
    assert mailbox.take() == []


def test_mailbox_wakes_who_waits():
    mailbox, got = Mailbox(), []
    thread = threading.Thread(target=lambda: got.extend([mailbox.take(), mailbox.take()]), daemon=True)
    thread.start()
    mailbox.put('a')
    while not got and mailbox._items:
        time.sleep(0.001)
    mailbox.close()
    thread.join(5)
    assert got == [['a'], []]
