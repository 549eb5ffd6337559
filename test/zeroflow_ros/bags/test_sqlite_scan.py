# SPDX-License-Identifier: Apache-2.0
"""rosbag2 sqlite3 files of killed recorders: rows in -wal or behind a -journal; cut and damaged files."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys

import pytest
from tiny_bag import CLOUD_TOPIC, ODOMETRY_TOPIC, write_bag

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.errors import DataError

ALL = (CLOUD_TOPIC, ODOMETRY_TOPIC, '/tf')
KILLED = """
import os, sqlite3, sys
path, mode, source = sys.argv[1:]
database = sqlite3.connect(path)
database.execute(f'PRAGMA journal_mode = {mode}')
database.execute('PRAGMA cache_size = 4')
database.execute('PRAGMA wal_autocheckpoint = 0')
rows = sqlite3.connect(source).execute('SELECT topic_id, timestamp, data FROM messages ORDER BY id').fetchall()
insert = 'INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)'
if mode == 'WAL':
    database.executemany(insert, rows)
    database.commit()
else:
    database.executemany(insert, rows[:9])
    database.commit()
    database.executemany(insert, rows[9:])  # not committed
    assert os.path.getsize(path + '-journal')
os._exit(9)
"""


def read(path):
    with Bag(path) as bag:
        return [(m.topic, m.msgtype, m.time_ns, bytes(m.cdr)) for m in bag.messages(ALL)], bag.notes


@pytest.fixture(scope='module')
def intact(tmp_path_factory):
    path = write_bag(tmp_path_factory.mktemp('bags') / 'bag', 'sqlite3', 6, num_points=1000)
    return path, read(path)[0]


def killed(intact, folder, mode):
    """Write the bag again as a recorder that is killed before it closes the database; return the folder."""
    source, _ = intact
    shutil.copytree(source, folder)
    with sqlite3.connect(folder / 'bag.db3') as database:
        database.execute('DELETE FROM messages')
    database.execute('VACUUM')
    database.close()
    done = subprocess.run([sys.executable, '-c', KILLED, folder / 'bag.db3', mode, source / 'bag.db3'], check=False)
    assert done.returncode == 9
    return folder


def checksums(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize('has_shm', [True, False])
@pytest.mark.parametrize('has_metadata', [True, False])
def test_rows_in_the_wal_of_a_killed_recorder_are_read_and_nothing_is_written(intact, tmp_path, has_shm, has_metadata):
    folder = killed(intact, tmp_path / 'bag', 'WAL')
    if not has_shm:
        (folder / 'bag.db3-shm').unlink()
    if not has_metadata:
        (folder / 'metadata.yaml').unlink()
    before = checksums(folder)
    found, notes = read(folder)
    assert found == intact[1]
    assert [f'{folder}/bag.db3 was not closed by its recorder: 18 messages' in note for note in notes] == [True]
    assert checksums(folder) == before


def test_a_wal_in_a_folder_that_cannot_be_written(intact, tmp_path):
    folder = killed(intact, tmp_path / 'bag', 'WAL')
    (folder / 'bag.db3-shm').unlink()
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555 if path is folder else 0o444)
    try:
        assert read(folder)[0] == intact[1]
        assert sorted(os.listdir(folder)) == ['bag.db3', 'bag.db3-wal', 'metadata.yaml']
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize('mode', ['WAL', 'DELETE'])
def test_a_folder_with_signs_that_mean_something_in_an_address(intact, tmp_path, mode):
    folder = killed(intact, tmp_path / 'what? 50%41 #1', mode)
    assert read(folder)[0] == intact[1][: 18 if mode == 'WAL' else 9]


def test_a_wal_that_was_not_copied_is_asked_for(intact, tmp_path):
    folder = killed(intact, tmp_path / 'bag', 'WAL')
    (folder / 'bag.db3-wal').unlink()
    with pytest.raises(DataError, match=r'bag\.db3 holds no messages\. They may be in bag\.db3-wal.*copy it, too'):
        Bag(folder)


def test_a_transaction_that_was_not_committed_is_undone_in_a_copy(intact, tmp_path):
    folder = killed(intact, tmp_path / 'bag', 'DELETE')
    before = checksums(folder)
    found, notes = read(folder)
    assert found == intact[1][:9]
    assert '9 of 18 messages less' in notes[-1]
    assert checksums(folder) == before


def test_damaged_pages_in_the_middle_cost_only_their_messages(intact, tmp_path):
    source, expected = intact
    folder = tmp_path / 'bag'
    shutil.copytree(source, folder)
    content = bytearray((folder / 'bag.db3').read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 8192] = bytes(8192)
    (folder / 'bag.db3').write_bytes(content)
    found, _ = read(folder)
    assert {m[2] for m in found} <= {m[2] for m in expected}
    assert found[0] == expected[0]


def test_a_database_that_is_no_bag_is_named(tmp_path):
    with sqlite3.connect(tmp_path / 'a.db3') as database:
        database.execute('CREATE TABLE photos (name TEXT)')
    with pytest.raises(DataError, match=r'a\.db3 is an SQLite database without the tables topics and messages'):
        Bag(tmp_path / 'a.db3')
