# SPDX-License-Identifier: Apache-2.0
"""Quality of a pseudo-label without ground truth: per label and per point."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from training.teachers.pseudo_label import PseudoLabel

MOVING = 0.5  # m/s
_SURFACE_GAP = 0.15  # m: points of two sweeps on the same surface are nearer
_MAX_MOTION = 2.5  # m: 25 m/s at 10 Hz
_WORSE_BY = 0.1  # m: increase of the distance to the other sweep; more than the spacing of points in a sweep


@dataclass(frozen=True)
class LabelQuality:
    """Quality of one label. Labelled points are points of the older sweep above the ground with a flow.

    num_points: number of labelled points. moving_share: share of them faster than 0.5 m/s. median_speed: of the moving
    points [m/s]. misfit_before, misfit_after: mean distance of labelled points to the newer sweep, without flow and
    with it [m]. moving_misfit_before, moving_misfit_after: the same for moving points. worse_share: share of the moving
    points whose flow increases this distance by more than 0.1 m. missed_share: share of the labelled points, see
    LabelResiduals.missed. round_trip: median forward-backward error of moving points: their flow plus that of the
    nearest point of the newer sweep [m]. NaN where there are no such points.
    """

    num_points: int
    moving_share: float
    median_speed: float
    misfit_before: float
    misfit_after: float
    moving_misfit_before: float
    moving_misfit_after: float
    worse_share: float
    missed_share: float
    round_trip: float

    @property
    def suspicion(self) -> float:
        """Sum of misfit and round trip of moving points [m] and missed share; higher is worse."""
        return float(np.nan_to_num([self.moving_misfit_after, self.round_trip, self.missed_share]).sum())


@dataclass(frozen=True)
class LabelResiduals:
    """The labelled points of the older sweep, and their distances to the newer one.

    points, flow: (K, 3) float32 [m]. speed: (K,) [m/s]. before, after: (K,) [m] distance to the nearest point of the
    newer sweep above the ground, without flow and with it; inf where there is none. round_trip: (K,) [m], NaN where
    the nearest point has no flow. target: (L, 3), the newer sweep above the ground. missed: (K,) bool, farther than
    0.15 m from the newer sweep, while some points of the newer sweep within 2.5 m are as far from any moved point:
    an object moved there and the flow misses it. Points hidden from one sweep are also far from it, but mostly have
    no such points around.
    """

    points: np.ndarray
    flow: np.ndarray
    speed: np.ndarray
    before: np.ndarray
    after: np.ndarray
    round_trip: np.ndarray
    target: np.ndarray
    missed: np.ndarray

    @property
    def is_moving(self) -> np.ndarray:
        """Which points are faster than 0.5 m/s, (K,) bool."""
        return self.speed > MOVING

    def quality(self) -> LabelQuality:
        """Return the quality of the label."""
        moving = self.is_moving
        worse = self.after[moving] > self.before[moving] + _WORSE_BY
        back = self.round_trip[moving]
        return LabelQuality(
            len(self.points),
            _mean(moving),
            float(np.median(self.speed[moving])) if moving.any() else np.nan,
            _mean(self.before),
            _mean(self.after),
            _mean(self.before[moving]),
            _mean(self.after[moving]),
            _mean(worse),
            _mean(self.missed),
            float(np.nanmedian(back)) if np.isfinite(back).any() else np.nan,
        )


def label_residuals(label: PseudoLabel) -> LabelResiduals:
    """Return the residuals of the older sweep of a label against the newer one."""
    labelled = np.isfinite(label.flow0).all(axis=1) & np.isfinite(label.points0).all(axis=1) & ~label.is_ground0
    above = np.isfinite(label.points1).all(axis=1) & ~label.is_ground1
    points, flow = label.points0[labelled], label.flow0[labelled]
    target, back = label.points1[above], label.flow1[above]
    before = after = np.full(len(points), np.inf)
    round_trip, missed = np.full(len(points), np.nan), np.zeros(len(points), bool)
    if len(points) and len(target):
        tree = cKDTree(target)
        before, _ = tree.query(points)
        after, nearest = tree.query(points + flow)
        round_trip = np.linalg.norm(flow + back[nearest], axis=1)
        missed = _missed(points + flow, after, target)
    speed = np.linalg.norm(flow, axis=1) / label.dt
    return LabelResiduals(points, flow, speed, before, after, round_trip, target, missed)


def _missed(moved: np.ndarray, after: np.ndarray, target: np.ndarray) -> np.ndarray:
    """See LabelResiduals."""
    far, _ = cKDTree(moved).query(target, distance_upper_bound=_SURFACE_GAP)  # inf beyond
    lone0, lone1 = np.flatnonzero(after > _SURFACE_GAP), np.flatnonzero(np.isinf(far))
    missed = np.zeros(len(moved), bool)
    if len(lone0) and len(lone1):
        way, _ = cKDTree(target[lone1]).query(moved[lone0], distance_upper_bound=_MAX_MOTION)
        missed[lone0] = np.isfinite(way)
    return missed


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan
