# SPDX-License-Identifier: Apache-2.0
"""Read rosbag1 and rosbag2 (sqlite3, mcap) recordings and write rosbag2 mcap, with `rosbags` and without ROS.

Messages are passed as CDR, the serialisation of ROS 2; messages of ROS 1 are converted when they are read.
"""

import heapq
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path

from zeroflow_ros.bags.blocks import READ_ENCODINGS, ZSTD_MAGIC, decompress
from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, TRANSFORMS, header_stamp_ns, typestore
from zeroflow_ros.bags.large_messages import write_large_directly
from zeroflow_ros.bags.recording import find_recording
from zeroflow_ros.bags.storage_file import StorageFile
from zeroflow_ros.errors import DataError

STATIC_TRANSFORMS_TOPIC = '/tf_static'
LONGEST_PAUSE = 600.0  # s without any message: what comes before or after a longer one may be recorded at a wrong time
_RENAMED = {'tf/msg/tfMessage': TRANSFORMS}  # ROS 1 before tf2: same content, older name
_FEW, _FEW_SHARE = 50, 0.1  # messages, and part of all, that may be recorded at a wrong time


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


class Bag:
    """A recording opened for reading: `with Bag(path) as bag`.

    path: a rosbag2 directory, a single .mcap or .db3 file, or a rosbag1 .bag file; packed by zstd, too. Recordings that
    were not closed, or are cut or damaged, are read as far as they can be.
    Raises: DataError when it is missing, empty or cannot be read.
    """

    def __init__(self, path: str | Path):
        self._recording = find_recording(Path(os.path.expanduser(path)))
        self.path = self._recording.path
        self._notes = list(self._recording.notes)
        self._files: list[StorageFile] = []
        self._span: tuple[int, int] | None = None
        self._damaged: dict[str, int] = {}  # messages that cannot be decoded, by topic
        try:
            self._open_files()
            self.topics = self._list_topics()
            self.num_messages = sum(file.num_messages for file in self._files)
            if self.num_messages == 0:
                raise DataError(f'{self.path} holds no messages. Record it again.')
        except BaseException:
            self.close()
            raise
        missing = self._recording.num_expected - self.num_messages
        if missing > 0:
            self._notes.append(f'{self.path} has {missing} of {self._recording.num_expected} messages less than its '
                               'metadata.yaml says.')  # fmt: skip

    def _open_files(self) -> None:
        error = None
        for path in self._recording.files:
            try:
                self._files.append(StorageFile(path))
            except DataError as unreadable:
                error = error or unreadable
                self._notes.append(f'{unreadable} It is left out.')
        if not self._files:
            raise error
        self._files = sorted(self._files, key=lambda file: file.start_ns)

    def __enter__(self) -> 'Bag':
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    @property
    def notes(self) -> list[str]:
        """Sentences for the user on what is not read and why; reading may add some. An intact recording has none."""
        damaged = [f'{self.path}: {number} messages on {topic} are cut or damaged, and are skipped.'
                   for topic, number in self._damaged.items()]  # fmt: skip
        return list(dict.fromkeys([*chain(*(file.notes for file in self._files)), *damaged, *self._notes]))

    @property
    def first_ns(self) -> int:
        """Recording time of the first message."""
        return min(file.start_ns for file in self._files if file.num_messages)

    @property
    def last_ns(self) -> int:
        """Recording time of the last message."""
        return max(file.end_ns for file in self._files if file.num_messages) - 1

    @property
    def start_ns(self) -> int:
        """Recording time of the first message, leaving out a few that lie far before all others, as at time 0."""
        return self._main_span()[0]

    @property
    def end_ns(self) -> int:
        """End of the recording times, exclusive, leaving out a few messages that lie far after all others."""
        return self._main_span()[1]

    @property
    def duration(self) -> float:
        """Seconds from the first to the last message, leaving out a few that lie far from all others."""
        return (self.end_ns - self.start_ns) * 1e-9

    def window(self, start: float, duration: float) -> tuple[int, int]:
        """Return the recording times [start_ns, end_ns) of a part of the bag, in seconds after `start_ns`.

        A start of 0 includes all messages before, a duration of 0 all after.
        """
        if not start and not duration:
            return self.first_ns, self.last_ns + 1
        start_ns = self.start_ns + round(start * 1e9)
        end_ns = start_ns + round(duration * 1e9) if duration else self.last_ns + 1
        return start_ns if start else self.first_ns, end_ns

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
        for channel, time_ns, raw in self._read(topics, start_ns, end_ns):
            msgtype = _RENAMED.get(channel.msgtype, channel.msgtype)
            try:
                if channel.encoding == 'ros1':
                    raw = typestore().ros1_to_cdr(raw, msgtype)
                elif bytes(raw[:4]) == ZSTD_MAGIC:  # CDR begins with 0
                    raw = decompress(raw, 'zstd')
            except Exception:  # the generated code of rosbags raises many types
                self._damaged[channel.topic] = self._damaged.get(channel.topic, 0) + 1
                continue
            yield BagMessage(channel.topic, msgtype, time_ns, raw)

    def _read(self, topics: set[str], start_ns: int | None, end_ns: int | None) -> Iterator[tuple]:
        """Yield (channel, time_ns, data) of all files in recording order."""
        sources, ends = [], []
        for file in self._files:
            channels = {channel.id: channel for channel in file.channels
                        if channel.topic in topics and channel.encoding in READ_ENCODINGS}  # fmt: skip
            is_outside = (start_ns is not None and file.end_ns <= start_ns) or (
                end_ns is not None and file.start_ns >= end_ns
            )
            if channels and file.num_messages and not is_outside:
                sources.append(_channel_messages(file, channels, start_ns, end_ns))
                ends.append((file.start_ns, file.end_ns))
        if all(before[1] <= after[0] for before, after in pairwise(ends)):
            return chain.from_iterable(sources)
        return heapq.merge(*sources, key=lambda message: message[1])

    def _main_span(self) -> tuple[int, int]:
        if self._span is None:
            start_ns, num_before = self._after_early_messages()
            end_ns, num_after = self._before_late_messages()
            self._span = (start_ns, end_ns) if start_ns < end_ns else (self.first_ns, self.last_ns + 1)
            for number, away_ns, where in ((num_before, start_ns - self.first_ns, 'before'),
                                           (num_after, self.last_ns + 1 - end_ns, 'after')):  # fmt: skip
                if number and start_ns < end_ns:
                    self._notes.append(
                        f'{self.path}: {number} of {self.num_messages} messages are recorded '
                        f'{duration_text(away_ns * 1e-9)} {where} the others. That pause is skipped; --start and '
                        '--duration count without them.'
                    )
        return self._span

    def _after_early_messages(self) -> tuple[int, int]:
        """Return the time of the first message that is not far before the others, and how many are."""
        most = min(_FEW, int(_FEW_SHARE * self.num_messages))
        start_ns, number = self.first_ns, 0
        times = [message[1] for message in islice(self._read_all(None, None), most + 1)]
        for k in range(1, len(times)):
            if times[k] - times[k - 1] > LONGEST_PAUSE * 1e9:
                start_ns, number = times[k], k
        return start_ns, number

    def _before_late_messages(self) -> tuple[int, int]:
        """Return the end of the messages that are not far after the others, and how many are."""
        most = min(_FEW, int(_FEW_SHARE * self.num_messages))
        end_ns, number, pause_ns = self.last_ns + 1, 0, int(LONGEST_PAUSE * 1e9)
        while end_ns - self.first_ns > 2 * pause_ns:
            late = sum(1 for _ in islice(self._read_all(end_ns - pause_ns, None), most + 1 - number))
            low, high = self.first_ns, end_ns - pause_ns  # the last message before the pause is in [low, high)
            if not late or number + late > most:
                break
            while high - low > 1:
                middle = (low + high) // 2
                if next(self._read_all(middle, high), None) is None:
                    high = middle
                else:
                    low = middle
            if end_ns - high < pause_ns:
                break
            end_ns, number = high, number + late
        return end_ns, number

    def _read_all(self, start_ns: int | None, end_ns: int | None) -> Iterator[tuple]:
        return self._read({topic.name for topic in self.topics}, start_ns, end_ns)

    def first(self, topic: str) -> BagMessage:
        """Return the first message of a topic.

        Raises: DataError when there is none, even if the index of the bag lists some.
        """
        for message in self.messages([topic]):
            return message
        more = f' {" ".join(self.notes)}' if self.notes else ''
        raise DataError(f'{self.path} lists messages on {topic}, but none can be read: it is damaged.{more}')

    def _list_topics(self) -> list[Topic]:
        topics: dict[str, Topic] = {}
        for file in self._files:
            for channel in file.channels:  # a topic has one channel per publisher
                before = topics[channel.topic].num_messages if channel.topic in topics else 0
                msgtype = _RENAMED.get(channel.msgtype, channel.msgtype)
                if channel.encoding not in READ_ENCODINGS:
                    msgtype = f'{msgtype} as {channel.encoding}'  # so that nobody takes it for a message of ROS
                topics[channel.topic] = Topic(channel.topic, msgtype, before + channel.num_messages)
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
            write_large_directly(self._writer.storage)
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


