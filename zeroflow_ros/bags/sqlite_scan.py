# SPDX-License-Identifier: Apache-2.0
"""Read a rosbag2 sqlite3 file row by row: rows that a killed recorder left in -wal, cut files, damaged pages."""

import contextlib
import os
import shutil
import tempfile
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from multiprocessing.util import Finalize
from pathlib import Path

from zeroflow_ros.bags.blocks import Channel
from zeroflow_ros.errors import DataError

MAGIC = b'SQLite format 3\x00'
_WAL = 2  # file format in the header of a database that has a -wal
_MOST_JUMPS = 40  # over damaged pages, each twice as far


def side_file(path: Path, ending: str) -> Path | None:
    """Return FILE-wal or FILE-journal of a database when it is there and not empty."""
    path = path.resolve()
    beside = path.with_name(f'{path.name}-{ending}')
    return beside if beside.is_file() and beside.stat().st_size else None


def needs_wal(path: Path) -> bool:
    """Return whether a database was written with a -wal that is not there any more, unless its recorder closed it."""
    with path.open('rb') as file:
        header = file.read(20)
    return len(header) == 20 and header[18] == _WAL and side_file(path, 'wal') is None


class SqliteScan:
    """Reads the messages of a database in order of time, as far as they can be read; nothing is written beside it.

    notes: sentences on what could not be read, which grow while messages are read.
    Raises: DataError when no message can be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._database = _opened(path, os.getpid(), _state(path))
        names, self._rows, is_complete = self._database.index()
        counts = Counter(topic for _, _, topic in self._rows)
        self.channels = [Channel(key, *name, counts[key]) for key, name in names.items()]
        self.start_ns = self._rows[0][0]
        self.end_ns = self._rows[-1][0] + 1
        self.notes = []
        if wal := side_file(path, 'wal'):
            self.notes.append(f'{path} was not closed by its recorder: {len(self._rows)} messages are read, with those '
                              f'in {wal.name}. Keep the two files together.')  # fmt: skip
        if not is_complete:
            self.notes.append(f'{path} is cut or damaged: {len(self._rows)} messages are read, those behind the damage '
                              'are lost. Copy the file again if the original is intact.')  # fmt: skip
        self._num_lost = 0

    def close(self) -> None:
        """Do nothing: the database is closed when nobody uses it any more."""

    def messages(self, ids: set[int], start_ns: int | None = None,
                 end_ns: int | None = None) -> Iterator[tuple[int, int, bytes]]:  # fmt: skip
        """Yield (topic id, time_ns, data) of the topics in order of recording time within [start_ns, end_ns)."""
        first = 0 if start_ns is None else bisect_left(self._rows, (start_ns,))
        last = len(self._rows) if end_ns is None else bisect_left(self._rows, (end_ns,))
        for time_ns, row, topic in self._rows[first:last]:
            if topic not in ids:
                continue
            try:
                data = self._database.data(row)
            except Exception:  # apsw raises many types; its pages are cut off or damaged
                self._tell_lost()
                continue
            yield topic, time_ns, data

    def _tell_lost(self) -> None:
        text = '{} is cut or damaged: {} messages cannot be read and are skipped.'
        with contextlib.suppress(ValueError):
            self.notes.remove(text.format(self.path, self._num_lost))
        self._num_lost += 1
        self.notes.append(text.format(self.path, self._num_lost))


class _Database:
    """An opened database, with its rows; closed when nobody uses it any more, or from the cache."""

    def __init__(self, path: Path):
        self._path, self._rows = path, None
        self._connection, copy = _connect(path)
        self._lock = threading.Lock()  # recordings are read in background threads, too
        Finalize(self, _close, (self._connection, copy), exitpriority=0)  # at the end of a worker process, too

    def index(self):
        """Return topics by id, (time_ns, row id, topic id) in order of time, and whether all rows were found."""
        with self._lock:
            if self._rows is None:
                self._rows = _read_index(self._path, self._connection)
            return self._rows

    def data(self, row: int) -> bytes:
        """Return the data of a row. Raises: any exception when it cannot be read."""
        with self._lock:
            return self._connection.execute('SELECT data FROM messages WHERE id = ?', (row,)).fetchone()[0]


@lru_cache(maxsize=4)  # training opens a bag for each sweep, and SQLite reads the whole -wal when it opens it
def _opened(path: Path, _process: int, _state: tuple) -> _Database:
    return _Database(path)


def _state(path: Path) -> tuple:
    files = filter(None, (path, side_file(path, 'wal'), side_file(path, 'journal')))
    return tuple((status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files))


def _close(connection, copy: Path | None) -> None:
    with contextlib.suppress(Exception):
        connection.close()
    if copy:
        shutil.rmtree(copy, ignore_errors=True)


def _connect(path: Path):
    """Return a connection, and the temporary folder of the copy it reads, or None.

    A database with -wal is read in place, without the -shm file that SQLite would write: the VFS without locks, in
    exclusive mode, keeps the index of -wal in memory. One with -journal must be rolled back, which needs a copy.
    """
    import apsw

    copy = None
    place, flags, options = path.resolve(), apsw.SQLITE_OPEN_READONLY, 'mode=ro'
    if journal := side_file(path, 'journal'):
        copy = Path(tempfile.mkdtemp(prefix='zeroflow_bag.'))
        try:
            for file in (place, journal):
                shutil.copyfile(file, copy / file.name)
        except OSError as error:
            shutil.rmtree(copy, ignore_errors=True)
            raise DataError(
                f'{path} was not closed by its recorder. A copy is needed to undo its last transaction, but: {error}. '
                f'Set TMPDIR to a folder with {place.stat().st_size * 1e-9:.1f} GB of free space.'
            ) from error
        place, flags, options = copy / place.name, apsw.SQLITE_OPEN_READWRITE, 'mode=rw'
    elif not side_file(path, 'wal'):
        options = 'immutable=1'
    name = os.fspath(place).replace('%', '%25').replace('?', '%3f').replace('#', '%23')
    try:
        database = apsw.Connection(f'file:{name}?{options}', flags=flags | apsw.SQLITE_OPEN_URI,
                                   vfs=None if copy or options == 'immutable=1' else 'unix-none')  # fmt: skip
        database.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        database.execute('PRAGMA locking_mode = EXCLUSIVE').fetchall()
        database.execute('PRAGMA writable_schema = ON').fetchall()  # else a cut file does not open
        return database, copy
    except apsw.Error as error:
        if copy:
            shutil.rmtree(copy, ignore_errors=True)
        raise DataError(f'{path} cannot be read: {error}.') from error


def _read_index(path: Path, database):
    import apsw

    repair = f'Try `sqlite3 {path} .recover | sqlite3 repaired.db3`.'
    try:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {'topics', 'messages'} <= tables:
            raise DataError(f'{path} is an SQLite database without the tables topics and messages: not a rosbag2.')
        rows = database.execute('SELECT id, name, type, serialization_format FROM topics').fetchall()
    except (apsw.Error, ValueError, TypeError) as error:  # text that is no UTF-8, or numbers
        raise DataError(f'{path} cannot be read: {error}. {repair}') from error
    topics = {key: (str(topic), str(msgtype), str(form or 'cdr')) for key, topic, msgtype, form in rows}
    found, is_complete = _read_rows(database)
    rows = sorted((time_ns, row, topic) for row, topic, time_ns in found if topic in topics)
    if not rows:
        if needs_wal(path):
            raise DataError(
                f'{path} holds no messages. They may be in {path.name}-wal, which is not there: copy it, too.'
            )
        raise DataError(f'{path} holds no messages' + ('.' if is_complete else f' that can be read. {repair}'))
    return topics, rows, is_complete


def _read_rows(database) -> tuple[list[tuple[int, int, int]], bool]:
    """Return (row id, topic id, time_ns) of every row that can be read, and whether those are all."""
    import apsw

    rows, last, jump, is_complete = [], -1, 1, True
    for _ in range(_MOST_JUMPS):
        try:
            for row in database.execute('SELECT id, topic_id, timestamp FROM messages WHERE id > ? ORDER BY id',
                                        (last,)):  # fmt: skip
                if all(type(value) is int for value in row):
                    rows.append(row)
                last = row[0]
                jump = 1
            return rows, is_complete
        except (apsw.Error, ValueError, TypeError):
            is_complete = False
            last += jump
            jump *= 2
    return rows, is_complete
