# SPDX-License-Identifier: Apache-2.0
"""rosbag1 files without an index, as a killed recorder leaves them, cut files, and every compression."""

import struct

import pytest
from rosbags.rosbag1 import Writer
from rosbags.typesys import Stores, get_typestore
from tiny_bag import CLOUD_TOPIC, ODOMETRY_TOPIC, write_bag

from zeroflow_ros.bags import rosbag1_scan
from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.errors import DataError

ALL = (CLOUD_TOPIC, ODOMETRY_TOPIC, '/tf')
NUM_SWEEPS = 6
HEADER = 13 + 4096  # bytes of the magic and the header of a bag


def read(path):
    with Bag(path) as bag:
        return [(m.topic, m.msgtype, m.time_ns, bytes(m.cdr)) for m in bag.messages(ALL)], bag.notes


@pytest.fixture(scope='module')
def intact(tmp_path_factory):
    path = write_bag(tmp_path_factory.mktemp('bags') / 'bag', 'rosbag1', NUM_SWEEPS, num_points=1000)
    return path, read(path)[0]


def unindexed(content):
    """Return the bytes of a bag as a killed recorder leaves them: no position of an index, and no index."""
    at = content.index(b'index_pos=') + len('index_pos=')
    (index_pos,) = struct.unpack_from('<Q', content, at)
    return content[:at] + bytes(8) + content[at + 8 : index_pos]


def test_a_bag_active_of_a_killed_recorder_is_read_without_its_index(intact, tmp_path):
    path, expected = intact
    active = tmp_path / 'drive_2024-05-01-10-00-00_0.bag.active'
    active.write_bytes(unindexed(path.read_bytes()))
    found, notes = read(active)
    assert found == expected
    assert [f'{active} was not closed by its recorder' in note for note in notes] == [True]
    assert read(tmp_path)[0] == expected  # its folder


@pytest.mark.parametrize('compression', [None, *Writer.CompressionFormat])
def test_every_compression_is_read_when_the_last_chunk_was_not_ended(intact, tmp_path, compression):
    _, expected = intact
    store = get_typestore(Stores.LATEST)
    path = tmp_path / 'a.bag'
    writer = Writer(path)
    if compression:
        writer.set_compression(compression)
    with writer:
        connections = {}
        for topic, msgtype, time_ns, cdr in expected:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=store)
            writer.write(connections[topic], time_ns, store.cdr_to_ros1(cdr, msgtype))
    assert read(path) == (expected, [])
    content = path.read_bytes()
    (header_size,) = struct.unpack_from('<I', content, HEADER)
    at = HEADER + 4 + header_size  # the size of the first chunk, which a recorder writes when it ends the chunk
    (size,) = struct.unpack_from('<I', content, at)
    path.write_bytes(unindexed(content)[:at] + bytes(4) + content[at + 4 : at + 4 + size])
    found, notes = read(path)
    assert found == expected
    assert 'was not closed by its recorder' in notes[0]


def test_a_name_in_capitals_is_a_bag_too(intact, tmp_path):
    path, expected = intact
    other = tmp_path / 'DRIVE.BAG'
    other.write_bytes(path.read_bytes())
    assert read(other) == (expected, [])


def test_a_bag_that_ended_within_its_first_message_has_nothing_to_read(intact, tmp_path):
    path, _ = intact
    other = tmp_path / 'a.bag'
    other.write_bytes(unindexed(path.read_bytes())[: HEADER + 300])
    with pytest.raises(DataError, match=r'a\.bag cannot be read: it holds no complete message in 4,409 bytes'):
        Bag(other)


def test_an_encrypted_bag_is_named(intact, tmp_path):
    path, _ = intact
    other = tmp_path / 'a.bag'
    content = path.read_bytes()
    (size,) = struct.unpack_from('<I', content, 13)
    header = content[17 : 17 + size]
    changed = header + struct.pack('<I', 20) + b'encryptor=rosbag/Aes'[:20]
    other.write_bytes(content[:13] + struct.pack('<I', len(changed)) + changed + content[17 + size :])
    with pytest.raises(DataError, match=r'it is encrypted.*`rosbag decrypt'):
        Bag(other)


def test_chunks_behind_the_first_are_not_unpacked_to_index_them(intact, tmp_path, monkeypatch):
    path = write_bag(tmp_path / 'long', 'rosbag1', 180, num_points=1000)  # three chunks
    expected, _ = read(path)
    active = tmp_path / 'a.bag.active'
    active.write_bytes(unindexed(path.read_bytes()))
    unpacked = []
    monkeypatch.setattr(
        rosbag1_scan, 'read_block', lambda *a, real=rosbag1_scan.read_block: unpacked.append(a) or real(*a)
    )
    index = rosbag1_scan.open_rosbag1(active)
    index.close()
    assert index._index.num_messages == len(expected)
    assert len(unpacked) == 2 < len(index._index.blocks)  # the first, and the last, which may be incomplete
    assert read(active)[0] == expected


def test_an_unknown_compression_is_named(intact, tmp_path):
    path, _ = intact
    other = tmp_path / 'a.bag'
    other.write_bytes(path.read_bytes().replace(b'compression=none', b'compression=brot'))
    with pytest.raises(DataError, match='its chunks are compressed by brot'):
        Bag(other)
