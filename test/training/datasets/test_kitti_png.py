# SPDX-License-Identifier: Apache-2.0
"""The 16-bit PNG files of KITTI: values, rounding, limits."""

import numpy as np
import pytest
from kitti_files import png, write

from training.datasets.kitti_png import decode, encode_disparity, encode_flow, read_disparity, read_flow, read_image
from zeroflow_ros.errors import DataError

NAN = np.nan


@pytest.mark.parametrize(
    'label, disparity, stored',
    [
        ('none', NAN, 0),
        ('zero is not none', 0.0, 1),
        ('negative', -3.0, 1),
        ('one pixel', 1.0, 256),
        ('rounded up', 1.0 + 0.6 / 256, 257),
        ('rounded down', 1.0 + 0.4 / 256, 256),
        ('too large', 400.0, 65535),
    ],
)
def test_disparities_are_rounded_and_clipped(tmp_path, label, disparity, stored):
    content = encode_disparity(np.array([[disparity]], np.float32))
    assert decode(content, '').tolist() == [[stored]] and decode(content, '').dtype == np.uint16
    back = read_disparity(write(tmp_path / 'd.png', content))
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, [[stored / 256 if stored else NAN]])


@pytest.mark.parametrize(
    'label, flow, stored',
    [
        ('none', (NAN, 1), (0, 0, 0)),
        ('zero', (0, 0), (32768, 32768, 1)),
        ('u is red, v is green', (1, -2), (32832, 32640, 1)),
        ('rounded', (0.6 / 64, -0.6 / 64), (32769, 32767, 1)),
        ('too long', (600, -600), (65535, 0, 1)),
    ],
)
def test_flow_is_rounded_and_clipped(tmp_path, label, flow, stored):
    content = encode_flow(np.array([[flow]], np.float32))
    assert decode(content, '')[0, 0, ::-1].tolist() == list(stored)
    [[back]] = read_flow(write(tmp_path / 'f.png', content))
    expected = [(part - 32768) / 64 for part in stored[:2]] if stored[2] else [NAN, NAN]
    np.testing.assert_array_equal(back, np.float32(expected))


def test_what_another_writer_wrote_is_read(tmp_path):
    image = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(read_image(write(tmp_path / 'rgb.png', png(image))), image)
    np.testing.assert_array_equal(read_image(write(tmp_path / 'grey.png', png(image[..., 0]))), image[..., 0])
    flow = np.array([[[32768 + 64, 32768, 1], [5, 6, 0]]], np.uint16)
    np.testing.assert_array_equal(read_flow(write(tmp_path / 'f.png', png(flow))), [[[1, 0], [NAN, NAN]]])
    assert encode_flow(np.array([[[1, 0], [NAN, 0]]], np.float32)) == encode_flow(read_flow(tmp_path / 'f.png'))


def test_damaged_and_enormous_files_are_refused():
    content = png(np.random.default_rng(0).integers(0, 65536, (6, 8, 3)).astype(np.uint16))
    for damaged in (b'', b'text', content[:20], content[:-13], content[:60] + bytes([content[60] ^ 1]) + content[61:]):
        with pytest.raises(DataError, match=r'flow\.png is not a PNG, or is damaged'):
            decode(damaged, 'flow.png')
    with pytest.raises(DataError, match='says it has 65536 x 65536 pixels'):
        decode(content[:16] + bytes([0, 1, 0, 0, 0, 1, 0, 0]) + content[24:], 'flow.png')
