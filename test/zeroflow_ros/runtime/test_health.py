# SPDX-License-Identifier: Apache-2.0
import pytest

from zeroflow_ros.lidar.sweep import DropReason
from zeroflow_ros.runtime.health import DROPS, HOLD_S, LOG_EVERY_S, PARTS, Health, Level


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines():
    return []


@pytest.fixture
def health(clock, lines):
    return Health(lambda severity, text: lines.append((severity, text)), clock)


def status(health, part):
    return next(s for s in health.statuses() if s.part == part)


def flowed(health, total=50.0, max_ms=200.0, max_consecutive_ms=1000.0):
    health.record_published({'decode': 1.0, 'total': total}, max_ms=max_ms, max_consecutive_ms=max_consecutive_ms)


def test_nothing_happened_yet(health, lines):
    assert [(s.part, s.level) for s in health.statuses()] == [(part, Level.OK) for part in PARTS]
    assert status(health, 'input').values['received'] == '0' and health.rate() == 0.0
    assert health.percentiles() == {} and lines == []


def test_every_drop_reason_has_a_severity_and_is_shown(health):
    assert set(DROPS) == set(DropReason)
    for count, reason in enumerate(DropReason, 1):
        for _ in range(count):
            health.record_dropped(reason, 'why')
    shown = {key: value for s in health.statuses() for key, value in s.values.items() if key.startswith('dropped.')}
    assert shown == {f'dropped.{reason.value}': str(count) for count, reason in enumerate(DropReason, 1)}


@pytest.mark.parametrize(
    'reason, part, level, severity',
    [
        (DropReason.FIRST, 'input', Level.OK, 'debug'),
        (DropReason.MALFORMED, 'input', Level.ERROR, 'error'),
        (DropReason.EMPTY, 'input', Level.WARN, 'warning'),
        (DropReason.ZERO_STAMP, 'input', Level.ERROR, 'warning'),
        (DropReason.OUT_OF_ORDER, 'input', Level.WARN, 'debug'),
        (DropReason.TIME_RESET, 'input', Level.OK, 'info'),
        (DropReason.EGO_MOTION, 'ego_motion', Level.WARN, 'warning'),
        (DropReason.ENGINE, 'inference', Level.ERROR, 'error'),
    ],
)
def test_drop_gets_its_level_and_its_log_line(health, lines, reason, part, level, severity):
    for _ in range(40):  # so that one drop is not frequent
        flowed(health)
    health.record_dropped(reason, 'This happened.')
    assert status(health, part).level == level
    assert (status(health, part).message == 'This happened.') == (level > Level.OK)
    assert lines == [(severity, 'This happened.')]


def test_trouble_passes_by_itself(health, clock):
    health.record_dropped(DropReason.MALFORMED, 'Bad.')
    clock.now += HOLD_S
    assert status(health, 'input').level == Level.ERROR
    clock.now += 0.1
    assert status(health, 'input').level == Level.OK
    assert status(health, 'input').values['dropped.malformed_cloud'] == '1'


def test_log_is_throttled_by_kind_and_counts_what_it_held_back(health, clock, lines):
    for _ in range(8):
        health.record_dropped(DropReason.MALFORMED, 'Bad.')
    health.record_dropped(DropReason.EMPTY, 'Empty.')
    assert lines == [('error', 'Bad.'), ('warning', 'Empty.')]
    clock.now += LOG_EVERY_S
    health.record_dropped(DropReason.MALFORMED, 'Bad.')
    assert lines[2] == ('error', 'Bad. (7 more since the last such line.)')


def test_say_once(health, lines):
    health.log_once('a', 'First.')
    health.log_once('a', 'Second.')
    assert lines == [('warning', 'First.')]


@pytest.mark.parametrize('reason, part', [(DropReason.DUPLICATE, 'input'), (DropReason.OVERTAKEN, 'inference')])
@pytest.mark.parametrize('count, level', [(5, Level.OK), (6, Level.WARN)])
def test_some_drops_are_a_warning_only_when_frequent(health, reason, part, count, level):
    for _ in range(100 - count):
        flowed(health)
    for _ in range(count):
        health.record_dropped(reason, 'x')
    assert status(health, part).level == level


def test_ego_motion_that_does_not_come_back_is_an_error(health):
    for _ in range(9):
        health.record_dropped(DropReason.EGO_MOTION, 'No pose.')
    assert status(health, 'ego_motion').level == Level.WARN
    health.record_dropped(DropReason.EGO_MOTION, 'No pose.')
    assert status(health, 'ego_motion').level == Level.ERROR
    flowed(health)
    health.record_dropped(DropReason.EGO_MOTION, 'No pose.')
    assert status(health, 'ego_motion').level == Level.WARN


def test_slow_sweeps_warn_and_then_are_an_error(health, clock):
    for seconds, total, level in [(0, 250, Level.WARN), (0.9, 250, Level.WARN), (0.2, 250, Level.ERROR)]:
        clock.now += seconds
        flowed(health, total)
        assert status(health, 'inference').level == level
    flowed(health, 50)
    clock.now += 0.1
    flowed(health, 250)
    assert status(health, 'inference').level == Level.WARN


def test_silence_is_noticed_and_its_end_too(health, clock, lines):
    watch = lambda: health.check_input_timeout(1.0, lambda: '/points has 0 publishers.')  # noqa: E731
    watch()
    assert lines == []
    clock.now += 1.5
    watch()
    watch()
    assert status(health, 'input').level == Level.WARN and '/points has 0 publishers' in lines[0][1]
    clock.now += 4
    watch()
    assert status(health, 'input').level == Level.ERROR
    health.record_received()
    watch()
    assert status(health, 'input').level == Level.OK
    assert [severity for severity, _ in lines] == ['warning', 'error', 'info']


def test_rate_and_latencies(health, clock):
    for k in range(60):
        health.record_received()
        clock.now += 0.1
        flowed(health, total=float(k))
    assert health.rate() == pytest.approx(10.0) and health.jitter_ms() == pytest.approx(0, abs=1e-6)
    assert health.percentiles()['total'] == pytest.approx((29.5, 56.05, 58.41))  # of 0 ... 59
    assert status(health, 'inference').values['total_ms.p50_p95_p99'] == '29.5 56.0 58.4'
    clock.now += 10
    assert health.rate() == 0.0


def test_jitter_is_the_spread_of_the_intervals(health, clock):
    assert health.jitter_ms() == 0.0
    for interval in (0.08, 0.12) * 10:
        clock.now += interval
        health.record_received()
    assert health.jitter_ms() == pytest.approx(20, rel=0.01)
    assert float(status(health, 'input').values['jitter_ms']) == pytest.approx(20, abs=0.3)


def test_memory_is_bounded(health):
    for _ in range(2000):
        health.record_received()
        flowed(health)
        health.record_dropped(DropReason.MALFORMED, 'Bad.')
    sizes = [len(health._outcomes), len(health._arrivals), *(len(v) for v in health._stages.values())]
    assert max(sizes) <= 300 and len(health._issues) == 1 and len(health._logged) == 1


def test_facts_of_the_caller_are_shown_as_text(health):
    shown = next(s for s in health.statuses({'model': {'cells': 256}}) if s.part == 'model')
    assert shown.values == {'cells': '256'}
