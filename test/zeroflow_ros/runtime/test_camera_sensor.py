# SPDX-License-Identifier: Apache-2.0
"""One camera through the worker of the node, without ROS, and through the offline program."""

import json

import numpy as np
import pytest
from stereo_corridor import PERIOD_NS, START_NS
from test_camera_worker import Driven, Settings, Sink, drops, run, spoiled, stamped
from truth_images import (
    CAMERA,
    DEPTH_UNIT,
    HEIGHT,
    IMAGES,
    MOVER_SPEED,
    image_message,
    info_message,
    is_mover,
    write_mono_bag,
    write_mono_model,
)

pytest.importorskip('cv2', reason='needs OpenCV')
pytest.importorskip('onnx', reason='writing model files needs onnx')

from zeroflow_ros import replay
from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.camera.stereo_pairing import FrameDrop
from zeroflow_ros.camera_pipeline import CameraPipeline
from zeroflow_ros.engines.mono_network import MonoNetworkFlow, open_mono_estimator
from zeroflow_ros.lidar.point_cloud import decode_velocity
from zeroflow_ros.objects.tracker import Tracker
from zeroflow_ros.runtime.camera_health import ONE_CAMERA
from zeroflow_ros.runtime.camera_offline import CAMERA_FLOW_TOPIC, CAMERA_STATIC_TOPIC, OfflineCameraFlow
from zeroflow_ros.runtime.camera_sensor import MONO, STEREO, sensor_of
from zeroflow_ros.runtime.camera_worker import CameraWorker
from zeroflow_ros.runtime.health import Health

FRAMES = 6


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return write_mono_model(tmp_path_factory.mktemp('mono') / 'm.onnx')


@pytest.fixture(scope='module')
def bag_path(tmp_path_factory):
    return write_mono_bag(tmp_path_factory.mktemp('bag') / 'drive', FRAMES)


@pytest.fixture(scope='module')
def long_path(tmp_path_factory):
    return write_mono_bag(tmp_path_factory.mktemp('bag') / 'long_drive', 8)


def make(model, ego_motion='none', source=None):
    """Return (worker, health, sink, log lines); the worker has no thread: `feed` runs it."""
    lines, sink = [], Sink()
    health = Health(lambda level, text: lines.append((level, text)), kind=ONE_CAMERA)
    pipeline = CameraPipeline(MonoNetworkFlow(model), output_on='previous', ego_motion=ego_motion)
    worker = CameraWorker(pipeline, source or Driven(), health, sink, parameters=Settings, now_ns=lambda: START_NS)
    worker.set_active(True)
    worker.put_info('camera', info_message(0))
    return worker, health, sink, lines


def feed(worker, *numbers, changed=lambda number, message: message, **options):
    for number in numbers:
        worker.put('camera', changed(number, image_message(number, **options)))
        run(worker)


def published(sink):
    """Return the numbers of the frames that got flow."""
    return [round((frame.stamp_ns - START_NS) / PERIOD_NS) for frame, _, _ in sink.published]


def test_the_model_says_which_sensor_it_is_for(model):
    from zeroflow_ros.camera.classical_flow import ClassicalStereoFlow

    assert sensor_of(MonoNetworkFlow(model)) is MONO and sensor_of(ClassicalStereoFlow()) is STEREO


def test_images_become_flow_of_the_image_before(model):
    worker, health, sink, lines = make(model)
    feed(worker, 0, 1, 2, 3)
    assert published(sink) == [1, 2] and drops(health) == {'FIRST': 2}
    assert (health.received, health.published) == (4, 2) and 'baseline_m' not in worker.checks.facts
    assert not [text for level, text in lines if level in ('warning', 'error') and 'another clock' not in text]


def test_gaps_and_loops_begin_anew_and_late_images_are_dropped(model):
    worker, health, sink, _ = make(model)
    feed(worker, 10, 11, 12, 30, 31, 32, 0, 1, 2)
    assert published(sink) == [11, 31, 1]
    # The first two images of each part wait for the third.
    assert drops(health) == {'FIRST': 4, 'GAP': 1, 'TIME_RESET': 1}
    feed(worker, 4, 3, 4, 5)
    assert published(sink)[3:] == [2, 4]
    assert (drops(health)['OUT_OF_ORDER'], drops(health)['DUPLICATE']) == (1, 1)
    assert worker._pipeline.estimator.num_starts == 3


