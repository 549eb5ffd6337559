# SPDX-License-Identifier: Apache-2.0
"""Whether a claimed ego motion is late, early, or too long throughout: measured by the clouds over many sweeps.

A single pair of sweeps does not show this: an odometry that is 0.3 s late is off by some centimetres a pair, and only
while the vehicle turns or changes its speed.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from zeroflow_ros.ego_motion.structure_alignment import UprightCells

_SHIFTS = np.round(np.arange(-14, 15) * 0.05, 2)  # s
_REACH = 0.7  # s, the largest of them
_LEAST_SHIFT = 0.1  # s: half a sweep is between the stamp of a cloud and the middle of its points
_MAX_STEPS = 80  # pairs that are kept: 8 s at 10 Hz
_MAX_MEASURED = 24  # measurements that are kept
# What clouds and a good odometry differ by over a measurement: GPS drifts by 0.1 m in half a second.
_SIGMA_M, _SIGMA_SHARE, _SIGMA_RAD = 0.1, 0.05, 0.002
_OUTLIER = 16.0  # squared, in sigmas
_CLEARER = 12.0  # by which a shift must explain the measurements better
_MIN_QUALITY = 0.4  # of an alignment; streets give 0.5 to 0.65
_UNCLEAR = 0.65  # of the quality of the alignment, above which the claim fits nearly as well
_MIN_CLEAR = 3  # measurements that must show another length
_MIN_LENGTH, _SCALE_OFF, _SCALE_SPREAD = 0.5, 0.12, 0.06  # m; shares of the length
_CHANGE_M, _CHANGE_RAD = 0.12, 0.006  # by which the motion over 0.3 s changes, where a shift can be measured
_MAX_ASKED, _APART_S = 16, 0.5  # measurements that are asked for, and the seconds between two


@dataclass
class _Measured:
    """Motion over some pairs: seen and claimed (3,), x, y [m] and yaw [rad].

    at_shifts: (len(_SHIFTS), 3) claimed if the odometry is late by each shift; None while it is not known.
    """

    span: tuple[float, float]
    seen: np.ndarray
    claimed: np.ndarray
    is_clear: bool
    at_shifts: np.ndarray | None = None


class MotionBias:
    """Compares claimed motions with what the clouds show. name: of what claims them, in messages. Used by one thread.

    problem: a sentence on what is wrong throughout; '' while nothing is known to be.
    """

    def __init__(self, name: str):
        self._name = name
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.problem = ''
        self._measured: deque[_Measured] = deque(maxlen=_MAX_MEASURED)
        self._num_asked, self._asked = 0, -_APART_S
        self._start_ns = 0
        self.start_over()

    def start_over(self) -> None:
        """Forget the motion so far, where the next pair does not follow the last one."""
        self._path: deque[tuple[float, float, float, float]] = deque(maxlen=_MAX_STEPS)  # s, x, y, yaw
        self._waiting: list[_Measured] = []

    def add_claim(self, stamp0_ns: int, stamp1_ns: int, motion: np.ndarray) -> None:
        """Add the claimed motion, (4, 4) ego0_T_ego1, of a pair that follows the one before."""
        if not self._path:
            self._start_ns = self._start_ns or stamp0_ns
            self._path.append((self._seconds(stamp0_ns), 0.0, 0.0, 0.0))
        _, x, y, yaw = self._path[-1]
        step = _planar(motion)
        cos, sin = np.cos(yaw), np.sin(yaw)
        moved = x + cos * step[0] - sin * step[1], y + sin * step[0] + cos * step[1], yaw + step[2]
        self._path.append((self._seconds(stamp1_ns), *moved))
        ready = [one for one in self._waiting if one.span[1] + _REACH <= self._path[-1][0]]
        if ready:
            self._waiting = [one for one in self._waiting if one not in ready]
            for one in ready:
                one.at_shifts = self._between(one.span[0] + _SHIFTS, one.span[1] + _SHIFTS)
            self._judge()

    def wants_measurement(self) -> bool:
        """Return whether the claimed motion changes now, so that its stamps can be tested, which was rarely done."""
        end = self._path[-1][0] if self._path else 0.0
        if self._num_asked >= _MAX_ASKED or end < self._asked + _APART_S or end < self._path[0][0] + _REACH:
            return False
        apart = np.abs(self._between(end - 0.3, end) - self._between(end - 0.6, end - 0.3))
        if apart[0] < _CHANGE_M and apart[2] < _CHANGE_RAD:
            return False
        self._num_asked, self._asked = self._num_asked + 1, end
        return True

    def measure(
        self, older: np.ndarray, newer: np.ndarray, stamps_ns: tuple[int, int], starts: list[np.ndarray]
    ) -> None:
        """Measure the motion between two sweeps by their points (N, 3) [m].

        starts: motions (4, 4) to start from; the first one is what is claimed.
        """
        cells0, cells1 = UprightCells(older), UprightCells(newer)
        if not (cells0.is_enough and cells1.is_enough):
            return
        claimed = _planar(starts[0])
        found = max((cells0.align(cells1, _planar(start)) for start in starts), key=lambda one: one.quality)
        if found.quality < _MIN_QUALITY:
            return
        is_clear = cells0.quality(cells1, claimed) < _UNCLEAR * found.quality
        span = self._seconds(stamps_ns[0]), self._seconds(stamps_ns[1])
        measured = _Measured(span, found.motion, claimed, is_clear)
        self._measured.append(measured)
        if self._path and self._path[0][0] <= span[0] - _REACH:
            self._waiting.append(measured)
        self._judge()

    def _seconds(self, stamp_ns: int) -> float:
        return (stamp_ns - self._start_ns) * 1e-9

    def _between(self, start: float | np.ndarray, end: float | np.ndarray) -> np.ndarray:
        """Return the claimed motion (..., 3) between two times [s]."""
        times, *path = np.array(self._path).T
        (x0, y0, yaw0), (x1, y1, yaw1) = ([np.interp(at, times, values) for values in path] for at in (start, end))
        cos, sin = np.cos(yaw0), np.sin(yaw0)
        dx, dy = x1 - x0, y1 - y0
        return np.stack([cos * dx + sin * dy, cos * dy - sin * dx, yaw1 - yaw0], axis=-1)

    def _judge(self) -> None:
        self.problem = self._late() or self._scaled()

    def _late(self) -> str:
        known = [one for one in self._measured if one.at_shifts is not None]
        if len(known) < 3:
            return ''
        seen = np.stack([one.seen for one in known])[:, None]
        at_shifts = np.stack([one.at_shifts for one in known])  # (n, shifts, 3)
        sigma = _SIGMA_M + _SIGMA_SHARE * np.abs(seen[..., 0])
        costs = ((seen[..., 0] - at_shifts[..., 0]) / sigma) ** 2
        costs = np.minimum(costs, _OUTLIER) + np.minimum(((seen - at_shifts)[..., 2] / _SIGMA_RAD) ** 2, _OUTLIER)
        total = costs.sum(axis=0)
        best = int(total.argmin())
        unshifted = total[np.abs(_SHIFTS) < _LEAST_SHIFT - 0.01].min()
        shift = _SHIFTS[best]
        if total[best] > unshifted - _CLEARER or total[best] > 0.5 * unshifted or abs(shift) >= _SHIFTS[-1]:
            return ''
        when, sign = ('late', 'Add') if shift > 0 else ('early', 'Subtract')
        return (
            f'The {self._name} is stamped about {abs(shift):.2f} s too {when}: the clouds show its motion at other '
            'times. Velocities are wrong while the vehicle turns, brakes or accelerates. Correct the stamps. '
            f'{sign} {abs(shift):.2f} {"to" if shift > 0 else "from"} stamp_offset_s until then.'
        )

    def _scaled(self) -> str:
        found = [one for one in self._measured if np.linalg.norm(one.claimed[:2]) > _MIN_LENGTH]
        clear = [one for one in found if one.is_clear]
        if len(clear) < max(_MIN_CLEAR, 0.6 * len(found)):
            return ''
        lengths = np.array([np.linalg.norm(one.claimed[:2]) for one in clear])
        along = np.array([one.seen[:2] @ one.claimed[:2] for one in clear]) / lengths
        scales = along / lengths
        scale = float(np.median(scales))
        if abs(scale - 1) < _SCALE_OFF or np.median(np.abs(scales - scale)) > _SCALE_SPREAD or scale <= 0:
            return ''
        return (
            f'The {self._name} moves {1 / scale:.2f} times as far as the clouds show, in {len(clear)} of {len(found)} '
            'comparisons. Velocities are wrong in proportion to the speed. Correct its scale (wheel radius, units), '
            'choose another topic, or set the ego motion to registration.'
        )


def _planar(motion: np.ndarray) -> np.ndarray:
    """Return x, y and yaw of a motion (4, 4)."""
    return np.array([motion[0, 3], motion[1, 3], np.arctan2(motion[1, 0], motion[0, 0])])
