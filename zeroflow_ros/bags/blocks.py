# SPDX-License-Identifier: Apache-2.0
"""Files that hold messages in blocks (mcap, rosbag1), read in order of time without trusting an index of the file."""

import bz2
import heapq
import importlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from zeroflow_ros.errors import DataError

READ_ENCODINGS = ('cdr', 'ros1')
COMPRESSIONS = ('', 'none', 'zstd', 'lz4', 'bz2')
ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'
LARGEST_BLOCK = 2**31  # bytes of one unpacked block or message: a damaged length must not take more
_SLICE = 1 << 16  # bytes given to a decompressor at a time: what comes before a damaged place is kept


@dataclass(frozen=True)
class Channel:
    """One topic of a file, by one publisher. encoding: 'cdr', 'ros1', or one whose messages are not read."""

    id: int
    topic: str
    msgtype: str
    encoding: str
    num_messages: int


@dataclass(frozen=True)
class Block:
    """A part of a file whose messages are read together.

    offset, size: the stored bytes. unpacked_size, checksum: after decompression; 0: not known. start_ns, end_ns: first
    and last recording time. counts: number of messages by channel id. is_cut: its end is missing.
    """

    offset: int
    size: int
    compression: str
    unpacked_size: int
    checksum: int
    start_ns: int
    end_ns: int
    counts: dict[int, int]
    is_cut: bool = False


@dataclass(frozen=True)
class BlockIndex:
    """What a file holds. num_lost_bytes: unreadable at its end. is_closed: its recorder has finished it."""

    channels: tuple[Channel, ...]
    blocks: tuple[Block, ...]
    num_lost_bytes: int
    is_closed: bool
    num_damaged: int = 0  # blocks that could not be read when the file was indexed
    unsupported: frozenset[str] = field(default_factory=frozenset)  # names of compressions

    @property
    def num_messages(self) -> int:
        """Number of messages."""
        return sum(channel.num_messages for channel in self.channels)


def count_messages(channels: dict[int, tuple[str, str, str]], blocks: Collection[Block]) -> tuple[Channel, ...]:
    """Return the channels, given as {id: (topic, msgtype, encoding)}, with the number of their messages in blocks."""
    counts: Counter[int] = Counter()
    for block in blocks:
        counts.update(block.counts)
    return tuple(Channel(key, *names, counts[key]) for key, names in channels.items())


def complete_index(blocks: list[Block], channels: dict[int, tuple[str, str, str]], read: Callable, *, loose: str,
                   num_lost_bytes: int, is_closed: bool) -> BlockIndex:  # fmt: skip
    """Return the index of a file; blocks whose messages or times are not known are read.

    channels: see `count_messages`; may grow while blocks are read. read(block): as `read_block` of a `BlockStorage`.
    loose: compression of the blocks of messages outside chunks.
    """
    if blocks and not is_closed and blocks[-1].compression != loose:
        blocks[-1] = replace(blocks[-1], counts={})  # records with its counts may be missing
    complete, num_damaged, unsupported = [], 0, set()
    for block in blocks:
        if block.compression not in (loose, *COMPRESSIONS):
            unsupported.add(block.compression)
            continue
        is_known = bool(block.counts) and block.counts.keys() <= channels.keys()
        if not is_known or not block.start_ns <= block.end_ns:
            found, is_damaged = read(block)
            num_damaged += is_damaged
            times = [time_ns for time_ns, _, _ in found] or [0]
            counts = Counter(channel_id for _, channel_id, _ in found)
            block = replace(block, counts=dict(counts), start_ns=min(times), end_ns=max(times))
        if block.counts:
            complete.append(block)
    counted = count_messages(channels, complete)
    return BlockIndex(counted, tuple(complete), num_lost_bytes, is_closed, num_damaged, frozenset(unsupported))


