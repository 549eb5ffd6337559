# SPDX-License-Identifier: Apache-2.0
"""Decode the JPEG and PNG data of CompressedImage messages, and refuse what is truncated.

OpenCV before 5 decodes a truncated JPEG without an error and fills what is missing with grey, so the markers of the
file are read first, and its compressed data is counted (`jpeg_scan`). PNG has checksums, which OpenCV verifies.
"""

import struct

import numpy as np

from zeroflow_ros.camera.jpeg_scan import lacks_data
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.errors import ImageError

MAX_PIXELS = 2**25  # 8192 x 4096; RGB of it takes 100 MB
_JPEG, _PNG = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n'
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame; holds the size
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_MOSAICS = {f'bayer_{order}': f'bayer_{order}8' for order in ('rggb', 'bggr', 'gbrg', 'grbg')}
_BLOCK, _GREY, _GREY_COLUMNS = 8, 128, 32
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b'\xff\xd9'


def decode_compressed(data: np.ndarray, image_format: str, *, as_grey: bool = False) -> tuple[np.ndarray, str]:
    """Decode a file in memory.

    data: (N,) uint8. image_format: `format` of the message, as image_transport writes it: 'jpeg', 'png',
    'rgb8; jpeg compressed bgr8', 'mono16; png compressed ', 'bayer_rggb8; png compressed ' and the like. What the data
    is counts, not what the format says of it. as_grey: decode only the brightness of a JPEG in colour.
    Returns (H, W), (H, W, 3) or (H, W, 4) pixels, uint8 or uint16, and the encoding of sensor_msgs/Image that they
    have; '' for RGB and grey.

    Raises: ImageError for data that is neither JPEG nor PNG, is truncated or damaged, or has too many pixels.
    """
    encoding, _, transport = (part.strip().lower() for part in image_format[:200].partition(';'))
    if 'compresseddepth' in transport or encoding == 'compresseddepth':
        raise ImageError(
            f'An image of format {image_format[:60]!r} is a depth image of the compressedDepth transport, not a '
            'picture. Subscribe to the compressed images of the left and the right camera.'
        )
    start = data[:8].tobytes()
    if start.startswith(_JPEG):
        what, size = 'JPEG', _jpeg_size(data.tobytes())
    elif start == _PNG:
        what, size = 'PNG', _png_size(data)
    else:
        raise ImageError(
            f'A compressed image must be JPEG or PNG, but its format is {image_format[:60]!r} and its {len(data)} '
            f'bytes start with {start.hex(" ") or "nothing"}. Set the format of image_transport to jpeg or png.'
        )
    width, height = size
    if not (width and height) or width * height > MAX_PIXELS:
        raise ImageError(
            f'A {what} image must have 1 to {MAX_PIXELS} pixels, but its header says {width} x {height}. '
            'Publish smaller images, or fix the publisher.'
        )
    if what == 'JPEG' and lacks_data(data.tobytes()):
        raise ImageError(_damaged(what, len(data)))
    cv2 = load_opencv()
    try:
        # Both leave out the rotation of EXIF data.
        only_luma = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(data, only_luma if as_grey and what == 'JPEG' else cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(_damaged(what, len(data))) from error
    if pixels is None or pixels.shape[:2] != (height, width) or pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(_damaged(what, len(data)))
    if pixels.ndim == 2:
        return pixels, '' if transport.endswith('mono8') else _MOSAICS.get(encoding.rstrip('0123456789'), '')
    if pixels.shape[2] == 4:
        return pixels, 'bgra8'
    # A publisher that names rgb8 as what it compressed did not convert to the order of OpenCV.
    return pixels, 'rgb8' if transport.endswith('compressed rgb8') else 'bgr8'


def ends_grey(pixels: np.ndarray) -> bool:
    """Return whether the end of a decoded image, (H, W) or (H, W, 3), is what a JPEG decoder puts for lost data.

    When compressed data is missing before the end marker, OpenCV reports no error: the rest of the image is garbled,
    the data ends early, and the last blocks are exactly grey. Progressive files do not show it.
    """
    num_rows = (len(pixels) - 1) % _BLOCK + 1  # of the last row of blocks
    return bool((pixels[-num_rows:, -_GREY_COLUMNS:] == _GREY).all())


def _damaged(what: str, num_bytes: int) -> str:
    return (
        f'A {what} image of {num_bytes} bytes is truncated or damaged. Check the camera driver and the network for '
        'lost data; publish with reliable QoS.'
    )


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of a JPEG file whose scan is ended by its marker. Raises: ImageError."""
    position, size = 2, None
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:  # fill bytes, markers without content
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from('>H', data, position + 2)
        if marker in _FRAME_MARKERS and position + 9 <= len(data):
            height, width = struct.unpack_from('>HH', data, position + 5)
            size = width, height
        position += 2 + length
        if marker == _START_OF_SCAN and length >= 2:
            # In the compressed data 0xff is always followed by 0 or a restart marker, so this is the end of the scans.
            if size is not None and data.rfind(_END_OF_IMAGE, position) >= 0:
                return size
            break
    raise ImageError(_damaged('JPEG', len(data)))


def _png_size(data: np.ndarray) -> tuple[int, int]:
    """Return (width, height) of a PNG file. Raises: ImageError when its header is not complete."""
    header = data[8:24].tobytes()
    if len(header) < 16 or header[4:8] != b'IHDR':
        raise ImageError(_damaged('PNG', len(data)))
    return struct.unpack_from('>II', header, 8)
