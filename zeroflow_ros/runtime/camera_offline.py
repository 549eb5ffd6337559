# SPDX-License-Identifier: Apache-2.0
"""Compute the flow of the images of a bag offline: without ROS, at full speed, without lost frames."""

import contextlib
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message, encode_message, flow_cloud_message, typestore
from zeroflow_ros.camera.mono import MonoFrame, MonoMessages, NoFlowError
from zeroflow_ros.camera.output_frame import BODY_T_OPTICAL, OutputFrame
from zeroflow_ros.camera.pixel_cloud import moving_pixels, pixel_cloud, static_pixels
from zeroflow_ros.camera.stereo import StereoEstimator, StereoFrame
from zeroflow_ros.camera.stereo_pairing import SIDES, FrameBuffer, FrameDrop, StereoMessages
from zeroflow_ros.camera.stereo_reader import CalibrationError
from zeroflow_ros.camera.stereo_topics import CAMERA_INFO, MonoTopics
from zeroflow_ros.camera_pipeline import CameraFlowEstimate, CameraPipeline
from zeroflow_ros.ego_motion.bag_motion import static_transforms
from zeroflow_ros.ego_motion.camera_bag import first_image, mono_topics, open_camera_motion, stereo_topics
from zeroflow_ros.engines.mono_card import is_mono_model
from zeroflow_ros.engines.mono_network import open_mono_estimator
from zeroflow_ros.engines.stereo_network import open_stereo_estimator
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import ConfigError, DataError, EgoMotionError, ImageError
from zeroflow_ros.runtime.camera_health import CameraChecks, stamp_only
from zeroflow_ros.runtime.camera_sensor import sensor_of
from zeroflow_ros.runtime.health import Health
from zeroflow_ros.runtime.offline_run import report_of_run, with_other_topics
from zeroflow_ros.runtime.run_summary import RunSummary, option_names
from zeroflow_ros.transforms import from_quaternion, invert
from zeroflow_ros.views import rerun_view
from zeroflow_ros.views.report import latency_table, write_json

CAMERA_FLOW_TOPIC = '/camera_flow_node/output/flow'  # as the node publishes it
CAMERA_STATIC_TOPIC = '/camera_flow_node/output/static_points'
DT_RANGE = (0.06, 0.5)  # s, as the node's min_dt_s and max_dt_s
MIN_SIGMAS = 3.0  # as the node's dynamic_min_sigmas
Messages = StereoMessages | MonoMessages
_MAX_WAITING = 20  # frames that wait for odometry later in the bag: 2 s at 10 Hz


@dataclass(frozen=True)
class FrameResult:
    """The result of one frame, or of an image without a partner.

    frame: that the rows of the estimate belong to; None when it was dropped. time_ns: when its last image was recorded.
    estimate: None when dropped. drop, reason: the cause and a sentence on it. stages_ms: milliseconds by stage.
    """

    frame: StereoFrame | MonoFrame | None
    time_ns: int
    estimate: CameraFlowEstimate | None
    drop: Enum | None
    reason: str
    stages_ms: dict


