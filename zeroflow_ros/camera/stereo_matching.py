# SPDX-License-Identifier: Apache-2.0
"""Disparity of a rectified pair by semi-global matching, and the road under which nothing is seen."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.errors import ConfigError

_TILES = (8, 4)  # columns and rows of the local contrast stretch
_ROAD_PIXELS = 600  # of each fit of the road plane
_ROAD_HYPOTHESES = 96
_ROAD_SLOPE = (0.05, 1.5)  # px of disparity per row: a road is seen from above
_ROAD_TILT = 0.15  # px of disparity per column: banking
_ROAD_SUPPORT = 0.25  # least share of the pixels of the lower half that lie on the road


@dataclass(frozen=True)
class MatchingConfig:
    """Settings of semi-global matching; lengths in pixels of the images that are matched.

    max_disparity: largest disparity, rounded up to a multiple of 16. window: side of the matching window.
    small_penalty, large_penalty: cost of a disparity step of 1 and of more, per pixel of the window; the slanted road
    needs a small penalty several times OpenCV's usual 8. uniqueness: percent by which the best cost must beat the
    second. contrast: limit of the local contrast stretch (CLAHE) before matching, which shadows need; 0: none.
    speckle: smaller regions of like disparity are dropped. max_step: disparity step within such a region. road: drop
    what lies below the plane of the road, if there is one.
    """

    max_disparity: int = 128
    window: int = 5
    small_penalty: int = 24
    large_penalty: int = 96
    uniqueness: int = 10
    contrast: float = 3.0
    speckle: int = 100
    max_step: int = 2
    road: bool = True

    def __post_init__(self):
        if self.max_disparity < 16 or self.window < 1 or self.window % 2 == 0:
            raise ConfigError(
                'Stereo matching needs max_disparity of at least 16 and an odd window, got '
                f'{self.max_disparity} and {self.window}.'
            )
        if not 0 < self.small_penalty < self.large_penalty:
            raise ConfigError(
                'The penalties of stereo matching must be 0 < small_penalty < large_penalty, got '
                f'{self.small_penalty} and {self.large_penalty}.'
            )


class StereoMatcher:
    """Matches rectified pairs. One object serves one thread at a time."""

    def __init__(self, config: MatchingConfig = MatchingConfig()):
        self.config = config
        self._cv2 = load_opencv()
        self._num_disparities = -(-config.max_disparity // 16) * 16
        self._stretch = self._cv2.createCLAHE(config.contrast, _TILES) if config.contrast > 0 else None
        area = config.window**2
        self._matcher = self._cv2.StereoSGBM_create(
            0, self._num_disparities, config.window, P1=config.small_penalty * area, P2=config.large_penalty * area,
            disp12MaxDiff=1, preFilterCap=63, uniquenessRatio=config.uniqueness, speckleWindowSize=config.speckle,
            speckleRange=config.max_step, mode=self._cv2.STEREO_SGBM_MODE_SGBM_3WAY,
        )  # fmt: skip

    def disparity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the disparity (H, W) float32 [px] of two grey images (H, W) uint8; NaN where it is not known."""
        margin = self._num_disparities
        if self._stretch is not None:
            left, right = self._stretch.apply(left), self._stretch.apply(right)
        # OpenCV leaves a margin of all disparities on the left without result.
        wide = [self._cv2.copyMakeBorder(image, 0, 0, margin, 0, self._cv2.BORDER_REPLICATE) for image in (left, right)]
        fixed_point = self._matcher.compute(*wide)[:, margin:]
        disparity = fixed_point.astype(np.float32)
        disparity *= np.float32(1 / 16)
        # The replicated border matches itself: the right image does not show what is left of its first column.
        columns = np.arange(disparity.shape[1], dtype=np.float32)
        disparity[(fixed_point <= 0) | (disparity > columns)] = np.nan
        return disparity


