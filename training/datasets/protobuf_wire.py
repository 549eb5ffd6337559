# SPDX-License-Identifier: Apache-2.0
"""Read messages of Protocol Buffers by field number, without generated code. Source: the documented wire format."""

from collections.abc import Iterator

import numpy as np

from zeroflow_ros.errors import DataError

_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types
_FIXED = {_DOUBLE: 8, _FLOAT: 4}


class Message:
    """The fields of one message: values by number, in order. Bytes are views of the data, not copies.

    what: name of the message, for errors. Raises: DataError when the data are no message.
    """

    def __init__(self, data, what: str):
        self.what = what
        self._fields: dict[int, list] = {}
        for number, _, value in _fields(memoryview(data), what):
            self._fields.setdefault(number, []).append(value)

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def message(self, number: int, what: str) -> 'Message':
        """Return the last message of a field, an empty one if there is none."""
        values = self._fields.get(number)
        return Message(self._bytes(values[-1], what) if values else b'', what)

    def messages(self, number: int, what: str) -> list['Message']:
        """Return all messages of a repeated field."""
        return [Message(self._bytes(value, what), what) for value in self._fields.get(number, [])]

    def bytes(self, number: int) -> memoryview:
        """Return a field of bytes, empty if there is none."""
        values = self._fields.get(number)
        return self._bytes(values[-1], f'field {number}') if values else memoryview(b'')

    def text(self, number: int) -> str:
        """Return a string, '' if there is none."""
        return str(self.bytes(number), 'utf-8', 'replace')

    def integer(self, number: int, default: int = 0) -> int:
        """Return an int32, int64 or enum."""
        value = self._fields.get(number, [default])[-1]
        if not isinstance(value, int):
            raise DataError(f'{self.what}: field {number} should be an integer.')
        return value - (1 << 64) if value >> 63 else value

    def integers(self, number: int) -> list[int]:
        """Return a repeated int32 or enum, packed or not."""
        found = []
        for value in self._fields.get(number, []):
            if isinstance(value, int):
                found.append(value)
                continue
            position = 0
            while position < len(value):
                one, position = _varint(value, position, self.what)
                found.append(one)
        return found

    def double(self, number: int, default: float = 0.0) -> float:
        """Return a double."""
        values = self.doubles(number)
        return float(values[-1]) if len(values) else default

    def doubles(self, number: int) -> np.ndarray:
        """Return a repeated double, packed or not, (N,) float64."""
        return self._numbers(number, 8, '<f8')

    def floats(self, number: int) -> np.ndarray:
        """Return a repeated float, packed or not, (N,) float32."""
        return self._numbers(number, 4, '<f4')

    def _numbers(self, number: int, size: int, dtype: str) -> np.ndarray:
        values = self._fields.get(number, [])
        if any(isinstance(value, int) or len(value) % size for value in values):
            raise DataError(f'{self.what}: field {number} should hold numbers of {size} bytes.')
        if len(values) == 1:
            return np.frombuffer(values[0], dtype)
        return np.frombuffer(b''.join(values), dtype)

    def _bytes(self, value, what: str) -> memoryview:
        if isinstance(value, int):
            raise DataError(f'{self.what}: {what} should be a message or bytes, found an integer.')
        return value


def _fields(data: memoryview, what: str) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield (number, wire type, value) of each field of a message."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position, what)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(data, position, what)
        elif wire_type == _BYTES or wire_type in _FIXED:
            size = _FIXED.get(wire_type)
            if size is None:
                size, position = _varint(data, position, what)
            value, position = data[position : position + size], position + size
            if position > len(data):
                raise DataError(f'{what}: field {number} ends beyond its message: the data are damaged.')
        else:
            raise DataError(f'{what}: field {number} has the unknown wire type {wire_type}: the data are damaged.')
        if number == 0:
            raise DataError(f'{what}: a field has number 0: the data are damaged.')
        yield number, wire_type, value


def _varint(data: memoryview, position: int, what: str) -> tuple[int, int]:
    """Return an integer and the position behind it."""
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            return value, position
    raise DataError(f'{what}: an integer does not end: the data are damaged.')
