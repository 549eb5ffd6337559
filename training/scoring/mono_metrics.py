# SPDX-License-Identifier: Apache-2.0
"""Outlier rates of one-camera scene flow as its authors publish them, beside those of true pixel counts.

The published code divides the outliers of an image by a constant, the mean number of pixels with ground truth over the
200 training images of KITTI scene flow. Over all 200 that equals the rate of all pixels; over fewer images it does not.
Missing values are not filled. Source: the evaluation of Hur and Roth, Self-Supervised Multi-Frame Monocular Scene Flow.
"""

import numpy as np

from training.datasets.stereo_pairs import StereoTruth
from training.scoring.stereo_metrics import METRICS, is_outlier, moved_points
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow

PUBLISHED_PIXELS = {'D1': 91875.68, 'D2': 91875.68, 'Fl': 91875.68, 'SF': 91873.4}  # per image
PUBLISHED_BASELINE = 0.54  # m, of truth and estimate alike
_FARTHEST, _LEAST_DISPARITY = 80.0, 1e-4  # m, px
_SAMPLED = 7  # every 7th pixel counts in the robust standard deviations
_ROBUST = 1.4826  # standard deviation of a normal distribution by its median absolute deviation


class MonoScores:
    """Outlier rates and depth errors of one estimator on images with ground truth, occluded pixels included."""

    def __init__(self):
        self._outliers: list[list[int]] = []  # of each image and metric
        self._pixels: list[list[int]] = []
        self._depth: list[tuple[float, float]] = []
        self._relative: list[tuple[np.ndarray, np.ndarray]] = []  # errors of depth and of motion by the true depth

    def add(self, truth: StereoTruth, estimate: StereoFlow, camera: StereoCamera) -> None:
        """Add an image; a missing value is an outlier."""
        parts = ('disparity', 'other_disparity', 'flow')
        wrong = [is_outlier(getattr(estimate, name), getattr(truth, name)) for name in parts]
        known = [getattr(truth, f'has_{name}') for name in parts]
        wrong.append(np.any(wrong, axis=0))
        known.append(np.all(known, axis=0))
        self._outliers.append([np.count_nonzero(w & k) for w, k in zip(wrong, known, strict=True)])
        self._pixels.append([np.count_nonzero(k) for k in known])
        rows, product = known[0] & np.isfinite(estimate.disparity), camera.fx * PUBLISHED_BASELINE
        if rows.any():
            with np.errstate(divide='ignore', invalid='ignore'):
                found = np.clip(product / (estimate.disparity[rows] + _LEAST_DISPARITY), 1e-3, _FARTHEST)
            true = product / (truth.disparity[rows] + _LEAST_DISPARITY)
            error = found - true
            self._depth.append((float(np.mean(np.abs(error) / true)), float(np.mean(error**2 / true))))
        self._relative.append(_relative_errors(truth, estimate, camera, known[3]))

    def report(self) -> dict:
        """Return the rates [%] and errors, NaN without images.

        published_percent: outliers of an image by the published constant, mean over the images. pooled_percent:
        outliers of all images by their true number of pixels. per_image_percent: mean of the images' own rates.
        published_abs_rel, published_sq_rel: depth errors, with a baseline of 0.54 m, mean over the images.
        relative_sigma: robust standard deviations of depth, by the true depth, and of motion along an axis [m per m of
        depth], for the card of a model whose network does not estimate its errors.
        """
        outliers, pixels = (
            np.array(part, np.float64).reshape(-1, len(METRICS)) for part in (self._outliers, self._pixels)
        )
        divisors = np.array([PUBLISHED_PIXELS[metric] for metric in METRICS])
        with np.errstate(divide='ignore', invalid='ignore'):
            rates = {
                'published_percent': 100 * _mean(outliers / divisors),
                'pooled_percent': 100 * outliers.sum(0) / pixels.sum(0),
                'per_image_percent': 100 * _mean(outliers / pixels),
            }
        errors = _mean(np.array(self._depth, np.float64).reshape(-1, 2))
        return {
            'images': len(outliers),
            **{name: dict(zip(METRICS, values.tolist(), strict=True)) for name, values in rates.items()},
            'published_abs_rel': float(errors[0]),
            'published_sq_rel': float(errors[1]),
            'relative_sigma': {
                name: _robust_sigma([one[k] for one in self._relative]) for k, name in enumerate(('depth', 'motion'))
            },
        }


def _relative_errors(truth, estimate, camera, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the errors of depth (N,) and of motion (3 N,), by the true depth, of some pixels."""
    points = [camera.points(one.disparity) for one in (estimate, truth)]
    motions = [
        moved_points(camera, one.flow, one.other_disparity) - at
        for one, at in zip((estimate, truth), points, strict=True)
    ]
    rows = known & np.isfinite(motions[0]).all(-1) & np.isfinite(motions[1]).all(-1)
    rows &= (np.arange(rows.size) % _SAMPLED == 0).reshape(rows.shape)
    depth = points[1][rows][:, 2]
    return (points[0][rows][:, 2] - depth) / depth, ((motions[0] - motions[1])[rows] / depth[:, None]).ravel()


def _robust_sigma(errors: list[np.ndarray]) -> float:
    values = np.abs(np.concatenate(errors)) if errors else np.zeros(0)
    return float(_ROBUST * np.median(values)) if len(values) else float('nan')


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean (C,) of rows (N, C), of those that are known; NaN without any."""
    values = np.ma.masked_invalid(values)
    return values.mean(0).filled(np.nan) if len(values) else np.full(values.shape[1], np.nan)
