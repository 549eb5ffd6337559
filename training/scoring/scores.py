# SPDX-License-Identifier: Apache-2.0
"""Scores of one estimator on one dataset, computed from sums over points."""

from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from scipy.spatial import cKDTree

from training.datasets.pairs import DatasetPair, MetaClass
from training.scoring import metrics
from training.scoring.metrics import CLASSES, RANGE_EDGES, SPEED_EDGES, ratio
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import SweepPair
from zeroflow_ros.transforms import apply

_MOVING = 0.5  # m/s
_DRIVING = 8.0  # m/s of the ego vehicle: the street comes into view quickly
_SEEN = 0.5  # m: a point with a point of the other sweep within this distance was seen before
_AXES = (len(MetaClass), len(SPEED_EDGES) - 1, len(RANGE_EDGES) - 1, 2, 2, 2)
_SUMS = ('count', 'epe', 'speed', 'epe_mps', 'speed_mps', 'strict', 'relaxed', 'angle', 'found')
SPEED_GROUPS = (0, 1, 5, 10, 25, 50, 51)  # of speed buckets: limits at 0.04, 0.2, 0.4, 1 and 2 m over the pair


@dataclass(frozen=True)
class Scope:
    """Selects the scored points of a dataset among those with ground-truth flow.

    with_ground: include ground points. half_extent: |x| and |y| of scored points are below this [m].
    """

    with_ground: bool = False
    half_extent: float = float('inf')

    def rows(self, item: DatasetPair) -> np.ndarray:
        """Return which points of sweep 0 are scored, (N,) bool."""
        rows = item.truth.is_valid & (np.abs(item.pair.points0[:, :2]) < self.half_extent).all(1)
        return rows if self.with_ground else rows & ~item.is_ground0


