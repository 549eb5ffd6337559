# SPDX-License-Identifier: Apache-2.0
"""Scene flow metrics: pure numpy functions of predicted and ground-truth flow.

They equal those of the packages av2 0.3.6 and bucketed-scene-flow-eval 2.0.25. Flow is residual, in metres over the
pair, as in both packages; their "speed" means metres over a pair of 0.1 s.
"""

from dataclasses import dataclass

import numpy as np

from training.datasets.pairs import MetaClass

CLASSES = tuple(kind for kind in MetaClass if kind != MetaClass.IGNORED)
SPEED_EDGES = np.append(np.linspace(0, 2.0, 51), np.inf)  # m over the pair: 50 buckets of 0.04 m, and all above
RANGE_EDGES = np.array([0, 35, 50, 75, 100, np.inf])  # m from the sensor
DYNAMIC = 0.05  # m over the pair: from here on, Argoverse 2 calls a point dynamic
FAST = 1.4  # m/s: above this, range-wise EPE calls a point dynamic
STRICT, RELAXED = 0.05, 0.10  # limits of AccS and AccR
NEAR_BOX = 35.0  # m: half the side of the square that the boards score


def epe(flow: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the end-point error of each point (N,), in the unit of the inputs (N, 3)."""
    return np.linalg.norm(flow - truth, axis=1)


def is_accurate(flow: np.ndarray, truth: np.ndarray, limit: float) -> np.ndarray:
    """Return which points (N,) have an EPE below `limit`, in metres or as a share of the ground-truth flow.

    Their share is AccS for a limit of 0.05 and AccR for 0.10. Source: av2.
    """
    error = epe(flow, truth)
    return (error < limit) | (error / (np.linalg.norm(truth, axis=1) + 1e-10) < limit)


def angle_error(flow: np.ndarray, truth: np.ndarray, *, time: float = 0.1) -> np.ndarray:
    """Return the angle [rad] (N,) between (flow, time) and (truth, time) in space-time. Source: av2.

    time: the fourth coordinate; av2 uses 0.1 for every sensor.
    """
    a, b = (np.pad(np.asarray(part, np.float64), ((0, 0), (0, 1)), constant_values=time) for part in (flow, truth))
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.arccos(np.clip(cosine, -1, 1))


def dynamic_iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the IoU of predicted and true dynamic points, (N,) bool each; NaN when both are empty."""
    either = np.count_nonzero(found | truth)
    return np.count_nonzero(found & truth) / either if either else float('nan')


def three_way_epe(flow, truth, is_foreground, is_dynamic) -> dict[str, float]:
    """Return the mean EPE of foreground dynamic (FD), foreground static (FS) and background static (BS) points.

    flow, truth: (N, 3) [m], residual. is_foreground, is_dynamic: (N,) bool.
    'three_way' is the mean of the three; a group without points gives NaN.
    Source: Argoverse 2 scene flow; its dynamic points move 0.05 m or more over the pair.
    """
    error = epe(flow, truth)
    groups = {'FD': is_foreground & is_dynamic, 'FS': is_foreground & ~is_dynamic, 'BS': ~is_foreground & ~is_dynamic}
    means = {name: float(error[rows].mean()) if rows.any() else float('nan') for name, rows in groups.items()}
    return means | {'three_way': float(np.mean([means['FD'], means['FS'], means['BS']]))}


def normalised_epe(flow: np.ndarray, truth: np.ndarray) -> float:
    """Return mean EPE divided by mean true speed: 0 is perfect, zero flow scores 1. NaN without points."""
    speed = np.linalg.norm(truth, axis=1)
    return float(epe(flow, truth).mean() / speed.mean()) if len(truth) and speed.mean() > 0 else float('nan')


@dataclass(frozen=True)
class BucketedEpe:
    """Bucket-normalised EPE.

    buckets: (5, 51), by class and speed: mean EPE [m] in the first bucket, which counts as static; mean EPE divided by
    mean speed in the others. NaN without points.
    """

    buckets: np.ndarray

    @property
    def static(self) -> np.ndarray:
        """EPE [m] of static points, by class (5,)."""
        return self.buckets[:, 0]

    @property
    def dynamic(self) -> np.ndarray:
        """Normalised EPE of dynamic points, by class (5,): all speed buckets with points have equal weight."""
        return nan_mean(self.buckets[:, 1:])

    @property
    def mean_static(self) -> float:
        """Mean over the classes with static points [m]."""
        return float(nan_mean(self.static))

    @property
    def mean_dynamic(self) -> float:
        """Mean over the classes with dynamic points: the score of the Argoverse 2 board."""
        return float(nan_mean(self.dynamic))


def bucketed_epe(flow: np.ndarray, truth: np.ndarray, meta_class: np.ndarray) -> BucketedEpe:
    """Return the bucket-normalised EPE of flow (N, 3) [m] for points with a MetaClass (N,); IGNORED is left out.

    Source: bucketed-scene-flow-eval, which scores points in a 70 m square around the sensor (NEAR_BOX).
    """
    speed = np.linalg.norm(truth, axis=1)
    known = np.asarray(meta_class) < len(CLASSES)
    cell = np.asarray(meta_class)[known].astype(np.int64) * (len(SPEED_EDGES) - 1) + speed_bucket(speed[known])
    shape = len(CLASSES), len(SPEED_EDGES) - 1
    sums = (
        np.bincount(cell, weights, shape[0] * shape[1]).reshape(shape)
        for weights in (None, epe(flow, truth)[known], speed[known])
    )
    return bucketed_from_sums(*sums)


def bucketed_from_sums(count: np.ndarray, error: np.ndarray, speed: np.ndarray) -> BucketedEpe:
    """Return the bucket-normalised EPE from sums over the points of any number of pairs, (5, 51) each."""
    divisor = speed.copy()
    divisor[:, 0] = count[:, 0]
    return BucketedEpe(ratio(error, divisor))


@dataclass(frozen=True)
class RangeEpe:
    """EPE [m] by distance, (5,) each: of points up to and of points above 1.4 m/s. NaN without points."""

    static: np.ndarray
    dynamic: np.ndarray

    @property
    def mean_static(self) -> float:
        """Mean over the distance bins with points."""
        return float(nan_mean(self.static))

    @property
    def mean_dynamic(self) -> float:
        """Mean over the distance bins with points."""
        return float(nan_mean(self.dynamic))


def range_epe(flow: np.ndarray, truth: np.ndarray, points: np.ndarray, dt: float) -> RangeEpe:
    """Return the EPE by distance of points (N, 3) [m] from the origin of their frame.

    dt: seconds of the pair. Source: SSF (Khoche et al. 2025).
    """
    error, fast = epe(flow, truth), np.linalg.norm(truth, axis=1) / dt > FAST
    where = range_bin(points)
    num = len(RANGE_EDGES) - 1
    return RangeEpe(
        *(ratio(np.bincount(where[k], error[k], num), np.bincount(where[k], minlength=num)) for k in (~fast, fast))
    )


def speed_bucket(speed: np.ndarray) -> np.ndarray:
    """Return the bucket in SPEED_EDGES of each speed (N,) [m over the pair]."""
    return np.searchsorted(SPEED_EDGES, speed, side='right') - 1


def range_bin(points: np.ndarray) -> np.ndarray:
    """Return the bin in RANGE_EDGES of each point (N, 3) [m]."""
    return np.searchsorted(RANGE_EDGES, np.linalg.norm(points, axis=1), side='right') - 1


def ratio(numerator, denominator) -> np.ndarray:
    """Return the quotient, NaN where the denominator is 0."""
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(np.asarray(denominator) > 0, np.asarray(numerator) / denominator, np.nan)


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis, ignoring NaN; NaN when all values are NaN."""
    return ratio(np.nansum(values, axis=-1), np.isfinite(values).sum(axis=-1))
