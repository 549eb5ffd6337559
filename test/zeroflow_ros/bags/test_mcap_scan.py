# SPDX-License-Identifier: Apache-2.0
"""mcap files that rosbags does not open, or opens without finding their messages."""

import pytest
from mcap.writer import CompressionType, IndexType, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from tiny_bag import CLOUD_TOPIC, ODOMETRY_TOPIC, messages

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, TRANSFORMS, decode_message
from zeroflow_ros.errors import DataError

ALL = (CLOUD_TOPIC, ODOMETRY_TOPIC, '/tf')
NUM_SWEEPS = 6


def cdr_messages(num_sweeps=NUM_SWEEPS):
    store = get_typestore(Stores.LATEST)
    return [(topic, msgtype, time_ns, bytes(store.serialize_cdr(message, msgtype)))
            for topic, msgtype, time_ns, message in messages(num_sweeps, store=store, num_points=1000)]  # fmt: skip


def write_mcap(path, *, profile='ros2', encoding='cdr', schema_encoding='ros2msg', finish=True, others=(), found=None,
               chunk_size=20_000, **options):  # fmt: skip
    """Write an mcap. others: (topic, message encoding, schema encoding, data) of messages that are not of ROS."""
    with path.open('wb') as stream:
        writer = Writer(stream, chunk_size=chunk_size, **options)
        writer.start(profile=profile, library='a test')
        channels = {}
        for topic, message_encoding, schema, data in others:
            schema_id = writer.register_schema('foxglove.PointCloud', schema, b'x') if schema else 0
            channel = writer.register_channel(topic, message_encoding, schema_id)
            writer.add_message(channel, 10**18, data, 10**18)
        for topic, msgtype, time_ns, data in found or cdr_messages():
            if topic not in channels:
                name = msgtype.replace('/msg/', '/') if schema_encoding == 'ros1msg' else msgtype
                schema_id = writer.register_schema(name, schema_encoding, b'')
                channels[topic] = writer.register_channel(topic, encoding, schema_id)
            writer.add_message(channels[topic], time_ns, data, time_ns)
        if finish:
            writer.finish()
    return path


def read(path, topics=ALL):
    with Bag(path) as bag:
        return [(m.topic, m.msgtype, m.time_ns, bytes(m.cdr)) for m in bag.messages(topics)], bag.notes


READABLE = {
    'lz4 chunks': {'compression': CompressionType.LZ4},
    'zstd chunks': {'compression': CompressionType.ZSTD},
    'no compression': {'compression': CompressionType.NONE},
    'no chunks': {'use_chunking': False},
    'no message index': {'index_types': IndexType.CHUNK},
    'no index at all': {'index_types': IndexType.NONE, 'use_statistics': False, 'use_summary_offsets': False},
    'no summary': {'index_types': IndexType.NONE, 'use_statistics': False, 'use_summary_offsets': False,
                   'repeat_channels': False, 'repeat_schemas': False},
    'a summary without statistics': {'use_statistics': False},
    'a summary of indices only': {'use_statistics': False, 'repeat_channels': False, 'repeat_schemas': False},
    'empty profile': {'profile': ''},
    'one protobuf channel': {'others': [('/boxes', 'protobuf', 'protobuf', b'123')]},
    'one json channel': {'others': [('/gps', 'json', 'jsonschema', b'{}')]},
    'json without a schema': {'others': [('/gps', 'json', '', b'{}')]},
}  # fmt: skip


@pytest.mark.parametrize('label', READABLE)
def test_every_layout_of_mcap_gives_the_same_messages_and_no_note(tmp_path, label):
    assert read(write_mcap(tmp_path / 'a.mcap', **READABLE[label])) == (cdr_messages(), [])


