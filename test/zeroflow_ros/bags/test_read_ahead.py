# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest

from zeroflow_ros.bags.read_ahead import ReadAhead
from zeroflow_ros.errors import DataError


def test_read_ahead_gives_everything_in_order_and_then_the_error():
    def source():
        yield from range(100)
        raise DataError('damaged here')

    found = []
    with pytest.raises(DataError, match='damaged here'):
        for item in ReadAhead(source(), capacity=3):
            found.append(item)
    assert found == list(range(100))


def test_read_ahead_stops_when_nobody_reads_on():
    ahead = ReadAhead(itertools.count(), capacity=3)
    assert next(iter(ahead)) == 0
    ahead.close()
