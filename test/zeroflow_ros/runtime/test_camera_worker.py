# SPDX-License-Identifier: Apache-2.0
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from stereo_corridor import BASE_T_LEFT, CAMERA, EGO_SPEED, PERIOD_NS, START_NS, image_message, info_message

pytest.importorskip('cv2', reason='needs OpenCV')

from zeroflow_ros.camera.classical_flow import ClassicalStereoFlow
from zeroflow_ros.camera.output_frame import OutputFrame
from zeroflow_ros.camera.stereo_pairing import SIDES, FrameDrop
from zeroflow_ros.camera.stereo_reader import CalibrationError
from zeroflow_ros.camera_pipeline import CameraPipeline
from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.runtime.camera_health import CAMERA_DROPS, CAMERAS
from zeroflow_ros.runtime.camera_worker import STAGES, CameraWorker
from zeroflow_ros.runtime.health import DROPS, Health, Level


@dataclass(frozen=True)
class Settings:
    """What the worker reads of the parameters of the node."""

    pairing_tolerance_s: float = 0.005
    images_are_rectified: bool = True
    dt_range: tuple = (0.06, 0.5)
    always_run: bool = True
    ego_motion_timeout_s: float = 0.0
    stamp_offset_s: float = 0.0
    max_processing_time_ms: float = 1e5
    max_consecutive_delay_ms: float = 1e5


class Sink:
    """Keeps what is published."""

    def __init__(self):
        self.published, self.debug = [], []

    def has_subscribers(self):
        return False

    def ok(self):
        return True

    def publish(self, frame, estimate, output):
        self.published.append((frame, estimate, output))

    def publish_debug(self, frame, stages_ms, dt):
        self.debug.append((stages_ms, dt))


class Driven:
    """Ego motion of a camera that drives forward, up to a frame."""

    is_incremental = False

    def __init__(self, until=1000):
        self.last_ns, self.resets = START_NS + until * PERIOD_NS, []

    def between(self, sweep0, sweep1, *, timeout, offset_ns):
        if sweep1.stamp_ns > self.last_ns:
            raise EgoMotionError('The clouds are ahead of the odometry; set odometry_T_lidar.')
        motion = np.eye(4)
        motion[2, 3] = EGO_SPEED * (sweep1.stamp_ns - sweep0.stamp_ns) * 1e-9
        return motion

    def reset(self, stamp_ns):
        self.resets.append(stamp_ns)


def make(ego_motion='visual', source=None, active=True, output=lambda frame_id: OutputFrame(), **settings):
    """Return (worker, health, sink, log lines); the worker has no thread: `feed` runs it."""
    lines, sink = [], Sink()
    health = Health(lambda level, text: lines.append((level, text)), kind=CAMERAS)
    worker = CameraWorker(
        CameraPipeline(ClassicalStereoFlow(), ego_motion=ego_motion), source or Driven(), health, sink,
        parameters=lambda: Settings(**settings), now_ns=lambda: START_NS, output=output,
    )  # fmt: skip
    worker.set_active(active)
    for side, name in enumerate(SIDES):
        worker.put_info(name, info_message(0, side))
    return worker, health, sink, lines


def feed(worker, *numbers, changed=lambda number, side, message: message):
    """Hand over frames one by one, and process each."""
    for number in numbers:
        for side, name in enumerate(SIDES):
            message = changed(number, side, image_message(number, side))
            if message is not None:
                worker.put(name, message)
        run(worker)


def run(worker):
    """Process what waits, as the thread does."""
    entries = list(worker._mailbox._items)
    worker._mailbox._items.clear()
    worker._process_all(entries)


def drops(health):
    return {reason.name: count for reason, count in health.drops.items()}


def test_every_reason_to_drop_a_frame_has_a_severity_and_its_own_counter():
    assert set(CAMERA_DROPS) == set(FrameDrop)
    shared = {reason.name for reason in DROPS} & {reason.name for reason in CAMERA_DROPS}
    assert {'FIRST', 'GAP', 'EGO_MOTION', 'OVERTAKEN'} <= shared


