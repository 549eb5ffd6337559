# SPDX-License-Identifier: Apache-2.0
"""Where ego motion alone moves the pixels of a static scene."""

import numpy as np

from zeroflow_ros.camera.stereo import StereoCamera

UNKNOWN_MOTION = np.eye(3, 4, dtype=np.float32)  # every pixel stays where it is


def pixel_motion(camera: StereoCamera, other_T_reference: np.ndarray) -> np.ndarray:
    """Return the matrix M (3, 4) float32 that moves the pixels of a static scene to another frame.

    M @ (u, v, 1, parallax) = w * (u', v', 1), and the parallax there is parallax / w. Parallax is disparity minus that
    of infinitely far points [px], u and v are pixels of the left image. w is not positive for points that end up
    behind the camera. other_T_reference: (4, 4), between the optical frames.

    With z the depth and K the camera matrix, the other frame sees K (R z ray + t); divided by z, this is
    K R K^-1 (u, v, 1) + K t parallax / (fx * baseline): no division by the depth.
    """
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    rotation, translation = other_T_reference[:3, :3], other_T_reference[:3, 3:]
    turned = matrix @ rotation @ np.linalg.inv(matrix)
    return np.hstack([turned, matrix @ translation / (camera.fx * camera.baseline)]).astype(np.float32)