class OfflineCameraFlow:
    """Iterates over the frames of a camera of a bag in order and yields a `FrameResult` for each.

    estimator: for a stereo camera, or for one camera. topic: of the (left) images; '' for the camera that is found.
    ego_motion, odometry_topic, odometry_T_camera,
    fixed_frame, stamp_offset: see `open_camera_motion`. output_on: see `CameraPipeline`. output_frame: frame of the
    clouds, '' for the optical frame; output_T_camera: (4, 4), None: /tf_static of the bag has it. images_are_rectified:
    see `StereoReader`. cloud_step: `step` of `CameraPipeline`. start, duration: part of the bag in seconds; duration 0
    is up to its end.
    Raises: DataError or EgoMotionError when the bag lacks what is needed; ConfigError for an unknown choice.
    """

    def __init__(self, bag: Bag, estimator: StereoEstimator, *, topic: str = '', ego_motion: str = 'auto',
                 odometry_topic: str = '', odometry_T_camera: np.ndarray | None = None, fixed_frame: str = '',
                 stamp_offset: float | None = None, output_on: str = 'latest', output_frame: str = '',
                 output_T_camera: np.ndarray | None = None, images_are_rectified: bool = True,
                 pairing_tolerance: float = 0.005, dt_range: tuple[float, float] = DT_RANGE, cloud_step: int = 2,
                 start: float = 0.0, duration: float = 0.0):  # fmt: skip
        self.sensor = sensor = sensor_of(estimator)
        self.topics = (stereo_topics if sensor.name == 'stereo' else mono_topics)(bag, topic)
        self.frame_id = first_image(bag, self.topics).header.frame_id.lstrip('/')
        self.motion, self.note = open_camera_motion(
            bag, ego_motion, frame_id=self.frame_id, left_image=self.topics.left_image, odometry_topic=odometry_topic,
            odometry_T_camera=odometry_T_camera, fixed_frame=fixed_frame, stamp_offset=stamp_offset,
        )  # fmt: skip
        self.source = self.motion.source if self.motion else 'none' if ego_motion == 'none' else 'visual'
        source = 'given' if self.motion else self.source
        self._pipeline = CameraPipeline(estimator, output_on=output_on, ego_motion=source, step=cloud_step)
        self.output = _output_frame(bag, output_frame, output_T_camera, self.frame_id)
        self._bag, self._pairing = bag, sensor.pairing(pairing_tolerance)
        self._tf = static_transforms(bag)
        self._reader = sensor.reader(images_are_rectified, self._tf.lookup, estimator)
        self._buffer = FrameBuffer(dt_range, noun=sensor.noun)
        self.window_ns = bag.window(start, duration)
        # What a live node would show in its diagnostics.
        self.health = Health(lambda level, text: None, kind=sensor.kind)
        self._recorded_ns = 0
        self._checks = CameraChecks(self.health, now_ns=lambda: self._recorded_ns, clock='they were recorded',
                                    images=sensor.checks())  # fmt: skip
        self._num_points = self._num_valid = 0

    def describe_motion(self) -> str:
        """Describe the source of the ego motion in a few words."""
        return self.motion.describe() if self.motion else self.source

    def __iter__(self) -> Iterator[FrameResult]:
        start_ns, end_ns = self.window_ns
        topics = [*self.topics.names, *([self.motion.topic] if self.motion and self.motion.topic else [])]
        waiting: deque[tuple[Messages, int]] = deque()
        # Odometry from a second before and after, so that the first and the last frame lie between two poses.
        for message in self._bag.messages(topics, start_ns=start_ns - 10**9, end_ns=end_ns + 10**9):
            if message.topic not in self.topics.names:
                self.motion.add_odometry(message.cdr)
            elif start_ns <= message.time_ns < end_ns:
                for found in self._pair(message):
                    if isinstance(found, FrameResult):
                        yield found
                    else:
                        waiting.append(found)
            while waiting and (self._covers(waiting[0][0].stamp_ns) or len(waiting) > _MAX_WAITING):
                yield self._process(*waiting.popleft())
        while waiting:
            yield self._process(*waiting.popleft())
        if end_ns == self._bag.window(0, 0)[1]:  # else the partner may come after the end of the part
            for found in self._pairing.flush():
                self.health.record_received()
                yield self._dropped(found.drop, found.text, end_ns, {})

    def _covers(self, stamp_ns: int) -> bool:
        return self.motion is None or self.motion.covers(stamp_ns)

    def _pair(self, recorded) -> Iterator[FrameResult | tuple[Messages, int]]:
        """Yield what an image or a CameraInfo completes or makes useless."""
        topics, time_ns = self.topics, recorded.time_ns
        if isinstance(topics, MonoTopics):
            is_image, side = recorded.topic == topics.image, self.sensor.sides[0]
        else:
            is_image = recorded.topic in (topics.left_image, topics.right_image)
            side = SIDES[recorded.topic in (topics.right_image, topics.right_info)]
        try:
            message = decode_message(recorded.cdr, topics.image_type if is_image else CAMERA_INFO)
        except DataError as error:
            self.health.record_received()
            yield self._dropped(FrameDrop.MALFORMED, str(error), time_ns, {})
            return
        push = self._pairing.push if is_image else self._pairing.push_info
        for found in push(side, message):
            self.health.record_received()
            if found.drop is not None:
                yield self._dropped(found.drop, found.text, time_ns, {})
                continue
            if found.text:
                self._checks.warn_once('offset', found.text)
            yield found.messages, time_ns

    def _dropped(self, drop: Enum, reason: str, time_ns: int, stages_ms: dict) -> FrameResult:
        self.health.record_dropped(drop, reason)
        return FrameResult(None, time_ns, None, drop, reason, stages_ms)

    def _process(self, messages: Messages, time_ns: int) -> FrameResult:
        watch = Stopwatch()
        self._recorded_ns = time_ns
        try:
            with watch('decode'):
                frame = self._reader.read(messages)
                wrong = self._checks.check_frame(frame, messages.offset_ns, self._reader.note)
        except (ImageError, CalibrationError) as error:
            drop = FrameDrop.CALIBRATION if isinstance(error, CalibrationError) else FrameDrop.MALFORMED
            return self._dropped(drop, str(error), time_ns, watch.stages_ms)
        if wrong is not None:
            return self._dropped(wrong.drop, wrong.text, time_ns, watch.stages_ms)
        last = self._buffer.last
        previous, drop = self._buffer.push(frame)
        if drop is not None:
            if drop is FrameDrop.TIME_RESET:
                self._checks.reset()
                if self.motion:
                    self.motion.reset()
            return self._dropped(drop, self._buffer.drop_text(drop, frame, last), time_ns, watch.stages_ms)
        dt = (frame.stamp_ns - previous.stamp_ns) * 1e-9
        try:
            with watch('ego_motion'):
                motion = self.motion.between(stamp_only(previous), stamp_only(frame)) if self.motion else None
            estimate = self._pipeline.estimate(previous, frame, dt, motion, is_seen=self._reader.is_seen)
        except EgoMotionError as error:
            return self._dropped(FrameDrop.EGO_MOTION, str(error), time_ns, watch.stages_ms)
        except NoFlowError as error:
            return self._dropped(error.drop, str(error), time_ns, watch.stages_ms)
        self.health.record_published({}, max_ms=np.inf, max_consecutive_ms=np.inf)
        self._checks.check_flow(estimate)
        self._num_points += int(np.count_nonzero(np.isfinite(estimate.points[..., 2])))
        self._num_valid += int(np.count_nonzero(estimate.flow_valid))
        shown = previous if estimate.output_on == 'previous' else frame
        return FrameResult(shown, time_ns, estimate, None, '', {**watch.stages_ms, **estimate.stages_ms})

    def summary(self) -> RunSummary:
        """Return what became of the frames so far, with all that the diagnostics of a node would have said."""
        return RunSummary.of(self.health, self.topics.left_image, num_points=self._num_points,
                             num_valid=self._num_valid, notes=self._bag.notes)  # fmt: skip


