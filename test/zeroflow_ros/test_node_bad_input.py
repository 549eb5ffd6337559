# SPDX-License-Identifier: Apache-2.0
"""One node, fed with everything that goes wrong; after each of it the next good sweeps are served."""

import time

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import Drive, NodeProcess, Vehicle, cloud, column, scene, stamp_of  # noqa: E402
from sensor_msgs.msg import PointField  # noqa: E402

S = 1_000_000_000
DT_NS = S // 10
POINTS = Drive.points


@pytest.fixture(scope='module')
def drive():
    args = ['ego_motion:=odometry', 'max_points:=5000', 'input_timeout_s:=30.0']
    with NodeProcess(*(word for arg in args for word in ('-p', arg))) as node, Vehicle(markers=False) as vehicle:
        vehicle.connect(node)
        drive = Drive(node, vehicle)
        drive.serve()
        yield drive
        drive.serve()
        code, _ = node.stop()
        assert code == 0 and 'Traceback' not in node.log, node.log


def changed(msg, **values):
    for name, value in values.items():
        setattr(msg, name, value)
    return msg


def field(index, **values):
    def change(msg):
        fields = list(msg.fields)
        for name, value in values.items():
            setattr(fields[index], name, value)
        return changed(msg, fields=fields)

    return change


# label, change of a good cloud, counted as, part, said in its diagnostics (and log)
DROPPED = [
    ('x is missing', field(0, name='a'), 'malformed_cloud', 'input', 'x is missing'),
    ('no fields', lambda m: changed(m, fields=[]), 'malformed_cloud', 'input', 'x and y and z are missing'),
    ('y is an integer', field(1, datatype=PointField.INT32), 'malformed_cloud', 'input', 'y is int32'),
    ('z has count 2', field(2, count=2), 'malformed_cloud', 'input', 'z has count 2'),
    ('unknown datatype', field(3, datatype=99), 'malformed_cloud', 'input', 'unknown datatype 99'),
    ('offset outside', field(2, offset=14), 'malformed_cloud', 'input', 'ends outside the 16 bytes'),
    ('data is short', lambda m: changed(m, data=m.data[:-7]), 'malformed_cloud', 'input', 'less data'),
    ('4 billion points', lambda m: changed(m, width=2**32 - 1, height=2**32 - 1), 'malformed_cloud', 'input',
     'rows shorter'),
    ('row_step is short', lambda m: changed(m, row_step=16, data=m.data[:-16]), 'malformed_cloud', 'input',
     'rows shorter'),
    ('point_step is 0', lambda m: changed(m, point_step=0), 'malformed_cloud', 'input', 'points of 0 bytes'),
    ('no room for velocities', lambda m: changed(m, width=0, row_step=0, data=b'', point_step=2**32 - 1),
     'malformed_cloud', 'input', 'With velocities a point'),
    ('60,000 fields', lambda m: changed(m, fields=[*m.fields, *[PointField(name='t', datatype=2)] * 60_000]),
     'malformed_cloud', 'input', 'at most 256 fields'),
    ('stamp is 0', lambda m: cloud(POINTS, 0), 'zero_stamp', 'input', 'stamped 0'),
    ('too many points', lambda m: cloud(scene(num_points=5001), stamp_of(m)), 'too_many_points', 'input',
     'more than max_points (5000)'),
    ('half a second old', lambda m: cloud(POINTS, stamp_of(m) - S // 2), 'out_of_order_stamp', 'input', 'older than'),
    ('another frame', lambda m: cloud(POINTS, stamp_of(m), frame_id='radar'), 'frame_changed', 'input', "to 'radar'"),
]  # fmt: skip
LEVELS = {'malformed_cloud': b'\x02', 'zero_stamp': b'\x02'}


@pytest.mark.parametrize('change, reason, part, said', [row[1:] for row in DROPPED], ids=[row[0] for row in DROPPED])
def test_bad_cloud_is_counted_and_the_next_good_one_is_served(drive, change, reason, part, said):
    before = drive.dropped(reason)
    drive.send(change(cloud(POINTS, drive.tick())))
    shown = lambda s, v: int(v[f'dropped.{reason}']) > before and said in s.message  # noqa: E731
    status = drive.vehicle.status(part, shown)
    assert status, f'{drive.vehicle.statuses.get(part)}\n{drive.node.log}'
    assert status.level >= LEVELS.get(reason, b'\x01')
    drive.serve()


def test_each_trouble_was_logged_and_not_too_often(drive):
    log = drive.node.log
    assert 'Fields seen' in log and 'stamped 0' in log and "to 'radar'" in log
    assert 1 <= log.count('[ERROR]') <= 12  # ten malformed clouds, at most one line in 5 s


# label, layout of a good cloud, what the log says once
LAYOUTS = [
    ('row padding', {'height': 2, 'row_padding': 12}, ''),
    ('point padding', {'point_padding': 5}, 'layout of the clouds changed'),
    ('float64', {'types': ('f8', 'f8', 'f8', 'u1')}, ''),
    ('big-endian', {'is_bigendian': True}, 'Clouds are big-endian'),
    ('other order', {'names': ('intensity', 'z', 'y', 'x'), 'types': ('u2', 'f4', 'f4', 'f8')}, ''),
]


@pytest.mark.parametrize('layout, said', [row[1:] for row in LAYOUTS], ids=[row[0] for row in LAYOUTS])
def test_any_layout_is_read_and_given_back(drive, layout, said):
    drive.good()
    drive.vehicle.spin(0.05)
    flow = drive.vehicle.flow_of(drive.good(**layout), timeout=5)
    assert flow is not None, drive.node.log
    for axis, name in enumerate('xyz'):
        np.testing.assert_array_equal(column(flow, name).astype(np.float32), POINTS[:, axis])
    np.testing.assert_array_equal(column(flow, 'intensity').astype(int), np.arange(len(POINTS)) % 200)
    assert np.count_nonzero(column(flow, 'flow_valid')) == len(POINTS)
    assert said in drive.node.log and drive.node.log.count('big-endian') <= 1


@pytest.mark.parametrize(
    'points',
    [np.zeros((0, 3)), np.full((300, 3), np.nan), POINTS * 1000 + [60_000, 0, 0]],
    ids=['no points', 'only NaN', 'in millimetres'],
)
def test_empty_cloud_goes_out_without_flow_and_is_no_previous_sweep(drive, points):
    drive.serve()
    before = drive.dropped('empty_cloud')
    stamp_ns = drive.tick()
    drive.send(cloud(points, stamp_ns))
    flow = drive.vehicle.flow_of(stamp_ns)
    assert (flow.width, flow.header.frame_id) == (len(points), 'lidar') and not column(flow, 'flow_valid').any()
    assert np.isnan(column(flow, 'vx')).all()
    shown = lambda s, v: int(v['dropped.empty_cloud']) > before and 'without a point' in s.message  # noqa: E731
    assert drive.vehicle.status('input', shown)
    assert drive.vehicle.flow_of(drive.good(), timeout=5)  # pairs with the sweep before


def test_cloud_above_the_grid_is_all_invalid_with_a_warning(drive):
    drive.serve()
    stamp_ns = drive.tick()
    drive.send(cloud(POINTS * [1, 1, 0] + [0, 0, 30], stamp_ns))
    flow = drive.vehicle.flow_of(stamp_ns)
    assert not column(flow, 'flow_valid').any() and np.isnan(column(flow, 'vx')).all()
    assert drive.vehicle.status('input', lambda s, _: 'Check that z is up' in s.message), drive.node.log
    drive.serve()


def test_mostly_nan_is_served_with_a_warning(drive):
    drive.serve()
    points = POINTS.copy()
    points[: len(points) * 2 // 3] = np.nan
    stamp_ns = drive.tick()
    drive.send(cloud(points, stamp_ns))
    flow = drive.vehicle.flow_of(stamp_ns)
    np.testing.assert_array_equal(column(flow, 'flow_valid') > 0, np.isfinite(points[:, 0]))
    assert drive.vehicle.status('input', lambda s, _: '1000 of 1500 points have no return' in s.message)
    drive.serve()


def test_cloud_without_frame_is_served_with_a_warning(drive):
    drive.good(frame_id='')
    drive.vehicle.spin(0.2)
    assert drive.vehicle.flow_of(drive.good(frame_id=''), timeout=10)
    assert drive.vehicle.status('input', lambda s, _: 'no frame_id' in s.message)
    drive.serve()


def test_duplicate_is_dropped_and_frequent_ones_are_a_warning(drive):
    drive.serve()
    before = drive.dropped('duplicate_stamp')
    for _ in range(12):
        drive.send(cloud(POINTS, drive.now_ns))
        drive.vehicle.spin(0.02)
    shown = lambda s, v: int(v['dropped.duplicate_stamp']) > before and 'repeat the stamp' in s.message  # noqa: E731
    assert drive.vehicle.status('input', shown), drive.node.log
    drive.serve()


def test_gap_is_not_bridged(drive):
    drive.serve()
    before = drive.dropped('gap_too_long')
    stamp_ns = drive.tick(0.8)
    drive.send(cloud(POINTS, stamp_ns))
    shown = lambda s, v: int(v['dropped.gap_too_long']) > before and '0.800 s from one sweep' in s.message  # noqa: E731
    assert drive.vehicle.status('input', shown)
    assert drive.vehicle.flow_of(drive.good(), timeout=5)  # pairs with the sweep after the gap
    assert drive.vehicle.flow_of(stamp_ns, timeout=0) is None


def test_other_rate_within_the_range_of_the_model_is_told_once(drive):
    drive.serve()
    for _ in range(2):
        stamp_ns = drive.tick(0.2)
        drive.send(cloud(POINTS, stamp_ns))
        assert drive.vehicle.flow_of(stamp_ns)
    assert drive.vehicle.status('input', lambda s, _: 'the model was trained on 0.1 s' in s.message)
    drive.vehicle.spin(0.1)
    assert drive.node.log.count('the model was trained on 0.1 s') == 1


def test_time_that_goes_back_starts_over(drive):
    drive.serve()
    before = drive.dropped('time_went_back')
    drive.now_ns -= 20 * S
    first = drive.good()
    drive.vehicle.spin(0.2)
    assert drive.vehicle.flow_of(drive.good(), timeout=5)
    assert drive.vehicle.status('input', lambda _, v: int(v['dropped.time_went_back']) == before + 1)
    assert drive.vehicle.flow_of(first, timeout=0) is None
    assert drive.node.log.count('Time went back by') == 1
    drive.serve()


def without_odometry(drive):
    drive.now_ns += DT_NS


def jump(drive):
    drive.tick(x=9.0)


def zero_quaternion(drive):
    drive.now_ns += DT_NS
    drive.vehicle.drive(drive.now_ns, quaternion=(0.0, 0.0, 0.0, 0.0))


def other_body(drive):
    drive.now_ns += DT_NS
    drive.vehicle.drive(drive.now_ns, child_frame='base_link')


def late_odometry(drive):
    drive.now_ns += 5 * S  # and the odometry is five seconds behind
    drive.vehicle.drive(drive.now_ns - 5 * S)


@pytest.mark.parametrize(
    'troubles, said',
    [
        ([without_odometry], 'needs a pose'),
        ([late_odometry, without_odometry], 'needs a pose'),
        ([jump], 'The odometry jumps by'),
        ([zero_quaternion], 'quaternion of length 1'),
        ([other_body, other_body], 'odometry_T_lidar'),
    ],
)
def test_without_ego_motion_the_pair_is_dropped(drive, troubles, said):
    drive.serve()
    before = drive.dropped('no_ego_motion')
    for trouble in troubles:
        trouble(drive)
        drive.send(cloud(POINTS, drive.now_ns))
        drive.vehicle.spin(0.15)
    shown = lambda s, v: int(v['dropped.no_ego_motion']) > before and said in s.message  # noqa: E731
    assert drive.vehicle.status('ego_motion', shown), f'{drive.vehicle.statuses["ego_motion"]}\n{drive.node.log}'
    assert drive.vehicle.flow_of(drive.now_ns, timeout=0) is None
    drive.serve()


def test_newest_sweep_overtakes_and_pairs_with_the_one_before(drive):
    drive.serve()
    assert drive.vehicle.set_parameter('ego_motion_timeout_s', 2.0).successful
    before = drive.dropped('overtaken_by_newer_sweep')
    stamps = []
    for _ in range(5):  # no odometry: the worker waits for that of the first sweep
        without_odometry(drive)
        drive.send(cloud(POINTS, drive.now_ns))
        stamps.append(drive.now_ns)
        drive.vehicle.spin(0.15)
    for stamp_ns in stamps:
        drive.vehicle.drive(stamp_ns)
    assert drive.vehicle.flow_of(stamps[0]) and drive.vehicle.flow_of(stamps[4])
    shown = lambda _, v: int(v['dropped.overtaken_by_newer_sweep']) == before + 3  # noqa: E731
    assert drive.vehicle.status('inference', shown), drive.node.log
    assert drive.vehicle.status('input', lambda _, v: v.get('dt_s') == '0.1000')  # not 0.4 s, which would be a gap
    assert drive.vehicle.set_parameter('ego_motion_timeout_s', 0.1).successful


def test_slow_sweeps_are_reported(drive):
    for name in ('max_processing_time_ms', 'max_consecutive_delay_ms'):
        assert drive.vehicle.set_parameter(name, 1.0).successful
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        drive.serve()
        if drive.vehicle.statuses['inference'].level == b'\x02':
            break
    assert 'more than max_processing_time_ms (1 ms)' in drive.vehicle.statuses['inference'].message
    for name, value in (('max_processing_time_ms', 200.0), ('max_consecutive_delay_ms', 1000.0)):
        assert drive.vehicle.set_parameter(name, value).successful


def test_clock_of_the_sensor_is_told_once(drive):
    assert drive.node.log.count('the sensor has another clock') == 1
    assert drive.vehicle.status('input', lambda s, _: 'another clock' in s.message)
