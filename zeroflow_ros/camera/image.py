# SPDX-License-Identifier: Apache-2.0
"""Decode sensor_msgs/Image and sensor_msgs/CompressedImage into 8-bit pixels.

Messages are duck-typed: sensor_msgs of rclpy and messages deserialised by rosbags. They are never modified.

16-bit images are scaled to 8 bits by a fixed shift: all of mono16 by default; see `BitDepth` for cameras that fill
10, 12 or 14 of the 16 bits. The scale never follows the content of a single image, so it does not flicker.
"""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros.camera.compressed_image import decode_compressed
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.errors import ImageError

_MAX_NAME = 256
_BAYER = {'rggb': 'BG', 'bggr': 'RG', 'gbrg': 'GR', 'grbg': 'GB'}  # OpenCV names a mosaic by pixels (1, 1) and (1, 2)
# encoding: (channels, bytes per channel, OpenCV conversion to RGB or '')
_PACKED = {
    'rgb8': (3, 1, ''), 'bgr8': (3, 1, 'BGR2RGB'), 'rgba8': (4, 1, 'RGBA2RGB'), 'bgra8': (4, 1, 'BGRA2RGB'),
    'rgb16': (3, 2, ''), 'bgr16': (3, 2, 'BGR2RGB'), 'rgba16': (4, 2, 'RGBA2RGB'), 'bgra16': (4, 2, 'BGRA2RGB'),
    'mono8': (1, 1, ''), 'mono16': (1, 2, ''), '8uc1': (1, 1, ''), '16uc1': (1, 2, ''),
    '8uc3': (3, 1, 'BGR2RGB'), '8uc4': (4, 1, 'BGRA2RGB'), '16uc3': (3, 2, 'BGR2RGB'),
    **{f'bayer_{order}8': (1, 1, f'Bayer{code}2RGB') for order, code in _BAYER.items()},
    **{f'bayer_{order}16': (1, 2, f'Bayer{code}2RGB') for order, code in _BAYER.items()},
    'yuv422': (2, 1, 'YUV2RGB_UYVY'), 'uyvy': (2, 1, 'YUV2RGB_UYVY'),
    'yuv422_yuy2': (2, 1, 'YUV2RGB_YUY2'), 'yuyv': (2, 1, 'YUV2RGB_YUY2'), 'yuy2': (2, 1, 'YUV2RGB_YUY2'),
}  # fmt: skip
_PLANAR = {'nv12': 'YUV2RGB_NV12', 'nv21': 'YUV2RGB_NV21', 'nv24': 'YUV2RGB_NV12'}
ENCODINGS = (*_PACKED, *_PLANAR)


