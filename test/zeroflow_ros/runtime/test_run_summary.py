# SPDX-License-Identifier: Apache-2.0
import pytest

from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import DropReason
from zeroflow_ros.runtime.health import Health, Level
from zeroflow_ros.runtime.run_summary import RunSummary, option_names, renamed

NAMES = option_names(['sensor_height', 'base_T_lidar', 'base_frame', 'ego_motion', 'deskew', 'out', 'odometry_topic'])


@pytest.fixture
def health():
    return Health(lambda level, text: None)


def summary(health, num_points=100, num_valid=90):
    return RunSummary.of(health, '/points', num_points=num_points, num_valid=num_valid)


def test_what_of_the_recording_is_not_read_is_a_warning(health):
    publish(health)
    notes = ['a.mcap was not closed by its recorder']
    found = RunSummary.of(health, '/points', num_points=1, num_valid=1, notes=notes)
    assert found.warnings() == ['WARN: a.mcap was not closed by its recorder']
    assert found.report()['warnings'][0]['kind'] == 'recording'


def publish(health, times=1):
    for _ in range(times):
        health.record_received()
        health.record_published({}, max_ms=1e9, max_consecutive_ms=1e9)


@pytest.mark.parametrize(('text', 'expected'), [
    ('', ''),
    ('Set sensor_height to 1.7.', 'Set --sensor-height to 1.7.'),
    ('publish it (parameter base_frame) or', 'publish it (--base-frame) or'),
    ('the parameter base_frame.', '--base-frame.'),
    ('(ego_motion: odometry or tf)', '(--ego-motion odometry or tf)'),
    ('set base_T_lidar to [0.0, -1.5, 1.0].', 'set --base-T-lidar to 0.0 -1.5 1.0.'),
    ('use --ego-motion tf', 'use --ego-motion tf'),
    ('set deskew to true unless', 'give --deskew unless'),
    ('nothing else, as the out of sensor_heights', 'nothing else, as the out of sensor_heights'),
    ('set sensor_height:=1.7', 'set sensor_height:=1.7'),
])  # fmt: skip
def test_advice_names_the_options_of_the_program(text, expected):
    assert renamed(text, NAMES) == expected
    assert renamed(text, {}) == text


def test_a_clean_run_says_no_more_than_its_counts(health):
    health.record_received()
    health.record_dropped(DropReason.FIRST, 'The first sweep waits for the second.')
    publish(health, 3)
    found = summary(health)
    assert found.lines() == ['sweeps 4, flow 3, dropped: 1 first_sweep', 'velocities for 90.0 % of 100 points']
    assert found.warnings() == [] and found.report()['warnings'] == []
    found.check()


def test_every_reason_comes_with_an_example_and_every_warning_once(health):
    publish(health, 3)
    for k in range(5):
        health.record_received()
        health.record_dropped(DropReason.EGO_MOTION, f'No pose at {k}.')
        health.report_issue('tilt', 'input', Level.WARN, f'Tilted by {k}. Set base_T_lidar.')
    health.log_once('clock', 'Another clock.')
    health.log_once('layout', 'A new layout.', 'info')
    health.report_issue('nan', 'inference', Level.ERROR, 'Not finite.')
    found = summary(health).with_names(NAMES)
    assert '  no_ego_motion: No pose at 0.' in found.lines()
    assert found.warnings() == [
        'ERROR: Not finite.', 'WARN (5 times): Tilted by 0. Set --base-T-lidar.', 'WARN: Another clock.'
    ]  # fmt: skip
    report = found.report()
    assert report['dropped'] == {'no_ego_motion': 5} and report['dropped_because'] == {'no_ego_motion': 'No pose at 0.'}
    assert [w['kind'] for w in report['warnings']] == ['nan', 'tilt', 'clock']
    assert (report['points_with_velocity'], report['share_with_velocity']) == (90, 0.9)


def test_a_new_check_that_reports_to_the_health_appears_by_itself(health):
    publish(health)
    health.report_issue('a rule of tomorrow', 'input', Level.WARN, 'Never seen before.')
    assert summary(health).warnings() == ['WARN: Never seen before.']


def test_frequent_harmless_drops_are_a_warning(health):
    publish(health, 10)
    for _ in range(10):
        health.record_dropped(DropReason.DUPLICATE, 'Twice.')
    assert any('10 of 20 clouds repeat the stamp' in line for line in summary(health).warnings())


def test_no_flow_is_a_failure_with_the_reasons(health):
    health.record_received()
    health.record_dropped(DropReason.FIRST, 'The first sweep waits for the second.')
    health.record_dropped(DropReason.EGO_MOTION, 'Registration is rejected.')
    health.report_issue('tilt', 'input', Level.WARN, 'The sensor hangs upside down.')
    with pytest.raises(DataError, match=r'No sweep .* got flow .*Registration is rejected\. The sensor hangs') as error:
        summary(health, 0, 0).check()
    assert 'waits for the second' not in str(error.value)


def test_no_valid_point_is_a_failure(health):
    publish(health)
    health.report_issue('out of range', 'input', Level.WARN, 'No point is -2 to 4 m high.')
    with pytest.raises(DataError, match=r'Not one of 100 points .* No point is -2 to 4 m high'):
        summary(health, 100, 0).check()
    with pytest.raises(DataError, match='none in that time'):
        summary(Health(lambda level, text: None)).check()


def test_a_node_in_another_process_says_the_same_through_its_diagnostics(health):
    publish(health, 2)
    health.record_received()
    health.record_dropped(DropReason.GAP, '0.3 s from one\nsweep to the next.')
    health.report_issue('tilt', 'input', Level.WARN, 'Tilted.\nSet base_T_lidar.')
    health.report_issue('tilt', 'input', Level.WARN, 'Tilted again.')
    values = {key: value for status in health.statuses() for key, value in status.values.items()}
    found = RunSummary.of_diagnostics(values, '/points', {'gap_too_long': 1}, num_points=100, num_valid=90)
    expected = summary(health)
    assert (found.lines(), found.warnings()) == (expected.lines(), expected.warnings())
