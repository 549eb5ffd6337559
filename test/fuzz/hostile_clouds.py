# SPDX-License-Identifier: Apache-2.0
"""A hypothesis strategy for PointCloud2 messages: valid clouds of any layout, and damaged ones."""

import struct
from types import SimpleNamespace

from hypothesis import strategies as st

SIZES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 8: 8, 9: 8, 10: 8, 11: 1}
_MANY = (255, 300, 60_000)  # 60,000 fields are 1.5 MB of message: less than one sweep
_UINT32 = st.one_of(
    st.sampled_from((0, 1, 2, 3, 4, 7, 8, 12, 16, 17, 20, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 16, 2**32 - 1)),
    st.integers(0, 2**32 - 1),
)
_NAMES = st.one_of(
    st.sampled_from(('x', 'y', 'z', 'X', '', '_', 't', 'intensity', 'vx', 'speed', 'flow_valid', '/x', 'x ', 'x\n')),
    st.text(max_size=8),
    st.sampled_from((200, 100_000)).map(lambda length: 'é' * length),
)
_NUMBERS = (0.0, -0.0, 1.0, -30.0, 51.2, 1e-45, 3e38, -3e38, 1e308, float('inf'), float('-inf'), float('nan'))
_HEADER = ('height', 'width', 'point_step', 'row_step')


@st.composite
def clouds(draw, any_type: bool = True):
    """Draw a duck-typed message; every other one is damaged in up to three ways, the others are valid but unusual.

    any_type: `data` may be an object other than bytes, which no middleware would deliver.
    """
    msg = _legal(draw)
    damages = _DAMAGES if any_type else [d for d in _DAMAGES if d is not _other_data]
    for change in draw(st.lists(st.sampled_from(damages), max_size=3)):
        change(draw, msg)
    return msg


def _legal(draw):
    datatypes = st.sampled_from((7, 7, 7, 8))
    wanted = [(name, draw(datatypes), 1) for name in 'xyz']
    extra = st.tuples(st.sampled_from(('intensity', 'ring', 't', '_', 'vx', 'speed', 'rgb')), st.integers(1, 11),
                      st.integers(0, 3))  # fmt: skip
    wanted += draw(st.lists(extra, max_size=3, unique_by=lambda field: field[0]))
    fields, offset = [], 0
    for name, datatype, count in draw(st.permutations(wanted)):
        offset += draw(st.sampled_from((0, 0, 0, 1, 4)))
        fields.append(SimpleNamespace(name=name, offset=offset, datatype=datatype, count=count))
        offset += SIZES[datatype] * count
    point_step = offset + draw(st.sampled_from((0, 0, 1, 4)))
    height, width = draw(st.sampled_from((1, 1, 1, 2, 5, 0))), draw(st.sampled_from((64, 300, 1, 3, 17, 0)))
    row_step = width * point_step + draw(st.sampled_from((0, 0, 1, 16)))
    pattern = b''.join(struct.pack('<f' if abs(n) <= 3e38 or n != n else '<d', n)
                       for n in draw(st.lists(st.sampled_from(_NUMBERS), min_size=1, max_size=8)))  # fmt: skip
    pattern += draw(st.binary(max_size=9))
    size = height * row_step
    stamp = SimpleNamespace(sec=draw(st.sampled_from((0, 5, 2**31 - 1))), nanosec=draw(st.sampled_from((0, 5))))
    header = SimpleNamespace(stamp=stamp, frame_id=draw(st.sampled_from(('lidar', '/lidar', ''))))
    return SimpleNamespace(header=header, height=height, width=width, fields=fields, is_bigendian=draw(st.booleans()),
                           point_step=point_step, row_step=row_step, is_dense=draw(st.booleans()),
                           data=(pattern * (size // len(pattern) + 1))[:size])  # fmt: skip


def _header_number(draw, msg):
    setattr(msg, draw(st.sampled_from(_HEADER)), draw(_UINT32))


def _field_number(draw, msg):
    if msg.fields:
        field = draw(st.sampled_from(msg.fields))
        field.offset, field.datatype, field.count = draw(
            st.sampled_from((
                (draw(_UINT32), field.datatype, field.count),
                (field.offset, draw(st.integers(0, 255)), field.count),
                (field.offset, field.datatype, draw(_UINT32)),
            ))
        )  # fmt: skip


def _field_name(draw, msg):
    if msg.fields:
        field, name = draw(st.sampled_from(msg.fields)), draw(_NAMES)
        # Of one field only: many may be the same object, and a long name in each of them makes 12 GB, too much to send.
        place = next(k for k, one in enumerate(msg.fields) if one is field)
        msg.fields[place] = SimpleNamespace(**vars(field) | {'name': name})


def _drop_field(draw, msg):
    if msg.fields:
        msg.fields.remove(draw(st.sampled_from(msg.fields)))


def _many_fields(draw, msg):
    count, has_one_name = draw(st.sampled_from(_MANY)), draw(st.booleans())
    name = draw(st.sampled_from(('t', '', 'x', 'intensity')))
    datatype, elements = draw(st.sampled_from(((2, 0), (2, 1), (7, 1), (99, 1))))
    names = [name] if has_one_name else [f'{name}{k}' for k in range(250)]
    added = [SimpleNamespace(name=name, offset=0, datatype=datatype, count=elements) for name in names]
    msg.fields = msg.fields + (added * (count // len(added) + 1))[:count]


def _cut_data(draw, msg):
    msg.data = msg.data[: draw(st.integers(0, len(msg.data)))] if isinstance(msg.data, bytes) else msg.data


def _more_data(draw, msg):
    if isinstance(msg.data, bytes):
        msg.data = msg.data + bytes(draw(st.sampled_from((1, 16, 4096))))


def _consistent_giant(draw, msg):
    """Many points in few bytes, so that the decoded arrays are larger than the message."""
    msg.width, msg.point_step = draw(st.sampled_from((100_000, 1_000_000))), draw(st.sampled_from((0, 1, 2, 12)))
    msg.height, msg.row_step = 1, msg.width * msg.point_step
    msg.data = bytes(msg.row_step)


def _wide_but_empty(draw, msg):
    msg.height, msg.width = draw(st.permutations((0, draw(_UINT32))))
    msg.row_step = msg.width * msg.point_step if not msg.height else 0
    msg.row_step, msg.data = min(msg.row_step, 2**32 - 1), b''


def _stamp(draw, msg):
    msg.header.stamp.sec, msg.header.stamp.nanosec = draw(st.integers(-(2**31), 2**31 - 1)), draw(_UINT32)


def _frame(draw, msg):
    msg.header.frame_id = draw(st.text(max_size=10) | st.sampled_from(('//', 'f' * 300, 'f' * 1_000_000)))


def _other_data(draw, msg):
    msg.data = draw(st.sampled_from((None, 'text', [1, 2, 3], memoryview(b'0123456789')[::2], 7, (), bytearray(5))))


_DAMAGES = [
    _header_number, _header_number, _field_number, _field_number, _field_name, _drop_field, _many_fields, _cut_data,
    _more_data, _consistent_giant, _wide_but_empty, _stamp, _frame, _other_data,
]  # fmt: skip
