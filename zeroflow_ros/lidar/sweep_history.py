# SPDX-License-Identifier: Apache-2.0
"""The sweeps before the latest pair, each with its pose, for models that take more than two."""

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.lidar.sweep import PosedSweep, Sweep, SweepPair


class SweepHistory:
    """Adds to each pair the sweeps before it, as far back as every step from pair to pair is known.

    A pair that does not begin with the newer sweep of the pair before starts over: after a gap, a change of frame, a
    jump of the clock, or a sweep without ego motion, no pose across it is certain.

    num_sweeps: sweeps of a pair and its history together, 2 or more.
    """

    def __init__(self, num_sweeps: int):
        self._most = num_sweeps - 2
        self.reset()

    def reset(self) -> None:
        """Forget all sweeps."""
        self._newest: tuple[int, str] | None = None  # stamp and frame of the last pair's newer sweep
        self._past: tuple[PosedSweep, ...] = ()  # before that sweep, their poses relative to it

    def pair(self, previous: Sweep, latest: Sweep, ego0_T_ego1: np.ndarray) -> SweepPair:
        """Return two consecutive sweeps as a pair with its history, and keep them for the next.

        ego0_T_ego1: (4, 4), maps points of the latest sweep into the frame of the previous one.
        """
        continues = self._newest == (previous.stamp_ns, previous.frame_id)
        history = self._past if continues else ()
        dt = (latest.stamp_ns - previous.stamp_ns) * 1e-9
        pair = SweepPair(previous.points, latest.points, ego0_T_ego1, dt, history)
        ego1_T_ego0 = transforms.invert(ego0_T_ego1)
        past = (PosedSweep(previous.points, np.eye(4), 0.0), *history)[: self._most]
        self._past = tuple(PosedSweep(sweep.points, ego1_T_ego0 @ sweep.ego0_T_ego, sweep.away + dt) for sweep in past)
        self._newest = latest.stamp_ns, latest.frame_id
        return pair
