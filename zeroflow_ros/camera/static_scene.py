# SPDX-License-Identifier: Apache-2.0
"""Where ego motion alone moves the pixels of a static scene."""

import numpy as np

from zeroflow_ros.camera import camera_motion
from zeroflow_ros.camera.stereo import StereoCamera

UNKNOWN_MOTION = np.eye(3, 4, dtype=np.float32)  # every pixel stays where it is


def pixel_motion(camera: StereoCamera, other_T_reference: np.ndarray) -> np.ndarray:
    """Return the matrix M (3, 4) float32 that moves the pixels of a static scene to another frame.

    M @ (u, v, 1, parallax) = w * (u', v', 1), and the parallax there is parallax / w. Parallax is disparity minus that
    of infinitely far points [px], u and v are pixels of the left image. w is not positive for points that end up
    behind the camera. other_T_reference: (4, 4), between the optical frames. See camera_motion.pixel_motion.
    """
    turned, shift = camera_motion.pixel_motion(camera, other_T_reference)
    return np.hstack([turned, shift[:, None]])
