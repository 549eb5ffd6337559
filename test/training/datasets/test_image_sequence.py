# SPDX-License-Identifier: Apache-2.0
"""Images of one camera from folders and videos: order, sizes, grey ones, and the focal length."""

import math

import numpy as np
import pytest
from kitti_files import png, write

from training.datasets.image_sequence import BASELINE, open_images, parse_focal
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.errors import ConfigError, DataError

FOCAL = '50'
SIZE = (24, 32)  # rows, columns


def image(value: int, size=SIZE) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def write_folder(folder, numbers=(1, 2, 10), **others):
    for number in numbers:
        write(folder / f'frame_{number}.png', png(image(number)))
    for name, content in others.items():
        write(folder / f'{name}.png', content)
    return folder


def write_video(path, num=6, size=SIZE):
    cv2 = load_opencv()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 20.0, size[::-1])
    for number in range(num):
        writer.write(image(40 * number, size))
    writer.release()
    return path


def test_images_of_a_folder_come_in_the_order_of_their_numbers(tmp_path):
    write(write_folder(tmp_path) / 'notes.txt', 'no image')
    images = open_images(str(tmp_path), FOCAL)
    assert [(name, int(pixels[0, 0, 0])) for name, pixels in images] == [
        ('frame_1', 1),
        ('frame_2', 2),
        ('frame_10', 10),
    ]
    assert images.interval is None and (images.camera.width, images.camera.height) == SIZE[::-1]


def test_images_are_rgb_and_grey_ones_have_equal_channels(tmp_path):
    colour = image(0)
    colour[..., 0] = 200
    grey = np.full(SIZE, 77, np.uint8)
    deep = np.full(SIZE, 77 * 256, np.uint16)
    found = list(open_images(str(write_folder(tmp_path, (), a=png(colour), b=png(grey), c=png(deep))), FOCAL))
    assert [pixels[3, 4].tolist() for _, pixels in found] == [[200, 0, 0], [77] * 3, [77] * 3]


def test_every_nth_frame_of_a_video_with_its_interval(tmp_path):
    video = write_video(tmp_path / 'drive.avi')
    images = open_images(f'{video}?every=2&first=1', FOCAL)
    found = list(images)
    assert [name for name, _ in found] == ['000001', '000003', '000005'] and images.interval == pytest.approx(0.1)
    for (_, pixels), number in zip(found, (1, 3, 5), strict=True):
        np.testing.assert_allclose(pixels, 40 * number, atol=3)  # JPEG


@pytest.mark.parametrize(
    'text, numbers',
    [
        ('100', (100, 100, 319.5, 239.5)),
        ('100,110,300,200', (100, 110, 300, 200)),
        ('90deg', (320, 320, 319.5, 239.5)),
    ],
)
def test_focal_lengths(text, numbers):
    camera = parse_focal(text, 640, 480, 'images')
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx(numbers) and camera.baseline == BASELINE


@pytest.mark.parametrize('text', ['nan', '0', '-5', 'wide', '1,2', '1,2,3', '1,2,inf,4', '180deg', 'deg', '1,2,3,4,5'])
def test_what_is_no_focal_length(text):
    with pytest.raises(ConfigError, match=r'is no focal length of images of 640 x 480 px\. Give --focal FX'):
        parse_focal(text, 640, 480, 'images')


def test_without_a_focal_length_there_are_no_metres(tmp_path):
    with pytest.raises(ConfigError, match=r'does not say its focal length.*--focal 60deg'):
        open_images(str(write_video(tmp_path / 'drive.avi')), '')
    assert math.isclose(parse_focal('60deg', 1000, 10, '').fx, 866.0254, rel_tol=1e-6)


def test_images_of_another_size_are_named(tmp_path):
    folder = write_folder(tmp_path, (1, 2, 3, 4), frame_5=png(image(0, (24, 30))))
    images = open_images(str(folder), FOCAL)
    with pytest.raises(DataError, match='frame_5 is 30 x 24 px, the first image 32 x 24'):
        list(images)


@pytest.mark.parametrize(
    'make, says',
    [
        (lambda folder: folder / 'missing', 'neither a folder with images nor a video'),
        (lambda folder: write_folder(folder, (1, 2)), r'has 2 images \(.*\.png.*\) with every=1'),
        (lambda folder: write_folder(folder, (1, 2, 3), frame_0=b'text'), 'frame_0.png is no image'),
        (lambda folder: write_folder(folder, (1, 2, 3), frame_0=b''), 'frame_0.png is no image'),
        (lambda folder: write(folder / 'drive.mp4', b'not a video'), 'no video that OpenCV can read'),
        (lambda folder: write_video(folder / 'drive.avi', 2), 'has 2 frames that can be decoded'),
        (lambda folder: f'{write_folder(folder)}?every=0', 'every of images is 1 or more'),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, make, says):
    with pytest.raises((DataError, ConfigError), match=says):
        open_images(str(make(tmp_path)), FOCAL)
