# SPDX-License-Identifier: Apache-2.0
"""The PNG files of KITTI scene flow: images, disparities and optical flow.

Disparity: 16-bit grey, value / 256 [px], 0 for none. Flow: 16-bit RGB, R and G are (value - 32768) / 64 [px], B is 1
where the flow is known. Source: the KITTI scene flow 2015 development kit; it truncates where `encode_*` round.
"""

import contextlib
import struct
from pathlib import Path

import numpy as np

from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.errors import DataError

DISPARITY_SCALE, FLOW_SCALE, FLOW_ZERO = 256, 64, 32768
_LARGEST = 65535
_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_MAX_PIXELS = 2**25


def read_image(path: Path) -> np.ndarray:
    """Return an image, (H, W, 3) RGB or (H, W) grey, uint8.

    Raises: DataError when the file is missing, is no image, or has more than 8 bits.
    """
    return decode_image(_content(path), str(path))


def read_labels(path: Path) -> np.ndarray:
    """Return an 8-bit image of numbers of objects, (H, W) uint8; 0 is background. Raises: DataError as above."""
    image = decode(_content(path), str(path))
    if image.dtype != np.uint8 or image.ndim != 2:
        raise DataError(f'{path} should be an 8-bit grey PNG with numbers of objects, got {_kind(image)}.')
    return image


def read_disparity(path: Path) -> np.ndarray:
    """Return disparities, (H, W) float32 [px], NaN where there is none.

    Raises: DataError when the file is missing or no 16-bit grey PNG.
    """
    return decode_disparity(_content(path), str(path))


def read_flow(path: Path) -> np.ndarray:
    """Return optical flow, (H, W, 2) float32 [px], NaN where there is none.

    Raises: DataError when the file is missing or no 16-bit RGB PNG.
    """
    return decode_flow(_content(path), str(path))


def decode_image(content: bytes, name: str) -> np.ndarray:
    """Return the image of a file, see `read_image`; name: of the file, in messages."""
    image = decode(content, name)
    if image.dtype != np.uint8 or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise DataError(f'{name} should be an 8-bit grey or RGB image, got {_kind(image)}.')
    return image if image.ndim == 2 else np.ascontiguousarray(image[..., 2::-1])


def decode_disparity(content: bytes, name: str) -> np.ndarray:
    """Return the disparities of a file, see `read_disparity`."""
    image = decode(content, name)
    if image.dtype != np.uint16 or image.ndim != 2:
        raise DataError(f'{name} should be a 16-bit grey PNG of disparities, got {_kind(image)}. {_REMEDY}')
    return np.where(image > 0, image / np.float32(DISPARITY_SCALE), np.float32(np.nan)).astype(np.float32)


def decode_flow(content: bytes, name: str) -> np.ndarray:
    """Return the optical flow of a file, see `read_flow`."""
    image = decode(content, name)
    if image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f'{name} should be a 16-bit RGB PNG of optical flow, got {_kind(image)}. {_REMEDY}')
    flow = (image[..., :0:-1].astype(np.float32) - FLOW_ZERO) / FLOW_SCALE  # OpenCV has blue first
    flow[image[..., 0] == 0] = np.nan
    return flow


def encode_image(image: np.ndarray) -> bytes:
    """Return an image, (H, W, 3) RGB or (H, W) grey, uint8, as PNG."""
    return _encode(image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1]))


def encode_disparity(disparity: np.ndarray) -> bytes:
    """Return disparities (H, W) [px] as PNG; NaN is none, others are clipped to 1/256 to 256 px."""
    known = np.isfinite(disparity)
    values = np.clip(np.rint(np.where(known, disparity, 0) * DISPARITY_SCALE), 1, _LARGEST)
    return _encode(np.where(known, values, 0).astype(np.uint16))


def encode_flow(flow: np.ndarray) -> bytes:
    """Return optical flow (H, W, 2) [px] as PNG; a pixel with NaN has none, others are clipped to -512 to 512 px."""
    known = np.isfinite(flow).all(-1)
    values = np.clip(np.rint(np.where(known[..., None], flow, 0) * FLOW_SCALE + FLOW_ZERO), 0, _LARGEST)
    image = np.dstack([known, np.where(known, values[..., 1], 0), np.where(known, values[..., 0], 0)])
    return _encode(image.astype(np.uint16))


def decode(content: bytes, name: str) -> np.ndarray:
    """Return the values of a PNG, channels in the order of OpenCV. Raises: DataError when it is not one."""
    cv2, image = load_opencv(), None
    if content[:8] == _SIGNATURE and len(content) > 24:
        width, height = struct.unpack('>II', content[16:24])
        if width * height > _MAX_PIXELS:
            raise DataError(f'{name} says it has {width} x {height} pixels, expected {_MAX_PIXELS} at most.')
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise DataError(f'{name} is not a PNG, or is damaged.')
    return image


def check_size(path: Path, image: np.ndarray, size: tuple[int, int], like: Path) -> None:
    """Raise DataError when an image has another size than (height, width), that of the file `like` [px]."""
    if image.shape[:2] != size:
        raise DataError(
            f'{path} is {image.shape[1]} x {image.shape[0]} pixels, expected {size[1]} x {size[0]} as in {like}. Take '
            'the official file: images that are resized or cropped need another calibration.'
        )


_REMEDY = 'Programs that read or write 8 bits lose its values: take the official file.'


def _content(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error


def _encode(image: np.ndarray) -> bytes:
    return load_opencv().imencode('.png', image)[1].tobytes()


def _kind(image: np.ndarray) -> str:
    channels = 1 if image.ndim == 2 else image.shape[2]
    return f'{8 * image.dtype.itemsize} bits and {channels} channel{"s" * (channels > 1)}'
