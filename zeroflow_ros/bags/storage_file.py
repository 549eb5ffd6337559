# SPDX-License-Identifier: Apache-2.0
"""One file of a recording, whatever its format: read by `rosbags`, and where that fails, record by record."""

import io
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from multiprocessing.util import Finalize
from pathlib import Path

from zeroflow_ros.bags import mcap_scan, rosbag1_scan, sqlite_scan
from zeroflow_ros.bags.blocks import ZSTD_MAGIC, Channel, ros_type, zstd
from zeroflow_ros.errors import DataError

FORMATS = {mcap_scan.MAGIC: '.mcap', sqlite_scan.MAGIC: '.db3', rosbag1_scan.MAGIC: '.bag'}
SUFFIXES = tuple(FORMATS.values())
_UNFINISHED = ('.part', '.crdownload', '.download', '.partial', '.aria2', '.tmp')  # downloads
_OTHERS = (  # what else is found under the name of a recording: first bytes, what it is, what to do
    (b'version https://git-lfs', 'a pointer of Git LFS, not the file itself', 'Fetch it: `git lfs pull`'),
    (b'/annex/objects', 'a pointer of git-annex, not the file itself', 'Fetch it: `git annex get {name}`'),
    (b'#ROSBAG V1', 'a rosbag of version 1', 'Convert it with ROS 1: `rosbag reindex {name}`'),
    (b'\x1f\x8b', 'a gzip archive', 'Unpack it: `gunzip {name}`, or `tar xzf {name}` for a folder'),
    (b'PK\x03\x04', 'a zip archive', 'Unpack it: `unzip {name}`'),
    (b'BZh', 'a bzip2 archive', 'Unpack it: `bunzip2 {name}`, or `tar xjf {name}` for a folder'),
    (b'\xfd7zXZ', 'an xz archive', 'Unpack it: `unxz {name}`, or `tar xJf {name}` for a folder'),
    (b'\x04"M\x18', 'an lz4 archive', 'Unpack it: `lz4 -d {name}`'),
    (b'7z\xbc\xaf', 'a 7z archive', 'Unpack it: `7z x {name}`'),
    (b'\xd4\xc3\xb2\xa1', 'a packet capture', 'Play it through the driver of the LiDAR, and record its clouds'),
    (b'\x0a\x0d\x0d\x0a', 'a packet capture', 'Play it through the driver of the LiDAR, and record its clouds'),
    (b'<', 'a web page, or another text', 'Download the file again'),
)  # fmt: skip


class _Storage(type(Path())):
    """A path whose reads stop at the end of the file: a damaged length field must not allocate gigabytes."""

    def open(self, mode='r', *args, **kwargs):
        return _BoundedReader(io.FileIO(self)) if mode == 'rb' else super().open(mode, *args, **kwargs)


class _BoundedReader(io.BufferedReader):
    def read(self, size=-1):
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def is_storage_name(path: Path) -> bool:
    """Return whether a file is named .mcap, .db3 or .bag, in any case; .zstd, .zst or .active may follow."""
    name = path.name.lower()
    for ending in ('.zstd', '.zst', '.active'):
        name = name.removesuffix(ending)
    return name.endswith(SUFFIXES)


def format_of(path: Path) -> str:
    """Return .mcap, .db3, .bag or .zstd by the first bytes of a file.

    Raises: DataError that says what the file is instead.
    """
    try:
        with path.open('rb') as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error
    for magic, suffix in {**FORMATS, ZSTD_MAGIC: '.zstd'}.items():
        if head.startswith(magic):
            return suffix
    if not head:
        wal = sqlite_scan.side_file(path, 'wal')
        more = f' (beside it is {wal.name}, which is of no use without it)' if wal else ''
        raise DataError(f'{path} cannot be read: it is empty{more}. Record it again, or copy it again.')
    what, remedy = next(
        ((what, remedy) for magic, what, remedy in _OTHERS if head.startswith(magic)), ('', ''))  # fmt: skip
    if what:
        raise DataError(f'{path} cannot be read: it is {what}. {remedy.format(name=path)}.')
    if not head.strip(b'\0'):
        raise DataError(f'{path} cannot be read: it begins with zeros. The download or the copy is not finished.')
    if not is_storage_name(path):
        raise DataError(f'{path} is not a bag: expected a rosbag2 directory, or a .mcap, .db3 or .bag file.')
    raise DataError(
        f'{path} cannot be read: it begins with {head[:12]!r}, which is no mcap, rosbag2 sqlite3 or rosbag1 file.'
    )


