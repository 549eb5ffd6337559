# SPDX-License-Identifier: Apache-2.0
"""Scene flow metrics of stereo estimators: KITTI's outlier rates and errors in 3-D.

Sources: the outlier rates and the filling of missing pixels are those of the KITTI scene flow 2015 development kit.
"""

import numpy as np

from training.datasets.stereo_pairs import StereoTruth
from training.scoring.metrics import RELAXED, STRICT, is_accurate, ratio
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow
from zeroflow_ros.errors import DataError

METRICS = ('D1', 'D2', 'Fl', 'SF')
REGIONS = ('bg', 'fg', 'all')
OUTLIER_PX, OUTLIER_SHARE = 3.0, 0.05
NEAR = 35.0  # m: the errors in 3-D are of pixels up to this true depth, as in the literature on point clouds


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
    with np.errstate(divide='ignore', invalid='ignore'):
        share = (error / length).astype(np.float64)  # a float32 compared with a double, as the kit does
    return ~((error <= OUTLIER_PX) | (share <= OUTLIER_SHARE))


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
        is_measured = [estimate.is_measured] * 3
        if estimate.is_disparity_measured is not None:
            is_measured[0] = estimate.is_disparity_measured
        measured = [
            np.isfinite(value).reshape(*value.shape[:2], -1).all(-1) & rows
            for value, rows in zip(raw.values(), is_measured, strict=True)
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
        outliers_percent_measured: of the pixels that the estimator measured; for SF, all three values (the kit's own
        rates of filled pixels ask for the first disparity only). density: the share of those [0, 1].
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
