# SPDX-License-Identifier: Apache-2.0
"""Image, CompressedImage and CameraInfo messages, duck-typed."""

from types import SimpleNamespace

import numpy as np


def header(stamp_ns=12_000_000_345, frame='left_optical'):
    sec, nanosec = divmod(stamp_ns, 1_000_000_000)
    return SimpleNamespace(stamp=SimpleNamespace(sec=sec, nanosec=nanosec), frame_id=frame)


def image(pixels, encoding, *, padding=0, big=False, stamp_ns=12_000_000_345, frame='left_optical', height=None):
    """An Image of (H, W) or (H, W, channels) values. padding: bytes after each row. height: what the header says."""
    pixels = np.ascontiguousarray(pixels)
    if pixels.dtype.itemsize == 2:
        pixels = pixels.astype('>u2' if big else '<u2')
    rows = pixels.reshape(len(pixels), -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    return SimpleNamespace(
        header=header(stamp_ns, frame), height=len(pixels) if height is None else height, width=pixels.shape[1],
        encoding=encoding, is_bigendian=int(big), step=rows.shape[1], data=rows.tobytes(),
    )  # fmt: skip


def compressed(data, image_format='rgb8; jpeg compressed bgr8', *, stamp_ns=12_000_000_345, frame='left_optical'):
    return SimpleNamespace(header=header(stamp_ns, frame), format=image_format, data=bytes(data))


def camera_info(width=64, height=48, *, fx=50.0, fy=None, cx=31.5, cy=23.5, tx=0.0, d=(0.0,) * 5, model='plumb_bob',
                r=(1, 0, 0, 0, 1, 0, 0, 0, 1), k=None, p=None, binning=(0, 0), roi=(0, 0, 0, 0), stamp_ns=0,
                frame='left_optical'):  # fmt: skip
    """A CameraInfo. tx: P[0, 3] [px m]. roi: x_offset, y_offset, width, height."""
    fy = fx if fy is None else fy
    return SimpleNamespace(
        header=header(stamp_ns, frame), width=width, height=height, distortion_model=model, d=list(d),
        k=list(k or (fx, 0, cx, 0, fy, cy, 0, 0, 1)), r=list(r), p=list(p or (fx, 0, cx, tx, 0, fy, cy, 0, 0, 0, 1, 0)),
        binning_x=binning[0], binning_y=binning[1],
        roi=SimpleNamespace(x_offset=roi[0], y_offset=roi[1], width=roi[2], height=roi[3], do_rectify=False),
    )  # fmt: skip