def test_frames_become_flow():
    worker, health, sink, lines = make()
    feed(worker, 0, 1, 2)
    assert [frame.stamp_ns for frame, _, _ in sink.published] == [START_NS + PERIOD_NS, START_NS + 2 * PERIOD_NS]
    assert (health.received, health.published, drops(health)) == (3, 2, {'FIRST': 1})
    (stages_ms, dt) = sink.debug[-1]
    assert set(STAGES) <= set(stages_ms) and dt == pytest.approx(0.1)
    assert worker.checks.facts['size'] == f'{CAMERA.width} x {CAMERA.height}'
    assert float(worker.checks.facts['valid_share']) > 0.5 and float(worker.checks.facts['moving_share']) < 0.5
    assert not [text for level, text in lines if level in ('warning', 'error') and 'another clock' not in text]


@pytest.mark.parametrize(
    'changed, expected',
    [
        (lambda n, s, m: None if (n, s) == (1, 1) else m, 'NO_PARTNER'),
        (lambda n, s, m: spoiled(m, encoding='mono9') if n == 1 else m, 'MALFORMED'),
        (lambda n, s, m: spoiled(m, data=m.data[:50]) if n == 1 else m, 'MALFORMED'),
        (lambda n, s, m: spoiled(m, data=np.zeros_like(m.data)) if n == 1 else m, 'UNUSABLE'),
        (lambda n, s, m: stamped(m, 0) if n == 1 else m, 'ZERO_STAMP'),
    ],
)
def test_a_bad_frame_is_counted_and_the_next_ones_have_flow(changed, expected):
    worker, health, sink, _ = make()
    feed(worker, 0, 1, 2, 3, changed=changed)
    assert drops(health)[expected] >= 1 and drops(health)['FIRST'] == 1
    assert START_NS + 3 * PERIOD_NS in [frame.stamp_ns for frame, _, _ in sink.published]
    assert START_NS + PERIOD_NS not in [frame.stamp_ns for frame, _, _ in sink.published]


def spoiled(message, **fields):
    names = ('header', 'height', 'width', 'encoding', 'is_bigendian', 'step', 'data')
    return SimpleNamespace(**{name: getattr(message, name) for name in names} | fields)


def stamped(message, stamp_ns):
    stamp = SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return spoiled(message, header=SimpleNamespace(stamp=stamp, frame_id=message.header.frame_id))


def test_frames_too_close_are_left_out_before_they_are_decoded():
    worker, health, sink, _ = make()
    feed(worker, 0, 1)
    closer = lambda n, s, m: stamped(m, START_NS + PERIOD_NS + 30_000_000)  # noqa: E731
    feed(worker, 2, changed=lambda n, s, m: spoiled(closer(n, s, m), encoding='unreadable'))
    feed(worker, 2)
    assert drops(health) == {'FIRST': 1, 'TOO_CLOSE': 1} and len(sink.published) == 2


def test_a_gap_and_a_loop_start_over():
    source = Driven()
    worker, health, sink, _ = make(source=source)
    feed(worker, 10, 11, 30, 31, 0, 1)
    assert drops(health) == {'FIRST': 1, 'GAP': 1, 'TIME_RESET': 1} and len(sink.published) == 3
    assert source.resets == [START_NS]


