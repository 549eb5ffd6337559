# SPDX-License-Identifier: Apache-2.0
"""A thread that computes the flow of the newest frame of a camera and survives bad ones."""

import time
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import numpy as np

from zeroflow_ros.camera.mono import MonoFrame, MonoMessages, NoFlowError
from zeroflow_ros.camera.output_frame import OutputFrame
from zeroflow_ros.camera.stereo import StereoFrame
from zeroflow_ros.camera.stereo_pairing import FrameBuffer, FrameDrop, PairingOutcome, StereoMessages
from zeroflow_ros.camera.stereo_reader import CalibrationError
from zeroflow_ros.camera_pipeline import CameraFlowEstimate, CameraPipeline
from zeroflow_ros.ego_motion.trajectory import check_plausible
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import EgoMotionError, ImageError
from zeroflow_ros.lidar.sweep import SkipReason
from zeroflow_ros.runtime.camera_health import CameraChecks, stamp_only
from zeroflow_ros.runtime.camera_sensor import sensor_of
from zeroflow_ros.runtime.health import Health
from zeroflow_ros.runtime.newest_worker import NewestWorker

Frame, Messages = StereoFrame | MonoFrame, StereoMessages | MonoMessages
STAGES = ('decode', 'ego_motion', 'estimate', 'velocity', 'publish', 'total')


class CameraSink(Protocol):
    """Where results go. Called on the worker thread."""

    def has_subscribers(self) -> bool:
        """Return whether there are subscribers."""

    def publish(self, frame: Frame, estimate: CameraFlowEstimate, output: OutputFrame) -> None:
        """Publish the flow of a frame, and what else has subscribers."""

    def publish_debug(self, frame: Frame, stages_ms: dict, dt: float) -> None:
        """Publish milliseconds by stage and the seconds between the frames."""

    def ok(self) -> bool:
        """Return False once nothing can be published any more, because the node shuts down."""


