# SPDX-License-Identifier: Apache-2.0
"""One thread that takes the newest cloud, turns it into flow, and never dies of a bad one."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np

from zeroflow_ros.errors import CloudError, EgoMotionError
from zeroflow_ros.health import Health, Level
from zeroflow_ros.mailbox import Mailbox
from zeroflow_ros.pipeline import FlowEstimate, FlowPipeline
from zeroflow_ros.point_cloud import decode_cloud
from zeroflow_ros.stopwatch import Stopwatch
from zeroflow_ros.sweep import Drop, Sweep, SweepBuffer, SweepPair
from zeroflow_ros.trajectory import check_plausible

_OTHER_CLOCK_S = 10.0  # a stamp this far from now was made by another clock, not by a slow network
_JUMP_MARGIN_NS = 100_000_000
_NEAR_DT = 0.3  # a dt within 30 % of the trained one is nothing to talk about
_SAMPLE = 8192  # rows that are looked at for numbers the network failed to make
_OVERTAKEN = 'A newer cloud came before this one was looked at.'
_TIME_FIELDS = ('t', 'time', 'timestamp', 'time_stamp', 'offset_time')


class Outputs(Protocol):
    """Where results go. Called on the worker thread."""

    def wanted(self) -> bool:
        """Return whether anybody listens."""

    def publish_flow(self, msg, velocity: np.ndarray, flow_valid: np.ndarray) -> None:
        """Publish the cloud of a message with velocities (N, 3) [m/s] and flow_valid (N,)."""

    def publish_dynamic_points(self, msg, points: np.ndarray, velocity: np.ndarray) -> None:
        """Publish the rows that move of the flow just published, if anybody listens to them; points (N, 3) [m]."""

    def publish_arrows(self, msg, points: np.ndarray, velocity: np.ndarray) -> None:
        """Publish arrows, if anybody listens to them; points (N, 3) [m]."""

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

    def __init__(self, pipeline: FlowPipeline, ego_motion, health: Health, outputs: Outputs, *,
                 parameters: Callable, now_ns: Callable[[], int]):  # fmt: skip
        self._pipeline, self._ego_motion, self._health, self._outputs = pipeline, ego_motion, health, outputs
        self._parameters, self._now_ns = parameters, now_ns
        self._mailbox = Mailbox()
        self._buffer = SweepBuffer(pipeline.engine.card.dt_range)
        self._last_msg = None  # of self._buffer.last
        self._layout = None
        self._clock_jumped = False
        self._thread = threading.Thread(target=self._work, name='flow', daemon=True)
        self.facts: dict = {}  # of the last sweep, for the diagnostics

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the sweep it is at."""
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def put(self, msg) -> None:
        """Hand over the newest cloud; returns at once."""
        self._health.arrived()
        if self._mailbox.put((msg, time.perf_counter())):
            self._health.dropped(Drop.OVERTAKEN, _OVERTAKEN)

    def clock_jumped_back(self) -> None:
        """Take note that the clock went back; the next sweep starts over unless it shows so itself."""
        self._clock_jumped = True

    def _work(self) -> None:
        while items := self._mailbox.take():
            for item in items:
                overtaken = item is not items[-1]
                if overtaken and self._makes_a_pair(items[-1][0]):
                    self._health.dropped(Drop.OVERTAKEN, _OVERTAKEN)
                    continue
                try:
                    self.process(*item, overtaken=overtaken)
                except Exception as error:  # whatever it is, the next sweep is a new chance
                    if not self._outputs.ok():
                        return
                    self._health.dropped(Drop.ENGINE, f'This sweep failed: {type(error).__name__}: {error}')

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
        except CloudError as error:
            health.dropped(Drop.MALFORMED, str(error))
            return
        self._look_at(msg, sweep)
        if len(sweep.points) > parameters.max_points:
            text = f'{len(sweep.points)} points are more than max_points ({parameters.max_points}).'
            if parameters.over_max_points == 'drop':
                health.dropped(Drop.TOO_LARGE, f'{text} Raise it, or set over_max_points to subsample.')
                return
            _keep_every_nth(sweep.points, parameters.max_points)
            health.trouble('subsampled', 'input', Level.WARN, f'{text} Only every n-th point gets a velocity.')
        if not _any_within(sweep.points, self._pipeline.engine.card.grid.half_extent):
            sweep = replace(sweep, points=sweep.points[:0])  # as good as empty: flow from or to nothing is unknown
        last, last_msg = self._buffer.last, self._last_msg
        starts_over = self._clock_left_behind(last, sweep)
        if starts_over:
            self._buffer.reset()
        previous, reason = self._buffer.push(sweep)
        if starts_over and reason is Drop.FIRST:
            reason = Drop.TIME_RESET
        if self._buffer.last is sweep:
            self._last_msg = msg
        if overtaken and reason in (None, Drop.GAP):  # a gap to the last one is no news: those between were skipped
            health.dropped(Drop.OVERTAKEN, _OVERTAKEN)
            return
        if reason is not None:
            self._dropped(reason, msg, sweep, last)
            return
        if not (parameters.always_run or self._outputs.wanted()):
            health.nobody_listened()
            return
        dt = (sweep.stamp_ns - previous.stamp_ns) * 1e-9
        try:
            with watch('ego_motion'):
                offset_ns = round(parameters.stamp_offset_s * 1e9)
                ego0_T_ego1 = self._ego_motion.between(
                    previous, sweep, timeout=parameters.ego_motion_timeout_s, offset_ns=offset_ns
                )
                check_plausible(ego0_T_ego1, dt)
        except EgoMotionError as error:
            health.dropped(Drop.EGO_MOTION, str(error))
            return
        pair = SweepPair(previous.points, sweep.points, ego0_T_ego1, dt)
        estimate = self._pipeline.estimate(pair)
        carrier, points = (msg, sweep.points) if estimate.output_on == 'latest' else (last_msg, previous.points)
        with watch('publish'):
            self._outputs.publish_flow(carrier, estimate.velocity, estimate.flow_valid)
        stages_ms = {**watch.stages_ms, **estimate.stages_ms, 'total': (time.perf_counter() - received) * 1e3}
        health.flowed(stages_ms, max_ms=parameters.max_processing_time_ms,
                      max_consecutive_ms=parameters.max_consecutive_delay_ms)  # fmt: skip
        self._outputs.publish_dynamic_points(carrier, points, estimate.velocity)
        self._outputs.publish_debug(carrier, stages_ms, dt)
        self._outputs.publish_arrows(carrier, points, estimate.velocity)
        self._look_at_flow(points, estimate)

    def _dropped(self, reason: Drop, msg, sweep: Sweep, last: Sweep | None) -> None:
        """Say why a sweep makes no pair, and start over where it must."""
        dt = (sweep.stamp_ns - last.stamp_ns) * 1e-9 if last is not None else 0.0
        low, high = self._buffer.dt_range
        reach = self._pipeline.engine.card.grid.half_extent
        text = {
            Drop.FIRST: 'The first sweep waits for the second.',
            Drop.EMPTY: f'A cloud without a point within {reach:.0f} m came in; it goes out without flow. Check the '
            'sensor and its filters, and that clouds are in metres, x forward, z up.',
            Drop.ZERO_STAMP: 'A cloud is stamped 0, so that the time between sweeps is unknown. Make the driver stamp '
            'its clouds.',
            Drop.DUPLICATE: f'Two clouds have the stamp {sweep.stamp_ns * 1e-9:.6f} s; the second is dropped.',
            Drop.OUT_OF_ORDER: f'A cloud came in that is {-dt:.3f} s older than the one before; it is dropped.',
            Drop.TIME_RESET: f'Time went back by {-dt:.3f} s, as when a bag loops: starting over.',
            Drop.FRAME_CHANGED: f"The frame_id changed from '{last.frame_id if last else ''}' to '{sweep.frame_id}': "
            'no flow across that. Two sensors on one topic need a topic each.',
            Drop.GAP: f'{dt:.3f} s from one sweep to the next; this model works up to {high} s. Sweeps are lost, or '
            'the sensor is slower than the model.',
            Drop.TOO_CLOSE: f'{dt:.3f} s from one sweep to the next; this model works from {low} s. It is dropped.',
        }[reason]
        self._health.dropped(reason, text)
        if reason is Drop.EMPTY:
            num_rows = msg.height * msg.width
            unknown = np.full((num_rows, 3), np.nan, np.float32)
            self._outputs.publish_flow(msg, unknown, np.zeros(num_rows, np.uint8))
            self._outputs.publish_dynamic_points(msg, unknown, unknown)
        elif reason is Drop.TIME_RESET:
            self._ego_motion.reset(sweep.stamp_ns)
            self._pipeline.reset()
        elif reason is Drop.FRAME_CHANGED:
            self._pipeline.reset()

    def _clock_left_behind(self, last: Sweep | None, sweep: Sweep) -> bool:
        """Return whether the clock went back between the last sweep and this one."""
        ahead_ns = self._now_ns() + _JUMP_MARGIN_NS
        if not self._clock_jumped or last is None or sweep.stamp_ns > ahead_ns:
            return False
        self._clock_jumped = False
        return last.stamp_ns > ahead_ns

    def _look_at(self, msg, sweep: Sweep) -> None:
        """Warn of clouds that can be worked with but should not be as they are."""
        health = self._health
        layout = (msg.point_step, msg.is_bigendian, tuple((f.name, f.offset, f.datatype) for f in msg.fields))
        if layout != self._layout:
            names = [field.name for field in msg.fields]
            if self._layout is not None:
                health.trouble(
                    'layout', 'input', Level.OK, f'The layout of the clouds changed; fields now: {names}.', 'info'
                )
            self._layout = layout
            if msg.is_bigendian:
                health.say_once('big endian', 'Clouds come in big-endian; they are read as such.', 'info')
            if times := [name for name in names if name in _TIME_FIELDS]:
                text = f'The clouds have the field {times[0]}; it is not used, they should come in deskewed.'
                health.say_once('time field', text, 'info')
        if not sweep.frame_id:
            text = 'The clouds have no frame_id; it is taken to be that of the ego motion. Set it in the driver.'
            health.trouble('no frame_id', 'input', Level.WARN, text)
        num_nan = int(np.count_nonzero(np.isnan(sweep.points[:, 0])))
        if 2 * num_nan > len(sweep.points):
            text = f'{num_nan} of {len(sweep.points)} points are NaN or infinite.'
            health.trouble('nan', 'input', Level.WARN, text)
        now_ns = self._now_ns()
        behind = (now_ns - sweep.stamp_ns) * 1e-9
        if now_ns and sweep.stamp_ns and abs(behind) > _OTHER_CLOCK_S:
            text = (
                f'Clouds are stamped {behind:.1f} s before the clock of this node: the sensor has another clock, or '
                'a bag is played and use_sim_time is not set (or set without need). Flow needs differences of stamps '
                'only, but tf will fail.'
            )
            health.say_once('other clock', text)
            health.trouble('other clock', 'input', Level.WARN, text, log='debug')
        self.facts = {'frame_id': sweep.frame_id, 'points': len(sweep.points), 'nan_points': num_nan,
                      'behind_clock_s': f'{behind:.3f}'}  # fmt: skip

    def _look_at_flow(self, points: np.ndarray, estimate: FlowEstimate) -> None:
        """Warn of flow that cannot be right."""
        card = self._pipeline.engine.card
        if abs(estimate.dt / card.nominal_dt - 1) > _NEAR_DT:
            text = f'{estimate.dt:.3f} s between sweeps; the model was trained on {card.nominal_dt} s.'
            self._health.say_once('other dt', text)
            self._health.trouble('other dt', 'input', Level.WARN, text, log='debug')
        num_valid = int(np.count_nonzero(estimate.flow_valid))
        self.facts = {**self.facts, 'valid_points': num_valid, 'dt_s': f'{estimate.dt:.4f}',
                      'sensor_height_m': f'{estimate.sensor_height:.2f}'}  # fmt: skip
        # Rows inside the grid that have no velocity: the network made something that is no number.
        step = max(1, len(points) // _SAMPLE)
        height = estimate.sensor_height if card.z_origin == 'ground' else 0.0
        inside = card.grid.assign(points[::step] + np.array([0, 0, height], np.float32)) >= 0
        failed = np.count_nonzero(inside & (estimate.flow_valid[::step] == 0))
        if failed and card.ground == 'keep':
            level = Level.ERROR if failed > 0.01 * np.count_nonzero(inside) else Level.WARN
            text = f'The model gave no number for {failed} of {np.count_nonzero(inside)} points that it should know.'
            self._health.trouble('network nan', 'inference', level, text)
        elif num_valid == 0:
            text = f'No point is {card.grid.z_min} to {card.grid.z_max} m high above the ground. Check that z is up.'
            self._health.trouble('out of range', 'input', Level.WARN, text)


def _any_within(points: np.ndarray, reach: float) -> bool:
    """Return whether any of points (N, 3) has all coordinates within reach [m]; a sample nearly always knows."""
    return any(bool((np.abs(some) < reach).all(axis=1).any()) for some in (points[::64], points))


def _keep_every_nth(points: np.ndarray, max_points: int) -> None:
    """Make all but every n-th row NaN in place, so that at most max_points are left."""
    step = -(-len(points) // max_points)
    kept = points[::step].copy()
    points[:] = np.nan
    points[::step] = kept
