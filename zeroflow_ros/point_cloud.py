# SPDX-License-Identifier: Apache-2.0
"""PointCloud2 in and out: any field layout to a sweep, and the same cloud back with a velocity for every row.

Messages are duck-typed: rclpy's sensor_msgs, and what rosbags deserialises. They are never modified.
"""

import array
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import numpy as np

from zeroflow_ros.errors import CloudError
from zeroflow_ros.optional import compiled
from zeroflow_ros.sweep import Sweep

# datatype -> (name, bytes). 9 to 11 are PCL's, in sensor_msgs since common_interfaces pull request 301.
_DATATYPES = {
    1: ('int8', 1), 2: ('uint8', 1), 3: ('int16', 2), 4: ('uint16', 2), 5: ('int32', 4), 6: ('uint32', 4),
    7: ('float32', 4), 8: ('float64', 8), 9: ('int64', 8), 10: ('uint64', 8), 11: ('bool', 1),
}  # fmt: skip
_UINT8, _FLOAT32, _FLOAT64 = 2, 7, 8
_NUMPY_FLOAT = {_FLOAT32: 'f4', _FLOAT64: 'f8'}
_MAX_UINT32 = 2**32 - 1
_PADDING_NAMES = ('', '_')  # PCL's names for bytes without a meaning; they may repeat
_FLOW_FIELDS = ('vx', 'vy', 'vz', 'speed', 'flow_valid')
_FLOW_BYTES = 20  # four float32, one uint8 and three bytes of padding, so that the next row is aligned again

Field = tuple[str, int, int, int]  # name, offset, datatype, count


@dataclass(frozen=True)
class FlowCloud:
    """A cloud with velocities, as the numbers of a PointCloud2.

    fields: (name, offset, datatype, count) each. data: height * row_step bytes; rows carry no padding.
    """

    height: int
    width: int
    fields: list[Field]
    is_bigendian: bool
    point_step: int
    row_step: int
    data: array.array  # of typecode 'B': what rclpy takes without a copy