class CameraWorker(NewestWorker):
    """Pair left and right, decode, rectify, ego motion, estimate, publish: one frame at a time, the newest.

    If the machine is too slow for every frame, the frame before the newest is still decoded, to pair with the newest,
    unless it is too close to it. An estimator that keeps a state pairs the newest with the last one that it saw.

    sink: receives the results. parameters: returns the current parameters. now_ns: the clock that the images are
    stamped by. left_T_right: see `StereoReader`. output: returns the `OutputFrame` of an optical frame; raises
    CalibrationError where it is not known.
    """

    def __init__(self, pipeline: CameraPipeline, ego_motion, health: Health, sink: CameraSink, *,
                 parameters: Callable, now_ns: Callable[[], int],
                 left_T_right: Callable[[str, str], np.ndarray | None] = lambda left, right: None,
                 output: Callable[[str], OutputFrame] = lambda frame_id: OutputFrame()):  # fmt: skip
        super().__init__('camera flow', health, FrameDrop, is_open=sink.ok, now_ns=now_ns)
        self._pipeline, self._ego_motion, self._sink = pipeline, ego_motion, sink
        self._parameters, self._output = parameters, output
        self.sensor = sensor = sensor_of(pipeline.estimator)
        self._pairing = sensor.pairing(parameters().pairing_tolerance_s)
        self._reader = sensor.reader(parameters().images_are_rectified, left_T_right, pipeline.estimator)
        self._buffer = FrameBuffer(parameters().dt_range, noun=sensor.noun)
        self.checks = CameraChecks(health, now_ns=now_ns, images=sensor.checks())

    def put_info(self, side: str, msg) -> None:
        """Hand over a CameraInfo of one of the sensor's sides; returns at once."""
        self._hand_over(self._pairing.push_info(side, msg))

    def put(self, side: str, msg) -> None:
        """Hand over an image of one of the sensor's sides; returns at once."""
        self._hand_over(self._pairing.push(side, msg))

    def _hand_over(self, outcomes: list[PairingOutcome]) -> None:
        received = time.perf_counter()
        for found in outcomes:
            self._health.record_received()
            if found.drop is not None:
                self._health.record_dropped(found.drop, found.text)
                continue
            if found.text:
                self.checks.warn_once('offset', found.text)
            self._put(found.messages, received)

    def _malformed(self, error: Exception) -> Enum | None:
        if isinstance(error, CalibrationError):
            return FrameDrop.CALIBRATION
        return FrameDrop.MALFORMED if isinstance(error, ImageError) else None

    def _can_skip(self, item: Messages, newest: Messages) -> bool:
        """Return whether a frame would be too close to the newest one to make a pair with it."""
        return self.sensor.keeps_state or (newest.stamp_ns - item.stamp_ns) * 1e-9 < self._buffer.dt_range[0]

    def process(self, messages: Messages, received: float, *, overtaken: bool = False) -> None:
        """Turn one frame into flow, or count why not; see `NewestWorker`."""
        health, parameters, watch = self._health, self._parameters(), Stopwatch()
        last = self._buffer.last
        if self._is_too_close(messages):  # not worth decoding
            health.record_dropped(FrameDrop.TOO_CLOSE, self._buffer.drop_text(FrameDrop.TOO_CLOSE, messages, last))
            return
        with watch('decode'):
            frame = self._reader.read(messages)
            wrong = self.checks.check_frame(frame, messages.offset_ns, self._reader.note)
        if wrong is not None:
            health.record_dropped(wrong.drop, wrong.text)
            return
        previous = self._previous_of(frame, overtaken)
        if previous is None:
            if self.active and not overtaken and self._buffer.last is frame:
                self._pipeline.prepare(frame)
            return
        if not (self.active and (parameters.always_run or self._sink.has_subscribers())):
            health.record_skipped(SkipReason.NO_SUBSCRIBERS if self.active else SkipReason.INACTIVE)
            return
        dt = (frame.stamp_ns - previous.stamp_ns) * 1e-9
        output = self._output(frame.frame_id)
        try:
            with watch('ego_motion'):
                previous_T_latest = self._motion(previous, frame, dt)
            estimate = self._pipeline.estimate(previous, frame, dt, previous_T_latest, is_seen=self._reader.is_seen)
        except EgoMotionError as error:
            health.record_dropped(FrameDrop.EGO_MOTION, str(error))
            return
        except NoFlowError as error:
            health.record_dropped(error.drop, str(error))
            return
        self.num_failures = 0
        shown = frame if estimate.output_on == 'latest' else previous
        with self._publishing:
            if not self.active:  # deactivated meanwhile
                health.record_skipped(SkipReason.INACTIVE)
                return
            with watch('publish'):
                self._sink.publish(shown, estimate, output)
            stages_ms = {**watch.stages_ms, **estimate.stages_ms, 'total': (time.perf_counter() - received) * 1e3}
            health.record_published(
                stages_ms, max_ms=parameters.max_processing_time_ms,
                max_consecutive_ms=parameters.max_consecutive_delay_ms,
            )  # fmt: skip
            self._sink.publish_debug(shown, stages_ms, dt)
        self.checks.check_flow(estimate)

    def _is_too_close(self, messages: Messages) -> bool:
        last = self._buffer.last
        if last is None or last.frame_id != messages.frame_id:
            return False
        return 0 < (messages.stamp_ns - last.stamp_ns) * 1e-9 < self._buffer.dt_range[0]

    def _motion(self, previous: Frame, latest: Frame, dt: float) -> np.ndarray | None:
        """Return the motion of the left optical frame, (4, 4); None where the estimator finds it, or nobody does.

        Raises: EgoMotionError where it is not known.
        """
        if self._pipeline.ego_motion != 'given':
            return None
        p = self._parameters()
        previous_T_latest = self._ego_motion.between(
            stamp_only(previous), stamp_only(latest), timeout=p.ego_motion_timeout_s,
            offset_ns=round(p.stamp_offset_s * 1e9),
        )  # fmt: skip
        check_plausible(previous_T_latest, dt)
        return previous_T_latest

    def _previous_of(self, frame: Frame, overtaken: bool) -> Frame | None:
        """Return the frame that makes a pair with this one; None where there is none, which is counted."""
        last = self._buffer.last
        went_back = self._clock_went_back(last, frame)
        if went_back:
            self._buffer.reset()
        previous, reason = self._buffer.push(frame)
        if went_back and reason is FrameDrop.FIRST:
            reason = FrameDrop.TIME_RESET
        # A gap to the last frame is expected here: the ones between were skipped.
        if overtaken and reason in (None, FrameDrop.GAP):
            self._drop_overtaken()
            return None
        if reason is None:
            return previous
        self._health.record_dropped(reason, self._buffer.drop_text(reason, frame, last))
        if reason is FrameDrop.TIME_RESET:
            self._ego_motion.reset(frame.stamp_ns)
            self.checks.reset()
        return None