class _Unpacked:
    """A temporary file with what a .zstd file holds; deleted when nobody uses it any more."""

    def __init__(self, path: Path):
        handle, name = tempfile.mkstemp(prefix='zeroflow_bag.')
        self.path, self.is_complete = Path(name), False
        self._finalizer = Finalize(self, os.unlink, (name,), exitpriority=0)  # at the end of a worker process, too
        try:
            with path.open('rb') as packed, os.fdopen(handle, 'wb') as unpacked:
                decompressor = zstd().ZstdDecompressor()
                while data := packed.read(1 << 20):
                    unpacked.write(decompressor.decompress(data))
                    if decompressor.eof:
                        if not (data := decompressor.unused_data or packed.read(1 << 20)):
                            break
                        decompressor = zstd().ZstdDecompressor()
                        unpacked.write(decompressor.decompress(data))
                self.is_complete = decompressor.eof
        except OSError as error:
            self._finalizer()
            raise DataError(
                f'{path} cannot be unpacked into {self.path.parent}: {error.strerror or error}. Unpack it elsewhere: '
                f'`zstd -d {path} -o NEW`, or set TMPDIR to a folder with more space.'
            ) from error
        except Exception:  # damaged: what was unpacked may be readable
            pass
        except BaseException:
            self._finalizer()
            raise


@lru_cache(maxsize=16)  # training opens a bag for each sweep
def _unpacked(path: Path, _size: int, _time_ns: int) -> _Unpacked:
    return _Unpacked(path)