class FlowScores:
    """Sums over the scored points by class, speed bucket, range, in the 35 m box or not, dynamic or not, fast or not.

    Every point has the same weight. A point without flow counts as zero flow.
    """

    def __init__(self, scope: Scope = Scope()):
        self.scope = scope
        self._sums = {name: np.zeros(_AXES) for name in _SUMS}
        self._num_pairs = 0
        self._num_returns = self._num_with_flow = 0
        self._moving_shares: list[float] = []
        self._came_into_view = np.zeros(2, np.int64)  # static points, and those among them that seem to move

    def add(self, item: DatasetPair, flow: np.ndarray) -> None:
        """Add a pair with ground truth. flow: (N, 3) [m], residual, of sweep 0 in ego0; rows not finite count as 0.

        Raises: DataError when flow or truth does not match the pair.
        """
        if flow.shape != item.pair.points0.shape:
            raise DataError(f'{item.key} has {len(item.pair.points0)} points, its flow has the shape {flow.shape}.')
        has_flow, has_return = np.isfinite(flow).all(1), np.isfinite(item.pair.points0).all(1)
        self._num_returns += np.count_nonzero(has_return)
        self._num_with_flow += np.count_nonzero(has_flow & has_return)
        flow = np.where(has_flow[:, None], flow, 0).astype(np.float64)
        dt, rows = item.pair.dt, self.scope.rows(item)
        self._num_pairs += 1
        if len(flow):
            self._moving_shares.append(float((np.linalg.norm(flow, axis=1) / dt > _MOVING).mean()))
        points, flow, truth = item.pair.points0[rows], flow[rows], item.truth.flow[rows].astype(np.float64)
        if not (np.isfinite(truth).all() and np.isfinite(points).all()):
            raise DataError(f'{item.key} has points whose flow is marked as known but is not finite.')
        speed, error = np.linalg.norm(truth, axis=1), metrics.epe(flow, truth)
        self._add_came_into_view(item.pair, points, flow, speed)
        cell = np.ravel_multi_index(
            (
                item.truth.meta_class[rows].astype(np.int64),
                metrics.speed_bucket(speed),
                metrics.range_bin(points),
                (np.abs(points[:, :2]) < metrics.NEAR_BOX).all(1).astype(np.int64),
                (speed >= metrics.DYNAMIC).astype(np.int64),
                (speed / dt > metrics.FAST).astype(np.int64),
            ),
            _AXES,
        )
        values = {
            'count': np.ones_like(error),
            'epe': error,
            'speed': speed,
            'epe_mps': error / dt,
            'speed_mps': speed / dt,
            'strict': metrics.is_accurate(flow, truth, metrics.STRICT),
            'relaxed': metrics.is_accurate(flow, truth, metrics.RELAXED),
            'angle': metrics.angle_error(flow, truth),
            'found': np.linalg.norm(flow, axis=1) >= metrics.DYNAMIC,
        }
        for name, value in values.items():
            self._sums[name] += np.bincount(cell, value, self._sums[name].size).reshape(_AXES)

    def _add_came_into_view(self, pair: SweepPair, points: np.ndarray, flow: np.ndarray, speed: np.ndarray) -> None:
        """Count the static points that the other sweep did not see, and those that seem to move, at 8 m/s or more."""
        if np.linalg.norm(pair.ego0_T_ego1[:3, 3]) < _DRIVING * pair.dt:
            return
        static = speed < metrics.DYNAMIC
        others = apply(pair.ego0_T_ego1, pair.points1)
        tree = cKDTree(others[np.isfinite(others).all(1)])
        new = ~np.isfinite(tree.query(points[static], distance_upper_bound=_SEEN)[0])
        moves = np.linalg.norm(flow[static], axis=1) > _MOVING * pair.dt
        self._came_into_view += np.count_nonzero(new), np.count_nonzero(new & moves)

    def report(self) -> dict:
        """Return all scores by name; NaN without points. docs/evaluation.md defines them."""
        either = self._sum('count', dynamic=1) + self._sum('found', dynamic=0)
        return {
            'scope': asdict(self.scope),
            'pairs': self._num_pairs,
            'points': int(self._sum('count')),
            'share_with_flow': float(ratio(self._num_with_flow, self._num_returns)),
            'three_way': self._three_way(),
            'epe': self._mean('epe'),
            'acc_strict': self._mean('strict'),
            'acc_relaxed': self._mean('relaxed'),
            'angle_error_rad': self._mean('angle'),
            'dynamic_iou': float(ratio(self._sum('found', dynamic=1), either)),
            'dynamic_normalised_epe': self._normalised(dynamic=1),
            'dynamic_epe_mps': self._mean('epe_mps', dynamic=1),
            'dynamic_speed_mps': self._mean('speed_mps', dynamic=1),
            'static_epe_mps': self._mean('epe_mps', dynamic=0),
            'moving_share': float(np.mean(self._moving_shares)) if self._moving_shares else float('nan'),
            'came_into_view_points': int(self._came_into_view[0]),
            'came_into_view_moving_share': float(ratio(self._came_into_view[1], self._came_into_view[0])),
            'bucketed_35m': self._bucketed(near=1),
            'bucketed': self._bucketed(),
            'by_class': {
                kind.name.lower(): {
                    'points': int(self._sum('count', kind=kind)),
                    'dynamic_points': int(self._sum('count', kind=kind, dynamic=1)),
                    'normalised_epe': self._normalised(kind=kind, dynamic=1),
                    'static_epe': self._mean('epe', kind=kind, dynamic=0),
                }
                for kind in CLASSES
                if self._sum('count', kind=kind)
            },
            'by_speed': [self._speed_group(*limits) for limits in pairwise(SPEED_GROUPS)],
            'range_mean_static': self._range_mean(fast=0),
            'range_mean_dynamic': self._range_mean(fast=1),
            'by_range': [self._range(k) for k in range(len(RANGE_EDGES) - 1)],
        }

    def _sum(self, name: str, *, kind=None, speed=None, distance=None, near=None, dynamic=None, fast=None) -> float:
        """Return a sum over the points in the given bins of the axes; None means all bins, without class IGNORED."""
        kind = slice(len(CLASSES)) if kind is None else kind
        places = (kind, *(slice(None) if at is None else at for at in (speed, distance, near, dynamic, fast)))
        return float(self._sums[name][places].sum())

    def _mean(self, name: str, **places) -> float:
        return float(ratio(self._sum(name, **places), self._sum('count', **places)))

    def _normalised(self, **places) -> float:
        return float(ratio(self._sum('epe', **places), self._sum('speed', **places)))

    def _three_way(self) -> dict:
        foreground, background = slice(1, len(CLASSES)), int(MetaClass.BACKGROUND)
        parts = {
            'FD': self._mean('epe', kind=foreground, dynamic=1),
            'FS': self._mean('epe', kind=foreground, dynamic=0),
            'BS': self._mean('epe', kind=background, dynamic=0),
        }
        return parts | {'mean': float(np.mean(list(parts.values())))}

    def _bucketed(self, near=slice(None)) -> dict:
        sums = (
            self._sums[name][: len(CLASSES), :, :, near].reshape(len(CLASSES), len(SPEED_EDGES) - 1, -1).sum(-1)
            for name in ('count', 'epe', 'speed')
        )
        found = metrics.bucketed_from_sums(*sums)
        names = [kind.name.lower() for kind in CLASSES]
        return {
            'mean_static': found.mean_static,
            'mean_dynamic': found.mean_dynamic,
            'static': dict(zip(names, found.static.tolist(), strict=True)),
            'dynamic': dict(zip(names, found.dynamic.tolist(), strict=True)),
            'buckets': dict(zip(names, found.buckets.tolist(), strict=True)),
        }

    def _speed_group(self, first: int, last: int) -> dict:
        within = slice(first, last)
        return {
            'from': float(SPEED_EDGES[first]),
            'to': float(SPEED_EDGES[last]),
            'points': int(self._sum('count', speed=within)),
            'epe': self._mean('epe', speed=within),
            'normalised_epe': self._normalised(speed=within) if first else float('nan'),
        }

    def _range(self, k: int) -> dict:
        return {
            'from': float(RANGE_EDGES[k]),
            'to': float(RANGE_EDGES[k + 1]),
            'points': int(self._sum('count', distance=k)),
            'static_epe': self._mean('epe', distance=k, fast=0),
            'dynamic_epe': self._mean('epe', distance=k, fast=1),
        }

    def _range_mean(self, fast: int) -> float:
        """Return the mean EPE [m] over the distance bins with points."""
        return float(metrics.nan_mean([self._mean('epe', distance=k, fast=fast) for k in range(len(RANGE_EDGES) - 1)]))
