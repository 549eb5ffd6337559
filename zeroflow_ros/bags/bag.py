# SPDX-License-Identifier: Apache-2.0
"""Read rosbag1 and rosbag2 (sqlite3, mcap) recordings and write rosbag2 mcap, with `rosbags` and without ROS.

Messages are passed as CDR, the serialisation of ROS 2; rosbag1 messages are converted when they are read.
"""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, TRANSFORMS, header_stamp_ns, typestore
from zeroflow_ros.errors import DataError

STATIC_TRANSFORMS_TOPIC = '/tf_static'
_RENAMED = {'tf/msg/tfMessage': TRANSFORMS}  # ROS 1 before tf2: same content, older name
_STORAGE_SUFFIXES = ('.mcap', '.db3', '.bag')
_REPAIR = 'A recording that was cut off can be repaired with `ros2 bag reindex`, `mcap recover` or `rosbag reindex`.'


@dataclass(frozen=True)
class Topic:
    """One topic of a bag. num_messages: number of messages on it."""

    name: str
    msgtype: str
    num_messages: int


@dataclass(frozen=True)
class BagMessage:
    """One recorded message. time_ns: time of recording. cdr: the serialised message, as ROS 2 sends it."""

    topic: str
    msgtype: str
    time_ns: int
    cdr: bytes | memoryview

    @property
    def stamp_ns(self) -> int:
        """Stamp of the message's header [ns]; only for types that start with a header."""
        return header_stamp_ns(self.cdr)


class _Storage(type(Path())):
    """A path whose reads stop at the end of the file: a damaged length field must not allocate gigabytes."""

    def open(self, mode='r', *args, **kwargs):
        return _BoundedReader(io.FileIO(self)) if mode == 'rb' else super().open(mode, *args, **kwargs)


class _BoundedReader(io.BufferedReader):
    def read(self, size=-1):
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


class Bag:
    """A recording opened for reading: `with Bag(path) as bag`.

    path: a rosbag2 directory, a single .mcap or .db3 file, or a rosbag1 .bag file.
    Raises: DataError when it is missing, broken or empty.
    """

    def __init__(self, path: str | Path):
        self.path = _storage(Path(os.path.expanduser(path)))
        try:
            if self.path.suffix == '.bag':
                from rosbags.rosbag1 import Reader
            else:
                from rosbags.rosbag2 import Reader
            self._reader = Reader(_Storage(self.path))
            self._reader.open()
        except Exception as error:
            raise _unreadable(self.path, error) from error
        self._is_ros1 = self.path.suffix == '.bag'
        self.topics = self._list_topics()
        self.num_messages = sum(topic.num_messages for topic in self.topics)
        if self.num_messages == 0:
            self.close()
            raise DataError(f'{self.path} holds no messages. Record it again.')
        self.start_ns = self._reader.start_time
        self.end_ns = self._reader.end_time

    def __enter__(self) -> 'Bag':
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._reader.close()

    @property
    def duration(self) -> float:
        """Seconds from the first to the last message."""
        return (self.end_ns - self.start_ns) * 1e-9

    def list_topics(self) -> str:
        """Return the topics as text, one per line."""
        return '\n'.join(f'  {t.name} ({t.msgtype}, {t.num_messages} messages)' for t in self.topics)

    def topics_of(self, msgtype: str) -> list[str]:
        """Return the names of the non-empty topics of a type."""
        return [topic.name for topic in self.topics if topic.msgtype == msgtype and topic.num_messages]

    def point_cloud_topic(self, requested: str = '') -> str:
        """Return the requested point cloud topic, or the only one.

        Raises: DataError that lists the topics when there is none, or several and none was requested.
        """
        return self._one_topic(POINT_CLOUD, requested, '--topic') or self._no_topic(POINT_CLOUD)

    def odometry_topic(self, requested: str = '') -> str:
        """Return the requested odometry topic, or the only one; '' when the bag has none.

        Raises: DataError when the requested one is missing, or there are several and none was requested.
        """
        return self._one_topic(ODOMETRY, requested, '--odometry-topic')

    def messages(self, topics, *, start_ns: int | None = None, end_ns: int | None = None) -> Iterator[BagMessage]:
        """Yield the messages of the named topics in recording order.

        start_ns, end_ns: limit the recording time to [start_ns, end_ns).
        Raises: DataError when the bag is damaged.
        """
        topics = set(topics)
        connections = [c for c in self._reader.connections if c.topic in topics]
        if not connections:
            return
        source = self._reader.messages(connections=connections, start=start_ns, stop=end_ns)
        while True:
            try:
                connection, time_ns, raw = next(source)
                msgtype = _RENAMED.get(connection.msgtype, connection.msgtype)
                cdr = typestore().ros1_to_cdr(raw, msgtype) if self._is_ros1 else raw
            except StopIteration:
                return
            except Exception as error:
                raise _unreadable(self.path, error) from error
            yield BagMessage(connection.topic, msgtype, time_ns, cdr)

    def first(self, topic: str) -> BagMessage:
        """Return the first message of a topic.

        Raises: DataError when there is none, even if the index of the bag lists some.
        """
        for message in self.messages([topic]):
            return message
        raise DataError(f'{self.path} lists messages on {topic}, but holds none: its index is damaged. {_REPAIR}')

    def _list_topics(self) -> list[Topic]:
        topics: dict[str, Topic] = {}
        for connection in self._reader.connections:  # a topic has one connection per publisher
            before = topics[connection.topic].num_messages if connection.topic in topics else 0
            msgtype = _RENAMED.get(connection.msgtype, connection.msgtype)
            topics[connection.topic] = Topic(connection.topic, msgtype, before + connection.msgcount)
        return [topics[name] for name in sorted(topics)]

    def _one_topic(self, msgtype: str, requested: str, option: str) -> str:
        found = self.topics_of(msgtype)
        if requested:
            return requested if requested in found else self._no_topic(msgtype, requested)
        if len(found) > 1:
            raise DataError(
                f'{self.path} has {len(found)} topics of {msgtype}: {", ".join(found)}. Choose one with {option}.'
            )
        return found[0] if found else ''

    def _no_topic(self, msgtype: str, requested: str = ''):
        named = f' named {requested}' if requested else ''
        raise DataError(f'{self.path} has no topic of {msgtype}{named}. It has:\n{self.list_topics()}')