def decode_cloud(msg) -> Sweep:
    """Read x, y and z of every row of a PointCloud2.

    Any order and offsets of fields, float32 or float64, row and point padding, either byte order. Rows keep their
    order (row-major); a row with a coordinate that is not finite, or too large for float32, is NaN throughout,
    whatever is_dense says. A cloud of no points gives a sweep of no points.

    Raises: CloudError when the message contradicts itself. It is checked before memory is taken, and what is taken
    is bounded by the length of msg.data, not by what the header claims.
    """
    rows = _check_rows(msg)
    stamp_ns = int(msg.header.stamp.sec) * 1_000_000_000 + int(msg.header.stamp.nanosec)
    frame_id = msg.header.frame_id.lstrip('/')
    points = np.empty((rows.height * rows.width, 3), np.float32)
    if len(points) == 0:
        return Sweep(points, stamp_ns, frame_id)
    columns = _xyz_columns(_fields(msg), rows.is_bigendian, rows.point_step)
    words = rows.words()
    if words is not None and all(dtype == '<f4' and offset % 4 == 0 for offset, dtype in columns):
        compiled.read_xyz(words.view(np.float32), tuple(offset // 4 for offset, _ in columns), points)
        return Sweep(points, stamp_ns, frame_id)
    with np.errstate(over='ignore', invalid='ignore'):  # float64 beyond float32 becomes inf, then NaN
        for axis, (offset, dtype) in enumerate(columns):
            points[:, axis].reshape(rows.shape)[...] = rows.view(dtype, offset)
        # One sum finds every bad row, and at most a few good ones whose sum overflows; those are looked at again.
        suspects = np.flatnonzero(~np.isfinite(points[:, 0] + points[:, 1] + points[:, 2]))
    if len(suspects):
        points[suspects[~np.isfinite(points[suspects]).all(1)]] = np.nan
    return Sweep(points, stamp_ns, frame_id)


def decode_velocity(msg) -> np.ndarray:
    """Read vx, vy and vz of every row of a flow cloud, (N, 3) float32 [m/s], NaN where there is none.

    Raises: CloudError when the message contradicts itself or has no such fields.
    """
    rows, by_name = _check_rows(msg), {field[0]: field for field in _fields(msg)}
    velocity = np.empty((rows.height * rows.width, 3), np.float32)
    for axis, name in enumerate(_FLOW_FIELDS[:3]):
        _, offset, datatype, count = by_name.get(name, ('', 0, 0, 0))
        if datatype not in _NUMPY_FLOAT or count != 1 or offset + _num_bytes(by_name[name]) > rows.point_step:
            raise CloudError(
                f'A cloud with velocity must have vx, vy and vz, each one float32 or float64 inside point_step, but '
                f'{name} is missing or something else. Fields seen: {_describe(_fields(msg))}. Subscribe to '
                '~/output/dynamic_points or ~/output/flow of the flow node, or name yours so.'
            )
        if len(velocity):
            dtype = ('>' if rows.is_bigendian else '<') + _NUMPY_FLOAT[datatype]
            with np.errstate(over='ignore'):
                velocity[:, axis].reshape(rows.shape)[...] = rows.view(dtype, offset)
    return velocity


def flow_cloud(msg, velocity: np.ndarray, flow_valid: np.ndarray, *, reuse: array.array | None = None) -> FlowCloud:
    """Return the cloud of `msg` with vx vy vz speed (float32, m/s) and flow_valid (uint8) behind every row.

    velocity: (N, 3) float32 [m/s], NaN where there is none. flow_valid: (N,) uint8. N is width * height of msg.
    Every input row and field stays byte for byte, in the same order, width, height and byte order; padding behind a
    row (row_step) goes. An input field that has one of the five names gives way to ours.
    reuse: data of an earlier cloud that is needed no more; it is written over if its length fits.

    Raises: CloudError as decode_cloud does, and when the result does not fit a PointCloud2 (4 GiB a row).
    """
    rows = _check_rows(msg)
    num_points = rows.height * rows.width
    if velocity.shape != (num_points, 3) or velocity.dtype != np.float32 or flow_valid.shape != (num_points,):
        raise ValueError(
            f'A cloud of {num_points} points needs velocity ({num_points}, 3) float32 and flow_valid ({num_points},), '
            f'got {velocity.shape} {velocity.dtype} and {flow_valid.shape}'
        )
    start = (rows.point_step + 3) // 4 * 4
    point_step = start + _FLOW_BYTES
    row_step = rows.width * point_step if num_points else 0
    if max(point_step, row_step) > _MAX_UINT32:
        raise CloudError(
            f'With velocities a row of this cloud has {row_step} bytes, but a PointCloud2 cannot say more than '
            f'{_MAX_UINT32}. Publish smaller clouds.'
        )
    fields_in = _fields(msg)
    if num_points:
        _xyz_columns(fields_in, rows.is_bigendian, rows.point_step)
    fields = [field for field in fields_in if field[0] not in _FLOW_FIELDS]
    fields += [(name, start + 4 * i, _FLOAT32, 1) for i, name in enumerate(_FLOW_FIELDS[:4])]
    fields.append((_FLOW_FIELDS[4], start + 16, _UINT8, 1))

    num_bytes = num_points * point_step
    data = reuse if reuse is not None and len(reuse) == num_bytes else array.array('B', bytes(num_bytes))
    out = _Rows(np.frombuffer(data, np.uint8), rows.height, rows.width, point_step, row_step, rows.is_bigendian)
    velocity = np.ascontiguousarray(velocity)
    words = rows.words()
    if words is not None:
        compiled.write_flow_rows(words, velocity, flow_valid, out.words(), out.words().view(np.float32))
    elif num_points:
        # Whole rows move as one void item each: 4 times faster than an (N, step) array of bytes.
        out.view(f'V{rows.point_step}', 0).reshape(rows.shape)[...] = rows.view(f'V{rows.point_step}', 0)
        for offset in range(rows.point_step, start):
            out.view('u1', offset)[...] = 0
        order = '>' if rows.is_bigendian else '<'
        with np.errstate(over='ignore'):
            speed = velocity[:, 0] * velocity[:, 0]
            speed += velocity[:, 1] * velocity[:, 1]
            speed += velocity[:, 2] * velocity[:, 2]
            np.sqrt(speed, out=speed)
        out.view('V12', start)[...] = velocity.astype(f'{order}f4', copy=False).view('V12').reshape(out.shape)
        out.view(f'{order}f4', start + 12)[...] = speed.reshape(out.shape)
        out.view('<u4', start + 16)[...] = flow_valid.reshape(out.shape)  # little endian: the flag, then three zeros
    return FlowCloud(rows.height, rows.width, fields, rows.is_bigendian, point_step, row_step, data)


class _Rows(SimpleNamespace):
    """The bytes of a cloud that are known to hold what the header says."""

    def __init__(self, data, height, width, point_step, row_step, is_bigendian):
        # Without row padding the cloud is one long row: numpy's inner loops then run over all of it.
        shape = (height * width,) if row_step == width * point_step else (height, width)
        strides = (point_step,) if len(shape) == 1 else (row_step, point_step)
        super().__init__(data=data, height=height, width=width, point_step=point_step, is_bigendian=is_bigendian,
                         shape=shape, strides=strides)  # fmt: skip

    def words(self) -> np.ndarray | None:
        """Return the points as (N, point_step / 4) uint32; None where compiled loops cannot take them as such."""
        is_plain = self.point_step % 4 == 0 and not self.is_bigendian and len(self.shape) == 1 and self.shape[0]
        if compiled is None or not is_plain or self.data.ctypes.data % 4:
            return None
        return self.data.view(np.uint32).reshape(self.shape[0], -1)

    def view(self, dtype: str, offset: int) -> np.ndarray:
        """Return what lies `offset` bytes into every point; no copy, alignment does not matter."""
        return np.ndarray(self.shape, dtype, buffer=self.data, offset=offset, strides=self.strides)


def _check_rows(msg) -> _Rows:
    """Return the rows of a message whose header agrees with the length of its data.

    Raises: CloudError.
    """
    height, width, point_step, row_step = int(msg.height), int(msg.width), int(msg.point_step), int(msg.row_step)
    try:
        data = np.frombuffer(msg.data, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise CloudError(f'The data of a cloud must be a buffer of bytes, got {type(msg.data).__name__}.') from error
    trouble = ''
    if min(height, width, point_step, row_step) < 0:
        trouble = 'a negative number'
    elif height and width and point_step == 0:
        trouble = 'points of 0 bytes'
    elif row_step < width * point_step and height:
        trouble = f'rows shorter than their points ({width} x {point_step} = {width * point_step} bytes)'
    elif height * row_step != len(data):
        longer = 'less' if len(data) < height * row_step else 'more'
        trouble = f'{longer} data than the header says ({height} x {row_step} = {height * row_step} bytes)'
    if trouble:
        raise CloudError(
            f'A cloud with height {height}, width {width}, point_step {point_step}, row_step {row_step} and '
            f'{len(data)} bytes of data has {trouble}. Fields seen: {_describe(_fields(msg))}. The publisher must set '
            'row_step >= width * point_step and send height * row_step bytes.'
        )
    return _Rows(data, height, width, point_step, row_step, bool(msg.is_bigendian))


def _fields(msg) -> tuple[Field, ...]:
    return tuple((field.name, int(field.offset), int(field.datatype), int(field.count)) for field in msg.fields)


@lru_cache(maxsize=64)
def _xyz_columns(fields: tuple[Field, ...], is_bigendian: bool, point_step: int) -> tuple[tuple[int, str], ...]:
    """Return (offset, numpy dtype) of x, y and z; computed once per distinct layout.

    Raises: CloudError.
    """
    for field in fields:
        name, offset, datatype, count = field
        if datatype not in _DATATYPES:
            raise _layout_error(f'field {name!r} has the unknown datatype {datatype}', fields)
        if offset < 0 or count < 0 or offset + _num_bytes(field) > point_step:
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
        if datatype not in _NUMPY_FLOAT:
            raise _layout_error(f'{name} is {_DATATYPES[datatype][0]}', fields)
        if count != 1:
            raise _layout_error(f'{name} has count {count}', fields)
        end = offset + _num_bytes(by_name[name])
        for other in fields:  # fields may share bytes among themselves (rgb as one float), but not with a coordinate
            if other[0] != name and other[1] < end and other[1] + _num_bytes(other) > offset:
                raise _layout_error(f'{name} and {other[0]!r} share bytes', fields)
        columns.append((offset, ('>' if is_bigendian else '<') + _NUMPY_FLOAT[datatype]))
    return tuple(columns)


def _num_bytes(field: Field) -> int:
    return _DATATYPES[field[2]][1] * field[3]


def _layout_error(trouble: str, fields: tuple[Field, ...]) -> CloudError:
    return CloudError(
        f'A cloud must have x, y and z, each one float32 or float64 inside point_step, but {trouble}. Fields seen: '
        f'{_describe(fields)}. Fix the publisher, or subscribe to a topic whose clouds have coordinates.'
    )


def _describe(fields: tuple[Field, ...]) -> str:
    """Say which fields there are; at most 24 of them, for a broken message may hold thousands."""
    said = [
        f'{name[:40]!r} {_DATATYPES.get(datatype, (f"datatype {datatype}",))[0]}'
        f'{"" if count == 1 else f"[{count}]"} at {offset}'
        for name, offset, datatype, count in fields[:24]
    ]
    more = f' and {len(fields) - len(said)} more' if len(fields) > len(said) else ''
    return ', '.join(said) + more if said else 'none'