def test_a_topic_that_is_not_cdr_is_listed_but_not_taken_for_a_cloud(tmp_path):
    path = tmp_path / 'a.mcap'
    with path.open('wb') as stream:
        writer = Writer(stream)
        writer.start(profile='', library='a test')
        channel = writer.register_channel('/points', 'json', writer.register_schema(POINT_CLOUD, 'jsonschema', b'{}'))
        writer.add_message(channel, 1, b'{}', 1)
        writer.finish()
    with Bag(path) as bag, pytest.raises(DataError, match=rf'/points \({POINT_CLOUD} as json, 1 messages\)'):
        bag.point_cloud_topic()


def test_a_recorder_that_was_killed_leaves_no_summary(tmp_path):
    path = write_mcap(tmp_path / 'a.mcap', finish=False)
    found, notes = read(path)
    assert found == cdr_messages()[: len(found)]
    assert len(found) > len(cdr_messages()) // 2
    assert len(notes) == 1
    assert f'{path} was not closed by its recorder' in notes[0]
    assert f'{len(found)} messages are read' in notes[0]


@pytest.mark.parametrize('compression', CompressionType)
def test_messages_of_a_chunk_that_is_cut_in_the_middle_are_read(tmp_path, compression):
    expected = cdr_messages(30)  # zstd unpacks 128 KiB at a time
    path = write_mcap(tmp_path / 'a.mcap', compression=compression, chunk_size=1 << 30, found=expected)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found, notes = read(path)
    assert found == expected[: len(found)]
    assert len(found) >= len(expected) // 3
    assert 'was cut' in notes[0]


def test_a_damaged_chunk_is_skipped_counted_and_said_and_the_rest_is_read(tmp_path):
    path = write_mcap(tmp_path / 'a.mcap', compression=CompressionType.NONE)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    found, notes = read(path)
    expected = cdr_messages()
    lost = len(expected) - len(found)
    assert 0 < lost <= 6
    assert set(found) < set(expected)
    assert (found[0], found[-1]) == (expected[0], expected[-1])
    assert len(notes) == 1
    assert f'{path} is damaged at byte' in notes[0] and f'{lost} messages' in notes[0]


def test_an_unknown_compression_is_named(tmp_path):
    path = write_mcap(tmp_path / 'a.mcap', compression=CompressionType.ZSTD)
    path.write_bytes(path.read_bytes().replace(b'\x04\0\0\0zstd', b'\x04\0\0\0brot'))
    with pytest.raises(DataError, match=r'a\.mcap cannot be read: its chunks are compressed by brot'):
        read(path)


def test_messages_of_ros1_in_an_mcap_are_converted(tmp_path):
    store = get_typestore(Stores.ROS1_NOETIC)
    store.register(get_types_from_msg('geometry_msgs/TransformStamped[] transforms', TRANSFORMS))
    found = [(topic, msgtype, time_ns, bytes(store.serialize_ros1(message, msgtype)))
             for topic, msgtype, time_ns, message in messages(3, store=store, is_ros1=True, num_points=1000)
    ]  # fmt: skip
    path = write_mcap(tmp_path / 'a.mcap', profile='ros1', encoding='ros1', schema_encoding='ros1msg', found=found)
    assert read(path) == (cdr_messages(3), [])
    with Bag(path) as bag:
        assert decode_message(bag.first(bag.point_cloud_topic()).cdr, POINT_CLOUD).width == 1000


def test_messages_that_were_written_out_of_order_are_read_in_order(tmp_path):
    expected = cdr_messages()
    written = expected[6:9] + expected[:6] + expected[9:]
    for options in ({}, {'use_chunking': False}, {'index_types': IndexType.NONE}):
        assert read(write_mcap(tmp_path / 'a.mcap', found=written, **options)) == (expected, [])


def test_a_part_of_the_time_without_an_index(tmp_path):
    path = write_mcap(tmp_path / 'a.mcap', index_types=IndexType.NONE)
    expected = [m for m in cdr_messages() if m[0] == CLOUD_TOPIC][2:4]
    with Bag(path) as bag:
        found = list(bag.messages([CLOUD_TOPIC], start_ns=expected[0][2], end_ns=expected[1][2] + 1))
    assert [(m.topic, m.msgtype, m.time_ns, bytes(m.cdr)) for m in found] == expected
