# SPDX-License-Identifier: Apache-2.0
"""Depth and disparity of a camera as ROS messages."""

import array

import numpy as np
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header
from stereo_msgs.msg import DisparityImage

from zeroflow_ros.camera.stereo import StereoCamera

_NO_DISPARITY = -1.0  # below min_disparity: by definition invalid
_SUBPIXEL = 1 / 16  # px: the increment of semi-global matching


def stamped_header(stamp_ns: int, frame_id: str) -> Header:
    """Return a header with a stamp [ns] and a frame."""
    header = Header(frame_id=frame_id)
    header.stamp.sec, header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
    return header


def depth_message(header: Header, depth: np.ndarray) -> Image:
    """Return depths (H, W) float32 [m], NaN where they are not known, as an Image with encoding 32FC1 (REP 118)."""
    height, width = depth.shape
    data = array.array('B', np.ascontiguousarray(depth, np.float32).tobytes())
    return Image(header=header, height=height, width=width, encoding='32FC1', step=4 * width, data=data)


def disparity_message(header: Header, disparity: np.ndarray, camera: StereoCamera) -> DisparityImage:
    """Return disparities (H, W) float32 [px] as a DisparityImage; what is not known is below min_disparity.

    By its definition the disparity of a point at infinity is 0, whatever the principal points are, and Z = f T / d.
    """
    parallax = disparity - np.float32(camera.disparity_at_infinity)
    known = parallax > 0  # False for NaN
    parallax = np.where(known, parallax, np.float32(_NO_DISPARITY))
    height, width = disparity.shape
    msg = DisparityImage(header=header, image=depth_message(header, parallax))
    msg.f, msg.t = camera.fx, camera.baseline
    msg.valid_window = RegionOfInterest(height=height, width=width)
    msg.min_disparity = 0.0
    msg.max_disparity = float(parallax.max()) if known.any() else 0.0
    msg.delta_d = _SUBPIXEL
    return msg
