# SPDX-License-Identifier: Apache-2.0
import sqlite3
import tracemalloc

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore
from tiny_bag import CLOUD_TOPIC, FORMATS, ODOMETRY_TOPIC, PERIOD_NS, START_NS, messages, street, write_bag

from zeroflow_ros.bags.bag import Bag, BagMessage, BagWriter, Topic, duration_text
from zeroflow_ros.bags.cdr import (
    ODOMETRY,
    POINT_CLOUD,
    TRANSFORMS,
    decode_message,
    encode_message,
    flow_cloud_message,
    header_stamp_ns,
)
from zeroflow_ros.errors import DataError

ALL = (CLOUD_TOPIC, ODOMETRY_TOPIC, '/tf')


def ros2_bytes(num_sweeps):
    store = get_typestore(Stores.LATEST)
    return [
        (topic, time_ns, bytes(store.serialize_cdr(message, msgtype)))
        for topic, msgtype, time_ns, message in messages(num_sweeps, store=store)
    ]


@pytest.mark.parametrize('storage', FORMATS)
def test_every_format_gives_the_same_ros2_messages(tmp_path, storage):
    with Bag(write_bag(tmp_path / 'bag', storage, 3)) as bag:
        assert bag.topics == [
            Topic(CLOUD_TOPIC, POINT_CLOUD, 3),
            Topic(ODOMETRY_TOPIC, ODOMETRY, 3),
            Topic('/tf', TRANSFORMS, 3),
        ]
        assert bag.num_messages == 9
        assert bag.duration == pytest.approx(0.2)
        assert (bag.point_cloud_topic(), bag.odometry_topic()) == (CLOUD_TOPIC, ODOMETRY_TOPIC)
        found = [(m.topic, m.time_ns, bytes(m.cdr)) for m in bag.messages(ALL)]
    assert found == ros2_bytes(3)


def test_only_the_topics_and_times_asked_for(tmp_path):
    with Bag(write_bag(tmp_path / 'bag', num_sweeps=5)) as bag:
        assert list(bag.messages([])) == []
        assert list(bag.messages(['/nothing'])) == []
        window = bag.messages([CLOUD_TOPIC], start_ns=START_NS + PERIOD_NS, end_ns=START_NS + 3 * PERIOD_NS)
        assert [m.stamp_ns for m in window] == [START_NS + PERIOD_NS, START_NS + 2 * PERIOD_NS]


def test_a_decoded_cloud_is_the_recorded_one(tmp_path):
    with Bag(write_bag(tmp_path / 'bag', 'rosbag1', 2)) as bag:
        first = decode_message(next(bag.messages([CLOUD_TOPIC])).cdr, POINT_CLOUD)
    assert [field.name for field in first.fields] == ['x', 'y', 'z', 'intensity']
    np.testing.assert_array_equal(first.data.view(np.float32).reshape(-1, 4), street(0))


@pytest.mark.parametrize('name', ['kitti_0005_a', 'apollo_columbia_park', 'kitti_braking'])
@pytest.mark.parametrize('storage', FORMATS)
def test_real_bags_survive_conversion_to_every_format(tmp_path, shared_data, name, storage):
    with Bag(shared_data / 'bags' / name) as bag:
        topics = [topic.name for topic in bag.topics]
        original = [m for _, m in zip(range(6), bag.messages(topics), strict=False)]
    copy = tmp_path / 'copy'
    if storage == 'mcap':
        with BagWriter(copy, compress=True) as writer:
            for m in original:
                writer.write(m.topic, m.msgtype, m.time_ns, m.cdr)
    else:
        copy = _convert(copy, storage, original)
    with Bag(copy) as bag:
        found = list(bag.messages(topics))
    assert [(m.topic, m.time_ns, bytes(m.cdr)) for m in found] == [(m.topic, m.time_ns, bytes(m.cdr)) for m in original]


