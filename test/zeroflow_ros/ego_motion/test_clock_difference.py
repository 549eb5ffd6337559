# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tf_bag
from tiny_bag import CLOUD_TOPIC, ODOMETRY_TOPIC, START_NS

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.ego_motion.clock_difference import ClockWatch, clock_difference, describe_difference, recorded_stamps

UPTIME = 123.4 - START_NS * 1e-9


def stamps(rate, *, clock=0.0, start=0.0, end=3.0, factor=1.0, jitter=0.0):
    """Return (recorded, stamp) [ns]; factor: of the stamps' clock, as of a slow simulator."""
    rng = np.random.default_rng(0)
    times = np.arange(start, end, 1 / rate)
    recorded = 10**18 + np.int64(times * 1e9) + np.int64(rng.uniform(0, jitter, len(times)) * 1e9)
    return list(zip(recorded.tolist(), (10**18 + np.int64((times * factor + clock) * 1e9)).tolist(), strict=True))


DIFFERENCES = [
    ('nothing', [], [], None),
    ('no odometry', stamps(10), [], None),
    ('one clock', stamps(10), stamps(50), 0),
    ('both on another clock', stamps(10, clock=-500), stamps(50, clock=-500), 0),
    ('late messages', stamps(10, jitter=0.3), stamps(50, jitter=0.1), 0),
    ('TAI and UTC', stamps(10, clock=37), stamps(50), 37),
    ('odometry on another clock', stamps(10), stamps(50, clock=2), -2),
    ('a simulator at a tenth of the speed', stamps(10, factor=0.1), stamps(50, factor=0.1), 0),
    ('odometry begins later', stamps(10, end=30), stamps(50, start=20, end=30), 0),
    ('never recorded together', stamps(10), stamps(50, start=20, end=30), None),
    ('all recorded at once', stamps(10), [(10**18, stamp) for _, stamp in stamps(50)], None),
]


@pytest.mark.parametrize(
    ('clouds', 'others', 'expected'), [r[1:] for r in DIFFERENCES], ids=[r[0] for r in DIFFERENCES]
)
def test_the_difference_of_two_clocks_is_seen_from_recording_times(clouds, others, expected):
    found = clock_difference(clouds, others)
    assert found is None if expected is None else found == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize('clocks', [(0.0, 0.0), (UPTIME, 0.0), (0.0, UPTIME), (2.0, 0.0)])
def test_a_bag_is_read_only_as_far_as_needed(tmp_path, clocks):
    path = tf_bag.write(tmp_path / 'bag', cloud_clock=clocks[0], odometry_clock=clocks[1])
    with Bag(path) as bag:
        clouds, others = recorded_stamps(bag, CLOUD_TOPIC, ODOMETRY_TOPIC)
    assert len(clouds) == 10 and len(others) >= 10
    assert clock_difference(clouds, others) == pytest.approx(clocks[0] - clocks[1], abs=0.05)


def test_the_text_names_the_difference_and_the_ways_out():
    text = describe_difference(-1699999876.6, 123_400_000_000, 1_700_000_000_000_000_000, 'odometry')
    for part in ('123.400 s', '1700000000.000 s', 'difference of 1699999876.600 s', 'offline add 1699999876.600 s',
                 'stamps of the clouds look like seconds', 'PTP', '--stamp-offset', 'registration'):  # fmt: skip
        assert part in text
    leap = describe_difference(37.0, 1_700_000_037 * 10**9, 1_700_000_000 * 10**9, 'tf')
    assert (
        'look like' not in leap
        and 'difference of 37.000 s' in leap
        and 'add -37.000 s' in leap
        and 'stamp_offset_s' in leap
    )


LIVE = [
    ('one clock', 0.0, 0.05, True, ''),
    ('odometry 2 s ahead', 0.0, 2.0, True, '2.0'),
    ('clouds 37 s ahead', 37.0, 0.0, True, '37.0'),
    ('odometry that has stopped', 0.0, -3.0, False, ''),
]


@pytest.mark.parametrize(('cloud', 'odometry', 'goes_on', 'says'), [r[1:] for r in LIVE], ids=[r[0] for r in LIVE])
def test_two_clocks_are_noticed_while_both_go_on(cloud, odometry, goes_on, says):
    watch, text = ClockWatch('odometry'), None
    assert watch.look(START_NS, None) == ''
    for k in range(8):
        seconds = 0.1 * k
        newest = odometry + (seconds if goes_on else 0.0)
        text = watch.look(START_NS + round((cloud + seconds) * 1e9), START_NS + round(newest * 1e9))
        assert k >= 4 or text == ''  # too early to tell
    assert (says in text and 'different clocks' in text) if says else text == ''
    watch.reset()
    assert watch.look(START_NS, START_NS + 5 * 10**9) == ''