@pytest.mark.parametrize(
    'changed, expected',
    [
        (lambda n, m: spoiled(m, encoding='mono9') if n == 3 else m, 'MALFORMED'),
        (lambda n, m: spoiled(m, data=m.data[:50]) if n == 3 else m, 'MALFORMED'),
        (lambda n, m: spoiled(m, data=np.zeros_like(m.data)) if n == 3 else m, 'UNUSABLE'),
        (lambda n, m: stamped(m, 0) if n == 3 else m, 'ZERO_STAMP'),
        (lambda n, m: spoiled(m, data=m.data[: m.data.size // 2], height=HEIGHT // 2) if n == 3 else m, 'MALFORMED'),
    ],
)
def test_a_bad_image_is_counted_and_the_state_continues(model, changed, expected):
    worker, health, sink, _ = make(model)
    feed(worker, 0, 1, 2, 3, 4, changed=changed)
    assert drops(health) == {'FIRST': 2, expected: 1} and published(sink) == [1, 2]
    assert worker._pipeline.estimator.num_starts == 1 and sink.published[-1][1].dt == pytest.approx(0.2)


def test_a_new_camera_info_begins_anew(model):
    worker, health, sink, _ = make(model)
    feed(worker, 0, 1, 2)
    worker.put_info('camera', info_message(3, fx=60.0))
    feed(worker, 3, 4, 5)
    assert drops(health) == {'FIRST': 3, 'FRAME_CHANGED': 1} and published(sink) == [1, 4]


def test_missing_ego_motion_drops_the_image_and_not_the_state(model):
    class Interrupted(Driven):
        def between(self, sweep0, sweep1, **options):
            motion = super().between(sweep0, sweep1, **options)
            if sweep1.stamp_ns == START_NS + 3 * PERIOD_NS:
                return Driven(until=0).between(sweep0, sweep1, **options)
            return motion

    worker, health, sink, _ = make(model, 'given', Interrupted())
    feed(worker, 0, 1, 2, 3, 4)
    assert drops(health) == {'FIRST': 2, 'EGO_MOTION': 1} and published(sink) == [1, 3]
    np.testing.assert_allclose(np.nanmedian(sink.published[-1][1].velocity[is_mover(3)], axis=0), [MOVER_SPEED, 0, 0],
                               atol=0.02)  # fmt: skip
    assert worker._pipeline.estimator.num_starts == 1


def test_a_slow_machine_uses_the_newest_image_and_keeps_the_state(model):
    worker, health, sink, _ = make(model)
    feed(worker, 0, 1, 2)
    for number in (3, 4, 5):
        worker.put('camera', image_message(number))
    run(worker)
    assert drops(health) == {'FIRST': 2, 'OVERTAKEN': 2} and published(sink) == [1, 2]
    assert sink.published[-1][1].dt == pytest.approx(0.3) and worker._pipeline.estimator.num_starts == 1


def test_a_camera_that_stands_for_minutes_sees_nothing_move(model):
    worker, health, sink, _ = make(model, 'visual')
    feed(worker, *range(40), drives=False)
    assert drops(health) == {'FIRST': 2}
    estimate, mover = sink.published[-1][1], is_mover(38, drives=False)
    assert np.abs(estimate.other_T_reference - np.eye(4)).max() < 1e-3
    np.testing.assert_allclose(np.nanmedian(estimate.velocity[~mover], axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.nanmedian(estimate.velocity[mover], axis=0), [MOVER_SPEED, 0, 0], atol=0.05)


def test_a_camera_that_only_turns_sees_nothing_move(model):
    """The images hold the motion of a scene that turns about the camera by 0.03 rad a frame."""
    turn, unit = 0.03, 0.01

    def turning(number, message):
        image = message.data.reshape(HEIGHT, -1, 3).copy()
        depth = image[..., 0] * DEPTH_UNIT
        x = CAMERA.rays[..., 0] * depth
        image[..., 1] = 128 + np.rint((x * (np.cos(turn) - 1) + depth * np.sin(turn)) / unit).clip(-128, 127)
        image[..., 2] = 128 + np.rint((depth * (np.cos(turn) - 1) - x * np.sin(turn)) / unit).clip(-128, 127)
        return spoiled(message, data=image.ravel())

    worker, _, sink, _ = make(model, 'visual')
    feed(worker, 0, 1, 2, 3, changed=turning, drives=False)
    estimate = sink.published[-1][1]
    assert np.linalg.norm(estimate.other_T_reference[:3, 3]) < 0.02
    assert estimate.other_T_reference[0, 2] == pytest.approx(np.sin(turn), abs=2e-3)
    moving = np.linalg.norm(estimate.velocity, axis=2) > np.maximum(0.4, 3 * estimate.speed_sigma)
    assert moving.mean() < 0.05


@pytest.mark.parametrize('ego_motion, source', [('auto', 'odometry'), ('visual', 'visual'), ('none', 'none')])
def test_a_bag_offline(model, bag_path, ego_motion, source):
    with Bag(bag_path) as bag:
        flow = OfflineCameraFlow(bag, MonoNetworkFlow(model), output_on='previous', ego_motion=ego_motion, cloud_step=1)
        found = list(flow)
    assert [result.drop for result in found] == [FrameDrop.FIRST] * 2 + [None] * (FRAMES - 2) and flow.source == source
    last = found[-1]
    assert last.frame.stamp_ns == START_NS + (FRAMES - 2) * PERIOD_NS
    towards = -1.0 if source == 'none' else 0.0
    velocity = np.nanmedian(last.estimate.velocity[is_mover(FRAMES - 2)], axis=0)
    np.testing.assert_allclose(velocity, [MOVER_SPEED, 0, towards], atol=0.06)
    assert flow.summary().lines()[0] == f'images {FRAMES}, flow {FRAMES - 2}, dropped: 2 first_frame'


def test_images_out_of_order_in_a_bag(model, tmp_path):
    path = write_mono_bag(tmp_path / 'drive', numbers=(0, 1, 2, 4, 3, 5))
    with Bag(path) as bag:
        found = list(OfflineCameraFlow(bag, MonoNetworkFlow(model), output_on='previous', ego_motion='visual'))
    assert [result.drop for result in found] == [
        FrameDrop.FIRST, FrameDrop.FIRST, None, None, FrameDrop.OUT_OF_ORDER, None
    ]  # fmt: skip


def test_the_program_writes_clouds_and_says_the_scale(model, long_path, tmp_path, capsys):
    out, report = tmp_path / 'flow.mcap', tmp_path / 'report.json'
    options = ['--output-frame', 'base_link', '--static-points', '--cloud-step', '1', '--scale', 'camera_height',
               '--camera-height', '1.2', '--report', str(report)]  # fmt: skip
    # The fifth measurement of the ground gives the first flow.
    assert replay.main([str(long_path), '--offline', '--model', str(model), '--out', str(out), *options]) == 0
    text = capsys.readouterr().out
    assert 'images 8, flow 2, dropped: 4 no_scale, 2 first_frame' in text, text
    written = json.loads(report.read_text())
    assert written['scale_source'] == 'camera_height' and float(written['scale']) == pytest.approx(1.0, abs=0.02)
    assert f'Scale {written["scale"]} by camera_height; the state began anew 1 times' in text
    with Bag(out) as bag:
        counts = {topic.name: topic.num_messages for topic in bag.topics}
        cloud = [decode_message(m.cdr, POINT_CLOUD) for m in bag.messages([CAMERA_FLOW_TOPIC])][-1]
    assert counts[CAMERA_FLOW_TOPIC] == counts[CAMERA_STATIC_TOPIC] == 2 and cloud.header.frame_id == 'base_link'
    velocity = np.nanmedian(decode_velocity(cloud)[is_mover(6).ravel()], axis=0)
    np.testing.assert_allclose(velocity, [0, -MOVER_SPEED, 0], atol=0.1)


def test_a_bag_that_does_not_fit_is_said(model, bag_path, tmp_path, capsys):
    out = ['--offline', '--out', str(tmp_path / 'out')]
    assert replay.main([str(bag_path), *out]) == 1
    assert 'need a model for one camera: give it with --model' in capsys.readouterr().err
    without = write_mono_bag(tmp_path / 'without', 3, infos=False)
    assert replay.main([str(without), *out, '--model', str(model)]) == 1
    assert 'lacks images with CameraInfo' in capsys.readouterr().err
    assert replay.main([str(without), *out, '--model', str(model), '--topic', IMAGES]) == 1
    assert 'has no CameraInfo beside /camera/image_rect' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_the_viewer_gets_images_and_points(model, bag_path, tmp_path):
    pytest.importorskip('rerun', reason='needs rerun-sdk')
    out = tmp_path / 'flow.rrd'
    assert replay.main([str(bag_path), '--view-file', str(out), '--model', str(model), '--ego-motion', 'visual']) == 0
    assert out.stat().st_size > 10_000


def test_the_object_tracker_works_on_clouds_with_z_up(model, long_path):
    tracker, objects, base0_T_base1 = Tracker(), [], np.eye(4)
    base0_T_base1[0, 3] = 0.1
    with Bag(long_path) as bag:
        flow = OfflineCameraFlow(bag, open_mono_estimator(str(model)), output_on='previous', cloud_step=1,
                                 ego_motion='odometry', output_frame='base_link')  # fmt: skip
        for result in flow:
            if result.estimate is not None:
                estimate = result.estimate
                points, velocity = flow.output.moved(estimate.points, estimate.velocity)
                rows = np.linalg.norm(velocity, axis=2) > np.maximum(0.4, 3 * estimate.speed_sigma)
                objects = tracker.update(points[rows], velocity[rows], base0_T_base1, 0.1)
    (board,) = objects
    np.testing.assert_allclose(board.velocity[:2], [0, -MOVER_SPEED], atol=0.2)