def fit_road(disparity: np.ndarray, *, start: np.ndarray | None = None, seed: int = 0) -> np.ndarray | None:
    """Return (a, b, c) of the road, whose disparity is a * column + b * row + c [px]; None where none is seen.

    disparity: (H, W) [px], NaN where not known. start: the road of a neighbouring frame.
    A plane in space is a plane in disparity. The road is the one with most pixels of the lower half of the image on it,
    and few below it.
    """
    height, width = disparity.shape
    known = np.flatnonzero(np.isfinite(disparity[height // 2 :]))
    if len(known) < _ROAD_PIXELS:
        return None
    rng = np.random.default_rng(seed)
    rows, columns = np.divmod(known[rng.integers(len(known), size=_ROAD_PIXELS)], width)
    rows += height // 2
    places = np.stack([columns, rows, np.ones_like(rows)], axis=1).astype(np.float64)
    seen = disparity[rows, columns].astype(np.float64)
    picks = rng.integers(_ROAD_PIXELS, size=(_ROAD_HYPOTHESES, 3))
    if numba_support.numba_kernels is not None:
        plane = np.full(3, np.nan) if start is None else np.array(start, np.float64)
        limits = np.array([*_ROAD_SLOPE, _ROAD_TILT, _ROAD_SUPPORT])
        return plane if numba_support.numba_kernels.fit_plane(places, seen, picks, limits, plane) else None
    corners = places[picks]
    is_plane = np.abs(np.linalg.det(corners)) > 1.0  # three pixels on one line fix no plane
    corners = corners[is_plane]
    planes = np.linalg.solve(corners, seen[picks][is_plane][..., None])[..., 0]
    if start is not None:
        planes = np.concatenate([start[None], planes])
    low, high = _ROAD_SLOPE
    planes = planes[(planes[:, 1] > low) & (planes[:, 1] < high) & (np.abs(planes[:, 0]) < _ROAD_TILT)]
    if len(planes) == 0:
        return None
    above = seen - planes @ places.T  # (K, N) [px], positive: nearer than the road
    support = (np.abs(above) < 0.7).sum(axis=1) - 2 * (above < -1.5).sum(axis=1)
    plane = planes[support.argmax()]
    for _ in range(3):
        on_road = np.abs(seen - places @ plane) < 0.7
        if on_road.mean() < _ROAD_SUPPORT:
            return None
        plane = np.linalg.lstsq(places[on_road], seen[on_road], rcond=None)[0]
    return plane


def road_disparity(road: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the disparity (H, W) float32 [px] of the road (a, b, c); not positive above its horizon."""
    a, b, c = road.astype(np.float32)
    return a * np.arange(shape[1], dtype=np.float32) + (b * np.arange(shape[0], dtype=np.float32) + c)[:, None]


def is_below_road(disparity: np.ndarray, road: np.ndarray) -> np.ndarray:
    """Return which pixels (H, W) are seen below the road: impossible but for holes, so they are matched wrongly.

    The margin is 1 px, and 10 % of the road's disparity: the road is no exact plane.
    """
    on_road = road_disparity(road, disparity.shape)
    return disparity < on_road - np.maximum(np.float32(1.0), np.float32(0.1) * on_road)


def is_road(disparity: np.ndarray, road: np.ndarray) -> np.ndarray:
    """Return which pixels (H, W) are the road's surface: within 0.7 px of it, or 6 % of the disparity.

    6 % is a height of a tenth of a metre, for a camera 1.6 m above the road.
    """
    above = disparity - road_disparity(road, disparity.shape)
    return np.abs(above) < np.maximum(np.float32(0.7), np.float32(0.06) * disparity)


def without_road(disparity: np.ndarray, road: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the disparity (H, W) with NaN on the road's surface, and `is_below_road` (H, W)."""
    if numba_support.numba_kernels is None:
        known = np.where(is_road(disparity, road), np.float32(np.nan), disparity)
        return known, is_below_road(disparity, road)
    known, below = np.empty(disparity.shape, np.float32), np.empty(disparity.shape, bool)
    numba_support.numba_kernels.road_surface(disparity, road.astype(np.float32), known, below)
    return known, below


def fill_from_background(disparity: np.ndarray, road: np.ndarray | None = None) -> np.ndarray:
    """Return the disparity with every unknown pixel filled by the lesser of its neighbours in the row, float32 [px].

    What is hidden or not matched is most often background. Filled pixels are at least as near as the road. Rows
    without any disparity take the row above, the first ones the row below; an image without any stays NaN.
    """
    known = np.isfinite(disparity)
    if not known.any():
        return disparity.copy()
    width = disparity.shape[1]
    columns = np.arange(width, dtype=np.int32)
    rows = np.arange(len(disparity))[:, None]
    before = np.maximum.accumulate(np.where(known, columns, np.int32(-1)), axis=1)
    after = np.minimum.accumulate(np.where(known, columns, np.int32(width))[:, ::-1], axis=1)[:, ::-1]
    far = np.float32(np.inf)
    left = np.where(before >= 0, disparity[rows, before], far)
    right = np.where(after < width, disparity[rows, np.minimum(after, width - 1)], far)
    filled = np.minimum(left, right)
    has_any = np.flatnonzero(known.any(axis=1))
    source = np.maximum(np.searchsorted(has_any, np.arange(len(disparity)), side='right') - 1, 0)
    filled = filled[has_any[source]]
    if road is not None:
        filled = np.where(known, filled, np.maximum(filled, road_disparity(road, disparity.shape)))
    return filled
