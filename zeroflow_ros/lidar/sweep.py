# SPDX-License-Identifier: Apache-2.0
"""Sweeps, sweep pairs, and the buffer that decides which two sweeps form a pair."""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from zeroflow_ros.transforms import invert


class DropReason(str, Enum):
    """Why a sweep got no flow; the value is the name of its counter."""

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
    PART = 'part_of_a_revolution'
    INCOMPLETE = 'incomplete_revolution'
    OVERTAKEN = 'overtaken_by_newer_sweep'
    ENGINE = 'engine_failed'


class SkipReason(str, Enum):
    """Why a sweep was only stored as the older one of the next pair; the value is the name of its counter."""

    NO_SUBSCRIBERS = 'skipped_nobody_listens'
    INACTIVE = 'skipped_inactive'


@dataclass(frozen=True)
class Sweep:
    """One LiDAR revolution.

    points: (N, 3) float32 [m] in `frame_id`; rows without a return are NaN and stay in place.
    stamp_ns: ROS time [ns].
    frame_id: coordinate frame of the points.
    times: (N,) float32, measurement time of each point [s] after the stamp, all finite; None where unknown or not
        needed. num_lost_times: points whose own time made no sense, so that they have that of another row.
        times_note: what is doubtful about the times.
    own_rows: (K,) row numbers of points on the own vehicle, which are NaN in points.
    frame_T_sensor: (4, 4) pose of the sensor in `frame_id`, for clouds in a fixed frame: points are then in the frame
        of the sensor. None: points are in `frame_id`.
    nearest: distance of the nearest point [m], where all points were taken out because none was on the grid.
    no_return_note: which points with coordinates were taken as no returns.
    """

    points: np.ndarray
    stamp_ns: int
    frame_id: str = ''
    times: np.ndarray | None = None
    num_lost_times: int = 0
    times_note: str = ''
    own_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    frame_T_sensor: np.ndarray | None = None
    nearest: float | None = None
    no_return_note: str = ''

    def __post_init__(self):
        if self.points.ndim != 2 or self.points.shape[1] != 3 or self.points.dtype != np.float32:
            raise ValueError(f'points must be (N, 3) float32, got {self.points.shape} {self.points.dtype}')
        if self.times is not None and self.times.shape != (len(self.points),):
            raise ValueError(f'{len(self.points)} points need as many times, got {self.times.shape}')


@dataclass(frozen=True)
class PosedSweep:
    """A sweep beside a pair.

    points: (N, 3) float32 [m], in its own ego frame. ego0_T_ego: (4, 4) float64, maps them into ego0 of the pair.
    away: seconds between it and the nearest sweep of the pair, positive; None: a whole number of times the pair's dt.
    """

    points: np.ndarray
    ego0_T_ego: np.ndarray
    away: float | None = None


@dataclass(frozen=True)
class SweepPair:
    """Two consecutive sweeps, the ego motion between them, and the sweeps before.

    points0: (N, 3) float32 [m], older sweep, in ego0.
    points1: (M, 3) float32 [m], newer sweep, in ego1.
    ego0_T_ego1: (4, 4) float64, maps ego1 points into ego0.
    dt: seconds from sweep 0 to sweep 1, positive.
    history: sweeps before sweep 0, the nearest first; as many as are known.
    future: sweeps after sweep 1, the nearest first; known offline only.
    """

    points0: np.ndarray
    points1: np.ndarray
    ego0_T_ego1: np.ndarray
    dt: float
    history: tuple[PosedSweep, ...] = ()
    future: tuple[PosedSweep, ...] = ()

    def reversed(self) -> 'SweepPair':
        """Return the pair seen backwards in time: sweep 1 becomes sweep 0, and what came before comes after."""
        ego1_T_ego0 = invert(self.ego0_T_ego1)
        history, future = (
            tuple(PosedSweep(sweep.points, ego1_T_ego0 @ sweep.ego0_T_ego, sweep.away) for sweep in beside)
            for beside in (self.future, self.history)
        )
        return SweepPair(self.points1, self.points0, ego1_T_ego0, self.dt, history, future)

    def __post_init__(self):
        for name in ('points0', 'points1'):
            points = getattr(self, name)
            if points.ndim != 2 or points.shape[1] != 3 or points.dtype != np.float32:
                raise ValueError(f'{name} must be (N, 3) float32, got {points.shape} {points.dtype}')
        if self.ego0_T_ego1.shape != (4, 4) or not np.isfinite(self.ego0_T_ego1).all():
            raise ValueError(f'ego0_T_ego1 must be a finite (4, 4) matrix, got {self.ego0_T_ego1}')
        if not self.dt > 0:
            raise ValueError(f'dt must be positive seconds, got {self.dt}')


class PairBuffer:
    """Keep the last of a sequence of measurements and decide for each new one whether the two form a pair.

    Measurements have stamp_ns, the ROS time [ns], and frame_id, the coordinate frame.
    dt_range: (shortest, longest) seconds between the measurements of a pair.
    reset_after: a stamp older by at least this many seconds is a bag loop or a clock jump, not a late message.
    """

    def __init__(self, dt_range: tuple[float, float], reset_after: float = 1.0):
        self.dt_range = dt_range
        self.reset_after = reset_after
        self.last = None

    def reset(self) -> None:
        """Forget the last measurement."""
        self.last = None

    def push(self, measurement) -> tuple:
        """Add the next one; return (previous, None) when it completes a pair, else (None, DropReason).

        A late, repeated or too early one and one with stamp 0 are not stored; any other becomes the last one.
        """
        if measurement.stamp_ns == 0:
            return None, DropReason.ZERO_STAMP
        previous = self.last
        if previous is None:
            self.last = measurement
            return None, DropReason.FIRST
        dt = (measurement.stamp_ns - previous.stamp_ns) * 1e-9
        if dt == 0:
            return None, DropReason.DUPLICATE
        if -self.reset_after < dt < 0:
            return None, DropReason.OUT_OF_ORDER
        if 0 < dt < self.dt_range[0] and measurement.frame_id == previous.frame_id:
            return None, DropReason.TOO_CLOSE
        self.last = measurement
        if dt < 0:
            return None, DropReason.TIME_RESET
        if measurement.frame_id != previous.frame_id:
            return None, DropReason.FRAME_CHANGED
        if dt > self.dt_range[1]:
            return None, DropReason.GAP
        return previous, None


class SweepBuffer(PairBuffer):
    """Decide which two sweeps form a pair; dt_range is that of the model card."""

    last: Sweep | None

    def push(self, sweep: Sweep) -> tuple[Sweep | None, DropReason | None]:
        """Add the next sweep, as `PairBuffer.push`; an empty one is not stored either."""
        if sweep.stamp_ns != 0 and len(sweep.points) == 0:
            return None, DropReason.EMPTY
        return super().push(sweep)
