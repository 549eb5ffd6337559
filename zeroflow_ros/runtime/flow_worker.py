# SPDX-License-Identifier: Apache-2.0
"""A thread that computes the flow of the newest cloud and survives bad ones."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np

from zeroflow_ros.ego_motion.trajectory import check_plausible
from zeroflow_ros.ego_motion.world_clouds import in_cloud_axes, measured_points, mount_of
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import CloudError, EgoMotionError
from zeroflow_ros.lidar.cloud_layout import num_points
from zeroflow_ros.lidar.deskew import Deskew
from zeroflow_ros.lidar.joined_cloud import starts_over, with_part_times
from zeroflow_ros.lidar.point_cloud import decode_cloud
from zeroflow_ros.lidar.point_times import with_times
from zeroflow_ros.lidar.sweep import DropReason, SkipReason, Sweep, SweepBuffer
from zeroflow_ros.lidar.sweep_assembly import SweepAssembly
from zeroflow_ros.lidar.sweep_history import SweepHistory
from zeroflow_ros.pipeline import FlowPipeline
from zeroflow_ros.runtime.health import Health, Level
from zeroflow_ros.runtime.input_checks import InputChecks, any_within, drop_text, without_points
from zeroflow_ros.runtime.newest_worker import NewestWorker

STAGES = ('decode', 'ego_motion', 'pillars', 'inference', 'objects', 'publish', 'total')


class FlowSink(Protocol):
    """Where results go. Called on the worker thread."""

    def has_subscribers(self) -> bool:
        """Return whether there are subscribers."""

    def publish_flow(self, msg, velocity: np.ndarray, flow_valid: np.ndarray) -> None:
        """Publish the cloud of a message with velocities (N, 3) [m/s] and flow_valid (N,)."""

    def publish_dynamic_points(self, msg, points: np.ndarray, velocity: np.ndarray) -> None:
        """Publish the dynamic rows of the flow just published, if they have subscribers; points (N, 3) [m]."""

    def publish_static_points(self, msg, velocity: np.ndarray, own_rows: np.ndarray) -> None:
        """Publish the rows that do not move, if they have subscribers, without own_rows (K,) on the own vehicle."""

    def publish_arrows(self, msg, points: np.ndarray, velocity: np.ndarray) -> None:
        """Publish arrows, if they have subscribers; points (N, 3) [m]."""

    def publish_debug(self, msg, stages_ms: dict, dt: float) -> None:
        """Publish milliseconds by stage and the seconds between the sweeps."""

    def ok(self) -> bool:
        """Return False once nothing can be published any more, because the node shuts down."""


class FlowWorker(NewestWorker):
    """Decode, pair, ego motion, pipeline, publish: one sweep at a time, always the newest.

    If the machine is too slow for every sweep, the sweep before the newest is still decoded, to pair with the newest:
    over a longer dt than in training, flow is worse or missing. Incremental ego motion makes this extra sweep too
    expensive; it is then decoded only if the newest and the last sweep are too far apart to make a pair.

    sink: receives the results. parameters: returns the current parameters. now_ns: the clock that the clouds are
    stamped by. mount: returns base_T_sensor of the frame of a cloud, or None; see `FlowPipeline`.
    """

    def __init__(self, pipeline: FlowPipeline, ego_motion, health: Health, sink: FlowSink, *,
                 parameters: Callable, now_ns: Callable[[], int],
                 mount: Callable[[str], np.ndarray | None] = lambda frame_id: None):  # fmt: skip
        super().__init__('flow', health, DropReason, is_open=sink.ok, now_ns=now_ns)
        self._pipeline, self._ego_motion, self._sink = pipeline, ego_motion, sink
        self._parameters, self._mount = parameters, mount
        self._buffer = SweepBuffer(pipeline.engine.card.dt_range)
        self._history = SweepHistory(pipeline.engine.card.num_sweeps)
        self._last_msg = None  # the message of self._buffer.last
        self._deskew = Deskew() if parameters().deskew else None
        self._assembly = SweepAssembly(parameters().assemble_sweeps, parameters().time_field, parameters().time_unit)
        deskews = self._deskew is not None
        self.input_checks = InputChecks(health, pipeline.engine.card, deskews=deskews, now_ns=now_ns,
                                        time_name=parameters().time_field)  # fmt: skip
        self._own_vehicle = parameters().own_vehicle()

    def put(self, msg) -> None:
        """Hand over the newest cloud; returns at once."""
        self._health.record_received()
        received = time.perf_counter()
        for found in self._assembly.push(msg):
            if found.drop is not None:
                self._health.record_dropped(found.drop, found.text)
            elif found.text:
                self._health.log_once(found.text, found.text, 'info')
            else:
                self._put(found.message, received)

    def _malformed(self, error: Exception) -> DropReason | None:
        # A legal cloud may be one that is not legal with velocities added.
        return DropReason.MALFORMED if isinstance(error, CloudError) else None

    def _can_skip(self, item, newest) -> bool:
        """Return whether to pair the newest cloud with the last sweep instead of the one before it; see the class."""
        last = self._buffer.last
        if last is None or not self._ego_motion.is_incremental or starts_over(newest, self._last_msg):
            return False
        stamp_ns = newest.header.stamp.sec * 1_000_000_000 + newest.header.stamp.nanosec
        return 0 < (stamp_ns - last.stamp_ns) * 1e-9 <= self._buffer.dt_range[1]

    def process(self, msg, received: float, *, overtaken: bool = False) -> None:
        """Turn one cloud into flow, or count why not; see `NewestWorker`."""
        health, parameters, watch = self._health, self._parameters(), Stopwatch()
        sweep = self._read(msg, parameters, watch)
        if sweep is None:
            return
        last_msg = self._last_msg
        previous = self._previous_of(msg, sweep, overtaken)
        if previous is None:
            return
        if not (self.active and (parameters.always_run or self._sink.has_subscribers())):
            health.record_skipped(SkipReason.NO_SUBSCRIBERS if self.active else SkipReason.INACTIVE)
            return
        lookup = _lookup(parameters)
        dt = (sweep.stamp_ns - previous.stamp_ns) * 1e-9
        measured = {'previous': previous, 'latest': sweep}  # before deskewing: arrows start there
        try:
            if self._deskew is not None:
                with watch('deskew'):
                    poses_at_offsets = partial(self._ego_motion.poses_at_offsets, **lookup)
                    previous, sweep = self._deskew.pair(previous, sweep, poses_at_offsets)
            with watch('ego_motion'):
                ego0_T_ego1 = self._ego_motion.between(previous, sweep, **lookup)
                check_plausible(ego0_T_ego1, dt)
        except EgoMotionError as error:
            health.record_dropped(DropReason.EGO_MOTION, str(error))
            self.input_checks.check_level(sweep, self._mount(sweep.frame_id))
            return
        self._pipeline.set_mount(mount_of(sweep, self._mount(sweep.frame_id)))
        estimate = self._pipeline.estimate(self._history.pair(previous, sweep, ego0_T_ego1))
        shown = measured[estimate.output_on]
        estimate = replace(estimate, velocity=in_cloud_axes(estimate.velocity, shown))
        self.num_failures = 0
        carrier, points = (msg, sweep.points) if estimate.output_on == 'latest' else (last_msg, previous.points)
        with self._publishing:
            if not self.active:  # deactivated meanwhile
                health.record_skipped(SkipReason.INACTIVE)
                return
            with watch('publish'):
                self._sink.publish_flow(carrier, estimate.velocity, estimate.flow_valid)
            stages_ms = {**watch.stages_ms, **estimate.stages_ms, 'total': (time.perf_counter() - received) * 1e3}
            health.record_published(
                stages_ms, max_ms=parameters.max_processing_time_ms,
                max_consecutive_ms=parameters.max_consecutive_delay_ms,
                short_history=estimate.num_sweeps < self._pipeline.engine.card.num_sweeps,
            )  # fmt: skip
            in_cloud = points if shown.frame_T_sensor is None else measured_points(shown)
            self._sink.publish_dynamic_points(carrier, in_cloud, estimate.velocity)
            own_rows = (sweep if estimate.output_on == 'latest' else previous).own_rows
            self._sink.publish_static_points(carrier, estimate.velocity, own_rows)
            self._sink.publish_debug(carrier, stages_ms, dt)
            self._sink.publish_arrows(carrier, measured_points(shown), estimate.velocity)
        self.input_checks.check_flow(points, estimate)

    def _read(self, msg, parameters, watch: Stopwatch) -> Sweep | None:
        """Return the sweep of a cloud, in the frame of the sensor, without the own vehicle; None if it is dropped."""
        try:
            with watch('decode'):
                sweep = decode_cloud(msg)
                if self._deskew is not None:
                    sweep = with_times(msg, sweep, parameters.time_field, parameters.time_unit)
                    sweep = with_part_times(msg, sweep)
            sweep = self._ego_motion.to_sensor_frame(sweep, **_lookup(parameters))
        except CloudError as error:
            self._health.record_dropped(DropReason.MALFORMED, str(error))
            return None
        except EgoMotionError as error:
            self._health.record_dropped(DropReason.EGO_MOTION, str(error))
            return None
        mount = self._mount(sweep.frame_id)
        if self._ego_motion.is_incremental:
            self._ego_motion.set_mount(mount)
        sweep = self._own_vehicle.remove(sweep, mount)
        self.input_checks.check_cloud(msg, sweep)
        self.input_checks.check_ego_box(self._own_vehicle, sweep.frame_id, parameters.base_frame, mount)
        if len(sweep.points) > parameters.max_points:
            text = f'{len(sweep.points)} points are more than max_points ({parameters.max_points}).'
            if parameters.over_max_points == 'drop':
                text = f'{text} Raise it, or set over_max_points to subsample.'
                self._health.record_dropped(DropReason.TOO_LARGE, text)
                return None
            _keep_every_nth(sweep.points, parameters.max_points)
            text = f'{text} Only every n-th point gets a velocity.'
            self._health.report_issue('subsampled', 'input', Level.WARN, text)
        if not any_within(sweep.points, self._pipeline.engine.card.grid.half_extent):
            # No point on the grid: treated as empty, because flow from or to an empty sweep is unknown.
            sweep = without_points(sweep)
        return sweep

    def _previous_of(self, msg, sweep: Sweep, overtaken: bool) -> Sweep | None:
        """Return the sweep that makes a pair with this one; None where there is none, which is counted."""
        last = self._buffer.last
        went_back = self._clock_went_back(last, sweep)
        if went_back or starts_over(msg, self._last_msg):
            self._buffer.reset()
        previous, reason = self._buffer.push(sweep)
        if went_back and reason is DropReason.FIRST:
            reason = DropReason.TIME_RESET
        if self._buffer.last is sweep:
            self._last_msg = msg
        # A gap to the last sweep is expected here: the ones between were skipped.
        if overtaken and reason in (None, DropReason.GAP):
            self._drop_overtaken()
            return None
        if reason is not None:
            self._handle_drop(reason, msg, sweep, last)
            return None
        return previous

    def _handle_drop(self, reason: DropReason, msg, sweep: Sweep, last: Sweep | None) -> None:
        """Count a sweep that makes no pair, with the reason, and reset the state that it invalidates."""
        card = self._pipeline.engine.card
        text = drop_text(reason, sweep, last, dt_range=card.dt_range, reach=card.grid.half_extent)
        self._health.record_dropped(reason, text)
        if reason is DropReason.EMPTY:
            self._publish_without_flow(msg, sweep.own_rows)
        elif reason is DropReason.TIME_RESET:
            self._ego_motion.reset(sweep.stamp_ns)
            self._pipeline.reset()
        elif reason is DropReason.FRAME_CHANGED:
            self._pipeline.reset()

    def _publish_without_flow(self, msg, own_rows: np.ndarray) -> None:
        num_rows = num_points(msg)
        unknown = np.full((num_rows, 3), np.nan, np.float32)
        with self._publishing:
            if self.active:
                self._sink.publish_flow(msg, unknown, np.zeros(num_rows, np.uint8))
                self._sink.publish_dynamic_points(msg, unknown, unknown)
                self._sink.publish_static_points(msg, unknown, own_rows)


def _lookup(parameters) -> dict:
    """Return the arguments of ego-motion sources that come from the parameters."""
    return {'timeout': parameters.ego_motion_timeout_s, 'offset_ns': round(parameters.stamp_offset_s * 1e9)}


def _keep_every_nth(points: np.ndarray, max_points: int) -> None:
    """Make all but every n-th row NaN in place, so that at most max_points are left."""
    step = -(-len(points) // max_points)
    kept = points[::step].copy()
    points[:] = np.nan
    points[::step] = kept
