# SPDX-License-Identifier: Apache-2.0
"""Read the measurement time of each point; the field name and unit depend on the driver.

| field         | type            | holds                                 | written by                               |
|---------------|-----------------|---------------------------------------|------------------------------------------|
| `t`           | uint32          | ns after the stamp                    | Ouster                                   |
| `time_stamp`  | uint32          | ns after the stamp                    | Autoware (XYZIRCAEDT)                    |
| `offset_time` | uint32          | ns after the stamp                    | Livox; converters also write us          |
| `time`        | float32         | s after the stamp, negative before it | Velodyne; converters also write ms, us   |
| `timestamp`   | float64         | s since 1970                          | Hesai, RoboSense; `time_stamp`: Autoware |
| `timestamp`   | float64, uint64 | ns since 1970                         | Livox (driver 2)                         |

Sources: ouster-lidar/ouster-sdk issue 184; Livox-SDK/livox_ros_driver pull request 109; ros-drivers/velodyne issue 350
(the stamp is that of the first or of the last packet); JonasBchrt/raw-gnss-fusion issue 2 (Hesai); point types of
autoware_universe and livox_ros_driver2. KISS-ICP scales the times to 0..1 over the sweep, which loses their relation to
the stamp; here they stay in seconds.

Other names are recognised where they consist of words of time (`time_offset_ns`, `timeOffset`, `ts`, `sec` and `nsec`);
see `time_fields`. The field type and name limit the possible units, and the values must match exactly one of them:
within 1 s of the stamp, and at most 0.5 s from first to last. Integers may count from the full hour or the full second
or wrap within a sweep. Times that match no unit, or two, are an error and are not used. A few values that lie apart
from the others lose their time, not the sweep its times.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from zeroflow_ros.errors import CloudError, ConfigError
from zeroflow_ros.lidar.cloud_layout import describe_fields, read_fields
from zeroflow_ros.lidar.point_cloud import read_field
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.lidar.time_fields import TIME_FIELDS, TIME_UNITS, TimeField, time_fields

LONGEST_SWEEP = 0.5  # s: a 2 Hz sensor; also rejects times scaled to 0..1
# s from the stamp, which may be that of the first point, the last point, or the arrival at the computer
_FARTHEST = 1.0
_FARTHEST_COUNT = 0.05  # s: a counter of 32 bits that begins later than this after the stamp counts from elsewhere
_FARTHEST_SECOND = 0.2  # s: a count from the full second is within 0.5 s of any stamp
_SHORTEST_GUESSED = 0.002  # s: LONGEST_SWEEP is 250 times this, so two units a factor of 1000 apart never both match
_MOST_LOST = 0.2  # share of the returns that may lose their time
_FEW, _FEW_SHARE = 3, 0.01  # points that lose their time although with them the sweep would be short enough
_UNKNOWN_ORIGIN = 3  # rank after stamp, hour and second
_ALL_BITS = 2**32 - 1  # written for 'no time'
_MANY = 1000  # points that no sensor measures within 0.5 ms
_SAMPLE = (np.arange(1024) * 0.5 * (5**0.5 - 1)) % 1  # evenly spread, and not in step with the columns of a cloud


@dataclass(frozen=True)
class _Reading:
    """One way to read the values.

    scale: seconds per unit. is_absolute: counted from 1970, else from the stamp. is_guess: neither type nor name says
    so. farthest: [s] between the stamp and the sweep.
    """

    scale: float
    is_absolute: bool = False
    is_guess: bool = False
    farthest: float = _FARTHEST


class _Times(NamedTuple):
    """Times (N,) float64 [s] after the stamp, where has_time (N,) bool; num_lost: returns without one."""

    times: np.ndarray
    has_time: np.ndarray
    num_lost: int
    note: str = ''


def time_field(msg, name: str = '') -> str | None:
    """Return the name of the time field of a PointCloud2, 'A and B' for a pair, None where it has none.

    name: of the field to use; '' for the one that is recognised.
    """
    found = _fields(msg, name)
    return found[0].name if found else None


def _fields(msg, name: str) -> tuple[TimeField, ...]:
    return time_fields(tuple((field.name, field.datatype, field.count) for field in msg.fields), name)


def no_times_text(msg, name: str = '') -> str:
    """Return why the clouds have no point times, with the fields that they have."""
    missing = f'no field {name!r} (time_field)' if name else f'no field {", ".join(TIME_FIELDS)} or of a like name'
    return (
        f'Clouds cannot be deskewed: they have {missing}. Fields seen: {describe_fields(read_fields(msg))}. Name the '
        'field with time_field and its unit with time_unit, make the driver write the time of each point, or switch '
        'deskew off.'
    )


def check_time_unit(unit: str) -> None:
    """Raise ConfigError unless unit is 'auto' or one of TIME_UNITS."""
    if unit not in ('auto', *TIME_UNITS):
        raise ConfigError(f'time_unit must be auto, {", ".join(TIME_UNITS)}, got {unit!r}.')


def with_times(msg, sweep: Sweep, name: str = '', unit: str = 'auto') -> Sweep:
    """Return the sweep with the times of its points; unchanged where the cloud has no time field.

    msg: the PointCloud2 that the sweep was decoded from. name, unit: of the field, one of TIME_UNITS; '' and 'auto':
    recognised by name, type and values. With a unit, values from any origin are used: the earliest is then taken to be
    at the stamp.
    Points without a return, and a few points whose values lie apart from the others, get the time of the row before;
    the latter are counted in num_lost_times.
    Raises: CloudError, with the values found, when the times match no unit or several, or the named field is missing.
    """
    if len(sweep.points) == 0 or sweep.stamp_ns == 0:  # a sweep with stamp 0 is dropped later anyway
        return sweep
    fields = _fields(msg, name)
    if name and not fields:
        raise CloudError(no_times_text(msg, name))
    refused = None
    for field in fields:
        try:
            return _read_times(msg, sweep, field, unit)
        except CloudError as error:
            refused = refused or error
    if refused:
        raise refused
    return sweep


def _read_times(msg, sweep: Sweep, field: TimeField, unit: str) -> Sweep:
    values, readings = _values(msg, field, unit)
    num_points, stamp_ns = len(values), sweep.stamp_ns
    low, high = _body(values)
    first, last = values.min(), values.max()  # NaN if any value is NaN
    if low <= first and last <= high and (reading := _choose(readings, first, last, num_points, stamp_ns)):
        return replace(sweep, times=_seconds(values, reading, stamp_ns).astype(np.float32))
    is_return = np.isfinite(sweep.points[:, 0])
    if not is_return.any():  # no point to deskew
        return replace(sweep, times=np.zeros(num_points, np.float32))
    found = [_of_returns(values, is_return, readings, stamp_ns)]
    # Before a counter of 32 bits starts over, its values are apart from the others, too.
    if found[0] is None or (found[0].num_lost and field.dtype in ('int32', 'uint32')):
        found.append(_of_a_counter(values, is_return, readings, stamp_ns, field, unit))
    found = min((times for times in found if times), key=lambda times: times.num_lost, default=None)
    if found is None:
        raise _invalid_times(field, values, readings, stamp_ns)
    return replace(sweep, times=_filled(found.times, found.has_time), num_lost_times=found.num_lost,
                   times_note=found.note)  # fmt: skip


def _values(msg, field: TimeField, unit: str) -> tuple[np.ndarray, list[_Reading]]:
    """Return the values (N,), int64 or float64, and the ways to read them."""
    columns = [read_field(msg, part) for part in field.parts]
    scale = TIME_UNITS.get(unit, field.scale)
    if len(columns) == 2:  # seconds and a fraction
        seconds, fraction = (column.astype(np.int64) for column in columns)
        per_second = round(1 / field.scale)
        with np.errstate(over='ignore'):
            return seconds * per_second + fraction, _readings(field.name, np.dtype(np.int64), field.scale)
    dtype = columns[0].dtype
    values = columns[0].astype(np.int64 if dtype.kind in 'iub' else np.float64)
    return values, _readings(field.name, dtype, scale)


def _readings(name: str, dtype: np.dtype, scale: float | None) -> list[_Reading]:
    """Return the ways to read a field; scale: seconds per unit, None where it is not known."""
    if dtype.itemsize < 4:
        return []
    is_wide = dtype.itemsize == 8  # others are too coarse for times since 1970: float32 has steps of 128 s
    farthest = _FARTHEST_COUNT if dtype.kind in 'iu' and not is_wide else _FARTHEST
    if scale is not None:
        return [_Reading(scale, farthest=farthest)] + ([_Reading(scale, True)] if is_wide else [])
    if dtype == np.float32:
        return [_Reading(1.0), *(_Reading(scale, is_guess=True) for scale in (1e-3, 1e-6, 1e-9))]
    if dtype == np.float64:
        return [_Reading(1.0), _Reading(1.0, True), _Reading(1e-9, True), _Reading(1e-6, True), _Reading(1e-3, True),
                *(_Reading(scale, is_guess=True) for scale in (1e-3, 1e-6, 1e-9))]  # fmt: skip
    if is_wide:
        return [_Reading(1e-9), _Reading(1e-9, True), _Reading(1e-6, True), _Reading(1e-6, is_guess=True)]
    return [_Reading(1e-9, is_guess=name not in ('t', 'time_stamp'), farthest=farthest),
            _Reading(1e-6, is_guess=True, farthest=farthest)]  # fmt: skip


def _choose(readings: list[_Reading], first, last, num_points: int, stamp_ns: int) -> _Reading | None:
    """Return the one reading in which values from first to last can be the times of one sweep; None for none or two."""
    fits = [reading for reading in readings if _fits(reading, first, last, num_points, stamp_ns)]
    if len(fits) == 2 and fits[0].is_guess != fits[1].is_guess:  # microseconds in a field of nanoseconds
        return fits[1] if fits[1].is_guess == (num_points > _MANY) else fits[0]
    return fits[0] if len(fits) == 1 else None


def _fits(reading: _Reading, first, last, num_points: int, stamp_ns: int) -> bool:
    earliest, latest = _seconds(np.array([first, last]), reading, stamp_ns).tolist()
    if not (abs(earliest) <= _FARTHEST and abs(latest) <= _FARTHEST):  # NaN, too
        return False
    if earliest > reading.farthest or latest < -reading.farthest:
        return False
    return _is_sweep(latest - earliest, reading, num_points)


def _is_sweep(seconds: float, reading: _Reading, num_points: int) -> bool:
    shortest = _SHORTEST_GUESSED if reading.is_guess else 1e-9 if num_points > 1 else 0.0
    return shortest <= seconds <= LONGEST_SWEEP


def _seconds(values: np.ndarray, reading: _Reading, stamp_ns: int) -> np.ndarray:
    """Return seconds after the stamp, float64; seconds since 1970 have the float64 resolution of 0.3 us."""
    scale = reading.scale
    if not reading.is_absolute:
        return values * scale
    if values.dtype.kind == 'i':  # float64 would round ns since 1970 to steps of 256 ns
        return (values - stamp_ns // round(scale * 1e9)) * scale
    with np.errstate(over='ignore', invalid='ignore'):
        return (values - stamp_ns * (1e-9 / scale)) * scale


def _body(values: np.ndarray) -> tuple[float, float]:
    """Return the range in which values (N,) are not outliers: apart from the others by more than their whole span.

    Measured on a sample; NaN, NaN without a finite value.
    """
    sample = values[(_SAMPLE * len(values)).astype(np.int64)] if len(values) > len(_SAMPLE) else values
    sample = sample.astype(np.float64)
    some = np.sort(sample[np.isfinite(sample)])
    if not len(some):
        return np.nan, np.nan
    first, last = len(some) // 10, len(some) - 1 - len(some) // 10
    while True:
        with np.errstate(over='ignore'):
            reach = max(some[last] - some[first], 4 * np.spacing(max(abs(some[first]), abs(some[last]))))
            low, high = some[first] - reach, some[last] + reach
        wider = int(np.searchsorted(some, low, 'left')), int(np.searchsorted(some, high, 'right')) - 1
        if wider == (first, last):
            return low, high
        first, last = wider


def _of_returns(values: np.ndarray, is_return: np.ndarray, readings: list[_Reading], stamp_ns: int) -> _Times | None:
    """Return the times by the values of returns, without outliers if there are few or they fit no unit; or None."""
    seen = values[is_return]
    cleaned = _within(values, is_return, *_body(seen), readings, stamp_ns)
    if cleaned is None or cleaned.num_lost > max(_FEW, _FEW_SHARE * len(seen)):  # else perhaps a second sensor's points
        return _within(values, is_return, seen.min(), seen.max(), readings, stamp_ns) or cleaned
    return cleaned


def _within(values: np.ndarray, is_return: np.ndarray, low, high, readings: list, stamp_ns: int) -> _Times | None:
    """Return the times by the values from low to high, or None."""
    has_time = (values >= low) & (values <= high)
    if not _enough(has_time, is_return):
        return None
    kept = values[has_time & is_return]
    reading = _choose(readings, kept.min(), kept.max(), len(kept), stamp_ns)
    num_lost = int(np.count_nonzero(is_return & ~has_time))
    return _Times(_seconds(values, reading, stamp_ns), has_time, num_lost) if reading else None


def _enough(has_time: np.ndarray, is_return: np.ndarray) -> bool:
    return np.count_nonzero(has_time & is_return) >= (1 - _MOST_LOST) * np.count_nonzero(is_return)


def _of_a_counter(values: np.ndarray, is_return: np.ndarray, readings: list, stamp_ns: int, field: TimeField,
                  unit: str) -> _Times | None:  # fmt: skip
    """Return the times by a counter with another origin than the stamp, or None.

    The origin may be the full hour or the full second, if that agrees with the stamp; the counter may wrap. Of any
    other origin, the earliest point is taken to be at the stamp: only for integers too small for a time since 1970,
    and for a unit that the user named.
    """
    is_narrow = field.dtype in ('int32', 'uint32')
    is_free = is_narrow or unit in TIME_UNITS
    rows = np.flatnonzero(is_return)
    sample = values[rows[(_SAMPLE * len(rows)).astype(np.int64)]] if len(rows) > len(_SAMPLE) else values[rows]
    fits = []
    for reading in (reading for reading in readings if not reading.is_absolute):
        hour, second = round(3600 / reading.scale), round(1 / reading.scale)
        periods = [('stamp', 2**32)] if is_narrow else []
        periods += [('hour', hour)] if not is_narrow or hour < 2**32 else []
        periods += [('second', second)] + ([('any', 0)] if is_free else [])
        for origin, period in periods:
            how = (reading, origin, period, len(rows), stamp_ns, field.name)
            if found := _counted(sample, np.ones(len(sample), bool), *how):
                rank, times = found
                is_odd = reading.is_guess != (len(rows) > _MANY)  # as in `_choose`
                fits += [((times.num_lost, rank, is_odd), how)] if rank < _UNKNOWN_ORIGIN or is_free else []
    for _, how in sorted(fits, key=lambda fit: fit[0]):
        if found := _counted(values, is_return, *how):
            return found[1]
    return None


def _counted(values: np.ndarray, is_return: np.ndarray, reading: _Reading, origin: str, period: int, num_returns: int,
             stamp_ns: int, name: str) -> tuple[int, _Times] | None:  # fmt: skip
    """Return the rank of an origin, the most certain first, and the times by a counter that starts over at period."""
    unwrapped = _unwrapped(values, is_return, period, is_signed=origin == 'stamp')
    if unwrapped is None:
        return None
    start, after, has_time = unwrapped
    seconds = float(after[has_time & is_return].max()) * reading.scale
    if not _is_sweep(seconds, reading, num_returns):
        return None
    num_lost = int(np.count_nonzero(is_return & ~has_time))
    offset = _offset(origin, start, period, reading.scale, stamp_ns)
    is_known = {
        'stamp': offset <= _FARTHEST_COUNT and offset + seconds >= -_FARTHEST_COUNT,
        'hour': abs(offset) <= _FARTHEST,
        'second': abs(offset) <= _FARTHEST_SECOND,
    }
    if is_known.get(origin):
        return list(is_known).index(origin), _Times(after * reading.scale + offset, has_time, num_lost)
    note = (
        f'The point times {name!r} count from an unknown origin ({start} at the first point, a stamp of '
        f'{stamp_ns * 1e-9:.6f} s): the earliest is taken to be at the stamp.'
    )
    return _UNKNOWN_ORIGIN, _Times(after * reading.scale, has_time, num_lost, note)


def _unwrapped(values: np.ndarray, is_return: np.ndarray, period: int, *, is_signed: bool):
    """Return (first value, values after it (N,), has_time (N,) bool) of a counter that starts over at period.

    period: 0 for none. is_signed: negative values are those of the same bits without sign. None: it is no such counter.
    """
    has_time = np.isfinite(values) & (values != _ALL_BITS)
    if is_signed:
        values = values % period
    if period:
        has_time &= (values >= 0) & (values < period)
    if not _enough(has_time, is_return):
        return None
    kept = values[has_time & is_return]
    if period:  # start after the largest gap of the circle
        some = np.sort(kept[(_SAMPLE * len(kept)).astype(np.int64)])
        cut = some[(int(np.argmax(np.diff(some, append=some[0] + period))) + 1) % len(some)]
        margin = period // 8  # a sample may miss the very first values
        with np.errstate(invalid='ignore'):
            after = (values - cut + margin) % period
    else:
        cut, margin, after = kept[0], 0, values - kept[0]
    low, high = _body(after[has_time & is_return])
    has_time &= (after >= low) & (after <= high)
    if not _enough(has_time, is_return):
        return None
    first = after[has_time & is_return].min()
    start = cut - margin + first
    return (start % period if period else start), after - first, has_time


def _offset(origin: str, start, period: int, scale: float, stamp_ns: int) -> float:
    """Return the seconds from the stamp to a value of a counter."""
    if origin == 'any':
        return 0.0
    seconds, length = float(start) * scale, period * scale
    if origin != 'stamp':
        seconds -= stamp_ns % (3600 * 10**9 if origin == 'hour' else 10**9) * 1e-9
    return (seconds + length / 2) % length - length / 2


def _filled(times: np.ndarray, has_time: np.ndarray) -> np.ndarray:
    """Return times (N,) float32 where each row without a time has that of the row before it, the first the next one."""
    kept, lost = np.flatnonzero(has_time), np.flatnonzero(~has_time)
    filled = np.zeros(len(times), np.float32)
    filled[kept] = times[kept]
    filled[lost] = filled[kept[np.maximum(np.searchsorted(kept, lost) - 1, 0)]]
    return filled


def _invalid_times(field: TimeField, values: np.ndarray, readings: list[_Reading], stamp_ns: int) -> CloudError:
    first, last = values.min(), values.max()
    same = ', all the same: the driver does not fill the field, or the cloud was deskewed and lost its times'
    same = same if first == last else ''
    units = {number: name for name, number in TIME_UNITS.items()}
    expected = ' or '.join(f'{units[r.scale]} {"since 1970" if r.is_absolute else "after the stamp"}' for r in readings)
    return CloudError(
        f'The point times are invalid: {field.name!r} ({field.dtype}) goes from {first} to {last}{same}; the '
        f'cloud is stamped {stamp_ns * 1e-9:.6f} s. Expected {expected or "a number of 32 or 64 bits"}, within '
        f'{_FARTHEST:g} s of the stamp and {LONGEST_SWEEP:g} s from first to last. Set the driver to one clock for '
        'stamps and points, name the unit with time_unit, or switch deskew off.'
    )