class BlockStorage:
    """Reads the messages of an indexed file.

    read_block(file, block) returns its messages as (time_ns, channel id, data), and whether it is damaged.
    notes: sentences on what could not be read, which grow while messages are read.
    """

    def __init__(self, path: Path, index: BlockIndex, read_block: Callable):
        self.path, self.channels = path, list(index.channels)
        self._index, self._read_block = index, read_block
        self._file: BinaryIO = path.open('rb')
        self.start_ns = min(block.start_ns for block in index.blocks)
        self.end_ns = max(block.end_ns for block in index.blocks) + 1
        self.notes = _notes(path, index)
        self._damaged: set[int] = set()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def messages(self, ids: set[int], start_ns: int | None = None,
                 end_ns: int | None = None) -> Iterator[tuple[int, int, bytes]]:  # fmt: skip
        """Yield (channel id, time_ns, data) of the channels in order of recording time within [start_ns, end_ns)."""
        start_ns = self.start_ns if start_ns is None else start_ns
        end_ns = self.end_ns if end_ns is None else end_ns
        blocks = [
            block
            for block in self._index.blocks
            if block.start_ns < end_ns and start_ns <= block.end_ns and not ids.isdisjoint(block.counts)
        ]
        waiting: list[tuple[int, int, int, int, bytes]] = []  # time, place in the file, channel id, data
        for block in sorted(blocks, key=lambda block: block.start_ns):
            while waiting and waiting[0][0] < block.start_ns:
                time_ns, *_, channel_id, data = heapq.heappop(waiting)
                yield channel_id, time_ns, data
            found, is_damaged = self._read_block(self._file, block)
            if is_damaged:
                self._tell_damage(block, len(found))
            for number, (time_ns, channel_id, data) in enumerate(found):
                if channel_id in ids and start_ns <= time_ns < end_ns:
                    heapq.heappush(waiting, (time_ns, block.offset, number, channel_id, data))
        while waiting:
            time_ns, *_, channel_id, data = heapq.heappop(waiting)
            yield channel_id, time_ns, data

    def _tell_damage(self, block: Block, num_found: int) -> None:
        if block.offset in self._damaged:
            return
        self._damaged.add(block.offset)
        num_lost = max(sum(block.counts.values()) - num_found, 0)
        self.notes.append(
            f'{self.path} is damaged at byte {block.offset:,}: {num_lost} messages in {block.size:,} bytes cannot be '
            'read and are skipped. Copy the file again if the original is intact.'
        )


def _notes(path: Path, index: BlockIndex) -> list[str]:
    notes = []
    if not index.is_closed or index.num_lost_bytes:
        lost = f'the last {index.num_lost_bytes:,} bytes are incomplete' if index.num_lost_bytes else 'no byte is lost'
        notes.append(
            f'{path} was not closed by its recorder, or was cut while it was copied: {index.num_messages} messages '
            f'are read, {lost}.'
        )
    if index.num_damaged:
        notes.append(f'{path}: {index.num_damaged} damaged parts are skipped. Copy the file again if the original is '
                     'intact.')  # fmt: skip
    if index.unsupported:
        notes.append(f'{path}: parts compressed by {", ".join(sorted(index.unsupported))} are skipped: only zstd, lz4 '
                     'and bz2 are supported.')  # fmt: skip
    return notes


def decompress(data: bytes, compression: str, limit: int = 0) -> bytes:
    """Return the unpacked bytes, as far as they can be read.

    compression: '' or none, zstd, lz4 or bz2. limit: largest number of bytes; 0: LARGEST_BLOCK.
    Raises: DataError for another compression.
    """
    limit = min(limit or LARGEST_BLOCK, LARGEST_BLOCK)
    if compression in ('', 'none'):
        return bytes(data[:limit])
    decompressor = _decompressor(compression)
    parts, size = [], 0
    for at in range(0, len(data), _SLICE):
        try:
            part = decompressor.decompress(data[at : at + _SLICE], max_length=limit - size)
        except Exception:  # each library raises its own
            break
        parts.append(part)
        size += len(part)
        if decompressor.eof or size >= limit:
            break
    return b''.join(parts)


def _decompressor(compression: str):
    if compression == 'zstd':
        return zstd().ZstdDecompressor()
    if compression == 'lz4':
        return importlib.import_module('lz4.frame').LZ4FrameDecompressor()
    if compression == 'bz2':
        return bz2.BZ2Decompressor()
    raise DataError(f'Compression {compression!r} is not supported, only zstd, lz4 and bz2.')


def zstd():
    """Return the module for zstd that `rosbags` installs."""
    try:
        return importlib.import_module('compression.zstd')  # Python 3.14
    except ImportError:
        return importlib.import_module('backports.zstd')


def ros_type(name: str) -> str:
    """Return a message type as ROS 2 names it: sensor_msgs/PointCloud2 and sensor_msgs::msg::PointCloud2 too."""
    package, *rest = name.replace('::', '/').split('/')
    return f'{package}/msg/{rest[0]}' if len(rest) == 1 else '/'.join([package, *rest])


def open_blocks(path: Path, scan: Callable[[BinaryIO, int], BlockIndex], read_block, compressions: str):
    """Return the `BlockStorage` of a file.

    scan: indexes an open file of a size in bytes. read_block: see `BlockStorage`. compressions: those it may have.
    Raises: DataError when no message of it can be read.
    """
    status = path.stat()
    index = _indexed(path, status.st_size, status.st_mtime_ns, scan)
    if not index.blocks:
        why = f'its chunks are compressed by {", ".join(sorted(index.unsupported))}, expected {compressions}' \
            if index.unsupported else f'it holds no complete message in {status.st_size:,} bytes'  # fmt: skip
        raise DataError(f'{path} cannot be read: {why}.')
    return BlockStorage(path, index, read_block)


@lru_cache(maxsize=16)  # training opens a bag for each sweep
def _indexed(path: Path, size: int, _time_ns: int, scan: Callable[[BinaryIO, int], BlockIndex]) -> BlockIndex:
    with path.open('rb') as file:
        return scan(file, size)
