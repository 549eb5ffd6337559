# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import field_report
import numpy as np
import pytest
from field_report import REFUSED, RIGHT, WARNED, WRONG, Result, read_drive, read_poses, score, table, verdict
from tiny_bag import BOX_SPEED, EGO_SPEED, PERIOD_NS, START_NS, write_bag

from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, decode_message, encode_message, flow_cloud_message
from zeroflow_ros.lidar.point_cloud import flow_cloud
from zeroflow_ros.runtime.offline import FLOW_TOPIC
from zeroflow_ros.transforms import apply, rotation_matrix, to_quaternion, yaw_translation

NUM_SWEEPS = 3


@pytest.fixture
def drive(tmp_path):
    boxes = [
        [{'track_id': 1, 'category': 'Car', 'yaw': 0.0, 'size_lwh': [4.0, 2.0, 1.6],
          'center': [8 + (BOX_SPEED - EGO_SPEED) * 0.1 * k, 3, -0.85]}]
        for k in range(NUM_SWEEPS)
    ]  # fmt: skip
    (tmp_path / 'boxes.json').write_text(json.dumps({'sweeps': boxes}))
    return read_drive(write_bag(tmp_path / 'clean', num_sweeps=NUM_SWEEPS), tmp_path / 'boxes.json')


def changed(tmp_path, *, lidar_from=None, speed=BOX_SPEED, world=False, offset_ns=0):
    """Return a bag of a kind and one with its flow: velocity `speed` inside the box, 0 elsewhere, in the kind's frame.

    lidar_from: pose of the recorded points in the frame of the kind.
    """
    lidar_from = np.eye(4) if lidar_from is None else lidar_from
    with Bag(tmp_path / 'clean') as clean, BagWriter(tmp_path / 'kind') as kind, BagWriter(tmp_path / 'flow') as flow:
        for m in clean.messages([topic.name for topic in clean.topics]):
            message = decode_message(m.cdr, m.msgtype)
            if m.msgtype == ODOMETRY:
                x, q = message.pose.pose.position.x, message.pose.pose.orientation
                T = yaw_translation(0, x, 0) @ np.linalg.inv(lidar_from)
                q.x, q.y, q.z, q.w = to_quaternion(T).tolist()
                p = message.pose.pose.position
                p.x, p.y, p.z = T[:3, 3].tolist()
                kind.write(m.topic, m.msgtype, m.time_ns, encode_message(message, m.msgtype))
            if m.msgtype != POINT_CLOUD:
                continue
            k = (m.time_ns - START_NS) // PERIOD_NS
            T = yaw_translation(0, EGO_SPEED * 0.1 * k, 0) if world else lidar_from
            rows = message.data.view(np.float32).reshape(-1, 4).copy()
            center = np.array([8 + (BOX_SPEED - EGO_SPEED) * 0.1 * k, 3, -0.85])
            in_box = (np.abs(rows[:, :3] - center) < [2.1, 1.1, 0.8]).all(axis=1) & (rows[:, 2] > -1.5)
            velocity = np.where(in_box[:, None], [[speed, 0, 0]], 0).astype(np.float32) @ T[:3, :3].T
            rows[:, :3] = apply(T, rows[:, :3])
            message.data = rows.view(np.uint8).reshape(-1)
            message.header.stamp.nanosec += offset_ns
            cloud = flow_cloud(message, velocity.astype(np.float32), np.full(len(rows), 3, np.uint8))
            made = encode_message(flow_cloud_message(message.header, cloud), POINT_CLOUD)
            flow.write(FLOW_TOPIC, POINT_CLOUD, m.time_ns, made)
    return tmp_path / 'kind', tmp_path / 'flow'


@pytest.mark.parametrize('options', [
    {}, {'lidar_from': yaw_translation(0, 0, 0, 1.8)}, {'world': True}, {'offset_ns': PERIOD_NS // 2},
    {'lidar_from': np.block([[rotation_matrix([np.pi, 0, 0]), np.zeros((3, 1))], [0, 0, 0, 1]])},
], ids=['same frame', 'raised', 'world', 'half a sweep later', 'upside down'])  # fmt: skip
def test_true_velocities_score_0_in_whatever_frame_the_clouds_are(tmp_path, drive, options):
    kind, flow = changed(tmp_path, **options)
    result = Result('kind', 0)
    score(drive, flow, read_poses(kind), result)
    assert (result.sweeps, result.note) == (NUM_SWEEPS - 1, '')
    assert result.normalised_epe == pytest.approx(0, abs=1e-3)  # of the odometry's float64 poses and float32 points
    assert result.still_moving == 0


def test_half_of_the_velocity_scores_a_half(tmp_path, drive):
    kind, flow = changed(tmp_path, speed=BOX_SPEED / 2)
    result = Result('kind', 0)
    score(drive, flow, read_poses(kind), result)
    assert result.normalised_epe == pytest.approx(0.5, abs=0.01)


CLEAN = Result('clean', 0, [], 19, 0.95, 0.2, 0.05)


@pytest.mark.parametrize(('change', 'expected'), [
    ({}, RIGHT),
    ({'normalised_epe': 0.239}, RIGHT),
    ({'normalised_epe': 0.25}, WRONG),
    ({'normalised_epe': float('nan')}, WRONG),
    ({'still_moving': 0.08}, WRONG),
    ({'sweeps': 12}, WRONG),
    ({'valid_share': 0.5}, WRONG),
    ({'valid_share': 0.5, 'said': ['WARN: something']}, WARNED),
    ({'kind': 'upside', 'normalised_epe': 0.9, 'said': ['WARN: The ground is tilted by 180 degrees']}, WARNED),
    ({'kind': 'upside', 'normalised_epe': 0.9, 'said': ['WARN: something else']}, WRONG),
    ({'status': 1, 'sweeps': 0, 'said': ['replay: no pose']}, REFUSED),
    ({'status': 1, 'said': ['Traceback (most recent call last):']}, WRONG),
    ({'status': 1, 'said': []}, WRONG),
])  # fmt: skip
def test_the_verdict(change, expected):
    result = dataclasses.replace(CLEAN, **{'kind': 'of tomorrow', **change})
    assert verdict(result, CLEAN) == expected
    assert f'| {expected} |' in table([CLEAN, result]).splitlines()[-1]


def test_the_program_writes_a_table(tmp_path, drive, capsys, monkeypatch):
    monkeypatch.setattr(field_report, '_LEAST', 0.0)
    arguments = [str(tmp_path), str(tmp_path / 'boxes.json'), '--out', str(tmp_path / 'out'), '--kinds', 'none']
    assert field_report.main(arguments) == 0
    said = capsys.readouterr().out
    assert (
        '| clean | 2 | ' in said and json.loads((tmp_path / 'out' / 'results.json').read_text())['clean']['sweeps'] == 2
    )
    assert field_report.main([str(tmp_path), str(tmp_path / 'none.json'), '--out', str(tmp_path / 'out')]) == 1
