# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from sweep_parts import part_cloud
from timed_clouds import timed_message

from zeroflow_ros.errors import CloudError
from zeroflow_ros.lidar.joined_cloud import Cut, JoinedCloud, Piece, join, starts_over, with_part_times
from zeroflow_ros.lidar.point_cloud import decode_cloud, read_field
from zeroflow_ros.lidar.point_times import with_times

S = 1_700_000_000_000_000_000
HALF_NS = 50_000_000
POINTS = np.random.default_rng(0).uniform(1, 20, (60, 4)).astype(np.float32)


def test_rows_of_all_parts_follow_each_other():
    joined = join([Piece(part_cloud(POINTS[:20], S)), Piece(part_cloud(POINTS[:0], S + 1)),
                   Piece(part_cloud(POINTS[20:], S + HALF_NS))], S)  # fmt: skip
    assert (joined.height, joined.width, joined.row_step) == (1, 60, 960)
    assert bytes(joined.data) == POINTS.tobytes()
    sweep = decode_cloud(joined)
    assert sweep.stamp_ns == S and sweep.frame_id == 'lidar'
    np.testing.assert_array_equal(sweep.points, POINTS[:, :3])


def test_organised_parts_with_padded_rows_are_joined():
    part = part_cloud(POINTS, S)
    part.height, part.width, part.row_step = 4, 15, 15 * 16 + 8
    part.data = np.c_[part.data.reshape(4, -1), np.zeros((4, 8), np.uint8)].reshape(-1)
    assert bytes(join([Piece(part), Piece(part)], S).data) == POINTS.tobytes() * 2


def test_the_parts_themselves_are_not_changed():
    parts = [timed_message(POINTS[:, :3], S + k * HALF_NS, np.arange(60) * 500_000) for k in range(2)]
    before = [(bytes(part.data), part.header.stamp.nanosec) for part in parts]
    join([Piece(part) for part in parts], S)
    assert [(bytes(part.data), part.header.stamp.nanosec) for part in parts] == before


@pytest.mark.parametrize(
    ('name', 'dtype', 'values', 'big'),
    [
        ('t', 'u4', lambda k: np.arange(60) * 800_000, False),  # ns after the stamp of the part
        ('t', 'u4', lambda k: np.arange(60) * 800_000, True),
        ('time', 'f4', lambda k: np.arange(60) * 8e-4, False),  # s after it
        ('time', 'f4', lambda k: np.arange(60) * 8e-4 - 0.0472, False),  # s before it
        ('timestamp', 'f8', lambda k: (S + k * HALF_NS) * 1e-9 + np.arange(60) * 8e-4, False),  # since 1970
        ('timestamp', 'u8', lambda k: np.uint64(S + k * HALF_NS) + np.arange(60, dtype=np.uint64) * 800_000, False),
    ],
)
def test_point_times_count_from_the_stamp_of_the_sweep(name, dtype, values, big):
    parts = [timed_message(POINTS[:, :3], S + k * HALF_NS, values(k), name=name, dtype=dtype, big=big)
             for k in range(2)]  # fmt: skip
    joined = join([Piece(part) for part in parts], S)
    times = with_times(joined, decode_cloud(joined)).times
    expected = [with_times(part, decode_cloud(part)).times + k * 0.05 for k, part in enumerate(parts)]
    np.testing.assert_allclose(times, np.concatenate(expected), atol=2e-6)  # s; float32 s since a part are 4 ns apart


def test_a_time_that_nobody_filled_stays():
    parts = [timed_message(POINTS[:, :3], S + k * HALF_NS, np.zeros(60)) for k in range(2)]
    assert not read_field(join([Piece(part) for part in parts], S), 't').any()


def test_parts_without_point_times_have_the_times_of_their_stamps():
    joined = join([Piece(part_cloud(POINTS[:20], S)), Piece(part_cloud(POINTS[20:], S + HALF_NS))], S)
    times = with_part_times(joined, decode_cloud(joined)).times
    np.testing.assert_allclose(times, np.r_[np.zeros(20), np.full(40, 0.05)], atol=1e-9)
    part = part_cloud(POINTS, S)
    assert with_part_times(part, decode_cloud(part)).times is None


@pytest.mark.parametrize('direction', [1, -1])
def test_a_part_is_cut_at_the_seam_and_no_row_is_lost(direction):
    azimuth = np.radians(np.r_[np.arange(60) * direction + 150.5, 0])  # across the rear
    points = np.c_[np.cos(azimuth), np.sin(azimuth), np.zeros((61, 2))]
    points[60, :3] = np.nan
    part = part_cloud(points, S)
    before, after = (join([Piece(part, Cut(np.radians(150.5), direction, np.radians(60), np.radians(20), side))], S)
                     for side in (False, True))  # fmt: skip
    assert (before.width, after.width) == (21, 40)  # with the row without a return
    assert bytes(before.data[: 20 * 16]) + bytes(after.data) == bytes(part.data[: 60 * 16])


def test_parts_of_different_fields_are_refused():
    with pytest.raises(CloudError, match='must have the same fields'):
        join([Piece(part_cloud(POINTS, S)), Piece(part_cloud(POINTS, S, times=np.arange(60)))], S)


def test_a_joined_cloud_makes_no_pair_with_a_part():
    part = part_cloud(POINTS, S)
    joined = join([Piece(part)], S)
    assert isinstance(joined, JoinedCloud)
    assert not starts_over(joined, None) and not starts_over(joined, joined) and not starts_over(part, part)
    assert starts_over(joined, part) and starts_over(part, joined)
