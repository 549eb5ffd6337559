# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from timed_clouds import T0, S, timed_message

from zeroflow_ros.errors import CloudError
from zeroflow_ros.lidar.point_cloud import decode_cloud, read_field
from zeroflow_ros.lidar.point_times import time_field, with_times

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
    ('milliseconds', 'time', 'f4', OVER * 1e3, 's after the stamp'),
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