class BagWriter:
    """Writes a rosbag2 mcap for RViz, Foxglove and `ros2 bag play`; the bag appears at its path when complete.

    path: a directory, or a single file when it ends in .mcap. compress: zstd per chunk. replace: overwrite an existing
    bag. An exception in the `with` block removes everything written.
    Raises: DataError when the path exists and replace is False, or when nothing was written.
    """

    def __init__(self, path: str | Path, *, compress: bool = False, replace: bool = False):
        from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

        self.path = Path(path).expanduser().absolute()
        if self.path.exists() and not replace:
            raise DataError(f'{self.path} exists already. Remove it, or choose another name.')
        self.num_messages = 0
        self._connections = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = Path(tempfile.mkdtemp(prefix=f'.{self.path.name}.', dir=self.path.parent))
        try:
            # Version 8: Humble cannot read the QoS format of version 9.
            self._writer = Writer(self._temporary / self.path.stem, version=8, storage_plugin=StoragePlugin.MCAP)
            if compress:
                self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            self._writer.open()
        except BaseException:  # Ctrl-C too: no `with` block cleans up yet
            shutil.rmtree(self._temporary, ignore_errors=True)
            raise

    def __enter__(self) -> 'BagWriter':
        return self

    def __exit__(self, error_type, *_) -> None:
        if error_type is None:
            self.close()
        else:
            self.abort()

    def write(self, topic: str, msgtype: str, time_ns: int, cdr: bytes | memoryview) -> None:
        """Add a serialised message, recorded at time_ns."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, msgtype, typestore=typestore(), offered_qos_profiles=_offered_qos(topic)
            )
        self._writer.write(self._connections[topic], time_ns, cdr)
        self.num_messages += 1

    def close(self) -> None:
        """Complete the bag and move it to its path.

        Raises: DataError when no message was written.
        """
        if self.num_messages == 0:
            self.abort()
            raise DataError(f'There was nothing to write to {self.path}.')
        try:
            self._writer.close()
            written = self._writer.path
            if self.path.suffix == '.mcap':
                os.replace(written / f'{written.name}.mcap', self.path)
            else:
                if self.path.exists():
                    os.rename(self.path, self._temporary / 'replaced')
                os.rename(written, self.path)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def abort(self) -> None:
        """Discard everything written."""
        self._writer.abort()
        shutil.rmtree(self._temporary, ignore_errors=True)


def _storage(path: Path) -> Path:
    """Return the path that rosbags opens: a directory with metadata.yaml, or a single file."""
    if not path.exists():
        raise DataError(f'There is no bag at {path}. Give a rosbag2 directory, or a .mcap, .db3 or .bag file.')
    if path.name == 'metadata.yaml':
        path = path.parent
    if not path.is_dir():
        if path.suffix not in _STORAGE_SUFFIXES:
            raise DataError(f'{path} is not a bag: expected a rosbag2 directory, or a .mcap, .db3 or .bag file.')
        return path
    if (path / 'metadata.yaml').exists():
        return path
    files = sorted(file for file in path.iterdir() if file.suffix in _STORAGE_SUFFIXES)
    if len(files) == 1:
        return files[0]
    raise DataError(
        f'{path} has no metadata.yaml and {len(files)} bag files. Write one with `ros2 bag reindex {path}`, '
        'or give one of the files.'
    )


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f'{path} cannot be read as a rosbag: {reason[:500]} {_REPAIR}')


def _offered_qos(topic: str):
    """Return the QoS stored for playback: late subscribers must still get static transforms."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    durability = QosDurability.TRANSIENT_LOCAL if topic == STATIC_TRANSFORMS_TOPIC else QosDurability.VOLATILE
    forever = QosTime(9_223_372_036, 854_775_807)  # the value that rosbag2 writes
    return [
        Qos(QosHistory.KEEP_LAST, 10, QosReliability.RELIABLE, durability, forever, forever,
            QosLiveliness.AUTOMATIC, forever, False),
    ]  # fmt: skip
