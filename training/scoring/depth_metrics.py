# SPDX-License-Identifier: Apache-2.0
"""Errors of depth, with the crops, caps and the scaling of the literature on one camera.

Sources: Eigen et al. (2014) for the errors and their crop, Garg et al. (2016) for theirs. Tables of the literature
differ in crop, cap and scaling, so each row of a report says its own.
"""

from itertools import product

import numpy as np

from zeroflow_ros.errors import DataError

ERRORS = ('abs_rel', 'sq_rel', 'rmse', 'rmse_log', 'delta_1', 'delta_2', 'delta_3')
CROPS = {  # top, bottom, left, right, as shares of the height and of the width
    'none': (0.0, 1.0, 0.0, 1.0),
    'garg': (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    'eigen': (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
CAPS = (80.0, 50.0)  # m
SCALINGS = ('none', 'median')
_NEAREST = 1e-3  # m
_DELTA = 1.25


def depth_errors(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Return the errors of depths (N,) against true ones (N,), both positive [m]; NaN without any.

    abs_rel: mean |found - true| / true. sq_rel: mean (found - true)^2 / true [m]. rmse: root of the mean squared error
    [m]. rmse_log: that of the natural logarithms. delta_k: share whose ratio, found by true or true by found, is below
    1.25^k.
    """
    found, true = (np.asarray(part, np.float64) for part in (found, true))
    if not true.size:
        return dict.fromkeys(ERRORS, float('nan'))
    error = found - true
    ratio = np.maximum(found / true, true / found)
    values = (
        (np.abs(error) / true).mean(), (error**2 / true).mean(), np.sqrt((error**2).mean()),
        np.sqrt((np.log(found / true) ** 2).mean()), *((ratio < _DELTA**k).mean() for k in (1, 2, 3)),
    )  # fmt: skip
    return dict(zip(ERRORS, map(float, values), strict=True))


def crop_mask(crop: str, height: int, width: int) -> np.ndarray:
    """Return the pixels (height, width) of a crop of CROPS, bool; its borders are rounded down to pixels."""
    top, bottom, left, right = CROPS[crop]
    inside = np.zeros((height, width), bool)
    inside[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
    return inside


def scored_depths(
    found: np.ndarray, true: np.ndarray, *, crop: str, cap: float, scaling: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the depths of the pixels of an image that count, found and true, (N,) each [m].

    found, true: (H, W) [m]. A pixel counts where it is inside the crop and its truth is between 1e-3 m and the cap.
    With scaling 'median', found depths are multiplied by the ratio of the medians; after that they are clipped to 1e-3
    m and the cap. Pixels without a found depth are left out.
    """
    with np.errstate(invalid='ignore'):
        counts = (true > _NEAREST) & (true < cap) & crop_mask(crop, *true.shape) & np.isfinite(found)
    found, true = found[counts].astype(np.float64), true[counts].astype(np.float64)
    if scaling == 'median' and len(found):
        found = found * (np.median(true) / np.median(found))
    return np.clip(found, _NEAREST, cap), true


class DepthScores:
    """Errors of the depth of one estimator over images: the mean of each image's error, as in the literature."""

    def __init__(self):
        self._errors = {choice: [] for choice in product(CROPS, CAPS, SCALINGS)}
        self._num_pixels, self._num_found = 0, 0

    def add(self, found: np.ndarray, true: np.ndarray) -> None:
        """Add an image: depths (H, W) [m], NaN where not known. Raises: DataError for different sizes."""
        if found.shape != true.shape:
            raise DataError(f'The true depth is {true.shape}, the estimate is {found.shape}.')
        with np.errstate(invalid='ignore'):
            counts = (true > _NEAREST) & (true < max(CAPS))
        self._num_pixels += np.count_nonzero(counts)
        self._num_found += np.count_nonzero(counts & np.isfinite(found))
        for (crop, cap, scaling), errors in self._errors.items():
            depths = scored_depths(found, true, crop=crop, cap=cap, scaling=scaling)
            if len(depths[0]):
                errors.append(depth_errors(*depths))

    def report(self) -> dict:
        """Return the errors of each crop, cap and scaling.

        images, pixels: with true depth up to 80 m. density: share of these pixels with an estimate. rows: a list of
        {crop, cap, scaling, images} and the errors of `depth_errors`.
        """
        rows = []
        for (crop, cap, scaling), errors in self._errors.items():
            means = {name: float(np.mean([one[name] for one in errors])) if errors else float('nan') for name in ERRORS}
            rows.append({'crop': crop, 'cap': cap, 'scaling': scaling, 'images': len(errors)} | means)
        density = self._num_found / self._num_pixels if self._num_pixels else float('nan')
        most = max(row['images'] for row in rows)
        return {'images': most, 'pixels': int(self._num_pixels), 'density': density, 'rows': rows}
