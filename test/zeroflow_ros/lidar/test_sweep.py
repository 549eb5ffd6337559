# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros.lidar.sweep import DropReason, Sweep, SweepBuffer, SweepPair

MS = 1_000_000
POINTS = np.zeros((2, 3), np.float32)


def sweep(stamp_ms, frame='velodyne', num_points=2):
    return Sweep(np.zeros((num_points, 3), np.float32), int(stamp_ms * MS), frame)


# label, sweeps as (stamp [ms], frame, points), what the last one gives, stamp of the sweep it is paired with [ms],
# stamp of the sweep that is kept afterwards [ms]
TABLE = [
    ('first', [(1000,)], DropReason.FIRST, None, 1000),
    ('pair', [(1000,), (1100,)], None, 1000, 1100),
    ('next pair', [(1000,), (1100,), (1200,)], None, 1100, 1200),
    ('20 Hz', [(1000,), (1050,)], None, 1000, 1050),
    ('duplicate', [(1000,), (1100,), (1100,)], DropReason.DUPLICATE, None, 1100),
    ('out of order', [(1000,), (1100,), (1050,)], DropReason.OUT_OF_ORDER, None, 1100),
    ('0.999 s late', [(5000,), (4001,)], DropReason.OUT_OF_ORDER, None, 5000),
    ('1 s back: a bag that loops', [(5000,), (4000,)], DropReason.TIME_RESET, None, 4000),
    ('pair after the loop', [(5000,), (1000,), (1100,)], None, 1000, 1100),
    ('longest gap', [(1000,), (1250,)], None, 1000, 1250),
    ('gap', [(1000,), (1251,)], DropReason.GAP, None, 1251),
    ('pair after the gap', [(1000,), (3000,), (3100,)], None, 3000, 3100),
    ('too close', [(1000,), (1049,)], DropReason.TOO_CLOSE, None, 1000),
    ('pair around the one too close', [(1000,), (1049,), (1100,)], None, 1000, 1100),
    ('other frame', [(1000,), (1100, 'lidar')], DropReason.FRAME_CHANGED, None, 1100),
    ('other frame, soon', [(1000,), (1010, 'lidar')], DropReason.FRAME_CHANGED, None, 1010),
    ('pair in the other frame', [(1000,), (1100, 'lidar'), (1200, 'lidar')], None, 1100, 1200),
    ('empty', [(1000,), (1100, 'velodyne', 0)], DropReason.EMPTY, None, 1000),
    ('pair around the empty one', [(1000,), (1100, 'velodyne', 0), (1200,)], None, 1000, 1200),
    ('empty first', [(1000, 'velodyne', 0)], DropReason.EMPTY, None, None),
    ('zero stamp', [(1000,), (0,)], DropReason.ZERO_STAMP, None, 1000),
    ('zero stamp first', [(0,)], DropReason.ZERO_STAMP, None, None),
    ('zero stamp twice', [(0,), (0,)], DropReason.ZERO_STAMP, None, None),
]  # fmt: skip


@pytest.mark.parametrize(('sweeps', 'drop', 'partner', 'kept'), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE])
def test_which_sweeps_make_a_pair(sweeps, drop, partner, kept):
    buffer = SweepBuffer((0.05, 0.25))
    for row in sweeps:
        previous, why = buffer.push(sweep(*row))
    assert why is drop
    assert (previous is None) == (partner is None)
    assert previous is None or previous.stamp_ns == partner * MS
    assert (buffer.last.stamp_ns if buffer.last else None) == (None if kept is None else kept * MS)


def test_real_stamps_are_compared_without_rounding():
    start = 1_700_000_000_123_456_789
    buffer = SweepBuffer((0.05, 0.25))
    buffer.push(Sweep(POINTS, start))
    assert buffer.push(Sweep(POINTS, start + 1))[1] is DropReason.TOO_CLOSE  # 1 ns later is not a duplicate
    assert buffer.push(Sweep(POINTS, start - 1))[1] is DropReason.OUT_OF_ORDER
    assert buffer.push(Sweep(POINTS, start + 250 * MS))[0].stamp_ns == start


def test_reset_forgets():
    buffer = SweepBuffer((0.05, 0.25))
    buffer.push(sweep(1000))
    buffer.reset()
    assert buffer.push(sweep(1100)) == (None, DropReason.FIRST)


def test_every_drop_is_counted_under_its_own_name():
    assert len({drop.value for drop in DropReason}) == len(DropReason)


@pytest.mark.parametrize(
    'points',
    [np.zeros((2, 4), np.float32), np.zeros(3, np.float32), np.zeros((2, 3))],
    ids=['4 columns', 'flat', 'f64'],
)
def test_a_sweep_is_n_by_3_float32(points):
    with pytest.raises(ValueError, match=r'\(N, 3\) float32'):
        Sweep(points, 1)
    with pytest.raises(ValueError, match=r'points1 must be \(N, 3\) float32'):
        SweepPair(POINTS, points, np.eye(4), 0.1)


@pytest.mark.parametrize(
    ('motion', 'dt', 'says'),
    [(np.eye(3), 0.1, r'\(4, 4\)'), (np.full((4, 4), np.nan), 0.1, 'finite'), (np.eye(4), 0.0, 'positive'),
     (np.eye(4), -0.1, 'positive'), (np.eye(4), np.nan, 'positive')],
)  # fmt: skip
def test_a_pair_has_a_finite_motion_over_a_positive_time(motion, dt, says):
    with pytest.raises(ValueError, match=says):
        SweepPair(POINTS, POINTS, motion, dt)
