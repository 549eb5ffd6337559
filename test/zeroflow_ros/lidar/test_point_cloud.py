# SPDX-License-Identifier: Apache-2.0
import array
import struct
import tracemalloc

import numpy as np
import pytest
from cloud_messages import ONE, SIZES, XYZ, message

from zeroflow_ros.errors import CloudError
from zeroflow_ros.lidar.cloud_layout import check_rows
from zeroflow_ros.lidar.point_cloud import FlowCloud, decode_cloud, flow_cloud, read_field


def decode_plain(msg):
    """One point at a time, by struct: what decode_cloud must equal."""
    layout = {f.name: f for f in msg.fields}
    points = []
    for row in range(msg.height):
        for column in range(msg.width):
            start = row * msg.row_step + column * msg.point_step
            point = []
            for name in 'xyz':
                code = ('>' if msg.is_bigendian else '<') + {7: 'f', 8: 'd'}[layout[name].datatype]
                point.append(struct.unpack_from(code, msg.data, start + layout[name].offset)[0])
            with np.errstate(over='ignore'):
                point = np.array(point).astype(np.float32)
            has_return = np.isfinite(point).all() and point.any()
            points.append(point if has_return else np.full(3, np.nan, np.float32))
    return np.array(points, np.float32).reshape(-1, 3)


def random_cloud(rng):
    """A cloud of any legal layout, with values that hurt."""
    wanted = [(name, int(rng.choice([7, 8])), 1) for name in 'xyz']
    names = ['intensity', 'ring', 't', '', '_', '_', 'vy', 'speed', 'flow_valid', 'rgb']
    for name in rng.permutation(names)[: rng.integers(0, 6)]:
        wanted.append((str(name), int(rng.integers(1, 12)), int(rng.integers(0, 4))))
    fields, offset = [], 0
    for index in rng.permutation(len(wanted)):
        name, datatype, count = wanted[index]
        offset += int(rng.choice([0, 0, 0, 1, 3, 8]))
        fields.append((name, offset, datatype, count))
        offset += SIZES[datatype] * count
    fields = [fields[index] for index in rng.permutation(len(fields))]
    point_step = offset + int(rng.choice([0, 0, 1, 4, 13]))
    height, width = (int(rng.choice([0, 1, 1, 2, 5])), int(rng.choice([0, 1, 3, 17])))
    row_step = width * point_step + int(rng.choice([0, 0, 1, 64]))
    data = bytearray(rng.bytes(height * row_step))
    big = bool(rng.integers(2))
    values = np.concatenate([rng.normal(0, 30, 40), [0.0, -0.0, np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 1e300]])
    for row in range(height):
        for column in range(width):
            for name, at, datatype, _ in fields:
                if name in ('x', 'y', 'z'):
                    value = float(rng.choice(values))
                    code = ('>' if big else '<') + {7: 'f', 8: 'd'}[datatype]
                    value = value if datatype == 8 or not 3.4e38 < abs(value) < np.inf else 1e38
                    struct.pack_into(code, data, row * row_step + column * point_step + at, value)
    kind = [bytes, bytearray, memoryview, lambda d: array.array('B', bytes(d)), lambda d: np.frombuffer(d, np.uint8)]
    data = kind[rng.integers(len(kind))](data)
    return message(
        data, fields, height=height, width=width, point_step=point_step, row_step=row_step, big=big
    )  # fmt: skip


def test_any_legal_layout_decodes_like_the_plain_decoder(compiled_or_not):
    rng = np.random.default_rng(1)
    for _ in range(400):
        msg = random_cloud(rng)
        before = bytes(msg.data)
        sweep = decode_cloud(msg)
        assert sweep.points.dtype == np.float32 and sweep.points.flags.c_contiguous
        np.testing.assert_array_equal(sweep.points, decode_plain(msg))
        assert bytes(msg.data) == before


