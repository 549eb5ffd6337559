# SPDX-License-Identifier: Apache-2.0
"""Sweeps, pairs of them, and the rule that says which two make a pair."""

from dataclasses import dataclass
from enum import Enum

import numpy as np


class Drop(str, Enum):
    """Why a sweep yielded no flow; the value is the name under which it is counted."""

    FIRST = 'first_sweep'
    MALFORMED = 'malformed_cloud'
    EMPTY = 'empty_cloud'
    TOO_LARGE = 'too_many_points'
    ZERO_STAMP = 'zero_stamp'
    DUPLICATE = 'duplicate_stamp'
    OUT_OF_ORDER = 'out_of_order_stamp'
    TIME_RESET = 'time_went_back'
    FRAME_CHANGED = 'frame_changed'
    GAP = 'gap_too_long'
    TOO_CLOSE = 'gap_too_short'
    EGO_MOTION = 'no_ego_motion'
    OVERTAKEN = 'overtaken_by_newer_sweep'
    ENGINE = 'engine_failed'


class Skip(str, Enum):
    """Why a sweep was only kept as the previous one of the next; the value is the name under which it is counted."""

    NOBODY_LISTENS = 'skipped_nobody_listens'
    INACTIVE = 'skipped_inactive'


@dataclass(frozen=True)
class Sweep:
    """One LiDAR revolution.

    points: (N, 3) float32 [m] in `frame_id`; rows without a return are NaN and keep their place.
    stamp_ns: ROS time [ns].
    frame_id: coordinate frame of the points.
    times: (N,) float32 [s] after the stamp at which each point was measured, all finite; None where it is unknown or
        not asked for.
    """

    points: np.ndarray
    stamp_ns: int
    frame_id: str = ''
    times: np.ndarray | None = None

    def __post_init__(self):
        if self.points.ndim != 2 or self.points.shape[1] != 3 or self.points.dtype != np.float32:
            raise ValueError(f'points must be (N, 3) float32, got {self.points.shape} {self.points.dtype}')
        if self.times is not None and self.times.shape != (len(self.points),):
            raise ValueError(f'{len(self.points)} points need as many times, got {self.times.shape}')


@dataclass(frozen=True)
class SweepPair:
    """Two consecutive sweeps and the ego motion between them.

    points0: (N, 3) float32 [m], older sweep, in ego0.
    points1: (M, 3) float32 [m], newer sweep, in ego1.
    ego0_T_ego1: (4, 4) float64, maps ego1 points into ego0.
    dt: seconds from sweep 0 to sweep 1, positive.
    """

    points0: np.ndarray
    points1: np.ndarray
    ego0_T_ego1: np.ndarray
    dt: float

    def __post_init__(self):
        for name in ('points0', 'points1'):
            points = getattr(self, name)
            if points.ndim != 2 or points.shape[1] != 3 or points.dtype != np.float32:
                raise ValueError(f'{name} must be (N, 3) float32, got {points.shape} {points.dtype}')
        if self.ego0_T_ego1.shape != (4, 4) or not np.isfinite(self.ego0_T_ego1).all():
            raise ValueError(f'ego0_T_ego1 must be a finite (4, 4) matrix, got {self.ego0_T_ego1}')
        if not self.dt > 0:
            raise ValueError(f'dt must be positive seconds, got {self.dt}')


class SweepBuffer:
    """Keep the last sweep, and decide for each new one whether the two make a pair.

    dt_range: (shortest, longest) seconds between the sweeps of a pair; the model card's.
    reset_after: a stamp older by at least this many seconds is a bag loop or a clock jump, not a late message.
    """

    def __init__(self, dt_range: tuple[float, float], reset_after: float = 1.0):
        self.dt_range = dt_range
        self.reset_after = reset_after
        self.last: Sweep | None = None

    def reset(self) -> None:
        """Forget the last sweep."""
        self.last = None

    def push(self, sweep: Sweep) -> tuple[Sweep | None, Drop | None]:
        """Take the next sweep; return (previous, None) when it completes a pair, else (None, why not).

        A sweep that arrives late, twice, or empty is not kept; in every other case it becomes the last one.
        """
        if sweep.stamp_ns == 0:
            return None, Drop.ZERO_STAMP
        if len(sweep.points) == 0:
            return None, Drop.EMPTY
        previous = self.last
        if previous is None:
            self.last = sweep
            return None, Drop.FIRST
        dt = (sweep.stamp_ns - previous.stamp_ns) * 1e-9
        if dt == 0:
            return None, Drop.DUPLICATE
        if -self.reset_after < dt < 0:
            return None, Drop.OUT_OF_ORDER
        if 0 < dt < self.dt_range[0] and sweep.frame_id == previous.frame_id:
            return None, Drop.TOO_CLOSE
        self.last = sweep
        if dt < 0:
            return None, Drop.TIME_RESET
        if sweep.frame_id != previous.frame_id:
            return None, Drop.FRAME_CHANGED
        if dt > self.dt_range[1]:
            return None, Drop.GAP
        return previous, None
