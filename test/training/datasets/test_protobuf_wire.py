# SPDX-License-Identifier: Apache-2.0
"""Messages by field number: what is there, what is absent, and damaged bytes."""

import struct

import numpy as np
import pytest
from waymo_files import field, varint

from training.datasets.protobuf_wire import Message
from zeroflow_ros.errors import DataError


def test_absent_fields_have_their_defaults():
    empty = Message(b'', 'nothing')
    assert empty.integer(1) == 0 and empty.text(1) == '' and len(empty.bytes(1)) == 0 and 1 not in empty
    assert (
        empty.double(1) == 0.0
        and len(empty.floats(1)) == 0
        and empty.integers(1) == []
        and empty.messages(1, 'x') == []
    )
    assert empty.message(1, 'x').integer(2, 7) == 7


def test_fields_of_all_kinds():
    inner = field(1, 300) + field(2, 'name')
    data = (
        field(1, -5) + field(2, 1 << 40) + field(3, 2.5) + field(4, inner) + field(4, field(1, 7)) + field(300, 'far')
    )
    message = Message(data, 'all')
    assert (message.integer(1), message.integer(2), message.double(3)) == (-5, 1 << 40, 2.5)
    assert [one.integer(1) for one in message.messages(4, 'inner')] == [300, 7]
    assert message.message(4, 'inner').integer(1) == 7 and message.text(300) == 'far'  # the last one counts


def test_repeated_numbers_packed_or_not():
    values = np.array([1.5, -2, 3])
    packed = field(1, values.astype('<f4').tobytes()) + field(2, values.tobytes()) + field(3, varint(1) + varint(300))
    apart = b''.join(varint(1 << 3 | 5) + struct.pack('<f', v) for v in values)
    apart += b''.join(field(2, float(v)) for v in values) + field(3, 1) + field(3, 300)
    for data in (packed, apart):
        message = Message(data, 'numbers')
        np.testing.assert_array_equal(message.floats(1), values.astype(np.float32))
        np.testing.assert_array_equal(message.doubles(2), values)
        assert message.integers(3) == [1, 300]


@pytest.mark.parametrize(
    'data, said',
    [
        (b'\x80', 'an integer does not end'),
        (b'\xff' * 11, 'an integer does not end'),
        (field(1, b'abc')[:-1], 'field 1 ends beyond its message'),
        (field(1, 2.0)[:-1], 'field 1 ends beyond its message'),
        (varint(1 << 3 | 3), 'unknown wire type 3'),
        (field(0, 1), 'a field has number 0'),
    ],
)
def test_damaged_messages_are_refused(data, said):
    with pytest.raises(DataError, match=f'frame: .*{said}'):
        Message(data, 'frame')


@pytest.mark.parametrize(
    'read, said',
    [
        (lambda m: m.message(1, 'pose'), 'pose should be a message'),
        (lambda m: m.doubles(1), 'field 1 should hold numbers of 8 bytes'),
        (lambda m: m.floats(2), 'field 2 should hold numbers of 4 bytes'),
        (lambda m: m.integer(2), 'field 2 should be an integer'),
    ],
)
def test_fields_of_another_type_are_refused(read, said):
    with pytest.raises(DataError, match=said):
        read(Message(field(1, 5) + field(2, b'abc'), 'frame'))