def _output_frame(bag: Bag, name: str, output_T_camera: np.ndarray | None, frame_id: str) -> OutputFrame:
    """Return the frame of the output. Raises: CalibrationError where the mount of the camera is not known."""
    name = name.lstrip('/')
    if not name:
        return OutputFrame()
    if output_T_camera is None:
        transforms = static_transforms(bag, name, frame_id)
        output_T_camera = transforms.lookup(name, frame_id)
        if output_T_camera is None:
            known = ', '.join(transforms.frames) or 'nothing'
            raise CalibrationError(
                f'/tf_static of {bag.path} does not say how the camera {frame_id!r} is mounted on {name!r} (it has '
                f'{known}). Give --output-T-camera X Y Z QX QY QZ QW, or another --output-frame.'
            )
    return OutputFrame(name, output_T_camera)


def write_camera_flow(flow: OfflineCameraFlow, bag_path: Path, writer: BagWriter, *,
                      static_below: float | None = None) -> Iterator[FrameResult]:  # fmt: skip
    """Write flow clouds together with the odometry and transforms of the bag; yield each result once written.

    static_below: also write the points slower than this [m/s].
    """
    for item in with_other_topics(flow, bag_path, writer):
        if item.estimate is not None:
            watch = Stopwatch()
            with watch('publish'):
                _write(item, flow.output, writer, static_below)
            item.stages_ms.update(watch.stages_ms)
        yield item


def _write(item: FrameResult, output: OutputFrame, writer: BagWriter, static_below: float | None) -> None:
    frame, estimate = item.frame, item.estimate
    points, velocity = output.moved(estimate.points, estimate.velocity)
    sigma = estimate.speed_sigma
    cloud = pixel_cloud(points, estimate.image(frame.left), velocity, sigma, estimate.flow_valid)
    types = typestore().types
    stamp = types['builtin_interfaces/msg/Time'](*divmod(frame.stamp_ns, 1_000_000_000))
    header = types['std_msgs/msg/Header'](stamp=stamp, frame_id=output.frame_id or frame.frame_id)
    cdr = encode_message(flow_cloud_message(header, cloud), POINT_CLOUD)
    writer.write(CAMERA_FLOW_TOPIC, POINT_CLOUD, item.time_ns, cdr)
    if static_below is not None:
        moving = moving_pixels(velocity.reshape(-1, 3), sigma.reshape(-1), static_below, MIN_SIGMAS)
        message = flow_cloud_message(header, static_pixels(cloud, moving))
        message.is_dense = True
        writer.write(CAMERA_STATIC_TOPIC, POINT_CLOUD, item.time_ns, encode_message(message, POINT_CLOUD))