def _convert(path, storage, originals):
    from rosbags.rosbag1 import Writer as Ros1Writer
    from rosbags.rosbag2 import StoragePlugin
    from rosbags.rosbag2 import Writer as Ros2Writer

    is_ros1 = storage == 'rosbag1'
    path = path.with_suffix('.bag') if is_ros1 else path
    store = get_typestore(Stores.LATEST)
    writer = Ros1Writer(path) if is_ros1 else Ros2Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3)
    with writer:
        connections = {}
        for m in originals:
            if m.topic not in connections:
                connections[m.topic] = writer.add_connection(m.topic, m.msgtype, typestore=store)
            data = store.cdr_to_ros1(m.cdr, m.msgtype) if is_ros1 else m.cdr
            writer.write(connections[m.topic], m.time_ns, data)
    return path


def test_a_bare_file_and_a_directory_without_metadata_open(tmp_path):
    path = write_bag(tmp_path / 'bag', num_sweeps=2)
    for place in (path / 'bag.mcap', path / 'metadata.yaml'):
        with Bag(place) as bag:
            assert bag.num_messages == 6
    (path / 'metadata.yaml').unlink()
    with Bag(path) as bag:
        assert bag.num_messages == 6


def test_a_written_file_opens_elsewhere_with_its_definitions(tmp_path):
    with BagWriter(tmp_path / 'out' / 'flow.mcap') as writer:
        for topic, time_ns, cdr in ros2_bytes(2):
            writer.write(
                topic, {CLOUD_TOPIC: POINT_CLOUD, ODOMETRY_TOPIC: ODOMETRY}.get(topic, TRANSFORMS), time_ns, cdr
            )
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['flow.mcap']
    with AnyReader([tmp_path / 'out' / 'flow.mcap']) as reader:
        assert {c.topic for c in reader.connections} == set(ALL)
        for connection in reader.connections:
            assert connection.msgdef.data  # Foxglove has no other source of the layout
        for connection, _, raw in reader.messages():
            reader.deserialize(raw, connection.msgtype)


def test_static_transforms_are_written_for_late_listeners(tmp_path):
    cdr = next(cdr for topic, _, cdr in ros2_bytes(1) if topic == '/tf')
    with BagWriter(tmp_path / 'bag') as writer:
        writer.write('/tf_static', TRANSFORMS, START_NS, cdr)
        writer.write('/tf', TRANSFORMS, START_NS, cdr)
    with AnyReader([tmp_path / 'bag']) as reader:
        durability = {c.topic: c.ext.offered_qos_profiles[0].durability.name for c in reader.connections}
    assert durability == {'/tf_static': 'TRANSIENT_LOCAL', '/tf': 'VOLATILE'}


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), BagWriter(tmp_path / 'bag') as writer:
        writer.write('/tf', TRANSFORMS, 1, ros2_bytes(1)[0][2])
        raise RuntimeError
    with pytest.raises(DataError, match='nothing to write'), BagWriter(tmp_path / 'bag'):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bag_is_kept_unless_it_may_be_replaced(tmp_path):
    path = write_bag(tmp_path / 'bag', num_sweeps=2)
    with pytest.raises(DataError, match='exists already'):
        BagWriter(path)
    with BagWriter(path, replace=True) as writer:
        writer.write(CLOUD_TOPIC, POINT_CLOUD, START_NS, ros2_bytes(1)[2][2])
    with Bag(path) as bag:
        assert bag.num_messages == 1
    assert [p.name for p in tmp_path.iterdir()] == ['bag']


def _make(path, content=b''):
    path.write_bytes(content)
    return path


BAD_BAGS = {
    'missing': (lambda tmp: tmp / 'none', 'no bag at'),
    'empty file': (lambda tmp: _make(tmp / 'a.mcap'), 'cannot be read: it is empty'),
    'foreign file': (lambda tmp: _make(tmp / 'a.mcap', b'x' * 5000), 'cannot be read'),
    'foreign bag': (lambda tmp: _make(tmp / 'a.bag', b'x' * 5000), 'cannot be read'),
    'foreign database': (lambda tmp: _make(tmp / 'a.db3', b'x' * 5000), 'cannot be read'),
    'other suffix': (lambda tmp: _make(tmp / 'a.pcap', b'x'), 'is not a bag'),
    'empty directory': (lambda tmp: tmp, 'is not a bag: it has no file'),
    'broken metadata': (lambda tmp: _make(tmp / 'metadata.yaml', b'a: [').parent, 'no .mcap, .db3 or .bag file'),
}