def test_any_legal_layout_keeps_every_byte_and_gains_a_velocity(compiled_or_not):
    rng = np.random.default_rng(2)
    for _ in range(300):
        msg = random_cloud(rng)
        num_points = msg.height * msg.width
        velocity = rng.normal(0, 5, (num_points, 3)).astype(np.float32)
        flow_valid = rng.integers(0, 4, num_points).astype(np.uint8)
        velocity[flow_valid == 0] = np.nan
        before = bytes(msg.data)
        cloud = flow_cloud(msg, velocity, flow_valid)
        assert bytes(msg.data) == before

        new = {name: at for name, at, _, _ in cloud.fields[-5:]}
        assert list(new) == ['vx', 'vy', 'vz', 'speed', 'flow_valid']
        kept = [(f.name, f.offset, f.datatype, f.count) for f in msg.fields if f.name not in new]
        assert cloud.fields[:-5] == kept
        assert (cloud.height, cloud.width, cloud.is_bigendian) == (msg.height, msg.width, msg.is_bigendian)
        assert new['vx'] % 4 == 0 and cloud.point_step % 4 == 0 and len(cloud.data) == num_points * cloud.point_step
        assert cloud.row_step == msg.width * cloud.point_step or num_points == 0
        order = '>' if msg.is_bigendian else '<'
        for index in range(num_points):
            row, column = divmod(index, msg.width)
            start = row * msg.row_step + column * msg.point_step
            point = cloud.data[index * cloud.point_step : (index + 1) * cloud.point_step].tobytes()
            assert point[: msg.point_step] == before[start : start + msg.point_step]
            assert not any(point[msg.point_step : new['vx']])  # padding is zero, not what was in memory
            *v, speed = struct.unpack_from(f'{order}4f', point, new['vx'])
            np.testing.assert_array_equal(np.float32(v), velocity[index])
            np.testing.assert_allclose(speed, np.linalg.norm(velocity[index]), rtol=1e-6)
            assert point[new['flow_valid']] == flow_valid[index] and not any(point[new['flow_valid'] + 1 :])


def test_broken_headers_only_ever_raise_cloud_error():
    rng = np.random.default_rng(3)
    numbers = [0, 1, 2, 3, 4, 7, 12, 16, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, -1, -16]
    raised = 0
    for _ in range(3000):
        msg = random_cloud(rng)
        for _ in range(rng.integers(1, 3)):
            what = rng.choice(['height', 'width', 'point_step', 'row_step', 'field', 'data', 'name', 'drop'])
            field = msg.fields[rng.integers(len(msg.fields))] if msg.fields else None
            if what == 'field' and field:
                setattr(field, rng.choice(['offset', 'datatype', 'count']), int(rng.choice(numbers)))
            elif what == 'name' and field:
                field.name = str(rng.choice(['', 'x', 'y', 'z', 'vx', 'X', 'é' * 100]))
            elif what == 'drop' and field:
                msg.fields.remove(field)
            elif what == 'data':
                msg.data = bytes(msg.data)[: rng.integers(0, len(msg.data) + 1)] + bytes(rng.choice([0, 1, 100]))
            elif hasattr(msg, what):
                setattr(msg, what, int(rng.choice(numbers)))
        try:
            sweep = decode_cloud(msg)
            num_points = len(sweep.points)
            flow_cloud(msg, np.zeros((num_points, 3), np.float32), np.zeros(num_points, np.uint8))
        except CloudError as error:
            raised += 1
            assert len(str(error)) < 4000
    assert raised > 800


