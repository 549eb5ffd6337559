# SPDX-License-Identifier: Apache-2.0
"""Scene flow metrics of stereo estimators: KITTI's outlier rates, errors in 3-D, and velocities of boxes.

Sources: the outlier rates and the filling of missing pixels are those of the KITTI scene flow 2015 development kit.
"""

import numpy as np

from training.datasets.stereo_pairs import StereoBox, StereoTruth
from training.scoring.metrics import RELAXED, STRICT, is_accurate, ratio
from zeroflow_ros import transforms
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow
from zeroflow_ros.errors import DataError

METRICS = ('D1', 'D2', 'Fl', 'SF')
REGIONS = ('bg', 'fg', 'all')
OUTLIER_PX, OUTLIER_SHARE = 3.0, 0.05
NEAR = 35.0  # m: the errors in 3-D are of pixels up to this true depth, as in the literature on point clouds
MOVING = 0.5  # m/s
BOX_RANGE = 30.0  # m: boxes are scored up to here
# As for sweeps: boxes are annotated tightly, and their lowest part is ground.
_MARGIN, _GROUND_MARGIN, _MIN_POINTS = 0.1, 0.15, 5
_AROUND = 0.5  # m around a box where a point is neither of the object nor of the background


def fill_background(values: np.ndarray) -> np.ndarray:
    """Return an image (H, W) or (H, W, C) with its NaN pixels filled as KITTI's development kit fills them.

    A gap inside a row gets the smaller of the values at its two ends, each channel on its own; the ends of a row
    repeat its first and last value; rows above the first and below the last row with values repeat these. Rows without
    any value between two others stay NaN. A pixel is missing when one of its channels is NaN.
    """
    image = values[..., None] if values.ndim == 2 else values
    known = np.isfinite(image).all(-1)
    height, width = known.shape
    columns = np.arange(width)
    before = np.maximum.accumulate(np.where(known, columns, -1), axis=1)
    after = np.minimum.accumulate(np.where(known, columns, width)[:, ::-1], axis=1)[:, ::-1]
    rows = np.arange(height)[:, None]
    left = image[rows, np.where(before < 0, after, before).clip(0, width - 1)]
    right = image[rows, np.where(after == width, before, after).clip(0, width - 1)]
    filled = np.where(known[..., None], image, np.minimum(left, right))
    with_values = np.flatnonzero(known.any(1))
    if len(with_values):
        filled[: with_values[0]] = filled[with_values[0]]
        filled[with_values[-1] + 1 :] = filled[with_values[-1]]
    return filled.reshape(values.shape)


