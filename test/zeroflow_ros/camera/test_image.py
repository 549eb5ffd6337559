# SPDX-License-Identifier: Apache-2.0
import array
from dataclasses import replace

import numpy as np
import pytest
from image_messages import compressed, image

from zeroflow_ros.camera.image import ENCODINGS, BitDepth, Image, decode_image
from zeroflow_ros.errors import ImageError

cv2 = pytest.importorskip('cv2', reason='needs OpenCV')
COLOUR = np.array([200, 100, 40], np.uint8)  # RGB
RGB = np.broadcast_to(COLOUR, (4, 6, 3))
GREY = np.arange(24, dtype=np.uint8).reshape(4, 6)
ALPHA = np.full((4, 6, 1), 7, np.uint8)
Y, U, V = 122, 87, 176  # BT.601, limited range, of COLOUR
ROW, COLUMN = np.mgrid[:8, :8]


def mosaic(order):
    """(8, 8) of COLOUR behind a colour filter; order: of the pixels (0, 0), (0, 1), (1, 0), (1, 1)."""
    return COLOUR[['rgb'.index(letter) for letter in order]].reshape(2, 2)[ROW % 2, COLUMN % 2]


def pattern(*values, rows=4, columns=6):
    """(rows, columns, 2) of values that repeat along the row."""
    return np.resize(np.array(values, np.uint8), (rows, columns, 2))


# label, pixels of the message, its encoding, RGB or grey expected, tolerance [grey levels]
TABLE = [
    ('one pixel', RGB[:1, :1], 'rgb8', COLOUR, 0),
    ('rgb8', RGB, 'rgb8', COLOUR, 0),
    ('upper case', RGB, 'RGB8', COLOUR, 0),
    ('bgr8', RGB[..., ::-1], 'bgr8', COLOUR, 0),
    ('8UC3 is BGR', RGB[..., ::-1], '8UC3', COLOUR, 0),
    ('rgba8', np.dstack([RGB, ALPHA]), 'rgba8', COLOUR, 0),
    ('bgra8', np.dstack([RGB[..., ::-1], ALPHA]), 'bgra8', COLOUR, 0),
    ('8UC4', np.dstack([RGB[..., ::-1], ALPHA]), '8UC4', COLOUR, 0),
    ('rgb16', RGB * np.uint16(256), 'rgb16', COLOUR, 0),
    ('bgr16', RGB[..., ::-1] * np.uint16(256), 'bgr16', COLOUR, 0),
    ('mono8', GREY, 'mono8', GREY, 0),
    ('8UC1', GREY, '8UC1', GREY, 0),
    ('mono16', GREY * np.uint16(257), 'mono16', GREY, 0),
    ('16UC1', GREY * np.uint16(256), '16UC1', GREY, 0),
    *((f'bayer_{order}8', mosaic(order), f'bayer_{order}8', COLOUR, 0) for order in ('rggb', 'bggr', 'gbrg', 'grbg')),
    ('bayer 16', mosaic('rggb') * np.uint16(256), 'bayer_rggb16', COLOUR, 0),
    *((name, pattern(U, Y, V, Y), name, COLOUR, 3) for name in ('yuv422', 'uyvy')),  # 3: rounded Y, U and V
    *((name, pattern(Y, U, Y, V), name, COLOUR, 3) for name in ('yuv422_yuy2', 'yuyv')),
]  # fmt: skip


@pytest.mark.parametrize('big', [False, True], ids=['little', 'big endian'])
@pytest.mark.parametrize('padding', [0, 2, 5])
@pytest.mark.parametrize(
    ('pixels', 'encoding', 'expected', 'tolerance'), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE]
)
def test_every_encoding_gives_the_colours(pixels, encoding, expected, tolerance, padding, big):
    decoded = decode_image(image(pixels, encoding, padding=padding, big=big))
    assert decoded.pixels.dtype == np.uint8 and decoded.size == (pixels.shape[1], pixels.shape[0])
    assert decoded.pixels.ndim == (2 if expected is GREY else 3)
    assert np.abs(decoded.pixels.astype(int) - expected).max() <= tolerance
    assert (decoded.stamp_ns, decoded.frame_id) == (12_000_000_345, 'left_optical')


@pytest.mark.parametrize('padding', [0, 3])
@pytest.mark.parametrize(('name', 'chroma_rows', 'chroma'), [('nv12', 2, (U, V)), ('nv21', 2, (V, U)),
                                                             ('nv24', 8, (U, V))])  # fmt: skip
def test_planes_of_luma_and_chroma(name, chroma_rows, chroma, padding):
    planes = np.vstack([np.full((4, 6), Y, np.uint8), np.resize(np.array(chroma, np.uint8), (chroma_rows, 6))])
    decoded = decode_image(image(planes, name, padding=padding, height=4))
    assert decoded.size == (6, 4)
    assert np.abs(decoded.pixels.astype(int) - COLOUR).max() <= 3