GIANT = 2**32 - 1
MALFORMED = [
    ('no fields', message(ONE, []), "x and y and z are missing.*Fields seen: none"),
    ('no z', message(ONE, XYZ[:2]), "z is missing.*'x' float32 at 0, 'y' float32 at 4"),
    ('upper case', message(ONE, [('X', 0, 7, 1), *XYZ[1:]]), "x is missing.*'X' float32"),
    ('integer x', message(ONE, [('x', 0, 5, 1), *XYZ[1:]]), "x is int32.*'x' int32 at 0"),
    ('count 3', message(ONE, [('x', 0, 7, 3), ('y', 12, 7, 1), ('z', 0, 7, 1)]), 'x has count 3'),
    ('count 0', message(ONE, [('x', 0, 7, 0), *XYZ[1:]]), 'x has count 0'),
    ('offset past the point', message(ONE, [*XYZ[:2], ('z', 16, 7, 1)]), "'z' ends outside the 16 bytes"),
    ('field half past the point', message(ONE, [*XYZ, ('t', 12, 8, 1)]), "'t' ends outside the 16 bytes"),
    ('negative offset', message(ONE, [('x', -4, 7, 1), *XYZ[1:]]), "'x' ends outside"),
    ('giant count', message(ONE, [*XYZ, ('t', 12, 7, GIANT)]), "'t' ends outside"),
    ('x twice', message(ONE, [*XYZ, ('x', 12, 7, 1)]), "several fields are called 'x'"),
    ('t twice', message(ONE, [*XYZ, ('t', 12, 4, 1), ('t', 14, 4, 1)]), "several fields are called 't'"),
    ('x on y', message(ONE, [('x', 0, 7, 1), ('y', 2, 7, 1), ('z', 8, 7, 1)]), "x and 'y' share bytes"),
    ('t on z', message(ONE, [*XYZ, ('t', 8, 8, 1)]), "z and 't' share bytes"),
    ('datatype 0', message(ONE, [*XYZ, ('t', 12, 0, 1)]), "'t' has the unknown datatype 0"),
    ('datatype of x', message(ONE, [('x', 0, 200, 1), *XYZ[1:]]), "'x' has the unknown datatype 200"),
    ('point_step 0', message(ONE, width=1, point_step=0, row_step=16), 'points of 0 bytes'),
    ('point_step -16', message(ONE, width=1, point_step=-16, row_step=16), 'a negative number'),
    ('height -1', message(ONE, height=-1, width=1), 'a negative number'),
    ('data short', message(ONE, width=2), r'less data than the header says \(1 x 32 = 32 bytes\)'),
    ('data one byte short', message(ONE[:-1], width=1), '15 bytes of data has less data'),
    ('data long', message(ONE * 2, width=1), r'32 bytes of data has more data.*\(1 x 16 = 16 bytes\)'),
    ('data of no points', message(ONE, width=0), 'more data than the header says'),
    ('row_step short', message(ONE * 3, width=2, row_step=31), r'rows shorter than their points \(2 x 16 = 32 bytes\)'),
    ('row_step 0 and data long', message(ONE * 3, width=2, row_step=0), 'rows shorter than their points'),
    ('row_step of padding that is not there', message(ONE * 5, height=2, width=2, row_step=52), 'less data'),
    ('height and width 0 with data', message(ONE * 2, height=0, width=0), 'more data'),
    ('width 0, height 2, data of 3', message(ONE * 3, height=2, width=0), 'more data'),
    ('four billion points', message(ONE, width=GIANT, row_step=16), 'rows shorter'),
    ('four billion rows', message(ONE, height=GIANT, width=1, row_step=16), 'less data'),
    ('no data', message(b'', width=GIANT, height=GIANT, row_step=GIANT * 16), 'less data'),
    ('60,000 fields of one name', message(ONE, [*XYZ, *[('t', 12, 4, 1)] * 60_000]), 'at most 256 fields.*has 60003'),
    ('empty, with 60,000 fields', message(b'', [('t', 0, 4, 1)] * 60_000, width=0), 'at most 256 fields'),
    ('a megabyte of name', message(ONE, [*XYZ, ('t' * 10**6, 12, 4, 1)]), 'a name of 1000000'),
    ('a megabyte of frame', message(ONE, frame='f' * 10**6), 'frame_id.*at most 256 characters'),
    ('a million points of a byte', message(bytes(10**6), point_step=1), "'x' ends outside the 1 bytes"),
    ('data not bytes', message('text', width=1), 'must be a buffer of bytes, got str'),
]  # fmt: skip


