# SPDX-License-Identifier: Apache-2.0
import pytest

from zeroflow_ros.lidar.time_fields import time_fields

I4, U4, F4, F8, U8, U2 = 5, 6, 7, 8, 10, 4


def found(*fields, name=''):
    return [(field.parts, field.scale) for field in time_fields(tuple((n, t, 1) for n, t in fields), name)]


# label, fields, what is found
TABLE = [
    ('no fields', [], []),
    ('none', [('x', F4), ('intensity', F4), ('ring', U2), ('ambient', U4)], []),
    ('usual', [('x', F4), ('t', U4)], [(('t',), None)]),
    ('unit in the name', [('time_offset_ns', U4)], [(('time_offset_ns',), 1e-9)]),
    ('microseconds', [('timeOffsetUs', U4)], [(('timeOffsetUs',), 1e-6)]),
    ('spelled out', [('time_in_milliseconds', F4)], [(('time_in_milliseconds',), 1e-3)]),
    ('the usual name first', [('ts_ns', U8), ('timestamp', F8)], [(('timestamp',), None), (('ts_ns',), 1e-9)]),
    ('the one with a unit first', [('ts', U8), ('ts_ns', U8)], [(('ts_ns',), 1e-9), (('ts',), None)]),
    ('a pair', [('sec', U4), ('nsec', U4)], [(('sec', 'nsec'), 1e-9)]),
    ('a pair of ROS', [('stamp.sec', I4), ('stamp.nanosec', U4)], [(('stamp.sec', 'stamp.nanosec'), 1e-9)]),
    ('no pair of floats', [('time_s', F8), ('time_ns', F8)], [(('time_s',), 1.0), (('time_ns',), 1e-9)]),
    ('too small a type', [('time_offset', U2)], []),
]


@pytest.mark.parametrize(('fields', 'expected'), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_fields_that_hold_times(fields, expected):
    assert found(*fields) == expected


def test_a_named_field_is_the_only_one():
    assert found(('t', U4), ('clock', F4), name='clock') == [(('clock',), None)]
    assert found(('t', U4), name='clock') == []
    assert found(('sec', U4), ('nsec', U4), name='sec') == [(('sec', 'nsec'), 1e-9)]
