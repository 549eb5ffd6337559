# SPDX-License-Identifier: Apache-2.0
"""Read a PointCloud2 of any field layout into a sweep; write the same cloud with a velocity per row.

Messages are duck-typed: sensor_msgs of rclpy and messages deserialised by rosbags. They are never modified.
"""

import array
from dataclasses import dataclass

import numpy as np

from zeroflow_ros.errors import CloudError
from zeroflow_ros.lidar.cloud_layout import (
    DATATYPES,
    FLOAT32,
    NUMPY_FLOAT,
    UINT8,
    Field,
    Rows,
    check_rows,
    describe_fields,
    num_bytes,
    read_fields,
    read_frame_id,
    xyz_columns,
)
from zeroflow_ros.lidar.no_returns import remove_no_returns
from zeroflow_ros.lidar.numba_support import numba_kernels
from zeroflow_ros.lidar.sweep import Sweep

_MAX_UINT32 = 2**32 - 1
FLOW_FIELDS = ('vx', 'vy', 'vz', 'speed', 'flow_valid')
_FLOW_BYTES = 20  # four float32, one uint8 and three bytes of padding, so that the next row is aligned


@dataclass(frozen=True)
class FlowCloud:
    """A cloud with velocities; its fields are those of a PointCloud2.

    fields: (name, offset, datatype, count) each. data: height * row_step bytes; rows carry no padding.
    """

    height: int
    width: int
    fields: list[Field]
    is_bigendian: bool
    point_step: int
    row_step: int
    data: array.array  # typecode 'B', which rclpy takes without a copy


