# SPDX-License-Identifier: Apache-2.0
import pytest

from zeroflow_ros.camera.stereo_pairing import FrameDrop
from zeroflow_ros.runtime.camera_health import CAMERAS
from zeroflow_ros.runtime.health import CLOUDS, Health, Level


@pytest.mark.parametrize(
    'text, expected',
    [
        ('', ''),
        ('No cloud for 3 s.', 'No image for 3 s.'),
        ('Clouds come in again.', 'Images come in again.'),
        ('The clouds are in the cloud frame.', 'The images are in the optical frame.'),
        ('This sweep failed: 12 sweeps.', 'This stereo frame failed: 12 stereo frames.'),
        ("/points/cloud and '/my_cloud' stay", "/points/cloud and '/my_cloud' stay"),
        ('Set odometry_T_lidar.', 'Set odometry_T_camera.'),
        ('set the ego motion to registration or tf', 'set the ego motion to visual or tf'),
    ],
)
def test_texts_for_clouds_are_said_in_the_words_of_cameras(text, expected):
    assert CAMERAS.text(text) == expected and CLOUDS.text(text) == text


def test_a_health_of_cameras_counts_and_says_what_cameras_have():
    now, lines = [0.0], []
    health = Health(lambda level, text: lines.append((level, text)), lambda: now[0], CAMERAS)
    health.start_input_timeout()
    for k in range(20):
        now[0] = 0.1 * k
        health.record_received()
        if k % 2:
            health.record_dropped(FrameDrop.OVERTAKEN, 'A newer cloud arrived before this one was processed.')
        else:
            health.record_published({'total': 50.0}, max_ms=100, max_consecutive_ms=1000)
    statuses = {status.part: status for status in health.statuses()}
    assert statuses['input'].message == '10.0 images per second'
    assert (
        'of the last 20 images were overtaken: the estimator is slower than the camera' in statuses['inference'].message
    )
    assert statuses['inference'].values['dropped.overtaken_by_newer_frame'] == '10'
    now[0] += 3
    health.check_input_timeout(2.0, lambda: 'No publisher.')
    assert lines[-1] == ('warning', 'No image for 3 s. No publisher.')
    for _ in range(10):
        health.record_dropped(FrameDrop.EGO_MOTION, 'The clouds are late.')
    ego = {status.part: status for status in health.statuses()}['ego_motion']
    assert ego.level == Level.ERROR and 'The images are late.' in ego.message
    assert {finding.kind for finding in health.findings()} == {'silence', 'frequent overtaken_by_newer_frame'}
