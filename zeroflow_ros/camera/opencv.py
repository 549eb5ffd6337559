# SPDX-License-Identifier: Apache-2.0
"""Import OpenCV where it is used; it is an optional dependency (extra `camera`)."""

from types import ModuleType

from zeroflow_ros.errors import ConfigError


def load_opencv() -> ModuleType:
    """Return cv2. Raises: ConfigError with the command to install it."""
    try:
        import cv2  # here because it takes 0.1 s, and the LiDAR node does not need it
    except ImportError as error:
        raise ConfigError(
            f'Camera images need OpenCV, which cannot be imported ({error}). Install the ROS dependency '
            "python3-opencv, or run 'pip install opencv-python-headless'."
        ) from error
    return cv2
