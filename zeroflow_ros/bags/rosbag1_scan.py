# SPDX-License-Identifier: Apache-2.0
"""Index a rosbag1 file by its records, without its index: files of killed recorders (.bag.active) and cut files.

Layout of the records: http://wiki.ros.org/Bags/Format/2.0
"""

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from zeroflow_ros.bags.blocks import (
    Block,
    BlockIndex,
    BlockStorage,
    complete_index,
    decompress,
    open_blocks,
    ros_type,
)
from zeroflow_ros.errors import DataError

MAGIC = b'#ROSBAG V2.0\n'
_MESSAGE, _BAG_HEADER, _INDEX, _CHUNK, _CHUNK_INFO, _CONNECTION = 2, 3, 4, 5, 6, 7
_OPCODES = range(_MESSAGE, _CONNECTION + 1)
_LARGEST_HEADER = 1 << 20  # bytes; the definition of a message is not in the header
_LOOSE_BYTES = 1 << 22  # of messages outside chunks, read together


def open_rosbag1(path: Path) -> BlockStorage:
    """Open a rosbag1 file without trusting its index. Raises: DataError when no message of it can be read."""
    return open_blocks(path, _index, read_block, 'bz2, lz4 or none')


def _index(file: BinaryIO, size: int) -> BlockIndex:
    return _Scan(file, size).index()


class _Scan:
    """Walks over the records of a file."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size
        self._channels: dict[int, tuple[str, str, str]] = {}  # topic, msgtype, encoding
        self._blocks: list[Block] = []
        self._is_closed = False

    def index(self) -> BlockIndex:
        end = self._walk()
        return complete_index(
            self._blocks, self._channels, lambda block: read_block(self._file, block, self._read_connection),
            loose='', num_lost_bytes=self._size - end, is_closed=self._is_closed,
        )  # fmt: skip

    def _walk(self) -> int:
        """Note chunks, and messages outside of them; return where the readable part of the file ends."""
        position = len(MAGIC)
        while position + 8 <= self._size:
            header, data, size = self._record(position)
            opcode = _number(header, b'op')
            if opcode not in _OPCODES:
                return position
            if opcode == _BAG_HEADER:
                self._is_closed = bool(_number(header, b'index_pos'))
                if header.get(b'encryptor'):
                    raise DataError(
                        f'{self._file.name} cannot be read: it is encrypted. Decrypt it with ROS 1: `rosbag decrypt '
                        f'{self._file.name}`.'
                    )
            elif opcode == _CHUNK:
                compression = header.get(b'compression', b'').decode(errors='replace')
                is_cut = data + size > self._size
                if compression != 'none' and size == 0:  # the recorder writes the size when it ends the chunk
                    size, is_cut = self._size - data, True
                stored = min(size, self._size - data)
                self._blocks.append(Block(data, stored, compression, _number(header, b'size'), 0, 0, 0, {}, is_cut))
            if data + size > self._size:
                return position
            if opcode == _INDEX and self._blocks and self._blocks[-1].compression:
                self._add_counts(header, data, size)
            elif opcode in (_MESSAGE, _CONNECTION):
                self._add_loose(position, data + size - position)
            position = data + size
        return position

    def _record(self, position: int) -> tuple[dict[bytes, bytes], int, int]:
        """Return the header of a record, where its data begins, and its size; an empty header when it is damaged."""
        self._file.seek(position)
        (length,) = struct.unpack('<I', self._file.read(4))
        if length > _LARGEST_HEADER or position + 8 + length > self._size:
            return {}, position, 0
        header = _fields(self._file.read(length))
        (size,) = struct.unpack('<I', self._file.read(4))
        return header, position + 8 + length, size

    def _add_counts(self, header: dict[bytes, bytes], data: int, size: int) -> None:
        """Take the number and the times of the messages of one topic in the last chunk from the record behind it."""
        self._file.seek(data)
        times = np.frombuffer(self._file.read(size // 12 * 12), '<u4').reshape(-1, 3)[:, :2].astype(np.int64)
        if not len(times):
            return
        times_ns, block = times[:, 0] * 10**9 + times[:, 1], self._blocks[-1]
        first_ns, last_ns = int(times_ns.min()), int(times_ns.max())
        if block.counts:
            first_ns, last_ns = min(first_ns, block.start_ns), max(last_ns, block.end_ns)
        counts = {**block.counts, _number(header, b'conn'): len(times)}
        self._blocks[-1] = replace(block, start_ns=first_ns, end_ns=last_ns, counts=counts)

    def _add_loose(self, position: int, size: int) -> None:
        last = self._blocks[-1] if self._blocks else None
        if last is not None and last.compression == '' and last.size < _LOOSE_BYTES \
                and last.offset + last.size == position:  # fmt: skip
            self._blocks[-1] = replace(last, size=last.size + size)
        else:
            self._blocks.append(Block(position, size, '', 0, 0, 0, 0, {}))

    def _read_connection(self, header: dict[bytes, bytes], data: bytes) -> None:
        msgtype = _fields(data).get(b'type', b'').decode(errors='replace')
        topic = '/'.join(part for part in header.get(b'topic', b'').decode(errors='replace').split('/') if part)
        root = '/' if header.get(b'topic', b'').startswith(b'/') else ''
        self._channels[_number(header, b'conn')] = (root + topic, ros_type(msgtype), 'ros1')


def read_block(file: BinaryIO, block: Block, on_connection=lambda header, data: None):
    """Return the messages of a block as (time_ns, channel id, data), and whether it is damaged.

    on_connection: is called with the header and the data of the connections inside.
    Raises: DataError when its compression is not supported.
    """
    file.seek(block.offset)
    data = file.read(block.size)
    is_damaged = len(data) < block.size
    if block.compression:
        data = decompress(data, block.compression, block.unpacked_size)
        is_damaged = len(data) != block.unpacked_size
    found, end = [], 0
    for header, start, end in _records(data):
        opcode = _number(header, b'op')
        if opcode == _MESSAGE and len(header.get(b'time', b'')) == 8:
            seconds, nanoseconds = struct.unpack('<II', header[b'time'])
            found.append((seconds * 10**9 + nanoseconds, _number(header, b'conn'), data[start:end]))
        elif opcode == _CONNECTION:
            on_connection(header, data[start:end])
    return found, bool(not block.is_cut and (is_damaged or end < len(data)))


def _records(data: bytes) -> Iterator[tuple[dict[bytes, bytes], int, int]]:
    """Yield (header, start, end) of the complete records."""
    position = 0
    while position + 8 <= len(data):
        (length,) = struct.unpack_from('<I', data, position)
        start = position + 8 + length
        if start > len(data):
            return
        (size,) = struct.unpack_from('<I', data, start - 4)
        if start + size > len(data):
            return
        header = _fields(data[position + 4 : start - 4])
        if _number(header, b'op') not in _OPCODES:
            return
        yield header, start, start + size
        position = start + size


def _fields(data: bytes) -> dict[bytes, bytes]:
    """Return the fields name=value of a header, as far as they can be read."""
    fields, position = {}, 0
    while position + 4 <= len(data):
        (size,) = struct.unpack_from('<I', data, position)
        name, _, value = data[position + 4 : position + 4 + size].partition(b'=')
        fields[name] = value
        position += 4 + size
    return fields


def _number(header: dict[bytes, bytes], name: bytes) -> int:
    """Return a field that is a little-endian number; -1 when it is missing."""
    return int.from_bytes(header[name], 'little') if header.get(name) else -1
