# SPDX-License-Identifier: Apache-2.0
"""Index an mcap file by its records, without its summary: files of killed recorders, cut files, profiles without ROS 2.

Layout of the records: https://mcap.dev/spec
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from zeroflow_ros.bags.blocks import (
    LARGEST_BLOCK,
    Block,
    BlockIndex,
    BlockStorage,
    complete_index,
    decompress,
    open_blocks,
    ros_type,
)

MAGIC = b'\x89MCAP0\r\n'
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _MESSAGE_INDEX = 2, 3, 4, 5, 6, 7
_LAST_OPCODE, _FIRST_PRIVATE = 0x0F, 0x80
_HEADER = struct.Struct('<BQ')  # opcode, length
_MESSAGE_HEADER = struct.Struct('<HIQQ')  # channel id, sequence, log time, publish time
_CHUNK_HEADER = struct.Struct('<QQQI')  # first and last log time, unpacked size, checksum
_LOOSE = 'loose'  # messages outside chunks
_LOOSE_BYTES = 1 << 22  # read together


def open_mcap(path: Path) -> BlockStorage:
    """Open an mcap file without trusting its summary. Raises: DataError when no message of it can be read."""
    return open_blocks(path, _index, read_block, 'zstd, lz4 or none')


def _index(file: BinaryIO, size: int) -> BlockIndex:
    return _Scan(file, size).index()


class _Scan:
    """Walks over the records of a file."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size
        self._schemas: dict[int, tuple[str, str]] = {}  # name, encoding
        self._channels: dict[int, tuple[str, str, str]] = {}  # topic, msgtype, encoding
        self._blocks: list[Block] = []
        self._is_closed = False

    def index(self) -> BlockIndex:
        end = self._walk()
        return complete_index(
            self._blocks, self._channels, lambda block: read_block(self._file, block, self._read_definition),
            loose=_LOOSE, num_lost_bytes=self._size - end, is_closed=self._is_closed,
        )  # fmt: skip

    def _walk(self) -> int:
        """Note blocks, schemas and channels; return where the readable part of the file ends."""
        position = len(MAGIC)
        while position + _HEADER.size <= self._size:
            opcode, length = self._read(_HEADER, position)
            body = position + _HEADER.size
            if not (0 < opcode <= _LAST_OPCODE or opcode >= _FIRST_PRIVATE):
                return position
            is_cut = body + length > self._size
            if opcode == _CHUNK:
                self._add_chunk(body, min(length, self._size - body), is_cut)
            if is_cut:
                return position
            if opcode == _MESSAGE and length >= _MESSAGE_HEADER.size:
                self._add_loose(position, body, length)
            elif opcode == _MESSAGE_INDEX and self._blocks and length >= 6:
                channel_id, array_size = self._read(struct.Struct('<HI'), body)
                counts = self._blocks[-1].counts
                if array_size >= 16 and self._blocks[-1].compression != _LOOSE:
                    counts[channel_id] = counts.get(channel_id, 0) + array_size // 16
            elif opcode in (_SCHEMA, _CHANNEL) and length < LARGEST_BLOCK:
                self._file.seek(body)
                self._read_definition(opcode, self._file.read(length))
            elif opcode == _FOOTER:
                self._is_closed = True
                return self._size
            position = body + length
        return position

    def _read(self, layout: struct.Struct, position: int) -> tuple:
        self._file.seek(position)
        return layout.unpack(self._file.read(layout.size))

    def _add_chunk(self, body: int, length: int, is_cut: bool) -> None:
        """Note a chunk of which `length` bytes are in the file."""
        self._file.seek(body)
        head = self._file.read(min(length, 256))
        try:
            start_ns, end_ns, unpacked_size, checksum = _CHUNK_HEADER.unpack_from(head)
            compression, at = _text(head, _CHUNK_HEADER.size)
            (size,) = struct.unpack_from('<Q', head, at)
        except (struct.error, ValueError):
            return
        at += 8
        self._blocks.append(Block(body + at, min(size, length - at), compression, unpacked_size, checksum, start_ns,
                                  end_ns, {}, is_cut))  # fmt: skip

    def _add_loose(self, position: int, body: int, length: int) -> None:
        channel_id, _, time_ns, _ = self._read(_MESSAGE_HEADER, body)
        size = body + length - position
        last = self._blocks[-1] if self._blocks else None
        if last is None or last.compression != _LOOSE or last.size > _LOOSE_BYTES or last.offset + last.size < position:
            self._blocks.append(Block(position, size, _LOOSE, 0, 0, time_ns, time_ns, {channel_id: 1}))
            return
        last.counts[channel_id] = last.counts.get(channel_id, 0) + 1
        self._blocks[-1] = replace(last, size=last.size + size, start_ns=min(last.start_ns, time_ns),
                                   end_ns=max(last.end_ns, time_ns))  # fmt: skip

    def _read_definition(self, opcode: int, body: bytes) -> None:
        """Note a schema or a channel; a damaged one is ignored."""
        try:
            if opcode == _SCHEMA:
                (key,) = struct.unpack_from('<H', body)
                name, at = _text(body, 2)
                self._schemas[key] = (name, _text(body, at)[0])
            elif opcode == _CHANNEL:
                key, schema = struct.unpack_from('<HH', body)
                topic, at = _text(body, 4)
                encoding = _text(body, at)[0]
                name, schema_encoding = self._schemas.get(schema, ('', ''))
                encoding = encoding or ('ros1' if schema_encoding == 'ros1msg' else 'cdr')
                self._channels[key] = (topic, ros_type(name), encoding)
        except (struct.error, ValueError):
            pass


def read_block(file: BinaryIO, block: Block, on_definition=lambda opcode, body: None):
    """Return the messages of a block as (time_ns, channel id, data), and whether it is damaged.

    A block with a wrong checksum has no messages. on_definition: is called with the schemas and channels inside.
    Raises: DataError when its compression is not supported.
    """
    file.seek(block.offset)
    data = file.read(block.size)
    is_damaged = len(data) < block.size
    if block.compression != _LOOSE:
        data = decompress(data, block.compression, block.unpacked_size)
        if not block.is_cut:
            is_damaged = len(data) != block.unpacked_size or (block.checksum and zlib.crc32(data) != block.checksum)
            if is_damaged and len(data) == block.unpacked_size:
                return [], True
    found = []
    end = 0
    for opcode, start, end in _records(data):
        if opcode == _MESSAGE and end - start >= _MESSAGE_HEADER.size:
            channel_id, _, time_ns, _ = _MESSAGE_HEADER.unpack_from(data, start)
            found.append((time_ns, channel_id, data[start + _MESSAGE_HEADER.size : end]))
        elif opcode in (_SCHEMA, _CHANNEL):
            on_definition(opcode, data[start:end])
    return found, bool(is_damaged or (end < len(data) and not block.is_cut))


def _records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (opcode, start, end) of the complete records."""
    position = 0
    while position + _HEADER.size <= len(data):
        opcode, length = _HEADER.unpack_from(data, position)
        start, position = position + _HEADER.size, position + _HEADER.size + length
        if not opcode or position > len(data):
            return
        yield opcode, start, position


def _text(body: bytes, at: int) -> tuple[str, int]:
    """Return the text with a length before it, and where it ends. Raises: ValueError, struct.error."""
    (length,) = struct.unpack_from('<I', body, at)
    end = at + 4 + length
    if end > len(body):
        raise ValueError(f'a text of {length} bytes in {len(body)}')
    return body[at + 4 : end].decode(), end
