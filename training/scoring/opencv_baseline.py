# SPDX-License-Identifier: Apache-2.0
"""Plain OpenCV as a baseline for stereo: semi-global matching of both frames, and dense inverse search between them.

There are no checks between the two, no ego motion, and no filling: what an afternoon with OpenCV gives.
"""

import numpy as np

from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.stereo import StereoFlow, StereoFrame

_NUM_DISPARITIES = 128  # at 1242 px of width
_BLOCK = 5  # px


class OpenCvBaseline:
    """An estimator of stereo pairs: SGBM (3-way) and DIS (medium) of OpenCV, on grey images.

    Raises: ConfigError without OpenCV.
    """

    name = 'opencv'

    def __init__(self):
        self._cv2 = load_opencv()

    def estimate(
        self, reference: StereoFrame, other: StereoFrame, other_T_reference: np.ndarray | None = None
    ) -> StereoFlow:
        """Return the scene flow of the pixels of `reference`; see StereoEstimator. The ego motion is not used."""
        from training.scoring.stereo_metrics import fill_background

        disparity, later = (self._disparity(frame) for frame in (reference, other))
        search = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flow = search.calc(self._grey(reference.left), self._grey(other.left), None)
        v, u = np.mgrid[: disparity.shape[0], : disparity.shape[1]].astype(np.float32)
        # Without gaps, or a gap would swallow the pixels beside it.
        other_disparity = self._cv2.remap(
            fill_background(later), u + flow[..., 0], v + flow[..., 1], self._cv2.INTER_LINEAR,
            borderMode=self._cv2.BORDER_REPLICATE,
        )  # fmt: skip
        sigma = np.ones_like(disparity)
        return StereoFlow(
            disparity, other_disparity, flow, sigma, sigma, sigma, np.isfinite(disparity), other_T_reference
        )

    def _disparity(self, frame: StereoFrame) -> np.ndarray:
        """Return the disparity of the left image, (H, W) float32 [px], NaN where SGBM finds none."""
        width = frame.left.shape[1]
        num = max(16, 16 * round(_NUM_DISPARITIES * width / 1242 / 16))
        matcher = self._cv2.StereoSGBM_create(
            0, num, _BLOCK, P1=8 * _BLOCK**2, P2=32 * _BLOCK**2, disp12MaxDiff=1, preFilterCap=31, uniquenessRatio=5,
            speckleWindowSize=100, speckleRange=2, mode=self._cv2.STEREO_SGBM_MODE_SGBM_3WAY,
        )  # fmt: skip
        disparity = matcher.compute(self._grey(frame.left), self._grey(frame.right)).astype(np.float32) / 16
        return np.where(disparity > 0, disparity, np.nan)

    def _grey(self, image: np.ndarray) -> np.ndarray:
        return image if image.ndim == 2 else self._cv2.cvtColor(image, self._cv2.COLOR_RGB2GRAY)