def test_of_waiting_frames_the_one_before_the_newest_makes_the_pair():
    worker, health, sink, _ = make()
    feed(worker, 0)
    for number in (1, 2, 3):
        for side, name in enumerate(SIDES):
            worker.put(name, image_message(number, side))
    run(worker)
    assert drops(health) == {'FIRST': 1, 'OVERTAKEN': 2}
    assert [(frame.stamp_ns - START_NS) // PERIOD_NS for frame, _, _ in sink.published] == [3]
    assert sink.published[0][1].dt == pytest.approx(0.1)


def test_a_frame_without_a_partner_is_prepared_for_the_next_one():
    worker, _, sink, _ = make()
    prepared, prepare = [], worker._pipeline.estimator.prepare
    worker._pipeline.estimator.prepare = lambda frame: prepared.append(frame.stamp_ns) or prepare(frame)
    feed(worker, 0, 1, 9, 10)
    assert prepared == [START_NS, START_NS + 9 * PERIOD_NS] and len(sink.published) == 2
    worker.set_active(False)
    feed(worker, 20)
    assert len(prepared) == 2


def test_missing_ego_motion_drops_the_frame_in_words_of_cameras():
    worker, health, sink, lines = make('given', Driven(until=1))
    feed(worker, 0, 1, 2)
    assert drops(health) == {'FIRST': 1, 'EGO_MOTION': 1} and len(sink.published) == 1
    assert ('warning', 'The images are ahead of the odometry; set odometry_T_camera.') in lines


def test_an_unknown_mount_is_said_and_never_taken_as_identity():
    def unknown(frame_id):
        raise CalibrationError(f'Nothing says how {frame_id} is mounted.')

    worker, health, sink, _ = make(output=unknown)
    feed(worker, 0, 1)
    assert drops(health) == {'FIRST': 1, 'CALIBRATION': 1} and not sink.published
    output = OutputFrame('base_link', BASE_T_LEFT)
    worker, _, sink, _ = make(output=lambda frame_id: output)
    feed(worker, 0, 1)
    assert sink.published[0][2] is output


def test_images_that_are_apart_are_a_warning_that_lasts_and_a_new_calibration_starts_over():
    worker, health, sink, lines = make()
    later = lambda n, s, m: stamped(m, START_NS + n * PERIOD_NS + s * 3_000_000)  # noqa: E731
    feed(worker, 0, 1, 2, changed=later)
    said = [text for level, text in lines if level == 'warning' and 'images are 3.0 ms apart' in text]
    assert len(said) == 1 and said[0] in health.statuses()[0].message
    number = len(sink.published)
    for side, name in enumerate(SIDES):
        info = info_message(3, side)
        info.p = info.p * np.array([1.1, 1, 1, 1.1, 1, 1.1, 1, 1, 1, 1, 1, 1])
        worker.put_info(name, info)
    feed(worker, 3, 4, 5)
    assert drops(health)['FRAME_CHANGED'] == 1 and not drops(health).get('ENGINE')
    assert len(sink.published) == number + 2


def test_an_inactive_worker_keeps_the_last_frame():
    worker, health, sink, _ = make(active=False)
    feed(worker, 0, 1)
    assert not sink.published and health.published == 0
    worker.set_active(True)
    feed(worker, 2)
    assert len(sink.published) == 1 and sink.published[0][1].dt == pytest.approx(0.1)


def test_the_thread_ends_and_a_failing_sink_does_not_end_it():
    worker, health, sink, _ = make()
    publish = sink.publish
    sink.publish = lambda *_: (_ for _ in ()).throw(OSError('the line is cut'))
    worker.start()
    for number in range(3):
        for side, name in enumerate(SIDES):
            worker.put(name, image_message(number, side))
        deadline = time.monotonic() + 20
        while sum(health.drops.values()) + len(sink.published) <= number and time.monotonic() < deadline:
            time.sleep(0.01)
        if drops(health).get('ENGINE'):
            sink.publish = publish
    worker.stop()
    assert drops(health)['ENGINE'] == 1 and len(sink.published) == 1


def test_a_scene_that_moves_as_a_whole_is_a_warning():
    worker, health, sink, lines = make()
    feed(worker, 0, 1)
    _, estimate, _ = sink.published[0]
    worker.checks.check_flow(replace(estimate, velocity=estimate.velocity + np.float32(30)))
    worker.checks.check_flow(replace(estimate, flow_valid=np.zeros_like(estimate.flow_valid)))
    said = ' '.join(text for level, text in lines if level == 'warning')
    assert 'of the pixels seem to move: the ego motion or the calibration is wrong' in said
    assert 'of the pixels have a velocity: the images show little texture' in said
    parts = {status.part: status for status in health.statuses()}
    assert parts['ego_motion'].level == Level.WARN and parts['input'].values['dropped.malformed_image'] == '0'
    assert 'dropped.empty_cloud' not in parts['input'].values
