# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
from truth_images import CAMERA, FRAME_ID, HEIGHT, WIDTH, frame, image_message, info_message, picture

pytest.importorskip('cv2', reason='camera images need OpenCV')

from zeroflow_ros.camera.mono import ImageFeed, MonoFrame, mono_camera
from zeroflow_ros.camera.mono_checks import MonoChecks
from zeroflow_ros.camera.mono_reader import MonoReader
from zeroflow_ros.camera.stereo_pairing import FrameDrop
from zeroflow_ros.camera.stereo_reader import CalibrationError
from zeroflow_ros.camera.stereo_topics import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, find_mono_topics
from zeroflow_ros.errors import ConfigError, ImageError


def messages(number=0, **info):
    feed = ImageFeed()
    feed.push_info('camera', info_message(number, **info))
    [found] = feed.push('camera', image_message(number))
    return found.messages


def test_an_image_waits_for_the_first_camera_info():
    feed = ImageFeed()
    assert feed.push('camera', image_message(0)) == []
    [dropped] = feed.push('camera', image_message(1))
    assert dropped.drop is FrameDrop.NO_CAMERA_INFO and 'No CameraInfo of the camera has come' in dropped.text
    [found] = feed.push_info('camera', info_message(1))
    assert found.messages.stamp_ns == frame(1).stamp_ns and found.messages.frame_id == FRAME_ID
    [found] = feed.push('camera', image_message(2))
    assert found.messages.info.header.stamp == info_message(1).header.stamp and feed.flush() == []
    feed = ImageFeed()
    feed.push('camera', image_message(0))
    assert [one.drop for one in feed.flush()] == [FrameDrop.NO_CAMERA_INFO]


def test_an_image_without_a_stamp_is_dropped():
    stamp = SimpleNamespace(sec=0, nanosec=0)
    [found] = ImageFeed().push('camera', SimpleNamespace(header=SimpleNamespace(stamp=stamp, frame_id='')))
    assert found.drop is FrameDrop.ZERO_STAMP


def test_a_frame_has_the_image_and_the_camera_of_its_messages():
    reader = MonoReader()
    found = reader.read(messages(3))
    np.testing.assert_array_equal(found.image, picture(3))
    assert (found.camera, found.frame_id, reader.note) == (CAMERA, FRAME_ID, '')
    assert found.camera.depth(np.float32(10.0)) == pytest.approx(5.0)  # fx / disparity
    with pytest.raises(ValueError, match='as its camera'):
        MonoFrame(picture(0)[:4], CAMERA)


def test_raw_images_are_rectified_by_their_camera_info():
    lens = {'d': (-0.3, 0.1, 0.0, 0.0, 0.0)}
    as_rectified, raw = MonoReader(), MonoReader(images_are_rectified=False)
    np.testing.assert_array_equal(as_rectified.read(messages(**lens)).image, picture(0))
    assert 'taken as rectified already' in as_rectified.note and as_rectified.is_seen is None
    assert (raw.read(messages(**lens)).image != picture(0)).any() and raw.note == ''
    fisheye = MonoReader(images_are_rectified=False)
    fisheye.read(messages(model='equidistant', d=(0.1, 0.0, 0.0, 0.0)))
    assert not fisheye.is_seen.all() or fisheye.is_seen.shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    'info, rectified, error, said',
    [
        ({'width': WIDTH + 2}, True, ImageError, f'images are {WIDTH} x {HEIGHT} pixels, but CameraInfo says'),
        ({'fx': 0.0}, True, CalibrationError, 'the camera is not calibrated'),
        ({'model': 'equidistant', 'd': (0.1,) * 5}, True, CalibrationError, 'must have 4 coefficients'),
        ({'model': 'omni', 'd': (0.1,) * 4}, False, CalibrationError, "but CameraInfo has 'omni'"),
    ],
)
def test_a_wrong_camera_info_is_an_error(info, rectified, error, said):
    with pytest.raises(error, match=said):
        MonoReader(rectified).read(messages(**info))


def test_a_camera_with_skew_is_refused():
    with pytest.raises(ConfigError, match='no skew'):
        mono_camera(SimpleNamespace(P=np.array([[50.0, 1, 3, 0], [0, 50, 2, 0], [0, 0, 1, 0]]), width=8, height=4))


@pytest.mark.parametrize(
    'image, said',
    [(np.zeros((HEIGHT, WIDTH), np.uint8), 'is black'), (np.full((HEIGHT, WIDTH), 255, np.uint8), 'is saturated')],
)
def test_images_that_show_nothing_are_dropped(image, said):
    [found] = MonoChecks().check(MonoFrame(image, CAMERA))
    assert found.drop is FrameDrop.UNUSABLE and said in found.text


def test_a_camera_that_hangs_is_found_and_one_that_stands_is_not():
    checks = MonoChecks()
    assert checks.check(frame(0)) == [] and checks.check(frame(1, drives=False)) == []
    [found] = checks.check(frame(1, drives=False))
    assert found.kind == 'frozen' and found.drop is FrameDrop.UNUSABLE
    checks.reset()
    assert checks.check(frame(1, drives=False)) == []


def test_the_best_camera_of_a_recording():
    types = {
        '/c/right/image_rect': IMAGE, '/c/left/image_rect': IMAGE, '/c/left/image_rect/compressed': COMPRESSED_IMAGE,
        '/c/left/depth': IMAGE, '/d/image_raw': IMAGE, '/c/left/camera_info': CAMERA_INFO,
        '/c/right/camera_info': CAMERA_INFO,
    }  # fmt: skip
    found = find_mono_topics(types)
    assert [one.image for one in found] == [
        '/c/left/image_rect/compressed', '/c/left/image_rect', '/c/right/image_rect', '/d/image_raw'
    ]  # fmt: skip
    assert (found[0].info, found[0].transport, found[-1].info) == ('/c/left/camera_info', 'compressed', '')
    assert found[1].names == ('/c/left/image_rect', '/c/left/camera_info') and find_mono_topics({}) == []