def duration_text(seconds: float) -> str:
    """Return a duration in a unit that a person reads at once: 35 s, 25 min, 5.2 h, 3.1 days, 41.9 years."""
    for limit, size, unit in ((120, 1, 's'), (7200, 60, 'min'), (2 * 86400, 3600, 'h'), (700 * 86400, 86400, 'days')):
        if seconds < limit:
            return f'{seconds / size:.0f} {unit}' if unit in ('s', 'min') else f'{seconds / size:.1f} {unit}'
    return f'{seconds / (365.25 * 86400):.1f} years'


def _channel_messages(file: StorageFile, channels: dict, start_ns: int | None, end_ns: int | None) -> Iterator[tuple]:
    for channel_id, time_ns, data in file.messages(set(channels), start_ns, end_ns):
        yield channels[channel_id], time_ns, data


def _offered_qos(topic: str):
    """Return the QoS stored for playback: late subscribers must still get static transforms."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    durability = QosDurability.TRANSIENT_LOCAL if topic == STATIC_TRANSFORMS_TOPIC else QosDurability.VOLATILE
    forever = QosTime(9_223_372_036, 854_775_807)  # the value that rosbag2 writes
    return [
        Qos(QosHistory.KEEP_LAST, 10, QosReliability.RELIABLE, durability, forever, forever,
            QosLiveliness.AUTOMATIC, forever, False),
    ]  # fmt: skip