class StorageFile:
    """An opened file of a recording.

    channels: its topics. start_ns, end_ns: recording times, [start_ns, end_ns). notes: sentences on what is not read
    and why, which may grow while messages are read.
    Raises: DataError when no message can be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._notes: list[str] = []
        suffix, place = format_of(path), path
        if suffix == '.zstd':
            status = path.stat()
            self._packed = _unpacked(path, status.st_size, status.st_mtime_ns)  # kept as long as it is read
            place = self._packed.path
            if not self._packed.is_complete:
                self._notes.append(f'{path} is cut or damaged: what can be unpacked is read.')
            suffix = self._format_inside(place)
        if path.name.lower().endswith(_UNFINISHED):
            self._notes.append(f'{path} is named as a download that is not finished.')
        self._suffix, self._place = suffix, place
        self._reader, self._replaced = self._open(), None
        self.channels: list[Channel] = self._reader.channels
        self.start_ns, self.end_ns = self._reader.start_ns, self._reader.end_ns
        self.num_messages = sum(channel.num_messages for channel in self.channels)

    def _format_inside(self, place: Path) -> str:
        try:
            suffix = format_of(place)
        except DataError as error:
            raise DataError(str(error).replace(str(place), f'{self.path}, unpacked,')) from error
        if suffix == '.zstd':
            raise DataError(f'{self.path} is packed twice. Unpack it: `zstd -d {self.path}`.')
        return suffix

    def _open(self):
        try:
            if self._suffix == '.db3' and (
                sqlite_scan.side_file(self._place, 'wal') or sqlite_scan.side_file(self._place, 'journal')
            ):
                return self._scan()
            reader = _RosbagsReader(self._place, self._suffix)
            is_counted = self._suffix != '.mcap' or any(channel.num_messages for channel in reader.channels)
            return reader if is_counted else self._scan_instead(reader)
        except DataError:
            raise
        except Exception:  # rosbags raises many types
            return self._scan()

    def _scan_instead(self, reader: '_RosbagsReader'):
        """Open an mcap file whose summary counts no message, as writers without statistics make it."""
        try:
            scan = self._scan()
        except DataError:  # there is none
            return reader
        reader.close()
        return scan

    def _scan(self):
        """Open the file record by record."""
        scan = {'.mcap': mcap_scan.open_mcap, '.db3': sqlite_scan.SqliteScan, '.bag': rosbag1_scan.open_rosbag1}
        try:
            return scan[self._suffix](self._place)
        except DataError as error:
            raise DataError(str(error).replace(str(self._place), str(self.path))) from error
        except OSError as error:
            raise DataError(f'{self.path} cannot be read: {error.strerror or error}.') from error

    @property
    def notes(self) -> list[str]:
        """What is not read, and why."""
        return [note.replace(str(self._place), str(self.path)) for note in [*self._notes, *self._reader.notes]]

    def close(self) -> None:
        """Close the file."""
        for reader in filter(None, (self._reader, self._replaced)):
            reader.close()

    def messages(self, ids: set[int], start_ns: int | None = None,
                 end_ns: int | None = None) -> Iterator[tuple[int, int, bytes]]:  # fmt: skip
        """Yield (channel id, time_ns, data) of the channels in order of recording time within [start_ns, end_ns).

        A file that `rosbags` cannot read to its end is read on record by record.
        """
        last_ns, num_at_last, reader = None, 0, self._reader
        try:
            for channel_id, time_ns, data in reader.messages(ids, start_ns, end_ns):
                num_at_last = num_at_last + 1 if time_ns == last_ns else 1
                last_ns = time_ns
                yield channel_id, time_ns, data
            return
        except DataError:
            raise
        except OSError as error:
            raise DataError(f'{self.path} cannot be read: {error.strerror or error}.') from error
        except Exception:  # rosbags raises many types
            if not isinstance(reader, _RosbagsReader):
                raise
            if self._reader is reader:
                scan = self._scan()
                self._replaced, self._reader = reader, scan  # other iterations may still use the former
        start_ns = start_ns if last_ns is None else last_ns
        for channel_id, time_ns, data in self._reader.messages(ids, start_ns, end_ns):
            if time_ns == last_ns and num_at_last:
                num_at_last -= 1
                continue
            yield channel_id, time_ns, data


class _RosbagsReader:
    """An intact file, read by `rosbags`. Raises: any exception when it is not intact, or not in CDR."""

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, suffix: str):
        if suffix == '.bag':
            from rosbags.rosbag1 import Reader

            self._reader = Reader(_Storage(path))
        else:
            from rosbags.rosbag2 import Reader

            self._reader = Reader.STORAGE_PLUGINS[suffix](_Storage(path))
        self._reader.open()
        try:
            self._connections = {connection.id: connection for connection in self._reader.connections}
            self.channels = [
                Channel(c.id, c.topic, ros_type(c.msgtype),
                        'ros1' if suffix == '.bag' else c.ext.serialization_format or 'cdr', c.msgcount)
                for c in self._reader.connections
            ]  # fmt: skip
            times = self._reader if suffix == '.bag' else self._reader.metadata
            self.start_ns, self.end_ns = times.start_time, times.end_time
            num_messages = sum(channel.num_messages for channel in self.channels)
            if suffix == '.db3' and not num_messages and sqlite_scan.needs_wal(path):
                raise ValueError('rows in -wal')
            if suffix == '.mcap' and num_messages:
                self._check_chunks()
        except BaseException:
            self.close()
            raise

    def _check_chunks(self) -> None:
        """Raises: ValueError when chunks have no index: `rosbags` would find no message in them."""
        counts: Counter[int] = Counter()
        for chunk in self._reader.chunks:
            counts.update(chunk.channel_count)
        for channel in self.channels:
            if counts[channel.id] != channel.num_messages:
                raise ValueError(f'{counts[channel.id]} messages of {channel.num_messages} are in the index')

    def close(self) -> None:
        self._reader.close()

    def messages(self, ids, start_ns, end_ns):
        connections = [self._connections[key] for key in ids if key in self._connections]
        for connection, time_ns, data in self._reader.messages(connections, start_ns, end_ns):
            yield connection.id, time_ns, data