@pytest.mark.parametrize(
    'msg',
    [
        image(RGB, 'rgb8'),
        image(RGB[..., ::-1], 'bgr8', padding=3),
        image(mosaic('rggb'), 'bayer_rggb8'),
        image(RGB * np.uint16(256), 'rgb16'),
        image(GREY, 'mono8'),
        compressed(cv2.imencode('.png', RGB[..., ::-1])[1].tobytes()),
        compressed(cv2.imencode('.jpg', np.resize(COLOUR[::-1], (16, 16, 3)))[1].tobytes()),
    ],
    ids=['rgb8', 'bgr8', 'mosaic', 'rgb16', 'mono8', 'PNG', 'JPEG'],
)
def test_colour_as_grey(msg):
    pixels = decode_image(msg, as_grey=True).pixels
    if msg.data == image(GREY, 'mono8').data:
        assert pixels.tolist() == GREY.tolist()
    else:
        brightness = COLOUR @ (0.299, 0.587, 0.114)
        assert pixels.ndim == 2 and np.abs(pixels - brightness).max() <= 1.5  # two roundings


def test_every_encoding_is_tested():
    tested = {row[2].lower() for row in TABLE} | {'nv12', 'nv21', 'nv24'}
    assert set(ENCODINGS) - tested == {'rgba16', 'bgra16', '16uc3', 'yuy2', 'bayer_bggr16', 'bayer_gbrg16',
                                       'bayer_grbg16'}  # fmt: skip


@pytest.mark.parametrize('container', [bytes, bytearray, lambda d: array.array('B', d),
                                       lambda d: np.frombuffer(d, np.uint8)],
                         ids=['bytes', 'bytearray', 'rclpy', 'rosbags'])  # fmt: skip
def test_data_of_every_middleware(container):
    msg = image(GREY, 'mono8')
    msg.data = container(msg.data)
    assert decode_image(msg).pixels.tolist() == GREY.tolist()


def test_last_row_without_padding_and_a_wrong_step():
    msg = image(GREY, 'mono8', padding=4)
    msg.data = msg.data[:-4]
    assert decode_image(msg).pixels.tolist() == GREY.tolist()
    msg = image(GREY, 'mono8')
    msg.step = 0
    assert decode_image(msg).pixels.tolist() == GREY.tolist()


def changed(msg, **values):
    for name, value in values.items():
        setattr(msg, name, value)
    return msg


@pytest.mark.parametrize(
    ('msg', 'says'),
    [
        (changed(image(GREY, 'mono8'), width=0), 'width 0'),
        (changed(image(GREY, 'mono8'), height=0, data=b''), 'height 0'),
        (changed(image(GREY, 'mono8'), height=2**32 - 1, width=2**32 - 1), 'needs .* bytes'),
        (changed(image(GREY, 'mono8'), data=b''), 'but has 0'),
        (changed(image(GREY, 'mono8'), data=bytes(23)), 'needs 24 bytes .* but has 23'),
        (changed(image(GREY, 'mono8'), data=bytes(25)), 'but has 25'),
        (changed(image(GREY, 'mono8'), step=5, data=bytes(20)), 'rows of at least 6'),
        (changed(image(GREY, 'mono8'), data='text'), 'buffer of bytes'),
        (image(GREY, '32FC1'), 'depth image'),
        (image(GREY, 'rgb'), "'rgb', which is not known. Known are rgb8, bgr8"),
        (image(GREY, ''), 'not known'),
        (image(GREY, 'x' * 100_000), "'xxx"),
        (image(pattern(U, Y, V, Y, columns=5), 'yuv422'), 'even width'),
        (image(GREY[:3], 'nv12'), 'even width and height'),
        (image(GREY[:1, :1], 'bayer_rggb8'), 'too small'),
        (image(GREY, 'mono8', frame='f' * 300), 'at most 256 characters'),
        (compressed(b''), 'start with nothing'),
        (compressed(b'\x00\x01\x02\x03'), 'start with 00 01 02 03'),
        (compressed(b'x', '32FC1; compressedDepth png'), 'compressedDepth'),
        (compressed(b'x', '16UC1; compressedDepth'), 'compressedDepth'),
    ],
)
def test_broken_images_are_refused(msg, says):
    with pytest.raises(ImageError, match=says) as raised:
        decode_image(msg)
    assert len(str(raised.value)) < 800


def test_cameras_of_12_bits_keep_their_brightness():
    depth = BitDepth()
    dark, bright, dark_again = (np.full((4, 6), value, np.uint16) for value in (900, 4000, 900))
    first = decode_image(image(dark, 'mono16'), bit_depth=depth).pixels
    decode_image(image(bright, 'mono16'), bit_depth=depth)
    assert depth.bits == 12
    last = decode_image(image(dark_again, 'mono16'), bit_depth=depth).pixels
    assert (first[0, 0], last[0, 0]) == (900 >> 2, 900 >> 4)
    assert decode_image(image(bright, 'mono16'), bit_depth=depth).pixels[0, 0] == 4000 >> 4


@pytest.mark.parametrize(('value', 'bits'), [(0, 8), (255, 8), (256, 10), (1023, 10), (1024, 12), (4095, 12),
                                             (16383, 14), (16384, 16), (65535, 16)])  # fmt: skip
def test_the_depth_holds_the_largest_value(value, bits):
    depth = BitDepth()
    pixels = decode_image(image(np.full((2, 2), value, np.uint16), 'mono16'), bit_depth=depth).pixels
    assert depth.bits == bits and pixels[0, 0] == value >> (bits - 8)


def test_an_image_checks_itself():
    with pytest.raises(ValueError, match='uint8'):
        Image(GREY.astype(float))
    with pytest.raises(ValueError, match=r'\(H, W\)'):
        replace(Image(GREY), pixels=np.zeros((2, 2, 4), np.uint8))