@pytest.mark.parametrize(('msg', 'says'), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_malformed_cloud_says_what_it_saw(msg, says):
    tracemalloc.start()
    try:
        with pytest.raises(CloudError, match=says):
            decode_cloud(msg)
        assert tracemalloc.get_traced_memory()[1] < 1e6  # bytes: refused before memory is taken for the points
    finally:
        tracemalloc.stop()


LEGAL = [
    ('empty', message(b'', width=0), np.empty((0, 3))),
    ('empty without fields', message(b'', [], width=0, height=0, point_step=0), np.empty((0, 3))),
    ('empty, but wide', message(b'', width=GIANT, height=0, row_step=0), np.empty((0, 3))),
    ('one point', message(ONE), [[1, 2, 3]]),
    ('bare xyz', message(struct.pack('<3f', 1, 2, 3), XYZ, point_step=12), [[1, 2, 3]]),
    ('big-endian', message(struct.pack('>4f', 1, 2, 3, 4), big=True), [[1, 2, 3]]),
    ('reversed', message(ONE, [('z', 0, 7, 1), ('y', 4, 7, 1), ('x', 8, 7, 1)]), [[3, 2, 1]]),
    ('mixed types', message(struct.pack('<dfdf', 1, 2, 3, 4), [('x', 0, 8, 1), ('y', 8, 7, 1), ('z', 12, 8, 1)],
                            point_step=24), [[1, 2, 3]]),
    ('row padding', message(ONE + b'junk' + ONE + b'junk', height=2, width=1, row_step=20), [[1, 2, 3]] * 2),
    ('rgb as union', message(ONE, [*XYZ, ('rgb', 12, 7, 1), ('r', 12, 2, 1), ('g', 13, 2, 1)]), [[1, 2, 3]]),
    ('padding fields', message(ONE, [*XYZ, ('_', 12, 2, 1), ('_', 13, 2, 3)]), [[1, 2, 3]]),
    ('64-bit time', message(ONE + ONE[:8], [*XYZ, ('t', 16, 10, 1)], point_step=24), [[1, 2, 3]]),
    ('NaN in y', message(struct.pack('<4f', 1, np.nan, 3, 4)), [[np.nan] * 3]),
    ('inf in z', message(struct.pack('<4f', 1, 2, -np.inf, 4)), [[np.nan] * 3]),
    ('0 0 0', message(struct.pack('<4f', 0, 0, 0, 4)), [[np.nan] * 3]),
    ('-0 0 0', message(struct.pack('<4f', -0.0, 0, 0, 4)), [[np.nan] * 3]),
    ('1 -1 0, whose sum is 0', message(struct.pack('<4f', 1, -1, 0, 4)), [[1, -1, 0]]),
    ('tiny, whose squares are 0', message(struct.pack('<4f', 1e-40, 0, 0, 4)), [[1e-40, 0, 0]]),
    ('inf - inf', message(struct.pack('<4f', np.inf, -np.inf, 3, 4)), [[np.nan] * 3]),
    ('sum overflows, point does not', message(struct.pack('<4f', 3e38, 3e38, 0, 4)), [[3e38, 3e38, 0]]),
    ('float64 beyond float32', message(struct.pack('<3d', 1e39, 2, 3), [('x', 0, 8, 1), ('y', 8, 8, 1),
                               ('z', 16, 8, 1)], point_step=24), [[np.nan] * 3]),
]  # fmt: skip


_HEADERS = [  # label, height, width, row_step of a cloud of 6 points; height and width of the output
    ('row_step 0', 1, 6, 0, (1, 6)),
    ('row_step 0, organised', 2, 3, 0, (2, 3)),
    ('row_step is point_step', 1, 6, 16, (1, 6)),
    ('row_step is width', 2, 3, 3, (2, 3)),
    ('row_step of the whole cloud', 2, 3, 96, (2, 3)),
    ('row_step is garbage', 2, 3, GIANT, (2, 3)),
    ('a column, row_step of a row', 6, 1, 96, (6, 1)),
    ('height 0', 0, 6, 96, (1, 6)),
    ('height 0, row_step 0', 0, 6, 0, (1, 6)),
    ('width 0', 6, 0, 0, (1, 6)),
]


@pytest.mark.parametrize(
    ('height', 'width', 'row_step', 'size'), [row[1:] for row in _HEADERS], ids=[row[0] for row in _HEADERS]
)
def test_wrong_row_step_is_corrected_where_the_points_fill_the_data(height, width, row_step, size, compiled_or_not):
    data = np.arange(24, dtype=np.float32)
    msg = message(data.tobytes(), height=height, width=width, row_step=row_step)
    np.testing.assert_array_equal(decode_cloud(msg).points, data.reshape(6, 4)[:, :3])
    np.testing.assert_array_equal(read_field(msg, 'intensity'), data[3::4])
    assert 'row_step = width * point_step' in check_rows(msg).correction
    cloud = flow_cloud(msg, np.zeros((6, 3), np.float32), np.ones(6, np.uint8))
    assert (cloud.height, cloud.width, cloud.row_step) == (*size, size[1] * cloud.point_step)
    assert len(cloud.data) == cloud.height * cloud.row_step and not check_rows(_as_message(cloud)).correction


def test_last_row_without_its_padding_is_read(compiled_or_not):
    msg = message(ONE + b'junk' + ONE, height=2, width=1, row_step=20)
    np.testing.assert_array_equal(decode_cloud(msg).points, [[1, 2, 3]] * 2)
    cloud = flow_cloud(msg, np.zeros((2, 3), np.float32), np.ones(2, np.uint8))
    np.testing.assert_array_equal(decode_cloud(_as_message(cloud)).points, [[1, 2, 3]] * 2)


def test_right_header_is_not_corrected():
    for msg in (message(ONE), message(b'', width=0), message(ONE + b'junk' + ONE + b'junk', height=2, row_step=20)):
        assert not check_rows(msg).correction


@pytest.mark.parametrize(('msg', 'points'), [row[1:] for row in LEGAL], ids=[row[0] for row in LEGAL])
def test_legal_cloud(msg, points, compiled_or_not):
    sweep = decode_cloud(msg)
    np.testing.assert_array_equal(sweep.points, np.array(points, np.float32).reshape(-1, 3))
    assert (sweep.stamp_ns, sweep.frame_id) == (12_000_000_345, 'velodyne')
    num_points = len(points)
    cloud = flow_cloud(msg, np.ones((num_points, 3), np.float32), np.ones(num_points, np.uint8))
    again = decode_cloud(_as_message(cloud))
    np.testing.assert_array_equal(again.points, sweep.points)


def test_frame_id_loses_its_slash():
    assert decode_cloud(message(ONE, frame='/velodyne')).frame_id == 'velodyne'
    assert decode_cloud(message(ONE, frame='')).frame_id == ''


def test_flow_of_a_flow_cloud_is_replaced_not_doubled():
    first = flow_cloud(message(ONE), np.full((1, 3), 1, np.float32), np.array([3], np.uint8))
    second = flow_cloud(_as_message(first), np.full((1, 3), 7, np.float32), np.array([1], np.uint8))
    names = [field[0] for field in second.fields]
    assert names == ['x', 'y', 'z', 'intensity', 'vx', 'vy', 'vz', 'speed', 'flow_valid']
    at = dict(zip(names, second.fields, strict=True))['vx'][1]
    assert struct.unpack_from('<f', second.data, at)[0] == 7


def test_memory_of_an_earlier_cloud_is_taken_when_it_fits(compiled_or_not):
    first = flow_cloud(message(ONE), np.full((1, 3), 1, np.float32), np.array([255], np.uint8))
    ours = flow_cloud(message(ONE), np.full((1, 3), 7, np.float32), np.array([1], np.uint8))
    again = flow_cloud(message(ONE), np.full((1, 3), 7, np.float32), np.array([1], np.uint8), reuse=first.data)
    assert again.data is first.data and again.data.tobytes() == ours.data.tobytes()
    larger = flow_cloud(message(ONE * 2), np.ones((2, 3), np.float32), np.ones(2, np.uint8), reuse=first.data)
    assert larger.data is not first.data and again.data.tobytes() == ours.data.tobytes()


def test_velocity_of_another_cloud_is_refused():
    with pytest.raises(ValueError, match=r'cloud of 1 points needs velocity \(1, 3\)'):
        flow_cloud(message(ONE), np.zeros((2, 3), np.float32), np.zeros(2, np.uint8))


@pytest.mark.parametrize('name', ['kitti_0005_a', 'apollo_columbia_park', 'kitti_braking'])
def test_real_cloud(shared_data, name, compiled_or_not):
    highlevel = pytest.importorskip('rosbags.highlevel')
    with highlevel.AnyReader([shared_data / 'bags' / name]) as reader:
        connections = [c for c in reader.connections if c.msgtype == 'sensor_msgs/msg/PointCloud2']
        connection, _, raw = next(reader.messages(connections))
        msg = reader.deserialize(raw, connection.msgtype)
    sweep = decode_cloud(msg)
    rows = np.random.default_rng(0).choice(msg.height * msg.width, 500)
    data = msg.data.tobytes()  # struct takes bytes
    one_row = message(b''.join(data[r * msg.point_step : (r + 1) * msg.point_step] for r in rows),
                      [(f.name, f.offset, f.datatype, f.count) for f in msg.fields],
                      point_step=msg.point_step)  # fmt: skip
    np.testing.assert_array_equal(sweep.points[rows], decode_plain(one_row))
    seen = sweep.points[np.isfinite(sweep.points[:, 0])]
    assert len(seen) > 100_000 and 10 < np.linalg.norm(seen, axis=1).max() < 250  # m: a street
    velocity = np.zeros_like(sweep.points)
    again = decode_cloud(_as_message(flow_cloud(msg, velocity, np.ones(len(velocity), np.uint8))))
    np.testing.assert_array_equal(again.points, sweep.points)


def _as_message(cloud: FlowCloud):
    return message(
        cloud.data, cloud.fields, height=cloud.height, width=cloud.width, point_step=cloud.point_step,
        row_step=cloud.row_step, big=cloud.is_bigendian,
    )  # fmt: skip
