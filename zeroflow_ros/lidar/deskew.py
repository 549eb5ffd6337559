# SPDX-License-Identifier: Apache-2.0
"""Deskew: move each point to where it would be measured at the stamp of its sweep.

A vehicle at 14 m/s drives 1.4 m during one LiDAR revolution, which shifts points by up to as much. Poses come from the
ego-motion source at a few times over the sweep and are interpolated linearly in between. Points use the nearest bin of
a table of poses: bins of 0.2 ms over a revolution of 0.1 s, 3 mm at 14 m/s.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from zeroflow_ros.lidar.numba_support import numba_kernels
from zeroflow_ros.lidar.sweep import Sweep

_NUM_POSES = 9  # 12 ms apart over 0.1 s; at 90 deg/s linear interpolation is off by 3 mm at 60 m
_NUM_BINS = 512

PosesAtOffsets = Callable[[Sweep, Sweep, np.ndarray], np.ndarray]  # see `Deskew.pair`


@dataclass(frozen=True, eq=False)
class SweepMotion:
    """Motion of the sensor frame while a sweep was measured.

    first, last: seconds after the stamp; may be negative. ego_T_then: (K, 4, 4) float64, evenly spaced from first to
    last: maps points from the frame at that time into the frame at the stamp.
    """

    first: float
    last: float
    ego_T_then: np.ndarray


def deskew(points: np.ndarray, times: np.ndarray, motion: SweepMotion) -> np.ndarray:
    """Return points (N, 3) float32 [m] in the frame at the stamp; NaN rows stay NaN.

    times: (N,) float32, measurement time of each point [s] after the stamp.
    """
    table = _table(motion.ego_T_then)
    seconds = motion.last - motion.first
    first, bins_per_second = np.float32(motion.first), np.float32(_NUM_BINS / seconds if seconds > 0 else 0)
    if numba_kernels is not None:
        deskewed = np.empty_like(points)
        numba_kernels.deskew(np.ascontiguousarray(points), times, first, bins_per_second, table, deskewed)
        return deskewed
    rows = table.reshape(-1, 12)[((times - first) * bins_per_second).clip(0, _NUM_BINS - 1).astype(np.int32)]
    x, y, z = points.T
    moved = [x * rows[:, k] + y * rows[:, k + 1] + z * rows[:, k + 2] + rows[:, k + 3] for k in (0, 4, 8)]
    return np.stack(moved, axis=1)


def _table(ego_T_then: np.ndarray) -> np.ndarray:
    """Return (_NUM_BINS, 3, 4) float32: the pose at the middle of each bin, linear between its neighbours."""
    place = (np.arange(_NUM_BINS) + 0.5) / _NUM_BINS * (len(ego_T_then) - 1)
    before = place.astype(int)
    share = (place - before)[:, None, None]
    top = ego_T_then[:, :3]
    return ((1 - share) * top[before] + share * top[before + 1]).astype(np.float32)


class Deskew:
    """Deskews the sweeps of pairs, each sweep once: the newer one of a pair is the older one of the next.

    motions: SweepMotion of each sweep of the last pair; None for a sweep without times.
    """

    def __init__(self):
        self.motions: tuple[SweepMotion | None, SweepMotion | None] = None, None
        self._last: tuple[Sweep | None, Sweep | None] = None, None  # newer sweep of the last pair: raw, deskewed
        one = np.zeros(1, np.float32)
        deskew(
            np.zeros((1, 3), np.float32), one, SweepMotion(0.0, 1.0, np.stack([np.eye(4)] * 2))
        )  # compile now, not at the first sweep

    def pair(self, sweep0: Sweep, sweep1: Sweep, poses_at_offsets: PosesAtOffsets) -> tuple[Sweep, Sweep]:
        """Return both sweeps deskewed; a sweep without times is returned unchanged.

        poses_at_offsets: takes a sweep, the other sweep of its pair and offsets (K,) [ns] from its stamp; returns
        ego_T_then (K, 4, 4), the pose of the sweep's frame at each offset in the frame at its stamp.
        Raises: EgoMotionError when the motion is unknown.
        """
        (last, deskewed0), motion0 = self._last, self.motions[1]
        self._last = None, None
        if last is not sweep0:
            deskewed0, motion0 = _deskewed(sweep0, sweep1, poses_at_offsets)
        deskewed1, motion1 = _deskewed(sweep1, sweep0, poses_at_offsets)
        self._last, self.motions = (sweep1, deskewed1), (motion0, motion1)
        return deskewed0, deskewed1


def _deskewed(sweep: Sweep, other: Sweep, poses_at_offsets: PosesAtOffsets) -> tuple[Sweep, SweepMotion | None]:
    if sweep.times is None:
        return sweep, None
    offsets = _offsets_ns(sweep.times)
    motion = SweepMotion(offsets[0] * 1e-9, offsets[-1] * 1e-9, poses_at_offsets(sweep, other, offsets))
    return replace(sweep, points=deskew(sweep.points, sweep.times, motion)), motion


def _offsets_ns(times: np.ndarray) -> np.ndarray:
    """Return the offsets from the stamp [ns], (K,) int64, of the poses that cover times (N,) [s]."""
    return np.linspace(float(times.min()) * 1e9, float(times.max()) * 1e9, _NUM_POSES).round().astype(np.int64)