@dataclass(frozen=True)
class Image:
    """A picture.

    pixels: (H, W, 3) uint8 RGB or (H, W) uint8 grey; it may share the memory of its message.
    stamp_ns: ROS time [ns]. frame_id: optical frame of the camera.
    """

    pixels: np.ndarray
    stamp_ns: int = 0
    frame_id: str = ''

    def __post_init__(self):
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
            raise ValueError(f'pixels must be (H, W, 3) or (H, W) uint8, got {shape} {dtype}')

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) [px]."""
        return self.pixels.shape[1], self.pixels.shape[0]


class BitDepth:
    """The number of bits that the 16-bit images of a camera use: 8, 10, 12, 14 or 16.

    It is the smallest that holds every value seen so far, so it only grows, at most four times in a run, and the
    brightness does not change from frame to frame. Both cameras of a stereo pair must share one.
    """

    def __init__(self, bits: int = 8):
        self.bits = bits

    def see(self, pixels: np.ndarray) -> None:
        """Take note of an image of uint16."""
        needed = int(pixels.max(initial=0)).bit_length()
        self.bits = max(self.bits, min(needed + needed % 2, 16))


def decode_image(msg, *, bit_depth: BitDepth | None = None, as_grey: bool = False) -> Image:
    """Decode an Image or CompressedImage message.

    Encodings of Image: see ENCODINGS. 8UC3 and 8UC4 are taken as BGR, as OpenCV users publish them. Row padding and
    either byte order are read; the last row may lack its padding, and a wrong step is ignored where the rows without
    padding are exactly the data. YUV is BT.601 of limited range. Chroma of nv24 is read at half resolution.
    CompressedImage: JPEG and PNG, recognised by their data.
    bit_depth: of 16-bit images; it is updated by this one. None: all 16 bits, as ROS defines mono16.
    as_grey: return the brightness of colour images (BT.601); JPEG is decoded in half of the time.

    Raises: ImageError for an encoding that is not known, data that does not fit the header, sizes of 0 or beyond the
    limit, truncated JPEG and PNG. Sizes are checked before memory is allocated. ConfigError without OpenCV.
    """
    stamp_ns, frame_id = read_stamp_ns(msg), read_frame_id(msg)
    if not hasattr(msg, 'encoding'):
        pixels, conversion = decode_compressed(_bytes(msg), str(msg.format), as_grey=as_grey)
        conversion = _PACKED[conversion][2] if conversion else ''
    elif (name := str(msg.encoding).strip().lower()) in _PACKED:
        pixels, conversion = _packed(msg, name), _PACKED[name][2]
    elif name in _PLANAR:
        pixels, conversion = _planar(msg, name), _PLANAR[name]
    else:
        raise ImageError(_unknown(str(msg.encoding)))
    if pixels.dtype == np.uint16:
        if bit_depth is not None:
            bit_depth.see(pixels)
        pixels = (pixels >> ((16 if bit_depth is None else bit_depth.bits) - 8)).astype(np.uint8)
    if conversion:
        cv2 = load_opencv()
        try:
            pixels = cv2.cvtColor(np.ascontiguousarray(pixels), getattr(cv2, f'COLOR_{conversion}'))
        except cv2.error as error:
            width, height = pixels.shape[1], pixels.shape[0]
            raise ImageError(
                f'An image of {width} x {height} pixels cannot be converted to RGB by {conversion}. '
                'Publish rgb8, bgr8 or mono8.'
            ) from error
    if as_grey and pixels.ndim == 3:
        cv2 = load_opencv()
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    return Image(pixels, stamp_ns, frame_id)


def read_stamp_ns(msg) -> int:
    """Return the stamp of a message [ns]."""
    return int(msg.header.stamp.sec) * 1_000_000_000 + int(msg.header.stamp.nanosec)


def read_frame_id(msg) -> str:
    """Return the frame of an image. Raises: ImageError when it is too long to be a name."""
    frame_id = msg.header.frame_id.lstrip('/')
    if len(frame_id) > _MAX_NAME:
        raise ImageError(
            f'The frame_id of an image must have at most {_MAX_NAME} characters, but has {len(frame_id)}: '
            f'{frame_id[:40]!r}... Set it in the driver.'
        )
    return frame_id


def _bytes(msg) -> np.ndarray:
    try:
        return np.frombuffer(msg.data, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise ImageError(f'The data of an image must be a buffer of bytes, got {type(msg.data).__name__}.') from error


def _packed(msg, name: str) -> np.ndarray:
    """Return the pixels of an encoding with one plane, (H, W) or (H, W, channels), uint8 or uint16; a view."""
    channels, num_bytes, _ = _PACKED[name]
    width, height = _size(msg)
    if channels == 2 and width % 2:
        raise ImageError(
            f'An image of encoding {msg.encoding} must have an even width, got {width} x {height}. Fix the publisher.'
        )
    if name.startswith('bayer_') and min(width, height) < 3:
        raise ImageError(f'A mosaic of {width} x {height} pixels is too small to have colours. Fix the publisher.')
    rows = _rows(msg, _bytes(msg), height, width * channels * num_bytes)
    if num_bytes == 2:
        order = '>' if msg.is_bigendian else '<'
        rows = np.ascontiguousarray(rows).view(f'{order}u2').astype(np.uint16, copy=False)
    return rows if channels == 1 else rows.reshape(height, width, channels)


def _planar(msg, name: str) -> np.ndarray:
    """Return the luma plane and the interleaved chroma below it, (1.5 H, W) uint8.

    height of the message is that of the picture; step is that of a luma row, or of a packed row (1.5 or 3 W).
    """
    width, height = _size(msg)
    if width % 2 or height % 2:
        raise ImageError(
            f'An image of encoding {msg.encoding} must have an even width and height, got {width} x {height}. '
            'Fix the publisher.'
        )
    data = _bytes(msg)
    chroma_rows = height * 2 if name == 'nv24' else height // 2  # rows of `width` bytes
    rows = _rows(msg, data, height + chroma_rows, width)
    if name != 'nv24':
        return rows
    chroma = rows[height:].reshape(height, width, 2)[::2, ::2].reshape(height // 2, width)
    return np.concatenate([rows[:height], chroma])


def _size(msg) -> tuple[int, int]:
    width, height = int(msg.width), int(msg.height)
    if width <= 0 or height <= 0:
        raise ImageError(f'An image must have pixels, got width {width} and height {height}. Fix the publisher.')
    return width, height


def _rows(msg, data: np.ndarray, num_rows: int, row_bytes: int) -> np.ndarray:
    """Return rows without their padding, (num_rows, row_bytes) uint8; a view."""
    step = int(msg.step)
    if len(data) == num_rows * row_bytes:
        return data.reshape(num_rows, row_bytes)
    without_last_padding = (num_rows - 1) * step + row_bytes
    if step < row_bytes or len(data) not in (without_last_padding, num_rows * step):
        raise ImageError(
            f'An image of {int(msg.width)} x {int(msg.height)} pixels with encoding {msg.encoding} and step {step} '
            f'needs {num_rows * max(step, row_bytes)} bytes ({num_rows} rows of at least {row_bytes}), but has '
            f'{len(data)}. The publisher must set step >= width * bytes per pixel and send height * step bytes.'
        )
    return np.ndarray((num_rows, row_bytes), np.uint8, buffer=data, strides=(step, 1))


def _unknown(encoding: str) -> str:
    if encoding.upper().startswith(('32F', '64F')):
        what = f'is {encoding}, which is a depth image or a result, not a picture'
    else:
        what = f'is {encoding[:40]!r}, which is not known'
    return (
        f'The encoding of an image {what}. Known are {", ".join(ENCODINGS)}. Subscribe to the images of the camera, or '
        'convert them with image_proc.'
    )
