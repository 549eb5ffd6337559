# SPDX-License-Identifier: Apache-2.0
"""Read the measurement time of each point; the field name and unit depend on the driver.

| field         | type            | holds                                 | written by                               |
|---------------|-----------------|---------------------------------------|------------------------------------------|
| `t`           | uint32          | ns after the stamp                    | Ouster                                   |
| `time_stamp`  | uint32          | ns after the stamp                    | Autoware (XYZIRCAEDT)                    |
| `offset_time` | uint32          | ns after the stamp                    | Livox; converters also write us          |
| `time`        | float32         | s after the stamp, negative before it | Velodyne                                 |
| `timestamp`   | float64         | s since 1970                          | Hesai, RoboSense; `time_stamp`: Autoware |
| `timestamp`   | float64, uint64 | ns since 1970                         | Livox (driver 2)                         |

Sources: ouster-lidar/ouster-sdk issue 184; Livox-SDK/livox_ros_driver pull request 109; ros-drivers/velodyne issue 350
(the stamp is that of the first or of the last packet); JonasBchrt/raw-gnss-fusion issue 2 (Hesai); point types of
autoware_universe and livox_ros_driver2. KISS-ICP scales the times to 0..1 over the sweep, which loses their relation to
the stamp; here they stay in seconds.

The field type limits the possible units, and the values must match exactly one of them: within 1 s of the stamp, and at
most 0.5 s from first to last. Times that match no unit, or two, are an error and are not used.
"""

from dataclasses import replace

import numpy as np

from zeroflow_ros.errors import CloudError
from zeroflow_ros.lidar.point_cloud import read_field
from zeroflow_ros.lidar.sweep import Sweep

TIME_FIELDS = ('t', 'time', 'timestamp', 'time_stamp', 'offset_time')
LONGEST_SWEEP = 0.5  # s: a 2 Hz sensor; also rejects times scaled to 0..1
NO_TIMES = (
    f'Clouds cannot be deskewed: they have no field {", ".join(TIME_FIELDS)}. Make the driver write the time of each '
    'point, or switch deskew off.'
)
_FARTHEST = (
    1.0  # s from the stamp, which may be that of the first point, the last point, or the arrival at the computer
)
_SHORTEST_GUESSED = 0.002  # s: LONGEST_SWEEP is 250 times this, so two units a factor of 1000 apart never both match
_NAMES = {1.0: 's', 1e-6: 'us', 1e-9: 'ns'}


def time_field(msg) -> str | None:
    """Return the name of the time field of a PointCloud2, None where it has none."""
    names = [field.name for field in msg.fields]
    return next((name for name in TIME_FIELDS if name in names), None)


def with_times(msg, sweep: Sweep) -> Sweep:
    """Return the sweep with the times of its points; unchanged where the cloud has no time field.

    msg: the PointCloud2 that the sweep was decoded from. Points without a return (NaN or at the origin) may hold
    invalid times; they then get the time of a valid point.
    Raises: CloudError, with the values found, when the times match no unit or several.
    """
    name = time_field(msg)
    if name is None or len(sweep.points) == 0 or sweep.stamp_ns == 0:  # a sweep with stamp 0 is dropped later anyway
        return sweep
    values = read_field(msg, name)
    units = _units(name, values.dtype)
    fits = [unit for unit in units if _fits(*unit, values, sweep.stamp_ns)]
    if len(fits) != 1:
        x, y = sweep.points[:, 0], sweep.points[:, 1]
        is_return = np.isfinite(x) & ((x != 0) | (y != 0))
        if not is_return.any():  # no point to deskew
            return replace(sweep, times=np.zeros(len(values), np.float32))
        values = np.where(is_return, values, values[is_return.argmax()])
        fits = [unit for unit in units if _fits(*unit, values, sweep.stamp_ns)]
    if len(fits) != 1:
        raise _invalid_times(name, values, units, sweep.stamp_ns)
    scale, is_absolute, _ = fits[0]
    return replace(sweep, times=_seconds(values, scale, is_absolute, sweep.stamp_ns).astype(np.float32))


def _units(name: str, dtype: np.dtype) -> list[tuple[float, bool, bool]]:
    """Return (seconds per unit, whether counted from 1970, whether guessed) for each unit that a field may have."""
    if dtype == np.float32:  # too coarse for seconds since 1970: steps of 128 s
        return [(1.0, False, False)]
    if dtype == np.float64:
        return [(1.0, False, False), (1.0, True, False), (1e-9, True, False)]
    if dtype in (np.uint32, np.int32):
        is_known = name in ('t', 'time_stamp')
        return [(1e-9, False, not is_known)] + ([] if is_known else [(1e-6, False, True)])
    if dtype in (np.uint64, np.int64):
        return [(1e-9, False, False), (1e-9, True, False)]
    return []


def _fits(scale: float, is_absolute: bool, is_guess: bool, values: np.ndarray, stamp_ns: int) -> bool:
    """Return whether values (N,), read in this unit, can be the times of one sweep with stamp stamp_ns."""
    ends = np.array([values.min(), values.max()])  # NaN if any value is NaN
    first, last = _seconds(ends, scale, is_absolute, stamp_ns).tolist()
    shortest = _SHORTEST_GUESSED if is_guess else 1e-9 if len(values) > 1 else 0.0
    return abs(first) <= _FARTHEST and abs(last) <= _FARTHEST and shortest <= last - first <= LONGEST_SWEEP


def _seconds(values: np.ndarray, scale: float, is_absolute: bool, stamp_ns: int) -> np.ndarray:
    """Return seconds after the stamp, float64; seconds since 1970 have the float64 resolution of 0.3 us."""
    if not is_absolute:
        return values * scale
    if values.dtype.kind in 'iu':  # float64 would round ns since 1970 to steps of 256 ns
        return (values.astype(np.int64) - stamp_ns) * scale
    return (values - stamp_ns * (1e-9 / scale)) * scale


def _invalid_times(name: str, values: np.ndarray, units: list, stamp_ns: int) -> CloudError:
    first, last = values.min(), values.max()
    same = ', all the same: the driver does not fill the field, or the cloud was deskewed and lost its times'
    same = same if first == last else ''
    expected = ' or '.join(f'{_NAMES[scale]} {"since 1970" if is_absolute else "after the stamp"}'
                           for scale, is_absolute, _ in units)  # fmt: skip
    return CloudError(
        f'The point times are invalid: {name!r} ({values.dtype}) goes from {first} to {last}{same}; the '
        f'cloud is stamped {stamp_ns * 1e-9:.6f} s. Expected {expected or "a number of 32 or 64 bits"}, within '
        f'{_FARTHEST:g} s of the stamp and {LONGEST_SWEEP:g} s from first to last. Set the driver to one clock for '
        'stamps and points, or switch deskew off.'
    )
