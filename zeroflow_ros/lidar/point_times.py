# SPDX-License-Identifier: Apache-2.0
"""When each point of a cloud was measured, whatever the driver calls it and in whatever unit.

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
autoware_universe and livox_ros_driver2. KISS-ICP scales any of these to 0..1 over the sweep, which tells nothing of the
stamp; here they stay seconds.

The type says which units there can be, and the numbers must fit exactly one of them: within a second of the stamp, and
all of a sweep within half a second. What fits none, or two, is an error and never used.
"""

from dataclasses import replace

import numpy as np

from zeroflow_ros.errors import CloudError
from zeroflow_ros.lidar.point_cloud import read_field
from zeroflow_ros.lidar.sweep import Sweep

TIME_FIELDS = ('t', 'time', 'timestamp', 'time_stamp', 'offset_time')
LONGEST_SWEEP = 0.5  # s: a sensor of 2 Hz; also keeps out times scaled to 0..1
NO_TIMES = (
    f'Clouds cannot be deskewed: they have no field {", ".join(TIME_FIELDS)}. Make the driver write the time of each '
    'point, or do without deskew.'
)
_FARTHEST = 1.0  # s from the stamp: of the first or last point, or the computer's, which has the cloud a little later
_SHORTEST_GUESSED = 0.002  # s: with LONGEST_SWEEP a range of 250, in which two units a thousand apart never both fit
_NAMES = {1.0: 's', 1e-6: 'us', 1e-9: 'ns'}


def time_field(msg) -> str | None:
    """Return the name of the field with the time of each point, None where a PointCloud2 has none."""
    names = [field.name for field in msg.fields]
    return next((name for name in TIME_FIELDS if name in names), None)


def with_times(msg, sweep: Sweep) -> Sweep:
    """Return the sweep with the times of its points; as it is where the cloud has none.

    msg: the PointCloud2 that the sweep was decoded from. What a driver writes for points without a return, which lie
    nowhere or at the origin, does not matter: where it is no time, they get that of a point with one.
    Raises: CloudError when the times make no sense; it says what was found.
    """
    name = time_field(msg)
    if name is None or len(sweep.points) == 0 or sweep.stamp_ns == 0:  # without a stamp there is no pair either
        return sweep
    values = read_field(msg, name)
    units = _units(name, values.dtype)
    fits = [unit for unit in units if _fits(*unit, values, sweep.stamp_ns)]
    if len(fits) != 1:
        x, y = sweep.points[:, 0], sweep.points[:, 1]
        is_return = np.isfinite(x) & ((x != 0) | (y != 0))
        if not is_return.any():  # there is nothing to move
            return replace(sweep, times=np.zeros(len(values), np.float32))
        values = np.where(is_return, values, values[is_return.argmax()])
        fits = [unit for unit in units if _fits(*unit, values, sweep.stamp_ns)]
    if len(fits) != 1:
        raise _senseless(name, values, units, sweep.stamp_ns)
    scale, is_absolute, _ = fits[0]
    return replace(sweep, times=_seconds(values, scale, is_absolute, sweep.stamp_ns).astype(np.float32))


def _units(name: str, dtype: np.dtype) -> list[tuple[float, bool, bool]]:
    """Return (seconds per unit, whether it counts from 1970, whether it is a guess) of what a field may hold."""
    if dtype == np.float32:  # cannot hold an absolute time: it steps by 128 s
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
    """Return whether values (N,) in a unit are the times of one sweep that is stamped stamp_ns."""
    ends = np.array([values.min(), values.max()])  # NaN where there is one
    first, last = _seconds(ends, scale, is_absolute, stamp_ns).tolist()
    shortest = _SHORTEST_GUESSED if is_guess else 1e-9 if len(values) > 1 else 0.0
    return abs(first) <= _FARTHEST and abs(last) <= _FARTHEST and shortest <= last - first <= LONGEST_SWEEP


def _seconds(values: np.ndarray, scale: float, is_absolute: bool, stamp_ns: int) -> np.ndarray:
    """Return seconds after the stamp, float64; of seconds since 1970 good to 0.3 us, as float64 is."""
    if not is_absolute:
        return values * scale
    if values.dtype.kind in 'iu':  # a float64 would round ns since 1970 to 256
        return (values.astype(np.int64) - stamp_ns) * scale
    return (values - stamp_ns * (1e-9 / scale)) * scale


def _senseless(name: str, values: np.ndarray, units: list, stamp_ns: int) -> CloudError:
    first, last = values.min(), values.max()
    same = ', all the same: the driver does not fill it in, or the sweep was deskewed and lost them'
    same = same if first == last else ''
    expected = ' or '.join(f'{_NAMES[scale]} {"since 1970" if is_absolute else "after the stamp"}'
                           for scale, is_absolute, _ in units)  # fmt: skip
    return CloudError(
        f'The times of the points make no sense: {name!r} ({values.dtype}) goes from {first} to {last}{same}; the '
        f'cloud is stamped {stamp_ns * 1e-9:.6f} s. Expected {expected or "a number of 32 or 64 bits"}, within '
        f'{_FARTHEST:g} s of the stamp and {LONGEST_SWEEP:g} s from first to last. Set the driver to one clock for '
        'stamps and points, or do without them (deskew off).'
    )
