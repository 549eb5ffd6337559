# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import numpy as np
import pytest
import tiny_bag
from sweep_parts import part_cloud, rows_in, sectors, street_parts

from zeroflow_ros.errors import ConfigError
from zeroflow_ros.lidar.joined_cloud import JoinedCloud, message_stamp_ns
from zeroflow_ros.lidar.sweep import DropReason
from zeroflow_ros.lidar.sweep_assembly import SweepAssembly

NUM_SWEEPS = 6
START, PERIOD = tiny_bag.START_NS, tiny_bag.PERIOD_NS
NUM_POINTS, NUM_RETURNS = 6000, 5880


def street_messages(parts, num_sweeps=NUM_SWEEPS):
    return [part_cloud(points, stamp_ns) for stamp_ns, points in
            street_parts(parts, num_sweeps, num_points=NUM_POINTS, moves=False)]  # fmt: skip


def ran(messages, mode='auto', **options):
    """Return (joined clouds, clouds that passed as they are, dropped by reason, texts)."""
    assembly, found = SweepAssembly(mode, **options), []
    for message in messages:
        found += assembly.push(message)
    found += assembly.flush()
    used = [one.message for one in found if one.message is not None and one.drop is None]
    joined = [message for message in used if isinstance(message, JoinedCloud)]
    dropped = Counter(one.drop for one in found if one.drop is not None)
    return joined, [m for m in used if m not in joined], dropped, [one.text for one in found if one.text]


TILINGS = {
    'halves': sectors([180, 180]),
    'segments of 30 degrees': sectors([30] * 12),
    'quarters, clockwise': sectors([90] * 4, start=180, direction=-1),
    'quarters from the front': sectors([90] * 4, start=0),
    'boundaries anywhere': sectors([120] * 3, start=-103),
    'unequal parts': sectors([100, 50, 130, 80], start=20),
    'more than half, and the rest': sectors([250, 110]),
    'a small rest': sectors([300, 60], start=77),
    'overlapping parts': sectors([60] * 6, overlap=4),
    'overlapping halves, clockwise': sectors([180] * 2, start=90, direction=-1, overlap=9),
}


@pytest.mark.parametrize('parts', TILINGS.values(), ids=TILINGS)
def test_parts_of_a_revolution_are_joined_into_whole_sweeps(parts):
    joined, passed, dropped, texts = ran(street_messages(parts))
    assert len(joined) == NUM_SWEEPS and not dropped
    assert [message_stamp_ns(one) for one in joined] == [START + k * PERIOD for k in range(NUM_SWEEPS)]
    assert len(passed) == 1, 'the first message, before anything can be known'
    assert len(texts) == 1 and f'{len(parts)} messages are joined into one sweep' in texts[0]
    messages = street_messages(parts)
    for k, one in enumerate(joined):
        of_revolution = messages[k * len(parts) : (k + 1) * len(parts)]
        assert bytes(one.data) == b''.join(bytes(part.data) for part in of_revolution)


