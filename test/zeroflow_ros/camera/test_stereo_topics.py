# SPDX-License-Identifier: Apache-2.0
import pytest

from zeroflow_ros.camera.stereo_topics import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    CameraPrefixes,
    StereoTopics,
    camera_prefixes,
    find_stereo_topics,
)
from zeroflow_ros.errors import DataError


def topics(*names):
    """Return types by name: *info are CameraInfo, */compressed CompressedImage, all others Image."""
    kinds = {'info': CAMERA_INFO, 'compressed': COMPRESSED_IMAGE, 'odometry': 'nav_msgs/msg/Odometry'}
    return {name: next((kind for end, kind in kinds.items() if name.endswith(end)), IMAGE) for name in names}


@pytest.mark.parametrize(
    'names, expected',
    [
        ([], []),
        (['/odometry', '/camera/image_raw', '/camera/camera_info'], []),
        (
            ['/s/left/image_rect', '/s/left/camera_info', '/s/right/image_rect', '/s/right/camera_info'],
            [('/s/left/image_rect', '/s/left/camera_info', '/s/right/image_rect', '/s/right/camera_info')],
        ),
        (
            ['/s/left/image/compressed', '/s/left/camera_info', '/s/right/image/compressed', '/s/right/camera_info'],
            [('/s/left/image/compressed', '/s/left/camera_info', '/s/right/image/compressed', '/s/right/camera_info')],
        ),
        (['/infra1/image_raw', '/infra2/image_raw'], [('/infra1/image_raw', '', '/infra2/image_raw', '')]),
        (
            ['/zed/zed_node/left/image_rect_color', '/zed/zed_node/right/image_rect_color', '/zed/zed_node/left/depth'],
            [('/zed/zed_node/left/image_rect_color', '', '/zed/zed_node/right/image_rect_color', '')],
        ),
        (['/left/image'], []),  # half a pair
        (['/left/image', '/right/image/compressed'], []),  # of two types
        (['/cleft/image', '/cright/image'], []),  # a part of another word
    ],
)  # fmt: skip
def test_both_cameras_and_their_calibration_are_found(names, expected):
    found = find_stereo_topics(topics(*names))
    assert [(one.left_image, one.left_info, one.right_image, one.right_info) for one in found] == expected


def test_rectified_images_come_first_and_say_their_transport():
    names = [f'/{side}/{image}' for side in ('left', 'right')
             for image in ('image_raw', 'image_rect', 'image_raw/compressed', 'camera_info')]  # fmt: skip
    found = find_stereo_topics(topics(*names))
    assert [one.left_image for one in found] == ['/left/image_rect', '/left/image_raw/compressed', '/left/image_raw']
    assert [one.transport for one in found] == ['raw', 'compressed', 'raw']
    assert found[0].names == ('/left/image_rect', '/left/camera_info', '/right/image_rect', '/right/camera_info')
    assert StereoTopics('/l', '', '/r', '', IMAGE).names == ('/l', '/r')


def test_prefixes_of_the_launch_file():
    topics = StereoTopics('/cam/left/image/compressed', '/cam/left/info', '/cam/right/image/compressed',
                          '/cam/right/info', COMPRESSED_IMAGE)  # fmt: skip
    assert camera_prefixes(topics) == CameraPrefixes('/cam/left', '/cam/right', 'image/compressed', 'info')
    beside = StereoTopics('/left/image', '/left/camera_info', '/right/image', '/right/camera_info', IMAGE)
    assert camera_prefixes(beside) == CameraPrefixes('/left', '/right', 'image', 'camera_info')
    with pytest.raises(DataError, match='differ in more than a prefix'):
        camera_prefixes(StereoTopics('/left_image', '/left_info', '/right_image', '/right_info', IMAGE))
