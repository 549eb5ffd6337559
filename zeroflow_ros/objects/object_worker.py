# SPDX-License-Identifier: Apache-2.0
"""A thread that tracks objects in clouds with velocities and survives bad ones. Independent of ROS."""

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from zeroflow_ros.ego_motion.trajectory import check_plausible
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import CloudError, EgoMotionError
from zeroflow_ros.lidar.point_cloud import decode_cloud, decode_velocity
from zeroflow_ros.lidar.sweep import DropReason, Sweep, SweepBuffer
from zeroflow_ros.objects.tracker import Tracker
from zeroflow_ros.runtime.health import Health
from zeroflow_ros.runtime.mailbox import Mailbox

_DT_RANGE = (0.01, 1.0)  # s: after a longer gap the predicted positions are guesses
_RESET_REASONS = (DropReason.FIRST, DropReason.TIME_RESET, DropReason.FRAME_CHANGED, DropReason.GAP)
_MAX_MOVING_SHARE = 0.5  # of the points; in a cloud of all points fewer move


class ObjectWorker:
    """Process one sweep after the other on its own thread: decode, pair, ego motion, track, publish.

    At most two sweeps wait; older ones are dropped, so that the objects are at most two sweeps late.

    ego_motion, health: source of ego motion, and the counters. publish: called with the message and its objects.
    parameters: returns the current parameters. is_open: returns False once nothing can be published any more.
    """

    def __init__(self, ego_motion, health: Health, publish: Callable, *, parameters: Callable,
                 is_open: Callable[[], bool] = lambda: True):  # fmt: skip
        self._ego_motion, self._health, self._publish = ego_motion, health, publish
        self._parameters, self._is_open = parameters, is_open
        self._tracker = Tracker(parameters())
        self._buffer = SweepBuffer(_DT_RANGE)
        self._mailbox = Mailbox()
        self._thread = threading.Thread(target=self._work, name='objects', daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the current sweep and end the thread."""
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def put(self, msg) -> None:
        """Hand over a cloud; returns at once."""
        self._health.record_received()
        if self._mailbox.put(msg):
            self._health.record_dropped(DropReason.OVERTAKEN, 'Newer clouds came before this one was processed.')

    def _work(self) -> None:
        while messages := self._mailbox.take():
            for msg in messages:
                try:
                    self.process(msg)
                except Exception as error:  # no error may end the thread: the next sweep may work
                    if not self._is_open():
                        return
                    self._health.record_dropped(
                        DropReason.ENGINE, f'This sweep failed: {type(error).__name__}: {error}'
                    )

    def process(self, msg) -> None:
        """Track the objects in one cloud and publish them, or count why it is dropped."""
        health, parameters, watch = self._health, self._parameters(), Stopwatch()
        self._tracker.options = parameters
        with watch('total'):
            try:
                with watch('decode'):
                    sweep, velocity = decode_cloud(msg), decode_velocity(msg)
            except CloudError as error:
                health.record_dropped(DropReason.MALFORMED, str(error))
                return
            if len(sweep.points) == 0:  # nothing moves: a valid sweep for the tracker
                velocity = np.full((1, 3), np.nan, np.float32)
                sweep = replace(sweep, points=velocity)
            last = self._buffer.last
            previous, drop = self._buffer.push(sweep)
            ego0_T_ego1, dt = np.eye(4), 0.0
            if drop in _RESET_REASONS:
                self._reset(drop, sweep, last)
            elif drop is not None:
                stamp = f'{sweep.stamp_ns * 1e-9:.6f} s'
                text = f'A cloud has the stamp {stamp}: expected a stamp {_DT_RANGE[0]} s or more after the last one.'
                health.record_dropped(drop, text)
                return
            else:
                dt = (sweep.stamp_ns - previous.stamp_ns) * 1e-9
                try:
                    with watch('ego_motion'):
                        ego0_T_ego1 = self._ego_motion_between(previous, sweep, velocity, dt)
                except EgoMotionError as error:
                    self._buffer.last = previous  # ego motion from there to the next sweep may be known
                    health.record_dropped(DropReason.EGO_MOTION, str(error))
                    return
            with watch('track'):
                objects = self._tracker.update(sweep.points, velocity, ego0_T_ego1, dt)
            self._publish(msg, objects)
        health.record_published(watch.stages_ms, max_ms=np.inf, max_consecutive_ms=np.inf)

    def _ego_motion_between(self, previous: Sweep, sweep: Sweep, velocity: np.ndarray, dt: float) -> np.ndarray:
        """Return ego0_T_ego1, (4, 4). Raises: EgoMotionError when it is unknown."""
        p = self._parameters()
        if p.ego_motion == 'registration':
            with np.errstate(invalid='ignore'):
                num_moving = np.count_nonzero((velocity * velocity).sum(axis=1) >= p.min_speed**2)
            if num_moving > _MAX_MOVING_SHARE * len(velocity):
                raise EgoMotionError(
                    'Registration needs static points, but most points of this cloud move. Give the tracker all '
                    "points, -r '~/input/dynamic_points:=/flow_node/output/flow', or another source of ego_motion."
                )
        ego0_T_ego1 = self._ego_motion.between(
            previous, sweep, timeout=p.ego_motion_timeout_s, offset_ns=round(p.stamp_offset_s * 1e9)
        )
        check_plausible(ego0_T_ego1, dt)
        return ego0_T_ego1

    def _reset(self, drop: DropReason, sweep: Sweep, last: Sweep | None) -> None:
        """Forget all objects, and log the reason."""
        self._tracker.reset()
        dt = (sweep.stamp_ns - last.stamp_ns) * 1e-9 if last is not None else 0.0
        text = {
            DropReason.FIRST: 'The first sweep.',
            DropReason.TIME_RESET: f'Time went back by {-dt:.3f} s, as when a bag loops: starting over.',
            DropReason.FRAME_CHANGED: f"The frame_id changed to '{sweep.frame_id}': starting over.",
            DropReason.GAP: f'{dt:.3f} s without a sweep: starting over.',
        }[drop]
        self._health.record_dropped(drop, text)
        if drop is DropReason.TIME_RESET:
            self._ego_motion.reset(sweep.stamp_ns)
