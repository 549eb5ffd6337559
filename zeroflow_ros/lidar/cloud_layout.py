# SPDX-License-Identifier: Apache-2.0
"""Memory layout of a PointCloud2, and checks that its header matches its data."""

from functools import lru_cache
from types import SimpleNamespace

import numpy as np

from zeroflow_ros.errors import CloudError

# datatype -> (name, bytes). 9 to 11 come from PCL, in sensor_msgs since common_interfaces pull request 301.
DATATYPES = {
    1: ('int8', 1), 2: ('uint8', 1), 3: ('int16', 2), 4: ('uint16', 2), 5: ('int32', 4), 6: ('uint32', 4),
    7: ('float32', 4), 8: ('float64', 8), 9: ('int64', 8), 10: ('uint64', 8), 11: ('bool', 1),
}  # fmt: skip
UINT8, FLOAT32, FLOAT64 = 2, 7, 8
NUMPY_FLOAT = {FLOAT32: 'f4', FLOAT64: 'f8'}
_MAX_FIELDS = 256  # drivers send 4 to 20; a 2 MB message has room for 60,000, and each field is read several times
_MAX_NAME = 256  # characters of a field or frame name, which appears in logs, diagnostics and every output
_PADDING_NAMES = ('', '_')  # PCL's names for padding fields; they may repeat

Field = tuple[str, int, int, int]  # name, offset, datatype, count


class Rows(SimpleNamespace):
    """The point rows of a cloud whose size was checked against its header.

    correction: what of the header was wrong and how it was read instead; '' where it was right.
    """

    def __init__(self, data, height, width, point_step, row_step, is_bigendian, correction=''):
        # Without row padding the cloud is one long row, so that numpy's inner loop covers all points.
        shape = (height * width,) if row_step == width * point_step else (height, width)
        strides = (point_step,) if len(shape) == 1 else (row_step, point_step)
        order = '>' if is_bigendian else '<'
        super().__init__(data=data, height=height, width=width, point_step=point_step, is_bigendian=is_bigendian,
                         order=order, shape=shape, strides=strides, correction=correction)  # fmt: skip

    def words(self) -> np.ndarray | None:
        """Return the points as (N, point_step / 4) uint32; None where the compiled loops cannot read them."""
        is_plain = self.point_step % 4 == 0 and not self.is_bigendian and len(self.shape) == 1 and self.shape[0]
        if not is_plain or self.data.ctypes.data % 4:
            return None
        return self.data.view(np.uint32).reshape(self.shape[0], -1)

    def view(self, dtype, offset: int) -> np.ndarray:
        """Return a view of the values at byte `offset` of every point; no copy, any alignment."""
        return np.ndarray(self.shape, dtype, buffer=self.data, offset=offset, strides=self.strides)