def decode_cloud(msg) -> Sweep:
    """Read x, y and z of every row of a PointCloud2.

    Accepts any order and offsets of fields, float32 or float64, row and point padding, either byte order, and a wrong
    row_step where the points fill the data exactly (see `check_rows`). Rows keep their order (row-major). A row
    without a return becomes all NaN, whatever is_dense says: one with a coordinate that is not finite or too large for
    float32, or 0 0 0, which many drivers and simulators write; and what stands for one by its number, see
    `remove_no_returns`. An empty cloud gives an empty sweep.

    Raises: CloudError when header and data contradict each other. This is checked before memory is allocated, and the
    allocation is bounded by the length of msg.data, not by the sizes in the header.
    """
    rows = check_rows(msg)
    stamp_ns = int(msg.header.stamp.sec) * 1_000_000_000 + int(msg.header.stamp.nanosec)
    frame_id, fields = read_frame_id(msg), read_fields(msg)
    if rows.height * rows.width == 0:
        return Sweep(np.empty((0, 3), np.float32), stamp_ns, frame_id)
    # Check the layout before allocating: it bounds the number of points by the size of the message.
    columns = xyz_columns(fields, rows.is_bigendian, rows.point_step)
    points = np.empty((rows.height * rows.width, 3), np.float32)
    words = rows.words() if numba_kernels is not None else None
    if words is not None and all(dtype == '<f4' and offset % 4 == 0 for offset, dtype in columns):
        numba_kernels.read_xyz(words.view(np.float32), tuple(offset // 4 for offset, _ in columns), points)
        return Sweep(points, stamp_ns, frame_id, no_return_note=remove_no_returns(points))
    with np.errstate(over='ignore', invalid='ignore'):  # float64 beyond float32 becomes inf, then NaN
        for axis, (offset, dtype) in enumerate(columns):
            points[:, axis].reshape(rows.shape)[...] = rows.view(dtype, offset)
        # One sum finds every bad row, and a few good ones whose sum overflows or is 0; they are checked again below.
        total = points[:, 0] + points[:, 1] + points[:, 2]
        suspects = np.flatnonzero(~np.isfinite(total) | (total == 0))
    if len(suspects):
        some = points[suspects]
        points[suspects[~np.isfinite(some).all(axis=1) | ~some.any(axis=1)]] = np.nan
    return Sweep(points, stamp_ns, frame_id, no_return_note=remove_no_returns(points))


def decode_velocity(msg) -> np.ndarray:
    """Read vx, vy and vz of every row of a flow cloud, (N, 3) float32 [m/s], NaN where there is none.

    Raises: CloudError when header and data contradict each other or the fields are missing.
    """
    rows, by_name = check_rows(msg), {field[0]: field for field in read_fields(msg)}
    found = [by_name.get(name, (name, 0, 0, 0)) for name in FLOW_FIELDS[:3]]
    for field in found:
        if field[2] not in NUMPY_FLOAT or field[3] != 1 or field[1] + num_bytes(field) > rows.point_step:
            raise CloudError(
                f'A cloud with velocity must have vx, vy and vz, each one float32 or float64 inside point_step, but '
                f'{field[0]} is missing or has another type. Fields seen: {describe_fields(read_fields(msg))}. '
                'Subscribe to ~/output/dynamic_points or ~/output/flow of the flow node, or rename your fields.'
            )
    if not rows.height * rows.width:
        return np.empty((0, 3), np.float32)
    columns = [rows.view(rows.order + NUMPY_FLOAT[datatype], offset).reshape(-1) for _, offset, datatype, _ in found]
    with np.errstate(over='ignore'):
        return np.stack(columns, axis=1).astype(np.float32)


def flow_cloud(msg, velocity: np.ndarray, flow_valid: np.ndarray, *, reuse: array.array | None = None) -> FlowCloud:
    """Return the cloud of `msg` with vx vy vz speed (float32, m/s) and flow_valid (uint8) appended to every row.

    velocity: (N, 3) float32 [m/s], NaN where there is none. flow_valid: (N,) uint8. N is the number of rows of msg.
    Every input row and field stays byte for byte, in the same order, width, height and byte order; row padding is
    removed, and row_step is right even where that of msg is wrong. The new fields replace input fields of the same
    name.
    reuse: data of an earlier cloud that is no longer needed; overwritten if its length matches.

    Raises: CloudError as decode_cloud does, and when the result does not fit a PointCloud2 (4 GiB a row).
    """
    rows = check_rows(msg)
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
            f'With velocities a point of this cloud has {point_step} bytes and a row {row_step}, but point_step and '
            f'row_step of a PointCloud2 are at most {_MAX_UINT32}. Publish smaller clouds.'
        )
    fields_in = read_fields(msg)
    if num_points:
        xyz_columns(fields_in, rows.is_bigendian, rows.point_step)
    fields = [field for field in fields_in if field[0] not in FLOW_FIELDS]
    fields += [(name, start + 4 * i, FLOAT32, 1) for i, name in enumerate(FLOW_FIELDS[:4])]
    fields.append((FLOW_FIELDS[4], start + 16, UINT8, 1))

    num_bytes = num_points * point_step
    data = reuse if reuse is not None and len(reuse) == num_bytes else array.array('B', bytes(num_bytes))
    out = Rows(np.frombuffer(data, np.uint8), rows.height, rows.width, point_step, row_step, rows.is_bigendian)
    velocity = np.ascontiguousarray(velocity)
    words = rows.words() if numba_kernels is not None else None
    if words is not None:
        numba_kernels.write_flow_rows(words, velocity, flow_valid, out.words(), out.words().view(np.float32))
    elif num_points:
        # Rows are copied as one void item each: 4 times faster than an (N, step) array of bytes.
        out.view(f'V{rows.point_step}', 0).reshape(rows.shape)[...] = rows.view(f'V{rows.point_step}', 0)
        for offset in range(rows.point_step, start):
            out.view('u1', offset)[...] = 0
        order = rows.order
        with np.errstate(over='ignore'):
            speed = velocity[:, 0] * velocity[:, 0]
            speed += velocity[:, 1] * velocity[:, 1]
            speed += velocity[:, 2] * velocity[:, 2]
            np.sqrt(speed, out=speed)
        out.view('V12', start)[...] = velocity.astype(f'{order}f4', copy=False).view('V12').reshape(out.shape)
        out.view(f'{order}f4', start + 12)[...] = speed.reshape(out.shape)
        out.view('<u4', start + 16)[...] = flow_valid.reshape(out.shape)  # little endian: the flag, then three zeros
    return FlowCloud(rows.height, rows.width, fields, rows.is_bigendian, point_step, row_step, data)


def read_field(msg, name: str) -> np.ndarray:
    """Return one field of every row of a PointCloud2, (N,) in its own type, native byte order; a copy.

    Raises: CloudError as decode_cloud does, and when the field is missing or has a count other than 1.
    """
    rows, fields = check_rows(msg), read_fields(msg)
    if rows.height * rows.width:
        xyz_columns(fields, rows.is_bigendian, rows.point_step)
    found = [field for field in fields if field[0] == name]
    if len(found) != 1 or found[0][3] != 1 or found[0][2] not in DATATYPES:
        raise CloudError(
            f'A cloud must have a field {name!r} with one number per point. Fields seen: {describe_fields(fields)}.'
        )
    _, offset, datatype, _ = found[0]
    dtype = np.dtype(DATATYPES[datatype][0])
    if not rows.height * rows.width:
        return np.empty(0, dtype)
    return rows.view(dtype.newbyteorder(rows.order), offset).reshape(-1).astype(dtype)
