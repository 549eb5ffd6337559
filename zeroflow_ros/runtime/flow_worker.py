# SPDX-License-Identifier: Apache-2.0
"""A thread that computes the flow of the newest cloud and survives bad ones."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np

from zeroflow_ros.ego_motion.trajectory import check_plausible
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import CloudError, EgoMotionError, ModelError
from zeroflow_ros.lidar.deskew import Deskew
from zeroflow_ros.lidar.point_cloud import decode_cloud
from zeroflow_ros.lidar.point_times import with_times
from zeroflow_ros.lidar.sweep import DropReason, SkipReason, Sweep, SweepBuffer, SweepPair
from zeroflow_ros.pipeline import FlowPipeline
from zeroflow_ros.runtime.health import Health, Level
from zeroflow_ros.runtime.input_checks import InputChecks
from zeroflow_ros.runtime.mailbox import Mailbox

STAGES = ('decode', 'ego_motion', 'pillars', 'inference', 'publish', 'total')
_JUMP_MARGIN_NS = 100_000_000
_OVERTAKEN = 'A newer cloud came before this one was looked at.'


class FlowSink(Protocol):
    """Where results go. Called on the worker thread."""

    def wanted(self) -> bool:
        """Return whether there are subscribers."""

    def publish_flow(self, msg, velocity: np.ndarray, flow_valid: np.ndarray) -> None:
        """Publish the cloud of a message with velocities (N, 3) [m/s] and flow_valid (N,)."""

    def publish_dynamic_points(self, msg, points: np.ndarray, velocity: np.ndarray) -> None:
        """Publish the dynamic rows of the flow just published, if they have subscribers; points (N, 3) [m]."""

    def publish_arrows(self, msg, points: np.ndarray, velocity: np.ndarray) -> None:
        """Publish arrows, if they have subscribers; points (N, 3) [m]."""

    def publish_debug(self, msg, stages_ms: dict, dt: float) -> None:
        """Publish milliseconds by stage and the seconds between the sweeps."""

    def ok(self) -> bool:
        """Return False once nothing can be published any more, because the node shuts down."""


class FlowWorker:
    """Decode, pair, ego motion, pipeline, publish: one sweep at a time, always the newest.

    On a machine that is too slow for every sweep, the one before the newest is still decoded to pair with it: sweeps
    farther apart than those that the model was trained on give worse flow, or none. With a source of ego motion that
    continues from sweep to sweep that costs too much, and happens only where there would be none.

    pipeline, ego_motion, health, outputs: what it works with. parameters: returns the parameters as they are now.
    now_ns: the clock that the clouds are stamped by.
    """

    def __init__(self, pipeline: FlowPipeline, ego_motion, health: Health, outputs: FlowSink, *,
                 parameters: Callable, now_ns: Callable[[], int]):  # fmt: skip
        self._pipeline, self._ego_motion, self._health, self._outputs = pipeline, ego_motion, health, outputs
        self._parameters, self._now_ns = parameters, now_ns
        self._mailbox = Mailbox()
        self._buffer = SweepBuffer(pipeline.engine.card.dt_range)
        self._last_msg = None  # of self._buffer.last
        self._clock_jumped = False
        self._deskew = Deskew() if parameters().deskew else None
        deskews = self._deskew is not None
        self.input_checks = InputChecks(health, pipeline.engine.card, deskews=deskews, now_ns=now_ns)
        self._thread = threading.Thread(target=self._work, name='flow', daemon=True)
        self.active = False  # whether it publishes; if not, it only keeps the last sweep
        self.num_failures = 0  # sweeps in a row that the engine failed on, since it was activated
        self._publishing = threading.Lock()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the sweep it is at."""
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def set_active(self, active: bool) -> None:
        """Publish from now on, or no more: once this returns, nothing follows."""
        with self._publishing:
            self.active, self.num_failures = active, 0

    def put(self, msg) -> None:
        """Hand over the newest cloud; returns at once."""
        self._health.record_received()
        if self._mailbox.put((msg, time.perf_counter())):
            self._health.dropped(DropReason.OVERTAKEN, _OVERTAKEN)

    def clock_jumped_back(self) -> None:
        """Record that the clock went back: the next sweep starts over, unless its own stamp shows the jump."""
        self._clock_jumped = True

    def _work(self) -> None:
        while items := self._mailbox.take():
            for item in items:
                overtaken = item is not items[-1]
                if overtaken and self._makes_a_pair(items[-1][0]):
                    self._health.dropped(DropReason.OVERTAKEN, _OVERTAKEN)
                    continue
                try:
                    self.process(*item, overtaken=overtaken)
                except CloudError as error:  # legal, but with velocities it would not be
                    self._health.dropped(DropReason.MALFORMED, str(error))
                except Exception as error:  # whatever it is, the next sweep is a new chance
                    self.num_failures += isinstance(error, ModelError)
                    if not self._outputs.ok():
                        return
                    self._health.dropped(DropReason.ENGINE, f'This sweep failed: {type(error).__name__}: {error}')

    def _makes_a_pair(self, msg) -> bool:
        """Return whether a cloud is better paired with the last sweep than with the one that it overtook."""
        last = self._buffer.last
        if last is None or not self._ego_motion.continues:
            return False
        stamp_ns = msg.header.stamp.sec * 1_000_000_000 + msg.header.stamp.nanosec
        return 0 < (stamp_ns - last.stamp_ns) * 1e-9 <= self._buffer.dt_range[1]

    def process(self, msg, received: float, *, overtaken: bool = False) -> None:
        """Turn one cloud into flow, or count why not.

        received: time.perf_counter() when it came in. overtaken: only keep it as the previous sweep of the next.
        """
        health, parameters, watch = self._health, self._parameters(), Stopwatch()
        try:
            with watch('decode'):
                sweep = decode_cloud(msg)
                if self._deskew is not None:
                    sweep = with_times(msg, sweep)
        except CloudError as error:
            health.dropped(DropReason.MALFORMED, str(error))
            return
        self.input_checks.check_cloud(msg, sweep)
        if len(sweep.points) > parameters.max_points:
            text = f'{len(sweep.points)} points are more than max_points ({parameters.max_points}).'
            if parameters.over_max_points == 'drop':
                health.dropped(DropReason.TOO_LARGE, f'{text} Raise it, or set over_max_points to subsample.')
                return
            _keep_every_nth(sweep.points, parameters.max_points)
            health.report_issue('subsampled', 'input', Level.WARN, f'{text} Only every n-th point gets a velocity.')
        if not _any_within(sweep.points, self._pipeline.engine.card.grid.half_extent):
            # As good as empty: flow from or to nothing is unknown.
            sweep = replace(sweep, points=sweep.points[:0], times=None)
        last, last_msg = self._buffer.last, self._last_msg
        starts_over = self._clock_left_behind(last, sweep)
        if starts_over:
            self._buffer.reset()
        previous, reason = self._buffer.push(sweep)
        if starts_over and reason is DropReason.FIRST:
            reason = DropReason.TIME_RESET
        if self._buffer.last is sweep:
            self._last_msg = msg
        # A gap to the last sweep is expected here: the ones between were skipped.
        if overtaken and reason in (None, DropReason.GAP):
            health.dropped(DropReason.OVERTAKEN, _OVERTAKEN)
            return
        if reason is not None:
            self._dropped(reason, msg, sweep, last)
            return
        if not (self.active and (parameters.always_run or self._outputs.wanted())):
            health.record_skipped(SkipReason.NO_SUBSCRIBERS if self.active else SkipReason.INACTIVE)
            return
        dt = (sweep.stamp_ns - previous.stamp_ns) * 1e-9
        seen = {'previous': previous.points, 'latest': sweep.points}  # where arrows begin, deskewed or not
        lookup = {'timeout': parameters.ego_motion_timeout_s, 'offset_ns': round(parameters.stamp_offset_s * 1e9)}
        try:
            if self._deskew is not None:
                with watch('deskew'):
                    poses_at_offsets = partial(self._ego_motion.poses_at_offsets, **lookup)
                    previous, sweep = self._deskew.pair(previous, sweep, poses_at_offsets)
            with watch('ego_motion'):
                ego0_T_ego1 = self._ego_motion.between(previous, sweep, **lookup)
                check_plausible(ego0_T_ego1, dt)
        except EgoMotionError as error:
            health.dropped(DropReason.EGO_MOTION, str(error))
            return
        pair = SweepPair(previous.points, sweep.points, ego0_T_ego1, dt)
        estimate = self._pipeline.estimate(pair)
        self.num_failures = 0
        carrier, points = (msg, sweep.points) if estimate.output_on == 'latest' else (last_msg, previous.points)
        with self._publishing:
            if not self.active:  # any more
                health.record_skipped(SkipReason.INACTIVE)
                return
            with watch('publish'):
                self._outputs.publish_flow(carrier, estimate.velocity, estimate.flow_valid)
            stages_ms = {**watch.stages_ms, **estimate.stages_ms, 'total': (time.perf_counter() - received) * 1e3}
            health.record_published(stages_ms, max_ms=parameters.max_processing_time_ms,
                          max_consecutive_ms=parameters.max_consecutive_delay_ms)  # fmt: skip
            self._outputs.publish_dynamic_points(carrier, points, estimate.velocity)
            self._outputs.publish_debug(carrier, stages_ms, dt)
            self._outputs.publish_arrows(carrier, seen[estimate.output_on], estimate.velocity)
        self.input_checks.check_flow(points, estimate)

    def _dropped(self, reason: DropReason, msg, sweep: Sweep, last: Sweep | None) -> None:
        """Say why a sweep makes no pair, and start over where it must."""
        dt = (sweep.stamp_ns - last.stamp_ns) * 1e-9 if last is not None else 0.0
        low, high = self._buffer.dt_range
        reach = self._pipeline.engine.card.grid.half_extent
        text = {
            DropReason.FIRST: 'The first sweep waits for the second.',
            DropReason.EMPTY: f'A cloud without a point within {reach:.0f} m came in; it goes out without flow. Check '
            'the sensor and its filters, and that clouds are in metres, x forward, z up.',
            DropReason.ZERO_STAMP: 'A cloud is stamped 0, so that the time between sweeps is unknown. Make the driver '
            'stamp its clouds.',
            DropReason.DUPLICATE: f'Two clouds have the stamp {sweep.stamp_ns * 1e-9:.6f} s; the second is dropped.',
            DropReason.OUT_OF_ORDER: f'A cloud came in that is {-dt:.3f} s older than the one before; it is dropped.',
            DropReason.TIME_RESET: f'Time went back by {-dt:.3f} s, as when a bag loops: starting over.',
            DropReason.FRAME_CHANGED: f"The frame_id changed from '{last.frame_id if last else ''}' to "
            f"'{sweep.frame_id}': no flow across that. Two sensors on one topic need a topic each.",
            DropReason.GAP: f'{dt:.3f} s from one sweep to the next; this model works up to {high} s. Sweeps are lost, '
            'or the sensor is slower than the model.',
            DropReason.TOO_CLOSE: f'{dt:.3f} s from one sweep to the next; this model works from {low} s. It is '
            'dropped.',
        }[reason]
        self._health.dropped(reason, text)
        if reason is DropReason.EMPTY:
            self._publish_without_flow(msg)
        elif reason is DropReason.TIME_RESET:
            self._ego_motion.reset(sweep.stamp_ns)
            self._pipeline.reset()
        elif reason is DropReason.FRAME_CHANGED:
            self._pipeline.reset()

    def _publish_without_flow(self, msg) -> None:
        num_rows = msg.height * msg.width
        unknown = np.full((num_rows, 3), np.nan, np.float32)
        with self._publishing:
            if self.active:
                self._outputs.publish_flow(msg, unknown, np.zeros(num_rows, np.uint8))
                self._outputs.publish_dynamic_points(msg, unknown, unknown)

    def _clock_left_behind(self, last: Sweep | None, sweep: Sweep) -> bool:
        """Return whether the clock went back between the last sweep and this one."""
        ahead_ns = self._now_ns() + _JUMP_MARGIN_NS
        if not self._clock_jumped or last is None or sweep.stamp_ns > ahead_ns:
            return False
        self._clock_jumped = False
        return last.stamp_ns > ahead_ns


def _any_within(points: np.ndarray, reach: float) -> bool:
    """Return whether any of points (N, 3) has all coordinates within reach [m]; a sample nearly always knows."""
    return any(bool((np.abs(some) < reach).all(axis=1).any()) for some in (points[::64], points))


def _keep_every_nth(points: np.ndarray, max_points: int) -> None:
    """Make all but every n-th row NaN in place, so that at most max_points are left."""
    step = -(-len(points) // max_points)
    kept = points[::step].copy()
    points[:] = np.nan
    points[::step] = kept
