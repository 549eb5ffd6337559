# SPDX-License-Identifier: Apache-2.0
"""Checks of what the images of one camera show: black, saturated or frozen images."""

import numpy as np

from zeroflow_ros.camera.mono import MonoFrame
from zeroflow_ros.camera.stereo_checks import ImageFinding, are_equal, brightness_findings, sample_of
from zeroflow_ros.camera.stereo_pairing import FrameDrop


class MonoChecks:
    """Checks each frame before it is used, as `StereoChecks` does. row_error_px: None, as there is one camera."""

    row_error_px = None

    def __init__(self):
        self._last: np.ndarray | None = None

    def reset(self) -> None:
        """Forget the last image."""
        self._last = None

    def check(self, frame: MonoFrame) -> list[ImageFinding]:
        """Return what was found in a frame, drops first."""
        findings = brightness_findings("camera's", sample_of(frame.image))
        if are_equal(frame.image, self._last):  # the noise of a camera makes every image differ
            findings.append(
                ImageFinding(
                    'frozen',
                    'The image is the same as the one before, with another stamp: the camera hangs, its driver repeats '
                    'images, or a simulation without noise stands still. Check the rate of the camera.',
                    FrameDrop.UNUSABLE,
                )
            )
        self._last = frame.image
        return sorted(findings, key=lambda finding: finding.drop is None)
