# SPDX-License-Identifier: Apache-2.0
import struct
import zlib

import numpy as np
import pytest
from image_messages import compressed

from zeroflow_ros.camera.image import decode_image
from zeroflow_ros.errors import ImageError

cv2 = pytest.importorskip('cv2', reason='needs OpenCV')
RNG = np.random.default_rng(3)
PICTURE = cv2.resize(RNG.integers(0, 255, (8, 16, 3), np.uint8), (96, 64))  # BGR
TOLERANCE = 8  # grey levels on average; JPEG of quality 95 stays below 4


def encoded(extension, pixels=PICTURE, *options):
    return cv2.imencode(extension, pixels, list(options))[1].tobytes()


JPEG, PNG = encoded('.jpg'), encoded('.png')
PROGRESSIVE = encoded('.jpg', PICTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
RESTARTS = encoded('.jpg', PICTURE, cv2.IMWRITE_JPEG_RST_INTERVAL, 4)
GREY = np.ascontiguousarray(PICTURE[..., 1])
EXIF_ROTATED = (
    JPEG[:2] + b'\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0' + JPEG[2:]
)


# label, data, format of the message, RGB or grey expected
TABLE = [
    ('rgb8 camera', JPEG, 'rgb8; jpeg compressed bgr8', PICTURE[..., ::-1]),
    ('bgr8 camera', JPEG, 'bgr8; jpeg compressed bgr8', PICTURE[..., ::-1]),
    ('jpeg', JPEG, 'jpeg', PICTURE[..., ::-1]),
    ('jpg', JPEG, 'jpg', PICTURE[..., ::-1]),
    ('no format', JPEG, '', PICTURE[..., ::-1]),
    ('wrong format: the data counts', JPEG, 'png', PICTURE[..., ::-1]),
    ('compressed without conversion', JPEG, 'rgb8; jpeg compressed rgb8', PICTURE),
    ('mosaic camera', JPEG, 'bayer_rggb8; jpeg compressed bgr8', PICTURE[..., ::-1]),
    ('progressive', PROGRESSIVE, 'jpeg', PICTURE[..., ::-1]),
    ('restart markers', RESTARTS, 'jpeg', PICTURE[..., ::-1]),
    ('padded by the driver', JPEG + bytes(64), 'jpeg', PICTURE[..., ::-1]),
    ('rotation of EXIF data is left out, as the camera model has it', EXIF_ROTATED, 'jpeg', PICTURE[..., ::-1]),
    ('grey JPEG', encoded('.jpg', GREY), 'mono8; jpeg compressed ', GREY),
    ('png', PNG, 'rgb8; png compressed bgr8', PICTURE[..., ::-1]),
    ('png only', PNG, 'png', PICTURE[..., ::-1]),
    ('grey PNG', encoded('.png', GREY), 'mono8; png compressed ', GREY),
    ('grey PNG of 16 bits', encoded('.png', GREY * np.uint16(256)), 'mono16; png compressed ', GREY),
    ('PNG of 16 bits', encoded('.png', PICTURE * np.uint16(256)), 'bgr16; png compressed bgr16', PICTURE[..., ::-1]),
    ('PNG with alpha', encoded('.png', np.dstack([PICTURE, GREY])), 'rgba8; png compressed bgra8', PICTURE[..., ::-1]),
    ('mosaic camera in grey', encoded('.jpg', GREY), 'bayer_rggb8; jpeg compressed mono8', GREY),
]


@pytest.mark.parametrize(('data', 'image_format', 'expected'), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE])
def test_every_format_gives_the_colours(data, image_format, expected):
    decoded = decode_image(compressed(data, image_format))
    assert decoded.pixels.shape == expected.shape and decoded.pixels.dtype == np.uint8
    assert np.abs(decoded.pixels.astype(int) - expected).mean() < TOLERANCE
    assert (decoded.stamp_ns, decoded.frame_id) == (12_000_000_345, 'left_optical')


def test_a_mosaic_in_a_png_is_converted():
    filtered = np.zeros((8, 8), np.uint8)
    filtered[::2, ::2] = 200  # red
    decoded = decode_image(compressed(encoded('.png', filtered), 'bayer_rggb8; png compressed '))
    assert decoded.pixels.shape == (8, 8, 3) and decoded.pixels[4, 4].tolist() == [200, 0, 0]


@pytest.mark.parametrize('data', [JPEG, PROGRESSIVE, RESTARTS, PNG], ids=['JPEG', 'progressive', 'restarts', 'PNG'])
def test_a_truncated_file_is_never_a_picture_with_a_grey_half(data):
    for length in (*range(0, len(data) - 1, 97), len(data) - 50, len(data) - 2, len(data) - 1):
        with pytest.raises(ImageError, match=r'truncated or damaged|start with'):
            decode_image(compressed(data[:length], 'jpeg'))
        if len(data) // 2 < length <= len(data) - 50:  # PNG: beyond that only the checksum of no data is missing
            with pytest.raises(ImageError, match='truncated or damaged'):
                decode_image(compressed(data[:length] + bytes(len(data) - length), 'jpeg'))


def with_size(width, height):
    """A JPEG and a PNG file whose headers give another size."""
    place = JPEG.index(b'\xff\xc0') + 5
    header = b'IHDR' + struct.pack('>II', width, height) + PNG[24:29]
    png = PNG[:12] + header + struct.pack('>I', zlib.crc32(header)) + PNG[33:]
    return JPEG[:place] + struct.pack('>HH', min(height, 65535), min(width, 65535)) + JPEG[place + 4 :], png


@pytest.mark.parametrize('which', [0, 1], ids=['JPEG', 'PNG'])
@pytest.mark.parametrize('size', [(65535, 65535), (8193, 4096), (0, 64), (64, 0), (2**31 - 1, 2**31 - 1)])
def test_sizes_are_checked_before_memory_is_allocated(size, which):
    with pytest.raises(ImageError, match='must have 1 to 33554432 pixels'):
        decode_image(compressed(with_size(*size)[which], 'jpeg'))


def test_files_of_other_kinds_are_named():
    for data in (b'GIF89a' + bytes(20), b'\x00\x00\x00\x01\x67\x42', b'II*\x00' + bytes(20)):
        with pytest.raises(ImageError, match=f"format is 'h264' and its {len(data)} bytes start with"):
            decode_image(compressed(data, 'h264'))


def test_a_png_without_its_header():
    with pytest.raises(ImageError, match='truncated or damaged'):
        decode_image(compressed(PNG[:8] + PNG[33:], 'png'))
