# SPDX-License-Identifier: Apache-2.0
"""One PointCloud2 from the parts of a revolution."""

import copy
from dataclasses import dataclass, replace

import numpy as np

from zeroflow_ros.errors import CloudError
from zeroflow_ros.lidar.cloud_layout import check_rows, describe_fields, read_fields
from zeroflow_ros.lidar.point_cloud import decode_cloud, read_field
from zeroflow_ros.lidar.point_times import time_field, with_times
from zeroflow_ros.lidar.spin_axis import azimuth_about
from zeroflow_ros.lidar.sweep import Sweep

_TURN = 2 * np.pi
_SCALES = (1.0, 1e-3, 1e-6, 1e-9)  # seconds per unit of a time field


@dataclass(frozen=True)
class Cut:
    """The rows of a part before or after the seam of the revolution.

    edge: azimuth at which the part begins [rad]. direction: 1 counter-clockwise, -1 clockwise. width: of the part
    [rad]. at: angle from the edge to the seam [rad]. after: whether the rows after the seam are meant. Rows without a
    return are before it. axis: about which the azimuths are; 2 is z.
    """

    edge: float
    direction: int
    width: float
    at: float
    after: bool
    axis: int = 2

    def rows(self, points: np.ndarray) -> np.ndarray:
        """Return which of points (N, 3) are meant, (N,) bool."""
        margin = (_TURN - self.width) / 2  # half of the directions that the part does not cover
        azimuth = azimuth_about(points, self.axis)
        angle = (self.direction * (azimuth - self.edge) + margin) % _TURN - margin
        is_after = angle >= self.at  # False for NaN
        return is_after if self.after else ~is_after


@dataclass(frozen=True)
class Piece:
    """A PointCloud2 that is part of a revolution; cut: the rows of it, None for all."""

    message: object
    cut: Cut | None = None


@dataclass(eq=False)
class JoinedCloud:
    """A PointCloud2 by its attributes: the rows of all parts in order, in one row; see sensor_msgs.

    part_rows: (P,) rows of each part. part_offsets_ns: (P,) from the stamp of the cloud to the stamps of the parts.
    """

    header: object
    height: int
    width: int
    fields: list
    is_bigendian: bool
    point_step: int
    row_step: int
    data: np.ndarray
    is_dense: bool
    part_rows: np.ndarray
    part_offsets_ns: np.ndarray


def message_stamp_ns(message) -> int:
    """Return the stamp of a message with a header [ns]."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def join(pieces: list[Piece], stamp_ns: int, time_name: str = '', time_unit: str = 'auto') -> JoinedCloud:
    """Return the rows of all parts as one cloud with the header of the first part and the given stamp.

    Rows stay byte for byte, except point times that count from the stamp of their part: they count from the stamp of
    the cloud now; time_name, time_unit: see `with_times`. Coordinates are not changed: each part stays in the frame of
    the sensor at its own stamp.
    Raises: CloudError when a part is malformed, or the parts have different fields.
    """
    layouts = {(read_fields(p.message), int(p.message.point_step), bool(p.message.is_bigendian)) for p in pieces}
    if len(layouts) > 1:
        seen = ' and '.join(describe_fields(fields) for fields, _, _ in layouts)
        raise CloudError(f'The parts of a revolution must have the same fields, got {seen}. Check the driver.')
    offsets_ns = [message_stamp_ns(piece.message) - stamp_ns for piece in pieces]
    times = (time_name, time_unit)
    data = [_bytes(piece, offset_ns, times) for piece, offset_ns in zip(pieces, offsets_ns, strict=True)]
    first = pieces[0].message
    header = copy.deepcopy(first.header)
    header.stamp.sec, header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
    joined = np.concatenate(data)
    return JoinedCloud(
        header, 1, len(joined), first.fields, first.is_bigendian, first.point_step, joined.nbytes,
        joined.view(np.uint8).reshape(-1), False, np.array([len(rows) for rows in data]), np.array(offsets_ns),
    )  # fmt: skip


def with_part_times(message, sweep: Sweep) -> Sweep:
    """Return a sweep of joined parts whose points have the times of their parts, if they have no times of their own.

    Deskewing then moves each part as a whole. Any other sweep is returned unchanged.
    """
    if not isinstance(message, JoinedCloud) or sweep.times is not None or not message.part_offsets_ns.any():
        return sweep
    seconds = (message.part_offsets_ns * 1e-9).astype(np.float32)
    times = np.repeat(seconds, message.part_rows)
    return replace(sweep, times=times) if len(times) == len(sweep.points) else sweep


def starts_over(message, last_message) -> bool:
    """Return whether a cloud makes no pair with the last one, because only one of the two is a joined one."""
    return last_message is not None and isinstance(message, JoinedCloud) != isinstance(last_message, JoinedCloud)


def _bytes(piece: Piece, offset_ns: int, times: tuple[str, str]) -> np.ndarray:
    """Return the rows of a part, (N,) of point_step bytes each."""
    rows = check_rows(piece.message)
    void = f'V{rows.point_step}'
    if not rows.height * rows.width:
        return np.empty(0, void)
    values = rows.view(void, 0).reshape(-1)
    name = time_field(piece.message, times[0])
    if not (piece.cut or (name and offset_ns)):
        return values
    sweep = decode_cloud(piece.message)
    if name and offset_ns:
        values = _shifted(piece.message, sweep, name, values.copy(), offset_ns, rows.order, times[1])
    return values if piece.cut is None else values[piece.cut.rows(sweep.points)]


def _shifted(message, sweep: Sweep, name: str, values: np.ndarray, offset_ns: int, order: str, unit: str):
    """Add an offset to the point times of rows (N,), in place, where they count from the stamp."""
    try:
        seconds = with_times(message, sweep, name, unit).times
    except CloudError:  # reported when the times of the sweep are read
        return values
    if seconds is None:
        return values
    times = read_field(message, name)
    some = np.flatnonzero(np.isfinite(times) & (times != 0))[:: max(len(times) // 1000, 1)]
    # Times since 1970 differ from the seconds after the stamp in any unit.
    near = [(np.abs(times[some] * scale - seconds[some]) < 2e-6).mean() for scale in _SCALES] if len(some) else [0]
    if max(near) < 0.5:
        return values
    scale = _SCALES[int(np.argmax(near))]
    offset = offset_ns * 1e-9 / scale
    field = next(field for field in read_fields(message) if field[0] == name)
    if times.dtype.kind in 'iu':
        limits = np.iinfo(times.dtype)
        times = np.clip(times.astype(np.int64) + round(offset), limits.min, limits.max).astype(times.dtype)
    else:
        times = times + times.dtype.type(offset)
    column = np.ndarray(
        len(values), times.dtype.newbyteorder(order), values.view(np.uint8), field[1], (values.itemsize,)
    )
    column[...] = times
    return values