def check_rows(msg) -> Rows:
    """Return the rows of a message whose header agrees with the length of its data.

    Two contradictions are corrected, because the data leaves one reading only: a wrong row_step where the points
    without row padding are exactly the data, and a height or width of 0 where the other number of points is. The last
    row may lack its padding. All else is an error.
    Raises: CloudError.
    """
    height, width, point_step, row_step = int(msg.height), int(msg.width), int(msg.point_step), int(msg.row_step)
    try:
        data = np.frombuffer(msg.data, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise CloudError(f'The data of a cloud must be a buffer of bytes, got {type(msg.data).__name__}.') from error
    problem = ''
    if min(height, width, point_step, row_step) < 0:
        problem = 'a negative number'
    elif height and width and point_step == 0:
        problem = 'points of 0 bytes'
    elif corrected := _corrected(height, width, point_step, row_step, len(data)):
        return Rows(data, *corrected, bool(msg.is_bigendian), _correction(msg, len(data)))
    elif row_step < width * point_step and height:
        problem = f'rows shorter than their points ({width} x {point_step} = {width * point_step} bytes)'
    elif height * row_step != len(data) and not _lacks_last_padding(height, width, point_step, row_step, len(data)):
        longer = 'less' if len(data) < height * row_step else 'more'
        problem = f'{longer} data than the header says ({height} x {row_step} = {height * row_step} bytes)'
    if problem:
        raise CloudError(
            f'A cloud with height {height}, width {width}, point_step {point_step}, row_step {row_step} and '
            f'{len(data)} bytes of data has {problem}. Fields seen: {describe_fields(read_fields(msg))}. The publisher '
            'must set row_step >= width * point_step and send height * row_step bytes.'
        )
    return Rows(data, height, width, point_step, row_step, bool(msg.is_bigendian))


def _corrected(height: int, width: int, point_step: int, row_step: int, num_bytes: int) -> tuple | None:
    """Return (height, width, point_step, row_step) where the data contradicts the header but has one reading."""
    if not point_step or not num_bytes or (height * row_step == num_bytes and row_step >= width * point_step):
        return None
    if height * width * point_step == num_bytes:
        return height, width, point_step, width * point_step
    num_points = max(height, width)
    if min(height, width) == 0 and num_points > 1 and num_points * point_step == num_bytes:
        return 1, num_points, point_step, num_bytes
    return None


def _lacks_last_padding(height: int, width: int, point_step: int, row_step: int, num_bytes: int) -> bool:
    return height > 1 and width > 0 and num_bytes == (height - 1) * row_step + width * point_step


def _correction(msg, num_bytes: int) -> str:
    height, width, point_step, row_step = int(msg.height), int(msg.width), int(msg.point_step), int(msg.row_step)
    said = f'height {height}, width {width}, point_step {point_step} and row_step {row_step}'
    return (
        f'The header of the clouds does not agree with their {num_bytes} bytes of data: {said}. They are read as '
        f'{num_bytes // point_step} points without padding between rows. Make the publisher set row_step = width * '
        'point_step, and height 1 for an unorganised cloud.'
    )


def num_points(msg) -> int:
    """Return the number of rows of a message. Raises: CloudError as `check_rows` does."""
    rows = check_rows(msg)
    return rows.height * rows.width


def read_frame_id(msg) -> str:
    """Return the frame of a cloud. Raises: CloudError when it is too long to be a name."""
    frame_id = msg.header.frame_id.lstrip('/')
    if len(frame_id) > _MAX_NAME:
        raise CloudError(
            f'The frame_id of a cloud must have at most {_MAX_NAME} characters, but has {len(frame_id)}: '
            f'{frame_id[:40]!r}... Set it in the driver.'
        )
    return frame_id


def read_fields(msg) -> tuple[Field, ...]:
    """Return the fields of a cloud. Raises: CloudError when there are too many, or a name is too long."""
    longest = max((len(field.name) for field in msg.fields), default=0)
    if len(msg.fields) > _MAX_FIELDS or longest > _MAX_NAME:
        raise CloudError(
            f'A cloud must have at most {_MAX_FIELDS} fields with names of at most {_MAX_NAME} characters, but has '
            f'{len(msg.fields)} fields and a name of {longest} characters. Fix the publisher.'
        )
    return tuple((field.name, int(field.offset), int(field.datatype), int(field.count)) for field in msg.fields)


@lru_cache(maxsize=64)
def xyz_columns(fields: tuple[Field, ...], is_bigendian: bool, point_step: int) -> tuple[tuple[int, str], ...]:
    """Return (offset, numpy dtype) of x, y and z; cached per layout.

    Raises: CloudError.
    """
    for field in fields:
        name, offset, datatype, count = field
        if datatype not in DATATYPES:
            raise _layout_error(f'field {name!r} has the unknown datatype {datatype}', fields)
        if offset < 0 or count < 0 or offset + num_bytes(field) > point_step:
            raise _layout_error(f'field {name!r} ends outside the {point_step} bytes of a point', fields)
    names = [field[0] for field in fields if field[0] not in _PADDING_NAMES]
    repeated = sorted({name for name in names if names.count(name) > 1})[:3] if len(set(names)) < len(names) else []
    if repeated:
        raise _layout_error(f'several fields are called {", ".join(map(repr, repeated))}', fields)
    by_name = {field[0]: field for field in fields}
    missing = [name for name in 'xyz' if name not in by_name]
    if missing:
        raise _layout_error(f'{" and ".join(missing)} {"is" if len(missing) == 1 else "are"} missing', fields)
    columns = []
    for name in 'xyz':
        _, offset, datatype, count = by_name[name]
        if datatype not in NUMPY_FLOAT:
            raise _layout_error(f'{name} is {DATATYPES[datatype][0]}', fields)
        if count != 1:
            raise _layout_error(f'{name} has count {count}', fields)
        end = offset + num_bytes(by_name[name])
        for other in fields:  # fields may overlap each other (rgb as one float), but not a coordinate
            if other[0] != name and other[1] < end and other[1] + num_bytes(other) > offset:
                raise _layout_error(f'{name} and {other[0]!r} share bytes', fields)
        columns.append((offset, ('>' if is_bigendian else '<') + NUMPY_FLOAT[datatype]))
    return tuple(columns)


def num_bytes(field: Field) -> int:
    return DATATYPES[field[2]][1] * field[3]


def _layout_error(problem: str, fields: tuple[Field, ...]) -> CloudError:
    return CloudError(
        f'A cloud must have x, y and z, each one float32 or float64 inside point_step, but {problem}. Fields seen: '
        f'{describe_fields(fields)}. Fix the publisher, or subscribe to a topic whose clouds have coordinates.'
    )


def describe_fields(fields: tuple[Field, ...]) -> str:
    """Return the fields as text; at most 24, because a broken message may hold thousands."""
    said = [
        f'{name[:40]!r} {DATATYPES.get(datatype, (f"datatype {datatype}",))[0]}'
        f'{"" if count == 1 else f"[{count}]"} at {offset}'
        for name, offset, datatype, count in fields[:24]
    ]
    more = f' and {len(fields) - len(said)} more' if len(fields) > len(said) else ''
    return ', '.join(said) + more if said else 'none'