@pytest.mark.parametrize('label', BAD_BAGS)
def test_a_bad_bag_is_an_error_that_names_it(tmp_path, label):
    make, expected = BAD_BAGS[label]
    with pytest.raises(DataError, match=expected) as error:
        Bag(make(tmp_path))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize('storage', FORMATS)
def test_a_cut_bag_is_read_up_to_the_cut_and_names_the_file(tmp_path, storage):
    path = write_bag(tmp_path / 'bag', storage, 40, num_points=2000)
    with Bag(path) as bag:
        whole = [(m.topic, m.time_ns, bytes(m.cdr)) for m in bag.messages(ALL)]
    file = path if path.is_file() else next(p for p in path.iterdir() if p.suffix in ('.mcap', '.db3'))
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])
    with Bag(path) as bag:
        found = [(m.topic, m.time_ns, bytes(m.cdr)) for m in bag.messages(ALL)]
        notes = bag.notes
    assert found == whole[: len(found)]
    assert len(found) > len(whole) // 2
    assert str(file) in notes[0] and 'cut' in notes[0]


def test_a_bag_without_a_cloud_lists_its_topics(tmp_path):
    with BagWriter(tmp_path / 'bag') as writer:
        writer.write('/tf', TRANSFORMS, 1, ros2_bytes(1)[0][2])
    with Bag(tmp_path / 'bag') as bag:
        with pytest.raises(DataError, match=r'no topic of sensor_msgs/msg/PointCloud2[^\n]*\n  /tf \(tf2_msgs'):
            bag.point_cloud_topic()
        assert bag.odometry_topic() == ''
        with pytest.raises(DataError, match='named /odom'):
            bag.odometry_topic('/odom')


def test_several_clouds_need_a_choice(tmp_path):
    cdr = ros2_bytes(1)[2][2]
    with BagWriter(tmp_path / 'bag') as writer:
        for topic in ('/front', '/rear'):
            writer.write(topic, POINT_CLOUD, 1, cdr)
    with Bag(tmp_path / 'bag') as bag:
        with pytest.raises(DataError, match=r'/front, /rear\. Choose one with --topic'):
            bag.point_cloud_topic()
        assert bag.point_cloud_topic('/rear') == '/rear'
        with pytest.raises(DataError, match='named /top'):
            bag.point_cloud_topic('/top')


def test_messages_are_checked():
    cdr = ros2_bytes(1)[2][2]
    assert header_stamp_ns(cdr) == START_NS
    assert header_stamp_ns(b'\x00\x00\x00\x00' + (5).to_bytes(4, 'big') + (7).to_bytes(4, 'big')) == 5_000_000_007
    with pytest.raises(DataError, match='too short'):
        header_stamp_ns(b'\x00\x01')
    with pytest.raises(DataError, match='is not a'):
        decode_message(cdr[:100], POINT_CLOUD)


def test_a_flow_cloud_becomes_a_message(tmp_path):
    from zeroflow_ros.lidar.point_cloud import flow_cloud

    message = decode_message(ros2_bytes(1)[2][2], POINT_CLOUD)
    velocity = np.full((4000, 3), 2.0, np.float32)
    cloud = flow_cloud(message, velocity, np.full(4000, 3, np.uint8))
    again = decode_message(encode_message(flow_cloud_message(message.header, cloud), POINT_CLOUD), POINT_CLOUD)
    assert [f.name for f in again.fields][-5:] == ['vx', 'vy', 'vz', 'speed', 'flow_valid']
    assert (again.width, again.header.frame_id, bytes(again.data)) == (4000, 'lidar', bytes(cloud.data))


def test_ctrl_c_while_a_bag_is_opened_for_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    from rosbags.rosbag2 import Writer

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, 'open', interrupted)
    with pytest.raises(KeyboardInterrupt):
        BagWriter(tmp_path / 'new')
    assert not list(tmp_path.iterdir())


def test_length_beyond_the_file_takes_no_memory(tmp_path):
    path = write_bag(tmp_path / 'bag', num_sweeps=2) / 'bag.mcap'
    content = bytearray(path.read_bytes())
    content[9:17] = (2**40).to_bytes(8, 'little')  # the length of the header, the first record
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match='holds no complete message'):
            Bag(path)
        assert tracemalloc.get_traced_memory()[1] < 1e7  # bytes
    finally:
        tracemalloc.stop()