AXES = {
    'optical frame': [[0, -1, 0], [0, 0, -1], [1, 0, 0]],
    'optical frame, upside down': [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
    'x up': [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    'upside down': [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
}


def turned(message, cloud_R_sensor):
    rows = np.frombuffer(bytes(message.data), np.float32).reshape(-1, 4).copy()
    rows[:, :3] = rows[:, :3] @ np.float32(cloud_R_sensor).T
    return part_cloud(rows, message_stamp_ns(message))


@pytest.mark.parametrize('axes', AXES.values(), ids=AXES)
@pytest.mark.parametrize('name', ['halves', 'segments of 30 degrees', 'quarters, clockwise'])
def test_parts_of_a_revolution_in_an_optical_frame_are_compared_with_each_other(name, axes):
    messages = [turned(message, axes) for message in street_messages(TILINGS[name])]
    joined, passed, dropped, texts = ran(messages, can_wait=True)
    assert [len(one.data) for one in joined] == [16 * NUM_RETURNS] * NUM_SWEEPS and not passed and not dropped
    assert f'{len(TILINGS[name])} messages are joined into one sweep' in texts[0]


def test_parts_in_an_optical_frame_are_cut_at_the_seam():
    messages, angle = [], 0.0
    points = tiny_bag.street(0, num_points=NUM_POINTS)
    points = points[np.isfinite(points[:, 0])]
    while angle < 360 * 5:
        part = points[rows_in(points, (angle - 180, 163.6))]
        messages.append(turned(part_cloud(part, START + round(angle / 360 * PERIOD)), AXES['optical frame']))
        angle += 163.6
    joined, _, dropped, _ = ran(messages, can_wait=True)
    assert len(joined) >= 3 and not dropped[DropReason.PART]
    assert all(abs(len(one.data) / 16 - NUM_RETURNS) < 0.03 * NUM_RETURNS for one in joined[1:])


@pytest.mark.parametrize('axes', AXES.values(), ids=AXES)
def test_whole_sweeps_in_any_frame_pass(axes):
    joined, passed, dropped, texts = ran([turned(m, axes) for m in street_messages(sectors([360]))])
    assert len(passed) == NUM_SWEEPS and not (joined or dropped or texts)


@pytest.mark.parametrize('step', [163.6, 270.0, 175.0, 40.7])
@pytest.mark.parametrize('direction', [1, -1])
def test_parts_that_do_not_divide_the_circle_are_cut_at_the_seam(step, direction):
    """A simulator at 22, 13.3, 20.6 or 88 frames per second with a sensor of 10 Hz; the street stands still."""
    points, messages, angle = tiny_bag.street(0, num_points=NUM_POINTS), [], 0.0
    points = points[np.isfinite(points[:, 0])]
    while angle < 360 * 6:
        first = angle - 180 if direction > 0 else 180 - angle - step
        messages.append(part_cloud(points[rows_in(points, (first, step))], START + round(angle / 360 * PERIOD)))
        angle += step
    joined, _, dropped, _ = ran(messages)
    assert len(joined) >= 5 and dropped.keys() <= {DropReason.INCOMPLETE} and dropped.total() <= 1  # the last one
    dt = np.diff([message_stamp_ns(one) for one in joined]) / PERIOD
    np.testing.assert_allclose(dt, 1, atol=0.02)  # the edge of a sparse part is known to some degrees
    widths = [one.width for one in joined[:-1]]
    assert min(widths) > 0.96 * len(points) and max(widths) < 1.04 * len(points)


def whole(num_sweeps=NUM_SWEEPS):
    return street_messages([(-180, 360)], num_sweeps)


def limited(width, num_sweeps=NUM_SWEEPS):
    return street_messages([(-width / 2, width)], num_sweeps)


def rosettes():
    """A Livox pattern: every message other points of the same cone, some of it left out."""
    rng = np.random.default_rng(0)
    for k, message in enumerate(limited(80, 30)):
        points = message.data.view(np.float32).reshape(-1, 4)
        middle = rng.uniform(-15, 15)
        yield part_cloud(points[rows_in(points, (middle - 30, 60))], START + k * PERIOD // 5)


UNCHANGED = {
    'whole revolutions': whole,
    'a revolution with a gap for the rider': lambda: limited(290),
    'a solid-state sensor': lambda: limited(120),
    'a narrow sensor': lambda: limited(25),
    'a non-repetitive pattern': rosettes,
    'empty messages': lambda: [part_cloud(np.zeros((0, 4)), START + k * PERIOD) for k in range(5)],
    'no returns': lambda: [part_cloud(np.full((400, 4), np.nan), START + k * PERIOD) for k in range(5)],
    'no returns as 0 0 0': lambda: [part_cloud(np.zeros((400, 4)), START + k * PERIOD) for k in range(5)],
    'a few points': lambda: [part_cloud(np.random.default_rng(k).normal(0, 9, (9, 4)), START + k) for k in range(9)],
    'a lost sweep': lambda: [one for k, one in enumerate(whole(9)) if k != 4],
}


@pytest.mark.parametrize('messages', UNCHANGED.values(), ids=UNCHANGED)
def test_what_is_no_part_stays_as_it_is(messages):
    messages = list(messages())
    for can_wait in (False, True):
        joined, passed, dropped, texts = ran(messages, can_wait=can_wait)
        assert not joined and not dropped and not texts
        assert len(passed) == len(messages) and all(a is b for a, b in zip(passed, messages, strict=True))


def test_whole_sweeps_pass_at_once():
    assembly = SweepAssembly()
    for message in whole(40):
        [found] = assembly.push(message)
        assert found.message is message


def test_offline_the_first_part_is_no_sweep_of_its_own():
    joined, passed, dropped, _ = ran(street_messages(sectors([90] * 4)), can_wait=True)
    assert len(joined) == NUM_SWEEPS and not passed and not dropped
    [only] = limited(120, 1)
    assert ran([only], can_wait=True)[1] == [only]


def test_off_takes_parts_as_they_are():
    messages = street_messages(sectors([180, 180]))
    joined, passed, dropped, _ = ran(messages, 'off')
    assert not joined and not dropped and len(passed) == len(messages)


def test_an_unknown_mode_is_an_error():
    with pytest.raises(ConfigError, match='assemble_sweeps must be one of auto, off'):
        SweepAssembly('on')


@pytest.mark.parametrize(('parts', 'lost'), [(sectors([30] * 12), (30,)), (sectors([30] * 12), (30, 31, 32, 33, 34)),
                                             (sectors([30] * 12), (26, 35)), (sectors([180, 180]), (7,)),
                                             (sectors([90] * 4), (12, 13, 14, 15))])  # fmt: skip
def test_a_lost_part_costs_its_revolution_and_never_mixes_two(parts, lost):
    kept = [one for k, one in enumerate(street_messages(parts, 8)) if k not in lost]
    joined, _, dropped, texts = ran(kept)
    hit = {k // len(parts) for k in lost}
    expected = [START + k * PERIOD for k in range(8) if k not in hit]
    assert [message_stamp_ns(one) for one in joined] == expected
    assert dropped == ({DropReason.INCOMPLETE: 1} if len(lost) < len(parts) else {})
    assert len({one.width for one in joined}) == 1
    assert len(lost) == len(parts) or '% of a revolution are missing' in texts[1]


@pytest.mark.parametrize('parts', [sectors([30] * 12), sectors([180, 180]), sectors([90] * 4)])
def test_a_recording_may_begin_within_a_revolution(parts):
    messages = street_messages(parts, 8)[1:]
    joined, _, dropped, _ = ran(messages)
    assert [message_stamp_ns(one) for one in joined] == [message_stamp_ns(one) for one in messages[:: len(parts)]][:7]
    assert dropped == {DropReason.INCOMPLETE: 1}, 'the last one, which the recording ends'


def test_a_sector_without_returns_is_no_lost_part():
    messages = street_messages(sectors([60] * 6))
    stamp_ns = message_stamp_ns(messages[20])
    messages[20] = part_cloud(np.full((30, 4), np.nan), stamp_ns)
    joined, _, dropped, _ = ran(messages)
    assert len(joined) == NUM_SWEEPS and not dropped


def test_segments_of_a_sensor_that_does_not_see_all_around():
    parts = sectors([30] * 9, start=-135)
    messages = [one for k, one in enumerate(street_messages(sectors([30] * 12, start=-135))) if k % 12 < 9]
    joined, _, dropped, _ = ran(messages[4:])
    assert len(joined) == NUM_SWEEPS - 1 and dropped == {DropReason.FIRST: 1}
    assert message_stamp_ns(joined[0]) == message_stamp_ns(messages[9]) and len(parts) == 9


def test_parts_that_all_have_the_stamp_of_the_revolution():
    messages = street_messages(sectors([90] * 4))
    for k, one in enumerate(messages):
        stamp_ns = START + k // 4 * PERIOD
        one.header.stamp.sec, one.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    joined, _, dropped, _ = ran(messages)
    assert len(joined) == NUM_SWEEPS and not dropped and not joined[0].part_offsets_ns.any()


def test_a_repeated_and_a_late_part_are_dropped():
    messages = street_messages(sectors([60] * 6), 8)
    messages.insert(21, messages[20])
    late = messages.pop(29)
    messages.insert(34, late)
    joined, _, dropped, _ = ran(messages)
    assert dropped[DropReason.DUPLICATE] == 1 and dropped[DropReason.OUT_OF_ORDER] == 1
    assert len(joined) == 7 and len({one.width for one in joined}) == 1


def test_parts_in_any_order_are_refused_and_say_what_to_do():
    messages = street_messages(sectors([30] * 12), 20)
    rng = np.random.default_rng(0)
    shuffled = [messages[k + j] for k in range(0, len(messages), 12) for j in rng.permutation(12)]
    for k, one in enumerate(shuffled):
        one.header.stamp.sec, one.header.stamp.nanosec = divmod(START + k * PERIOD // 12, 10**9)
    joined, passed, dropped, texts = ran(shuffled)
    assert not joined and len(passed) == 1 and dropped == {DropReason.PART: len(messages) - 1}
    assert 'Publish one whole revolution per message' in texts[0] and 'assemble_sweeps to off' in texts[0]


def test_two_sensors_that_take_turns_are_no_revolution():
    messages = street_messages([(-60, 120), (120, 120)])
    joined, passed, dropped, _ = ran(messages)
    assert not joined and len(passed) == 1 and dropped == {DropReason.PART: len(messages) - 1}


@pytest.mark.parametrize(('before', 'after'), [(sectors([180, 180]), sectors([90] * 4)),
                                               (sectors([180, 180]), [(-180, 360)]),
                                               ([(-180, 360)], sectors([180, 180]))])  # fmt: skip
def test_a_driver_that_changes_its_parts_is_followed(before, after):
    first, second = street_messages(before, 30), street_messages(after, 30)
    messages = first[: 12 * len(before)] + second[12 * len(after) :]
    joined, passed, _, _ = ran(messages)
    assert len([m for m in joined + passed if abs(m.width - NUM_RETURNS) < 60]) >= 24
    # A seam within a sweep of the street joins rows of two moments. Parts of two kinds would miss thousands.
    assert all(abs(m.width - NUM_RETURNS) < 60 for m in joined)


def test_a_bag_that_loops_starts_the_revolution_anew():
    messages = street_messages(sectors([90] * 4), 15)
    joined, _, dropped, _ = ran(messages[:-2] + messages)
    assert len(joined) == 29 and dropped == {DropReason.INCOMPLETE: 1}


def test_another_frame_starts_over():
    messages = street_messages(sectors([90] * 4), 5)
    others = street_messages(sectors([90] * 4), 10)[20:]
    for one in others:
        one.header.frame_id = 'other'
    joined, passed, dropped, _ = ran(messages + others)
    assert [one.header.frame_id for one in joined] == ['lidar'] * 5 + ['other'] * 5 and len(passed) == 2 and not dropped


def test_the_origin_of_the_cloud_may_be_beside_the_sensor():
    messages = street_messages(sectors([60] * 6))
    for one in messages:
        points = one.data.view(np.float32).reshape(-1, 4)
        points[np.hypot(points[:, 0], points[:, 1]) < 3, :3] = np.nan  # below the lowest beam
        points[:, :3] += (1.2, 0.2, 1.8)
    joined, _, dropped, _ = ran(messages)
    assert len(joined) == NUM_SWEEPS and not dropped