def show_frames(results: Iterable[FrameResult], view: rerun_view.RerunView) -> Iterator[FrameResult]:
    """Show each frame that gets flow as it is computed; yield every result.

    The world has the axes of a body (x forward, z up) at the camera of the first frame; after a frame with unknown
    motion it starts anew.
    """
    world_T_body = np.eye(4)
    for result in results:
        estimate = result.estimate
        if estimate is not None:
            shown = None
            if estimate.other_T_reference is not None:
                other_T_reference = estimate.other_T_reference
                body = BODY_T_OPTICAL @ other_T_reference @ invert(BODY_T_OPTICAL)
                before = world_T_body
                world_T_body = before @ (body if estimate.output_on == 'latest' else invert(body))
                shown = world_T_body if estimate.output_on == 'latest' else before
            upright = OutputFrame()
            points, velocity = (upright.to_upright(one.reshape(-1, 3)) for one in (estimate.points, estimate.velocity))
            view.show(result.frame.stamp_ns, points, velocity, shown)
            view.show_images(result.frame.left, result.frame.camera.depth(estimate.disparity))
        elif result.drop in (FrameDrop.TIME_RESET, FrameDrop.FRAME_CHANGED, FrameDrop.GAP, FrameDrop.EGO_MOTION):
            view.start_over()
            world_T_body = np.eye(4)
        yield result


def main(args) -> int:
    """Run with the arguments that `replay` parsed: write the bag, or show it, print the table; return the status."""
    has_view = args.view or args.view_file
    if not args.out and not has_view:
        raise ConfigError(
            '--offline needs --out, a directory or a file ending in .mcap to write flow to, or --view or --view-file.'
        )
    if args.ego_motion == 'registration':
        raise ConfigError('Ego motion by registration is for LiDAR; choose visual, odometry, tf or none for cameras.')
    pose, output_pose = args.odometry_T_camera, args.output_T_camera
    if is_mono_model(args.model):
        estimator = open_mono_estimator(args.model, num_threads=args.threads, scale=args.scale,
                                        camera_height=args.camera_height)  # fmt: skip
        args.output_on = estimator.output_on  # the model has flow of one of the frames only
    else:
        estimator = open_stereo_estimator(args.model, num_threads=args.threads)
    with Bag(args.bag) as bag:
        flow = OfflineCameraFlow(
            bag, estimator, topic=args.topic[0] if args.topic else '', ego_motion=args.ego_motion,
            odometry_topic=args.odometry_topic, fixed_frame=args.fixed_frame, stamp_offset=args.stamp_offset,
            odometry_T_camera=from_quaternion(pose[:3], pose[3:]) if pose else None, output_on=args.output_on,
            output_frame=args.output_frame, images_are_rectified=not args.rectify,
            output_T_camera=from_quaternion(output_pose[:3], output_pose[3:]) if output_pose else None,
            cloud_step=args.cloud_step, start=args.start, duration=args.duration,
        )  # fmt: skip
        if flow.note:
            print(f'Ego motion by {flow.describe_motion()}: {flow.note}', file=sys.stderr)
        with contextlib.ExitStack() as opened:
            results = flow
            if args.out:
                writer = opened.enter_context(BagWriter(args.out, replace=args.replace))
                results = write_camera_flow(flow, bag.path, writer,
                                            static_below=args.static_points)  # fmt: skip
            if has_view:
                view = opened.enter_context(rerun_view.RerunView(args.view_file, replace=args.replace, images=True))
                results = show_frames(results, view)
            total = next(topic.num_messages for topic in bag.topics if topic.name == flow.topics.left_image)
            run = report_of_run(results, total, f'{flow.sensor.noun}s', lambda result: None)
            summary = flow.summary().with_names(option_names(vars(args)))
            facts = estimator.facts() if flow.sensor.keeps_state else {}
            report = {'bag': str(bag.path), **facts, 'estimator': estimator.name, 'ego_motion': flow.source,
                      'ego_motion_note': flow.note, **run, **summary.report()}  # fmt: skip
            if args.report:
                write_json(args.report, report)
            summary.check()  # before the output takes its place
    print('\n'.join(summary.lines()))
    rate = summary.num_flow / run['seconds'] if run['seconds'] else 0.0
    print(f'{rate:.1f} {flow.sensor.noun}s per second for {run["seconds"]:.1f} s, ego motion by {flow.source}')
    if facts:
        print(f'Scale {facts["scale"]} by {facts["scale_source"]}; the state began anew {facts["state_starts"]} times')
    print(latency_table(run['latency_ms']))
    print(f'Flow is in {" and ".join(filter(None, [args.out, args.view_file])) or "the Rerun viewer"}')
    for line in summary.warnings():
        print(line, file=sys.stderr)
    return 0