def is_outlier(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return which pixels (H, W) are off by more than 3 px and by more than 5 % of the true length.

    estimate, truth: disparities (H, W) or flow (H, W, 2) [px]. A missing estimate is an outlier; where the truth is not
    known the result means nothing.
    """
    difference = np.asarray(estimate, np.float32) - truth
    error, length = (np.linalg.norm(part, axis=-1) if part.ndim == 3 else np.abs(part) for part in (difference, truth))
    return ~((error <= OUTLIER_PX) | (error <= OUTLIER_SHARE * length))


def moved_points(camera: StereoCamera, flow: np.ndarray, other_disparity: np.ndarray) -> np.ndarray:
    """Return where the point of each reference pixel is in the other left optical frame, (H, W, 3) float32 [m].

    flow: (H, W, 2) [px]. other_disparity: (H, W) [px]. NaN where one is not known.
    """
    rays = camera.rays.copy()
    rays[..., :2] += flow / np.array([camera.fx, camera.fy], np.float32)
    return rays * camera.depth(other_disparity)[..., None]


class StereoScores:
    """Scores of one estimator on pairs with ground truth: sums over pixels, all pixels of all images alike.

    Missing pixels are filled by `fill_background` first.
    """

    def __init__(self):
        # metric, occluded too or not, background or foreground, all pixels or measured ones; errors and pixels
        self._outliers = np.zeros((len(METRICS), 2, 2, 2, 2))
        self._sums_3d = np.zeros((2, 4))  # background or foreground: pixels, error [m], strict, relaxed
        self._num_pairs, self._num_pixels, self._num_near = 0, 0, 0

    def add(self, truth: StereoTruth, estimate: StereoFlow, camera: StereoCamera) -> None:
        """Add a pair. Raises: DataError when the estimate has another size than the truth."""
        if estimate.disparity.shape != truth.disparity.shape:
            raise DataError(f'The images are {truth.disparity.shape}, the estimate is {estimate.disparity.shape}.')
        self._num_pairs += 1
        parts = ('disparity', 'other_disparity', 'flow')
        raw = {name: getattr(estimate, name) for name in parts}
        filled = {name: fill_background(value) for name, value in raw.items()}
        wrong = [is_outlier(filled[name], getattr(truth, name)) for name in parts]
        known = [getattr(truth, f'has_{name}') for name in parts]
        visible = [getattr(truth, f'is_{name}_noc') for name in parts]
        measured = [
            np.isfinite(value).reshape(*value.shape[:2], -1).all(-1) & estimate.is_measured for value in raw.values()
        ]
        wrong.append(np.any(wrong, axis=0))
        for part in (known, visible, measured):
            part.append(np.all(part, axis=0))
        self._num_pixels += np.count_nonzero(known[3])
        regions = (~truth.is_foreground, truth.is_foreground)
        for k in range(len(METRICS)):
            for o, where in enumerate((known[k], visible[k])):
                for r, region in enumerate(regions):
                    for m, rows in enumerate((where & region, where & region & measured[k])):
                        self._outliers[k, o, r, m] += np.count_nonzero(wrong[k] & rows), np.count_nonzero(rows)
        self._add_3d(truth, filled, camera, known[3], regions)

    def _add_3d(self, truth: StereoTruth, filled: dict, camera: StereoCamera, known: np.ndarray, regions) -> None:
        true0 = camera.points(truth.disparity)
        near = known & (true0[..., 2] <= NEAR)
        true_flow = moved_points(camera, truth.flow, truth.other_disparity) - true0
        found_flow = moved_points(camera, filled['flow'], filled['other_disparity']) - camera.points(
            filled['disparity']
        )
        self._num_near += np.count_nonzero(near & np.isfinite(true_flow).all(-1))
        known = near & np.isfinite(true_flow).all(-1) & np.isfinite(found_flow).all(-1)
        for r, region in enumerate(regions):
            found, true = found_flow[known & region], true_flow[known & region]
            error = np.linalg.norm(found - true, axis=1)
            accurate = [np.count_nonzero(is_accurate(found, true, limit)) for limit in (STRICT, RELAXED)]
            self._sums_3d[r] += len(error), error.sum(dtype=np.float64), *accurate

    def report(self) -> dict:
        """Return all scores by name, NaN without pixels.

        outliers_percent: by 'occ' (all pixels) or 'noc' (unoccluded ones), metric and region;
        outliers_percent_measured: of the pixels that the estimator measured. density: the share of those [0, 1].
        epe_3d, acc_strict_3d, acc_relaxed_3d: of the motion in 3-D, ego motion included, up to 35 m; share_3d: of the
        pixels there for which the filled estimate gives a point at both times.
        """
        errors = np.stack([self._outliers[:, :, 0], self._outliers[:, :, 1], self._outliers.sum(2)], axis=2)
        percent = 100 * ratio(errors[..., 0], errors[..., 1])
        names = [
            {
                visibility: {
                    metric: {region: float(percent[k, o, r, m]) for r, region in enumerate(REGIONS)}
                    for k, metric in enumerate(METRICS)
                }
                for o, visibility in enumerate(('occ', 'noc'))
            }
            for m in range(2)
        ]
        all_, measured = errors[:, 0, 2, 0, 1], errors[:, 0, 2, 1, 1]
        sums = np.vstack([self._sums_3d, self._sums_3d.sum(0)])
        in_3d = {
            name: dict(zip(REGIONS, ratio(sums[:, k], sums[:, 0]).tolist(), strict=True))
            for k, name in enumerate(('epe_3d', 'acc_strict_3d', 'acc_relaxed_3d'), start=1)
        }
        return {
            'pairs': self._num_pairs,
            'pixels': int(self._num_pixels),
            'outliers_percent': names[0],
            'outliers_percent_measured': names[1],
            'density': dict(zip(METRICS, ratio(measured, all_).tolist(), strict=True)),
            'share_3d': float(ratio(sums[2, 0], self._num_near)),
        } | in_3d


class BoxScores:
    """Scores of measured velocities by tracked boxes, within 30 m of the camera.

    A box moves when the median speed of its points is above 0.5 m/s. What is more than 0.5 m from all boxes is
    background and stands: give boxes only where every moving object in the image has one.
    """

    def __init__(self):
        self._movers = np.zeros(4)  # points, error [m/s], speed [m/s], points without velocity
        self._resting = np.zeros(3)  # points, error [m/s], faster than 0.5 m/s
        self._background = np.zeros(2)  # points, faster than 0.5 m/s
        self._num_pairs = self._num_boxes = self._num_seen = 0

    def add(self, points: np.ndarray, velocity: np.ndarray, boxes: tuple[StereoBox, ...],
            other_T_reference: np.ndarray, dt: float, is_moving: np.ndarray | None = None) -> None:  # fmt: skip
        """Add a pair.

        points: (N, 3) [m], measured, in the reference frame; NaN where not measured. velocity: (N, 3) [m/s], ego motion
        removed; a point without velocity counts as standing. dt: seconds from the reference to the other frame.
        is_moving: (N,) bool, what the estimator says is faster than 0.5 m/s; None: what its velocity says.
        """
        rows = np.isfinite(points).all(1) & (np.linalg.norm(np.nan_to_num(points), axis=1) < BOX_RANGE)
        points, velocity = points[rows].astype(np.float64), velocity[rows].astype(np.float64)
        has_velocity = np.isfinite(velocity).all(1)
        velocity = np.where(has_velocity[:, None], velocity, 0)
        fast = np.linalg.norm(velocity, axis=1) > MOVING if is_moving is None else is_moving[rows]
        self._num_pairs += 1
        is_background = np.ones(len(points), bool)
        for box in boxes:
            inside, around = _inside(box, points)
            is_background &= ~around
            near = np.linalg.norm(box.reference_T_box[:3, 3]) < BOX_RANGE
            self._num_boxes += near
            if np.count_nonzero(inside) < _MIN_POINTS:
                continue
            self._num_seen += near
            true = box.velocity(points[inside], other_T_reference, dt)
            error, speed = np.linalg.norm(velocity[inside] - true, axis=1), np.linalg.norm(true, axis=1)
            if np.median(speed) > MOVING:
                missing = np.count_nonzero(~has_velocity[inside])
                self._movers += len(error), error.sum(), speed.sum(), missing
            else:
                self._resting += len(error), error.sum(), np.count_nonzero(fast[inside])
        self._background += np.count_nonzero(is_background & has_velocity), np.count_nonzero(is_background & fast)

    def report(self) -> dict:
        """Return the scores by name, NaN without points.

        mover_normalised_epe: mean error by mean speed, 1 for zero velocity. *_fast_share: share of standing points that
        are said to be faster than 0.5 m/s. share_of_boxes_seen: of the boxes within 30 m, those with 5 points or more.
        """
        return {
            'pairs': self._num_pairs,
            'mover_points': int(self._movers[0]),
            'mover_normalised_epe': float(ratio(self._movers[1], self._movers[2])),
            'mover_epe_mps': float(ratio(self._movers[1], self._movers[0])),
            'mover_speed_mps': float(ratio(self._movers[2], self._movers[0])),
            'mover_without_velocity_share': float(ratio(self._movers[3], self._movers[0])),
            'resting_box_points': int(self._resting[0]),
            'resting_box_epe_mps': float(ratio(self._resting[1], self._resting[0])),
            'resting_box_fast_share': float(ratio(self._resting[2], self._resting[0])),
            'background_points': int(self._background[0]),
            'background_fast_share': float(ratio(self._background[1], self._background[0])),
            'static_fast_share': float(
                ratio(self._resting[2] + self._background[1], self._resting[0] + self._background[0])
            ),
            'share_of_boxes_seen': float(ratio(self._num_seen, self._num_boxes)),
        }


def _inside(box: StereoBox, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which points (N, 3) are of the object in a box, and which are near it, (N,) bool each."""
    in_box = transforms.apply(transforms.invert(box.reference_T_box), points)
    half = np.asarray(box.size, np.float64) / 2
    beyond = np.abs(in_box) - half
    object_ = (beyond <= (_MARGIN, _MARGIN, 0)).all(1) & (in_box[:, 2] > -half[2] + _GROUND_MARGIN)
    return object_, (beyond <= _AROUND).all(1)
