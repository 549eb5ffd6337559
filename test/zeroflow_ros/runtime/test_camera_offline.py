# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from stereo_corridor import (
    BASE_T_LEFT,
    CAMERA,
    EGO_SPEED,
    MOVER_SPEED,
    PERIOD_NS,
    START_NS,
    image_message,
    on_mover,
    write_world,
)  # fmt: skip

pytest.importorskip('cv2', reason='needs OpenCV')

from zeroflow_ros import replay
from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message, encode_message
from zeroflow_ros.camera.classical_flow import ClassicalStereoFlow
from zeroflow_ros.camera.stereo_pairing import FrameDrop
from zeroflow_ros.camera.stereo_reader import CalibrationError
from zeroflow_ros.camera.stereo_topics import IMAGE
from zeroflow_ros.lidar.point_cloud import decode_cloud, decode_velocity, read_field
from zeroflow_ros.runtime.camera_offline import (
    CAMERA_FLOW_TOPIC,
    CAMERA_STATIC_TOPIC,
    OfflineCameraFlow,
)

FRAMES = 4


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp('world') / 'drive', FRAMES)


def results(path, **options):
    with Bag(path) as bag:
        flow = OfflineCameraFlow(bag, ClassicalStereoFlow(), **options)
        return flow, list(flow)


@pytest.mark.parametrize('ego_motion, source', [('auto', 'odometry'), ('visual', 'visual'), ('none', 'none')])
def test_every_frame_but_the_first_has_flow(path, ego_motion, source):
    flow, found = results(path, ego_motion=ego_motion)
    assert [result.drop for result in found] == [FrameDrop.FIRST, *[None] * (FRAMES - 1)] and flow.source == source
    last = found[-1]
    board = last.estimate.image(on_mover((FRAMES - 1) * 0.1))
    towards = -EGO_SPEED if source == 'none' else 0.0
    np.testing.assert_allclose(np.nanmedian(last.estimate.velocity[board], axis=0), [MOVER_SPEED, 0, towards], atol=0.5)
    assert last.frame.stamp_ns == START_NS + (FRAMES - 1) * PERIOD_NS
    summary = flow.summary()
    assert (summary.num_sweeps, summary.num_flow) == (FRAMES, FRAMES - 1) and summary.valid_share > 0.7
    assert summary.lines()[0] == f'stereo frames {FRAMES}, flow {FRAMES - 1}, dropped: 1 first_frame'
    summary.check()


def test_tf_moves_the_optical_frame(tmp_path):
    path = write_world(tmp_path / 'drive', 3, odometry=False, tf=True)
    flow, found = results(path, ego_motion='auto')
    assert flow.source == 'tf' and 'no topic of nav_msgs' in flow.note and len(found) == 3
    moved = found[-1].estimate.other_T_reference[:3, 3]
    np.testing.assert_allclose(moved, [0, 0, 0.1 * EGO_SPEED], atol=0.03)


def test_part_of_a_bag(path):
    _, found = results(path, start=0.15, duration=0.2, ego_motion='visual')
    assert len(found) == 2 and found[1].frame.stamp_ns == START_NS + 3 * PERIOD_NS


def test_what_cannot_be_used_is_counted(tmp_path, path):
    spoiled = tmp_path / 'spoiled'
    with Bag(path) as bag, BagWriter(spoiled) as writer:
        lefts = 0
        for m in bag.messages([topic.name for topic in bag.topics]):
            cdr = m.cdr
            if m.topic == '/stereo/left/image_rect':
                lefts += 1
                if lefts == 2:
                    message = image_message(1, 0)
                    message.encoding = 'mono9'
                    cdr = encode_message(message, IMAGE)
                if lefts == 3:
                    cdr = bytes(m.cdr)[:200]
            writer.write(m.topic, m.msgtype, m.time_ns, cdr)
    flow, found = results(spoiled, ego_motion='visual')
    counts = {reason.name: count for reason, (count, _) in flow.health.dropped().items()}
    assert counts['FIRST'] == 1 and counts['MALFORMED'] == 2 and len(found) == flow.health.received
    assert not any(result.estimate and result.estimate.dt < 0.25 for result in found)


def test_the_output_frame_needs_a_mount(path):
    flow, found = results(path, output_frame='base_link', ego_motion='odometry', duration=0.15)
    np.testing.assert_allclose(flow.output.output_T_camera, BASE_T_LEFT, atol=1e-9)
    assert found[-1].estimate is not None
    with Bag(path) as bag, pytest.raises(CalibrationError, match=r'does not say how the camera.*--output-T-camera'):
        OfflineCameraFlow(bag, ClassicalStereoFlow(), output_frame='map')


def test_the_program_writes_clouds_in_the_frame_that_is_asked_for(tmp_path, path, capsys):
    out, report = tmp_path / 'flow.mcap', tmp_path / 'report.json'
    options = ['--output-frame', 'base_link', '--static-points', '--cloud-step', '1']
    code = replay.main([str(path), '--offline', '--out', str(out), '--report', str(report), *options])
    text = capsys.readouterr().out
    assert code == 0 and f'stereo frames {FRAMES}, flow {FRAMES - 1}' in text and 'ego motion by odometry' in text
    written = json.loads(report.read_text())
    assert written['flow_published'] == FRAMES - 1 and {'decode', 'estimate', 'publish'} <= set(written['latency_ms'])
    with Bag(out) as bag:
        counts = {topic.name: topic.num_messages for topic in bag.topics}
        clouds = [decode_message(m.cdr, POINT_CLOUD) for m in bag.messages([CAMERA_FLOW_TOPIC])]
    assert counts[CAMERA_FLOW_TOPIC] == counts[CAMERA_STATIC_TOPIC] == FRAMES - 1 and counts['/tf_static'] == 1
    cloud = clouds[-1]
    assert (cloud.header.frame_id, cloud.height, cloud.width) == ('base_link', CAMERA.height, CAMERA.width)
    board = on_mover((FRAMES - 1) * 0.1).ravel()
    np.testing.assert_allclose(np.nanmedian(decode_velocity(cloud)[board], axis=0), [0, -MOVER_SPEED, 0], atol=0.5)
    assert np.nanmin(decode_cloud(cloud).points[:, 2]) < 0.6  # the floor, 0.9 m below the camera
    assert np.isfinite(read_field(cloud, 'speed_sigma')).any()


@pytest.mark.parametrize(
    'options, said',
    [
        (['--ego-motion', 'registration'], 'is for LiDAR'),
        (
            ['--topic', '/other/left'],
            'no stereo camera with left images on /other/left. It has /stereo/left/image_rect',
        ),
        (['--output-frame', 'map'], 'is mounted on'),
    ],
)
def test_what_does_not_fit_a_camera_is_said(tmp_path, path, capsys, options, said):
    assert replay.main([str(path), '--offline', '--out', str(tmp_path / 'out'), *options]) == 1
    assert said in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_the_viewer_gets_images_points_and_trajectory(tmp_path, path):
    pytest.importorskip('rerun', reason='needs rerun-sdk')
    out = tmp_path / 'flow.rrd'
    assert replay.main([str(path), '--view-file', str(out), '--ego-motion', 'visual']) == 0
    assert out.stat().st_size > 20_000
