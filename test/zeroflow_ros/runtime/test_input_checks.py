# SPDX-License-Identifier: Apache-2.0
"""What the diagnostics and the log of a node say about a cloud that is used."""

import numpy as np
import pytest
from cloud_messages import XYZ, XYZI, message
from timed_clouds import T0, timed_message

from zeroflow_ros.engines.selection import load_engine
from zeroflow_ros.lidar.level import Level as SensorLevel
from zeroflow_ros.lidar.own_vehicle import OwnVehicle
from zeroflow_ros.lidar.point_cloud import decode_cloud
from zeroflow_ros.lidar.point_times import with_times
from zeroflow_ros.pipeline import FlowEstimate
from zeroflow_ros.runtime.health import Health, Level
from zeroflow_ros.runtime.input_checks import InputChecks

POINTS = np.random.default_rng(0).uniform(-20, 20, (50, 3)).astype(np.float32)
OVER = np.linspace(0, 0.1, 50)  # s


class Checked:
    """Checks clouds as the node does, three times each."""

    def __init__(self, *, deskews=False, own=None, time_name=''):
        self.lines, self._deskews, self._own, self._time_name = [], deskews, own or OwnVehicle(), time_name
        self.health = Health(lambda level, text: self.lines.append((level, text)))
        self.checks = InputChecks(self.health, None, deskews=deskews, now_ns=lambda: 0, time_name=time_name)

    def look_at(self, msg, mount=None, base_frame='base_link'):
        for _ in range(3):
            sweep = decode_cloud(msg)
            sweep = with_times(msg, sweep, self._time_name) if self._deskews else sweep
            sweep = self._own.remove(sweep, mount)
            self.checks.check_cloud(msg, sweep)
            self.checks.check_ego_box(self._own, sweep.frame_id, base_frame, mount)
        status = next(status for status in self.health.statuses() if status.part == 'input')
        return status.level, status.message

    def said(self, text):
        return [level for level, line in self.lines if text in line and level != 'debug']


def test_a_clean_cloud_gets_no_warning():
    checked = Checked(deskews=True)
    assert checked.look_at(timed_message(POINTS, T0, OVER * 1e9))[0] == Level.OK
    assert not [line for level, line in checked.lines if level != 'info']
    assert (checked.checks.facts['own_points'], checked.checks.facts['lost_times']) == (0, 0)


def test_wrong_row_step_is_logged_once_and_stays_in_the_diagnostics():
    checked = Checked()
    level, text = checked.look_at(message(bytes(POINTS.data), XYZ, point_step=12, row_step=0))
    assert level == Level.WARN and 'point_step 12 and row_step 0' in text
    assert checked.said('does not agree with their 600 bytes') == ['warning']


def test_input_with_velocities_is_logged_once():
    checked = Checked()
    fields = [*XYZI, *((name, 16 + 4 * i, 7, 1) for i, name in enumerate(('vx', 'vy', 'vz', 'speed')))]
    data = np.ones((5, 8), np.float32).tobytes()
    assert checked.look_at(message(data, fields, point_step=32))[0] == Level.OK
    assert checked.said('have fields vx, vy, vz, speed already') == ['warning']


def test_lost_times_are_counted():
    values = OVER.copy()
    values[[5, 20]] = np.nan
    checked = Checked(deskews=True)
    level, text = checked.look_at(timed_message(POINTS, T0, values, name='time', dtype='f4'))
    assert level == Level.WARN and "2 of 50 points have a time in 'time' that makes no sense" in text
    assert checked.checks.facts['lost_times'] == 2 and len(checked.said('makes no sense')) == 1


def test_counter_of_unknown_origin_is_logged_once():
    checked = Checked(deskews=True)
    level, text = checked.look_at(timed_message(POINTS, T0, OVER * 1e6 + 123_456_789, name='timestamp'))
    assert level == Level.WARN and 'count from an unknown origin' in text
    assert checked.said('unknown origin') == ['warning']


def test_fields_are_listed_where_none_holds_times():
    checked = Checked(deskews=True)
    level, text = checked.look_at(timed_message(POINTS, T0, OVER, name='age', dtype='f4'))
    assert level == Level.WARN and "Fields seen: 'x' float32" in text and "'age' float32" in text


@pytest.mark.parametrize('mount, base_frame, is_said', [
    (None, 'base_link', True), (None, '', False), (None, 'lidar', False), (np.eye(4), 'base_link', False),
])  # fmt: skip
def test_own_points_are_no_missing_returns(mount, base_frame, is_said):
    checked = Checked(own=OwnVehicle((-20.0, 20.0, -20.0, 20.0, -20.0, 20.0)))
    level, text = checked.look_at(timed_message(POINTS, T0, None), mount, base_frame)
    assert (checked.checks.facts['own_points'], checked.checks.facts['nan_points']) == (50, 0)
    assert ('ego_box is in the frame of the clouds' in text) == is_said == (level == Level.WARN)


def test_snow_is_a_warning_once_in_a_while():
    rng = np.random.default_rng(0)
    ground = np.c_[rng.uniform(-12, 12, (40_000, 2)), np.full(40_000, -1.8)].astype(np.float32)
    flakes = np.c_[rng.uniform(-9, 9, (1500, 2)), rng.uniform(-1, 2, 1500)].astype(np.float32)
    level = SensorLevel(np.array([0.0, 0.0, 1.0]), 1.8, 'nothing', seen_height=1.8)
    for points, expected in ((ground, []), (np.concatenate([ground, flakes]), [('stray returns', 2)])):
        health = Health(lambda level, text: None)
        checks = InputChecks(health, load_engine().card, deskews=False, now_ns=lambda: 0)
        estimate = FlowEstimate(
            np.zeros_like(points), np.full(len(points), 3, np.uint8), 'latest', 0.1, level, level.level_T_sensor, {}
        )
        for _ in range(51):
            checks.check_flow(points, estimate)
        assert [(finding.kind, finding.count) for finding in health.findings()] == expected
