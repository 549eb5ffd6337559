# SPDX-License-Identifier: Apache-2.0
import types
from pathlib import Path

import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from zeroflow_ros.bags import large_messages
from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.cdr import NUMBER, POINT_CLOUD
from zeroflow_ros.bags.large_messages import LARGE, write_large

SIZES = (100, LARGE - 1, LARGE, 40, 3 * LARGE + 7, 60, 20, LARGE + 1)


def write(path: Path, **options) -> list[tuple]:
    """Write messages of all SIZES on two topics, and return (topic, time, data) of each."""
    rng = np.random.default_rng(0)
    messages = []
    with BagWriter(path, **options) as writer:
        for k, size in enumerate(SIZES):
            topic, kind = (('/cloud', POINT_CLOUD), ('/number', NUMBER))[k % 2 if size < LARGE else 0]
            data = rng.bytes(size)
            writer.write(topic, kind, 1000 - 10 * (k == 4) + k, data)
            messages.append((topic, 1000 - 10 * (k == 4) + k, data))
    return messages


@pytest.mark.parametrize('options', [{}, {'compress': True}])
@pytest.mark.parametrize('is_direct', [True, False])
def test_all_messages_are_read_again(options, is_direct, tmp_path, monkeypatch):
    used = []

    def counted(*given) -> bool:
        used.append(is_direct and write_large(*given))
        return used[-1]

    monkeypatch.setattr(large_messages, 'write_large', counted)
    written = sorted(write(tmp_path / 'bag', **options), key=lambda message: message[1])
    assert used.count(True) == (3 if is_direct and not options else 0)
    with AnyReader([tmp_path / 'bag']) as reader:
        found = [(connection.topic, time_ns, bytes(data)) for connection, time_ns, data in reader.messages()]
        assert reader.message_count == len(SIZES) and (reader.start_time, reader.end_time) == (994, 1008)
    assert found == written
    with Bag(tmp_path / 'bag') as bag:
        assert [(one.topic, one.time_ns, bytes(one.cdr)) for one in bag.messages(['/cloud', '/number'])] == written


def test_a_storage_of_another_kind_writes_itself():
    assert not write_large(types.SimpleNamespace(), 1, 1, bytes(2 * LARGE))
