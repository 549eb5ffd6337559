# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from image_messages import compressed

from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.image import decode_image
from zeroflow_ros.camera.jpeg_scan import lacks_data
from zeroflow_ros.errors import ImageError

cv2 = pytest.importorskip('cv2', reason='needs OpenCV')

pytestmark = pytest.mark.skipif(numba_support.numba_kernels is None, reason='needs numba')

RNG = np.random.default_rng(0)
PICTURE = cv2.resize(RNG.integers(0, 256, (60, 80, 3), np.uint8), (315, 235), interpolation=cv2.INTER_CUBIC)


def jpeg(picture=PICTURE, *options):
    return cv2.imencode('.jpg', picture, options)[1].tobytes()


PLAIN = jpeg()
RESTARTS = jpeg(PICTURE, cv2.IMWRITE_JPEG_RST_INTERVAL, 5)
GOOD = [
    ('plain', PLAIN),
    ('no chroma subsampling', jpeg(PICTURE, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)),
    ('chroma halved in a row', jpeg(PICTURE, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422)),
    ('tables of its own', jpeg(PICTURE, cv2.IMWRITE_JPEG_OPTIMIZE, 1)),
    ('grey', jpeg(PICTURE[..., 0])),
    ('restart markers', RESTARTS),
    ('coarse', jpeg(PICTURE, cv2.IMWRITE_JPEG_QUALITY, 5)),
    ('best quality', jpeg(PICTURE, cv2.IMWRITE_JPEG_QUALITY, 100)),
    ('one colour', jpeg(np.full((16, 24, 3), 90, np.uint8))),
    ('a single pixel', jpeg(np.full((1, 1), 90, np.uint8))),
    ('zeros after the end', PLAIN + bytes(100)),
    ('filled up before the end', PLAIN[:-2] + bytes(6) + PLAIN[-2:]),
    ('progressive: not looked at', jpeg(PICTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
]


@pytest.mark.parametrize('data', [data for _, data in GOOD], ids=[name for name, _ in GOOD])
def test_a_whole_file_lacks_nothing(data):
    assert not lacks_data(data)


def start_of_data(data):
    place = data.index(b'\xff\xda')
    return place + 2 + int.from_bytes(data[place + 2 : place + 4], 'big')


@pytest.mark.parametrize('num_bytes, least', [(4000, 1.0), (1400, 1.0), (300, 0.8)])
@pytest.mark.parametrize('what', ['missing', 'noise'])
def test_a_hole_in_the_data_is_found(num_bytes, least, what):
    places = np.linspace(start_of_data(PLAIN), len(PLAIN) - num_bytes - 3, 20).astype(int)
    noise = RNG.integers(0, 255, num_bytes, np.uint8).tobytes().replace(b'\xff', b'\0') if what == 'noise' else b''
    found = [lacks_data(PLAIN[:place] + noise + PLAIN[place + num_bytes :]) for place in places]
    assert np.mean(found) >= least


def test_a_frame_with_a_hole_is_refused():
    place = start_of_data(PLAIN) + 2000
    with pytest.raises(ImageError, match='truncated or damaged'):
        decode_image(compressed(PLAIN[:place] + PLAIN[place + 1500 :], 'jpeg'))


def test_a_lost_restart_interval_is_found():
    first = RESTARTS.index(b'\xff\xd1')
    second = RESTARTS.index(b'\xff\xd2')
    assert lacks_data(RESTARTS[:first] + RESTARTS[second:])
    assert lacks_data(RESTARTS[: first + 2] + RESTARTS[second:])


def test_without_numba_nothing_is_said(monkeypatch):
    monkeypatch.setattr(numba_support, 'numba_kernels', None)
    assert not lacks_data(PLAIN[:5000] + PLAIN[7000:])


@pytest.mark.parametrize('place', range(2, 620, 41))
def test_damaged_headers_raise_nothing(place):
    for value in (0, 0xFF, 0x11):
        data = bytearray(PLAIN)
        data[place : place + 2] = bytes([value, value])
        lacks_data(bytes(data))
        lacks_data(bytes(data[:place]))