def test_index_that_promises_messages_there_are_none_of(tmp_path):
    path = write_bag(tmp_path / 'bag', 'sqlite3', 2)
    [storage] = path.glob('*.db3')
    with sqlite3.connect(storage) as database:
        database.execute('delete from messages')
    with pytest.raises(DataError, match='holds no messages'):
        Bag(path)


DAY_NS = 86400 * 10**9


def write_at(path, storage, times):
    """Write a bag with one odometry message at each time."""
    cdr = ros2_bytes(1)[1][2]
    if storage == 'mcap':
        with BagWriter(path) as writer:
            for time_ns in times:
                writer.write(ODOMETRY_TOPIC, ODOMETRY, time_ns, cdr)
        return path
    return _convert(path, storage, [BagMessage(ODOMETRY_TOPIC, ODOMETRY, time_ns, cdr) for time_ns in times])


@pytest.mark.parametrize('storage', FORMATS)
def test_a_few_messages_recorded_at_time_0_or_a_day_later_do_not_count_for_the_time_of_the_bag(tmp_path, storage):
    times = [START_NS + k * PERIOD_NS for k in range(40)]
    last = times[-1] + 1
    with Bag(write_at(tmp_path / 'bag', storage, [0, 5, *times, times[-1] + DAY_NS])) as bag:
        assert bag.notes == []
        assert bag.duration == pytest.approx(3.9, abs=1e-6)
        assert (bag.start_ns, bag.first_ns, bag.last_ns) == (START_NS, 0, times[-1] + DAY_NS)
        assert bag.end_ns == last
        assert bag.window(0, 0) == (0, times[-1] + DAY_NS + 1)
        assert bag.window(1, 0) == (START_NS + 10**9, times[-1] + DAY_NS + 1)
        assert bag.window(0, 2) == (0, START_NS + 2 * 10**9)
        assert bag.window(1, 2) == (START_NS + 10**9, START_NS + 3 * 10**9)
        assert len(list(bag.messages([ODOMETRY_TOPIC]))) == 43  # all are read
        assert [note.split(' messages are recorded ')[1].split(' the others')[0] for note in bag.notes] == [
            '53.9 years before',
            '24.0 h after',
        ]


@pytest.mark.parametrize(
    'label, times',
    {
        'one message': [START_NS],
        'two messages far apart': [0, START_NS],
        'two drives': [START_NS + day * DAY_NS + k * PERIOD_NS for day in (0, 1) for k in range(20)],
        'all at time 0': [0] * 20,
        'a pause of nine minutes': [START_NS, *(START_NS + 540 * 10**9 + k * PERIOD_NS for k in range(30))],
    }.items(),
)
def test_other_pauses_belong_to_the_bag(tmp_path, label, times):
    with Bag(write_at(tmp_path / 'bag', 'mcap', times)) as bag:
        assert (bag.start_ns, bag.end_ns, bag.notes) == (times[0], times[-1] + 1, [])


@pytest.mark.parametrize(
    'seconds, expected',
    [(0, '0 s'), (35.2, '35 s'), (1500, '25 min'), (7300, '2.0 h'), (3 * 86400, '3.0 days'), (1.7e9, '53.9 years')],
)
def test_durations_are_told_in_a_fitting_unit(seconds, expected):
    assert duration_text(seconds) == expected


def test_messages_that_cannot_be_converted_are_skipped_and_counted(tmp_path):
    from rosbags.rosbag1 import Writer

    store = get_typestore(Stores.LATEST)
    path = tmp_path / 'a.bag'
    with Writer(path) as writer:
        connection = writer.add_connection(ODOMETRY_TOPIC, ODOMETRY, typestore=store)
        raw = bytes(store.cdr_to_ros1(ros2_bytes(1)[1][2], ODOMETRY))
        for k, data in enumerate((raw, raw[:20], raw)):
            writer.write(connection, START_NS + k, data)
    with Bag(path) as bag:
        assert [m.time_ns - START_NS for m in bag.messages([ODOMETRY_TOPIC])] == [0, 2]
        assert bag.notes == [f'{path}: 1 messages on {ODOMETRY_TOPIC} are cut or damaged, and are skipped.']
