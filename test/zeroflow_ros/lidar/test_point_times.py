# SPDX-License-Identifier: Apache-2.0
import time
from types import SimpleNamespace

import numpy as np
import pytest
from timed_clouds import DATATYPES, T0, S, timed_message

from zeroflow_ros.errors import CloudError
from zeroflow_ros.lidar.point_cloud import decode_cloud, read_field
from zeroflow_ros.lidar.point_times import no_times_text, time_field, with_times

POINTS = np.random.default_rng(0).uniform(-20, 20, (50, 3)).astype(np.float32)
OVER = np.linspace(0, 0.1, 50)  # s: one revolution


def times(msg):
    return with_times(msg, decode_cloud(msg)).times


def message(values, name, dtype, **options):
    return timed_message(POINTS[: len(values)], T0, values, name=name, dtype=dtype, **options)


# label, name, type, values, expected seconds after the stamp
GOOD = [
    ('one point', 't', 'u4', [5_000_000], [0.005]),
    ('Ouster', 't', 'u4', OVER * 1e9, OVER),
    ('Autoware', 'time_stamp', 'u4', OVER * 1e9, OVER),
    ('Velodyne, stamped first', 'time', 'f4', OVER, OVER),
    ('Velodyne, stamped last', 'time', 'f4', OVER - 0.1, OVER - 0.1),
    ('stamped in the middle', 'time', 'f4', OVER - 0.05, OVER - 0.05),
    ('Hesai', 'timestamp', 'f8', T0 * 1e-9 + OVER, OVER),
    ('RoboSense, stamped last', 'timestamp', 'f8', T0 * 1e-9 + OVER - 0.1, OVER - 0.1),
    ('the computer stamped it late', 'timestamp', 'f8', T0 * 1e-9 + OVER - 0.35, OVER - 0.35),
    ('seconds as float64', 't', 'f8', OVER, OVER),
    ('Livox, driver 2', 'timestamp', 'f8', T0 + OVER * 1e9, OVER),
    ('nanoseconds as uint64', 'timestamp', 'u8', T0 + (OVER * 1e9).astype(np.uint64), OVER),
    ('Livox', 'offset_time', 'u4', OVER * 1e9, OVER),
    ('Livox, in microseconds', 'offset_time', 'u4', OVER * 1e6, OVER),
    ('a tenth of a revolution in ns', 'offset_time', 'u4', OVER[:5] * 1e9, OVER[:5]),
    ('a tenth of a revolution in us', 'offset_time', 'u4', OVER[:5] * 1e6, OVER[:5]),
    ('milliseconds', 'time', 'f4', OVER * 1e3, OVER),
    ('microseconds, stamped last', 'time', 'f4', (OVER - 0.1) * 1e6, OVER - 0.1),
    ('microseconds as float64', 'timestamp', 'f8', OVER * 1e6, OVER),
    ('microseconds since 1970', 'timestamp', 'u8', T0 // 1000 + (OVER * 1e6).astype(np.uint64), OVER),
    ('microseconds since 1970 as float64', 'timestamp', 'f8', T0 * 1e-3 + OVER * 1e6, OVER),
    ('a name that says ns', 'time_offset_ns', 'u4', OVER * 1e9, OVER),
    ('a name that says us', 'time_offset_us', 'u4', OVER * 1e6, OVER),
    ('an offset in ns', 'offset_ns', 'i4', OVER * 1e9, OVER),
    ('ts', 'ts', 'f8', T0 * 1e-9 + OVER, OVER),
    ('camel case', 'timeOffset', 'f4', OVER, OVER),
    ('camel case of a longer name', 'timestampOffset', 'u4', OVER * 1e9, OVER),
    ('point_time_offset', 'point_time_offset', 'f4', OVER, OVER),
    ('time of a column', 'column_timestamp', 'u8', T0 + (OVER * 1e9).astype(np.uint64), OVER),
    ('hardware time', 'hw_timestamp', 'u8', T0 // 1000 + (OVER * 1e6).astype(np.uint64), OVER),
    ('delay', 'time_delay', 'f4', OVER, OVER),
    ('words in one', 'timestampns', 'u8', T0 + (OVER * 1e9).astype(np.uint64), OVER),
    ('unsigned before the stamp', 't', 'u4', (2**32 + ((OVER - 0.1) * 1e9).astype(np.int64)) % 2**32, OVER - 0.1),
    ('unsigned in the middle', 't', 'u4', (2**32 + ((OVER - 0.05) * 1e9).astype(np.int64)) % 2**32, OVER - 0.05),
    ('us past the hour', 'timestamp', 'u4', (T0 // 1000 + (OVER * 1e6).astype(np.int64)) % 3_600_000_000, OVER),
    ('us past the second', 'timestamp', 'u4', ((OVER * 1e6).astype(np.int64) + 990_000) % 1_000_000, OVER - 0.01),
    ('s past the hour', 'time', 'f8', (T0 * 1e-9 + OVER) % 3600, OVER),
    (
        'ns counter that wraps',
        'timestamp',
        'u4',
        (2**32 - 30_000_000 + (OVER * 1e9).astype(np.int64)) % 2**32,
        OVER - 0.03,
    ),
    ('us counter that wraps', 'timestamp', 'u4', (2**32 - 30_000 + (OVER * 1e6).astype(np.int64)) % 2**32, OVER - 0.03),
    ('2 Hz', 't', 'u4', OVER * 5e9, OVER * 5),
    ('100 Hz', 't', 'u4', OVER * 1e8, OVER / 10),
]


@pytest.mark.parametrize('big', [False, True], ids=['little', 'big'])
@pytest.mark.parametrize(
    ('name', 'dtype', 'values', 'expected'), [row[1:] for row in GOOD], ids=[row[0] for row in GOOD]
)
def test_times_in_any_unit_are_seconds_after_the_stamp(name, dtype, values, expected, big):
    found = times(message(values, name, dtype, big=big))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)  # s: float64 seconds since 1970 step by 0.24 us


def test_no_points():
    assert times(timed_message(POINTS[:0], T0, [])) is None


def test_no_field():
    msg = timed_message(POINTS, T0, None)
    assert time_field(msg) is None and times(msg) is None


def test_no_stamp():
    assert times(timed_message(POINTS, 0, OVER * 1e9)) is None


# label, name, type, values, what the error says
BAD = [
    ('NaN', 'time', 'f4', np.where(OVER > 0.05, np.nan, OVER), 'nan'),
    ('infinite', 'time', 'f4', np.where(OVER > 0.05, np.inf, OVER), 'inf'),
    ('never filled in', 't', 'u4', OVER * 0, 'all the same'),
    ('all at one time', 'timestamp', 'f8', OVER * 0 + T0 * 1e-9, 'all the same'),
    ('scaled to 0..1', 'time', 'f4', OVER * 10, 'from 0.0 to 1.0'),
    ('longer than any sweep', 't', 'u4', OVER * 6e9, '600000000'),
    ('another clock', 'timestamp', 'f8', OVER + 1000, 's since 1970'),
    ('another second', 'timestamp', 'f8', T0 * 1e-9 + OVER + 2, 'one clock'),
    ('seconds that float32 cannot hold', 'time', 'f4', T0 * 1e-9 + OVER, 'float32'),
    ('a whole second', 't', 'i4', OVER * 1e10, 'ns after the stamp'),
    ('too short to tell ns from us', 'offset_time', 'u4', OVER * 1e7, 'or us after the stamp'),
    ('a type that holds no time', 't', 'u2', OVER * 1e4, 'a number of 32 or 64 bits'),
]


@pytest.mark.parametrize(('name', 'dtype', 'values', 'says'), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_times_without_sense_are_an_error_that_says_what_was_found(name, dtype, values, says):
    with np.errstate(invalid='ignore'), pytest.raises(CloudError, match=says) as error:
        times(message(values, name, dtype))
    assert (
        name in str(error.value) and '1700000000.000000 s' in str(error.value) and 'Set the driver' in str(error.value)
    )


@pytest.mark.parametrize('nowhere', [np.nan, 0.0])
def test_what_is_written_for_points_without_a_return_does_not_matter(nowhere):
    points, values = POINTS.copy(), T0 * 1e-9 + OVER
    points[::7], values[::7] = nowhere, 0.0  # 1970
    found = times(timed_message(points, T0, values, name='timestamp', dtype='f8'))
    is_return = np.arange(50) % 7 > 0
    np.testing.assert_allclose(found[is_return], OVER[is_return], atol=1e-6)
    assert np.isfinite(found).all() and np.abs(found).max() <= 0.1


def test_no_return_at_all():
    found = times(timed_message(POINTS * np.float32(np.nan), T0, OVER * 0))
    np.testing.assert_array_equal(found, 0)


WILD = [
    ('NaN', 'time', 'f4', OVER, np.nan),
    ('infinite', 'time', 'f4', OVER, -np.inf),
    ('1e300', 'timestamp', 'f8', T0 * 1e-9 + OVER, 1e300),
    ('-1e300', 'timestamp', 'f8', T0 * 1e-9 + OVER, -1e300),
    ('0', 'timestamp', 'f8', T0 * 1e-9 + OVER, 0.0),
    ('0 in ns', 'timestamp', 'u8', T0 + (OVER * 1e9).astype(np.uint64), 0),
    ('negative', 't', 'i4', OVER * 1e9, -(2**31)),
    ('all bits set', 't', 'u4', OVER * 1e9, 2**32 - 1),
    ('wild, but within half a second', 'time', 'f4', OVER, 0.45),
    ('wild, so that us look like ns', 'offset_time', 'u4', OVER * 1e6, 400_000_000),
    ('another second', 'timestamp', 'f8', T0 * 1e-9 + OVER, T0 * 1e-9 + 3),
    ('wild in a counter that wraps', 'timestamp', 'u4', (2**32 - 30_000 + (OVER * 1e6).astype(np.int64)) % 2**32,
     2**31),
]  # fmt: skip


@pytest.mark.parametrize('wild_rows', [[25], [0], [49], [7, 8, 9]], ids=str)
@pytest.mark.parametrize(('name', 'dtype', 'values', 'wild'), [row[1:] for row in WILD], ids=[row[0] for row in WILD])
def test_a_few_senseless_values_lose_their_time_and_not_the_sweep(name, dtype, values, wild, wild_rows):
    expected, values = times(message(values, name, dtype)).copy(), np.array(values)
    values[wild_rows] = wild
    msg = message(values, name, dtype)
    sweep = with_times(msg, decode_cloud(msg))
    before = max(wild_rows[0] - 1, 0)
    expected[wild_rows] = expected[before] if wild_rows[0] else expected[wild_rows[-1] + 1]
    start = expected.min() - sweep.times.min()  # of a counter of unknown origin, whose first point may be gone
    np.testing.assert_allclose(sweep.times, expected - (start if sweep.times_note else 0), atol=1e-6)
    assert sweep.num_lost_times == len(wild_rows)


def test_points_on_one_side_only_keep_their_times():
    values = np.r_[np.linspace(0, 0.02, 25), np.linspace(0.08, 0.1, 25)]  # a cabin covers the rest
    msg = message(values, 'time', 'f4')
    sweep = with_times(msg, decode_cloud(msg))
    assert sweep.num_lost_times == 0
    np.testing.assert_allclose(sweep.times, values, atol=1e-6)


def test_a_second_sensor_in_the_cloud_keeps_its_later_times():
    values = np.r_[np.linspace(0, 0.1, 44), np.linspace(0.25, 0.35, 6)]
    msg = message(values, 'time', 'f4')
    sweep = with_times(msg, decode_cloud(msg))
    assert sweep.num_lost_times == 0
    np.testing.assert_allclose(sweep.times, values, atol=1e-6)


def test_most_points_at_one_time_keep_the_others():
    values = np.r_[np.zeros(44), np.linspace(0.01, 0.1, 6)]
    np.testing.assert_allclose(times(message(values, 'time', 'f4')), values, atol=1e-6)


def test_too_many_senseless_values_are_an_error():
    values = OVER.copy()
    values[::4] = np.nan
    with pytest.raises(CloudError, match='invalid'):
        times(message(values, 'time', 'f4'))


def two_fields(first, second, dtypes=('u4', 'u4'), names=('sec', 'nsec')):
    msg = timed_message(POINTS, T0, first, name=names[0], dtype=dtypes[0])
    rows = np.zeros(50, [('old', f'V{msg.point_step}'), ('new', dtypes[1])])
    rows['old'], rows['new'] = msg.data.view(f'V{msg.point_step}'), second
    msg.fields.append(SimpleNamespace(name=names[1], offset=msg.point_step, datatype=DATATYPES[dtypes[1]], count=1))
    msg.point_step, msg.data = rows.itemsize, rows.view(np.uint8).reshape(-1)
    msg.row_step = msg.width * msg.point_step
    return msg


@pytest.mark.parametrize('names', [('sec', 'nsec'), ('timestamp_sec', 'timestamp_nsec'), ('t_s', 't_ns')])
def test_seconds_and_nanoseconds_make_one_time(names):
    late = T0 - S // 20  # the second ends within the sweep
    ns = late + (OVER * 1e9).astype(np.int64)
    msg = two_fields(ns // S, ns % S, names=names)
    assert time_field(msg) == ' and '.join(names)
    np.testing.assert_allclose(times(msg), OVER - 0.05, atol=1e-6)


def test_seconds_and_microseconds_make_one_time():
    us = T0 // 1000 + (OVER * 1e6).astype(np.int64)
    np.testing.assert_allclose(times(two_fields(us // 10**6, us % 10**6, names=('tv_sec', 'tv_usec'))), OVER, atol=1e-6)


def test_a_field_that_is_not_filled_gives_way_to_the_next_one():
    msg = two_fields(OVER * 0, T0 * 1e-9 + OVER, ('u4', 'f8'), ('t', 'timestamp'))
    np.testing.assert_allclose(times(msg), OVER, atol=1e-6)


def test_named_field_and_unit_are_used():
    msg = two_fields(OVER * 1e9, OVER * 1e3, ('u4', 'f4'), ('t', 'age'))
    sweep = decode_cloud(msg)
    np.testing.assert_allclose(with_times(msg, sweep, 'age', 'ms').times, OVER, atol=1e-6)
    assert time_field(msg, 'age') == 'age'
    with pytest.raises(CloudError, match='invalid'):
        with_times(msg, sweep, 'age', 's')
    with pytest.raises(CloudError, match=r"no field 'clock' .time_field.*Fields seen: 'x' float32.*'age' float32"):
        with_times(msg, sweep, 'clock')
    assert time_field(msg, 'clock') is None


def test_named_unit_allows_another_clock():
    msg = message(OVER + 1000, 'timestamp', 'f8')
    sweep = with_times(msg, decode_cloud(msg), unit='s')
    np.testing.assert_allclose(sweep.times, OVER, atol=1e-6)
    assert 'unknown origin' in sweep.times_note and "'timestamp'" in sweep.times_note


def test_counter_of_unknown_origin_starts_at_the_stamp_and_says_so():
    msg = message(OVER * 1e6 + 123_456_789, 'timestamp', 'u4')
    sweep = with_times(msg, decode_cloud(msg))
    np.testing.assert_allclose(sweep.times, OVER, atol=1e-6)
    assert 'the earliest is taken to be at the stamp' in sweep.times_note


NO_TIME = ['intensity', 'ring', 'ambient', 'temperature', 'reflectivity', 'azimuth', 'scan_id', 'return_type', 'tag',
           'time_quality', 'test', 's', 'range', 'mst', 'offset', 'distance', 'sensor', 'ns_per_tick']  # fmt: skip


@pytest.mark.parametrize('name', NO_TIME, ids=lambda name: name[:20])
def test_other_fields_are_no_times(name):
    msg = message(OVER * 1e9, name, 'u4')
    assert time_field(msg) is None and times(msg) is None
    assert repr(name[:40]) in no_times_text(msg)


def test_hostile_names_are_split_in_no_time():
    begin = time.perf_counter()
    for name in ('ts' * 24, 'time' * 12, 'timestamps' * 4 + 'x', 'stamp' * 9 + 'q'):
        time_field(message(OVER, name, 'f4'))
    assert time.perf_counter() - begin < 5  # s


def test_a_full_sweep_of_times_costs_little():
    rng = np.random.default_rng(0)
    points = rng.uniform(-20, 20, (120_000, 3)).astype(np.float32)
    msg = timed_message(points, T0, np.repeat(np.linspace(0, 1e8, 1875), 64))
    sweep, spent = decode_cloud(msg), []
    for _ in range(5):
        begin = time.perf_counter()
        assert with_times(msg, sweep).num_lost_times == 0
        spent.append(time.perf_counter() - begin)
    assert min(spent) < 0.05  # s: some 2 ms; the bound is for a busy machine


def test_a_field_of_an_organised_cloud_with_padding():
    msg = timed_message(POINTS[:48], T0, np.arange(48), height=4)
    data = np.zeros((4, msg.row_step + 5), np.uint8)
    data[:, : msg.row_step] = msg.data.reshape(4, -1)
    msg.data, msg.row_step = data.reshape(-1), msg.row_step + 5
    np.testing.assert_array_equal(read_field(msg, 't'), np.arange(48))
    with pytest.raises(CloudError, match=r"a field 'time' with one number per point.*'ring'"):
        read_field(msg, 'time')


@pytest.mark.parametrize('stamped', [0.0, 0.05, 0.1])
def test_real_cloud(shared_data, stamped):
    """One revolution at 10 Hz, whatever point of it the stamp is."""
    from zeroflow_ros.bags.bag import Bag
    from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message

    with Bag(shared_data / 'bags' / 'apollo_columbia_park') as bag:
        msg = decode_message(next(bag.messages(['/points_raw'])).cdr, POINT_CLOUD)
    stamp_ns = msg.header.stamp.sec * S + msg.header.stamp.nanosec + round(stamped * S)
    msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(stamp_ns, S)
    found = times(msg)
    assert (found.min() + stamped, found.max() + stamped) == (pytest.approx(0, abs=1e-3), pytest.approx(0.1, abs=1e-3))
