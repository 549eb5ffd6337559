# SPDX-License-Identifier: Apache-2.0
"""How good a pseudo-label looks without ground truth: in figures, and point by point."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from training.teachers.pseudo_label import PseudoLabel

MOVING = 0.5  # m/s
_APART = 0.15  # m: points of two sweeps on one surface are nearer
_WAY = 2.5  # m: 25 m/s at 10 Hz
_WORSE = 0.1  # m: farther from the other sweep than without flow by more than two points of a sweep are apart


@dataclass(frozen=True)
class LabelFigures:
    """Figures of one label. Labelled points are those of the older sweep above the ground with a flow.

    num_points: labelled. moving_share: of them, faster than 0.5 m/s. median_speed: of the moving ones [m/s].
    misfit_before, misfit_after: mean distance of labelled points to the newer sweep, standing still and moved by their
    flow [m]. moving_misfit_before, moving_misfit_after: the same of the moving ones. worse_share: of the moving ones,
    which their flow takes away from the newer sweep by more than 0.1 m. missed_share: of the labelled ones, see
    LabelFit.missed. round_trip: median length of the way of a
    moving point there by its flow and back by the nearest point's [m]. NaN where there are no such points.
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
        """A number to sort labels by, the worst first: misfit and round trip of what moves [m], and what is missed."""
        return float(np.nan_to_num([self.moving_misfit_after, self.round_trip, self.missed_share]).sum())


@dataclass(frozen=True)
class LabelFit:
    """The labelled points of the older sweep, and how they fit the newer one.

    points, flow: (K, 3) float32 [m]. speed: (K,) [m/s]. before, after: (K,) [m] distance to the nearest point of the
    newer sweep above the ground, without flow and with it; inf where there is none. round_trip: (K,) [m], NaN where
    the nearest point has no flow. target: (L, 3), the newer sweep above the ground. missed: (K,) bool, farther than
    0.15 m from the newer sweep, while some points of the newer sweep within 2.5 m are as far from any moved point:
    something was here and is there, and the flow does not say so. What is hidden from one of the sweeps is far from
    it, too, but mostly has no such points around.
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

    def figures(self) -> LabelFigures:
        """Return what a table says of the label."""
        moving = self.is_moving
        worse = self.after[moving] > self.before[moving] + _WORSE
        back = self.round_trip[moving]
        return LabelFigures(
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


def fit(label: PseudoLabel) -> LabelFit:
    """Return how the older sweep of a label fits the newer one."""
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
    return LabelFit(points, flow, speed, before, after, round_trip, target, missed)


def _missed(moved: np.ndarray, after: np.ndarray, target: np.ndarray) -> np.ndarray:
    """See LabelFit."""
    far, _ = cKDTree(moved).query(target, distance_upper_bound=_APART)  # inf beyond
    lone0, lone1 = np.flatnonzero(after > _APART), np.flatnonzero(np.isinf(far))
    missed = np.zeros(len(moved), bool)
    if len(lone0) and len(lone1):
        way, _ = cKDTree(target[lone1]).query(moved[lone0], distance_upper_bound=_WAY)
        missed[lone0] = np.isfinite(way)
    return missed


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan
