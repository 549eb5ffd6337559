# SPDX-License-Identifier: Apache-2.0
"""Recognise the fields of a cloud that hold the time of each point, by their names."""

import re
from dataclasses import dataclass
from functools import lru_cache

from zeroflow_ros.lidar.cloud_layout import DATATYPES

TIME_FIELDS = ('t', 'time', 'timestamp', 'time_stamp', 'offset_time')  # the usual names, which come first
TIME_UNITS = {'s': 1.0, 'ms': 1e-3, 'us': 1e-6, 'ns': 1e-9}  # seconds
_UNIT_WORDS = {
    's': 1.0, 'sec': 1.0, 'secs': 1.0, 'second': 1.0, 'seconds': 1.0,
    'ms': 1e-3, 'msec': 1e-3, 'msecs': 1e-3, 'millis': 1e-3, 'millisec': 1e-3, 'milliseconds': 1e-3,
    'us': 1e-6, 'usec': 1e-6, 'usecs': 1e-6, 'micros': 1e-6, 'microsec': 1e-6, 'microseconds': 1e-6,
    'ns': 1e-9, 'nsec': 1e-9, 'nsecs': 1e-9, 'nanos': 1e-9, 'nanosec': 1e-9, 'nanosecs': 1e-9, 'nanoseconds': 1e-9,
}  # fmt: skip
_TIME_WORDS = {'t', 'ts', 'time', 'times', 'timestamp', 'timestamps', 'stamp', 'stamps', 'dt'}
_OFFSET_WORDS = {'offset', 'offsets', 'delta', 'diff', 'rel', 'relative'}  # of time only with a unit: `offset_ns`
_OTHER_WORDS = {
    'abs', 'absolute', 'acquisition', 'azimuth', 'base', 'begin', 'block', 'capture', 'col', 'column', 'delay',
    'device', 'epoch', 'fire', 'fired', 'firing', 'first', 'frame', 'from', 'gps', 'hardware', 'header', 'hour', 'hw',
    'in', 'laser', 'lidar', 'measured', 'measurement', 'of', 'packet', 'past', 'point', 'points', 'pt', 'ptp', 'scan',
    'sensor', 'since', 'start', 'sweep', 'tai', 'to', 'tv', 'unix', 'utc', '32', '64',
}  # fmt: skip
_WORDS = _TIME_WORDS | _OFFSET_WORDS | _OTHER_WORDS | set(_UNIT_WORDS)
_LONGEST_NAME = 48
_MOST = 4  # fields that are tried


@dataclass(frozen=True)
class TimeField:
    """A field, or a pair of seconds and their fraction, that holds times.

    name: for messages. parts: names of one field, or of the seconds and the fraction. scale: seconds per unit, of the
    fraction for a pair; None: the name does not say it. dtype: name of the type.
    """

    name: str
    parts: tuple[str, ...]
    scale: float | None
    dtype: str = 'int64'


@lru_cache(maxsize=64)
def time_fields(fields: tuple[tuple[str, int, int], ...], name: str = '') -> tuple[TimeField, ...]:
    """Return the fields that may hold times, the most likely first.

    fields: (name, datatype, count) of each. name: of the field to use, or of one of a pair; '' for those that are
    recognised.
    """
    datatypes = {field[0]: field[1] for field in fields}
    found = [_single(known, datatypes[known]) for known in TIME_FIELDS if known in datatypes]
    words = {
        field: split
        for field, datatype, count in fields
        if count == 1 and DATATYPES.get(datatype, ('', 0))[1] >= 4 and (split := _split(field)) is not None
    }
    pairs = _pairs({field: split for field, split in words.items() if 'int' in DATATYPES[datatypes[field]][0]})
    if name:
        single = (_single(name, datatypes[name]),) if name in datatypes else ()
        return tuple(pair for pair in pairs if name in pair.parts) or single
    found += pairs
    paired = {part for pair in found for part in pair.parts}
    single = [_single(field, datatypes[field]) for field, split in words.items() if field not in paired
              and _is_time(split)]  # fmt: skip
    found += sorted(single, key=lambda field: field.scale is None)
    return tuple(found[:_MOST])


def _single(name: str, datatype: int) -> TimeField:
    units = [_UNIT_WORDS[word] for word in _split(name) or () if word in _UNIT_WORDS]
    scale = units[-1] if units else None
    return TimeField(name, (name,), scale, DATATYPES.get(datatype, ('unknown',))[0])


def _pairs(words: dict[str, tuple[str, ...]]) -> list[TimeField]:
    """Return the pairs of seconds and their fraction: names that differ in the unit only."""
    found = []
    for field, split in words.items():
        scale = _UNIT_WORDS.get(split[-1])
        if scale is None or scale == 1.0:
            continue
        for other, others in words.items():
            if others[:-1] == split[:-1] and _UNIT_WORDS.get(others[-1]) == 1.0:
                found.append(TimeField(f'{other} and {field}', (other, field), scale))
    return found


def _is_time(words: tuple[str, ...]) -> bool:
    if any(word in _TIME_WORDS for word in words):
        return True
    has_unit = any(word in _UNIT_WORDS and word != 's' for word in words)
    return has_unit and all(word in _UNIT_WORDS or word in _OFFSET_WORDS or word in _OTHER_WORDS for word in words)


def _split(name: str) -> tuple[str, ...] | None:
    """Return the words of a name, in lower case; None where one is no word of time."""
    if not 0 < len(name) <= _LONGEST_NAME or not re.fullmatch(r'[A-Za-z0-9_. -]+', name):
        return None
    words: list[str] = []
    for part in re.findall(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+', name):
        split = _split_part(part.lower())
        if split is None:
            return None
        words += split
    return tuple(words) or None


def _split_part(part: str) -> list[str] | None:
    """Return the words that a part consists of, such as 'timestampns'; None where it does not."""
    if part in _WORDS:
        return [part]
    for end in range(len(part) - 1, 1, -1):
        if part[:end] in _WORDS and (rest := _split_part(part[end:])) is not None and len(part) - end > 1:
            return [part[:end], *rest]
    if part[0] == 't' and part[1:] in _UNIT_WORDS and len(part) > 2:
        return ['t', part[1:]]
    return None
