# SPDX-License-Identifier: Apache-2.0
"""Which topics of a recording or a vehicle belong to a stereo camera, or to one camera."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zeroflow_ros.errors import DataError

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
IMAGE_TYPES = (IMAGE, COMPRESSED_IMAGE)
# How drivers name the two: the first that gives an existing partner is used. KITTI's image_00 and image_01 are grey,
# 02 and 03 in colour; RealSense has infra1 and infra2.
_SIDES = (
    ('left', 'right'), ('infra1', 'infra2'), ('cam0', 'cam1'), ('camera_02', 'camera_03'), ('image_02', 'image_03'),
    ('image_00', 'image_01'), ('camera0', 'camera1'), ('camera_0', 'camera_1'),
)  # fmt: skip
_NO_PICTURE = re.compile(r'depth|disparity|mask|theora|points|label', re.IGNORECASE)


@dataclass(frozen=True)
class StereoTopics:
    """The four topics of a stereo camera.

    left_image, right_image: of one type. left_info, right_info: sensor_msgs/CameraInfo; '' where there is none.
    image_type: IMAGE or COMPRESSED_IMAGE.
    """

    left_image: str
    left_info: str
    right_image: str
    right_info: str
    image_type: str

    @property
    def transport(self) -> str:
        """'raw' or 'compressed', as the parameter image_transport of the node has it."""
        return 'compressed' if self.image_type == COMPRESSED_IMAGE else 'raw'

    @property
    def names(self) -> tuple[str, ...]:
        """All of the topics that are known."""
        return tuple(filter(None, (self.left_image, self.left_info, self.right_image, self.right_info)))


@dataclass(frozen=True)
class MonoTopics:
    """The two topics of one camera.

    image: of image_type, IMAGE or COMPRESSED_IMAGE. info: sensor_msgs/CameraInfo; '' where there is none.
    """

    image: str
    info: str
    image_type: str

    @property
    def left_image(self) -> str:
        """The image, as a stereo camera has it."""
        return self.image

    @property
    def transport(self) -> str:
        """'raw' or 'compressed', as the parameter image_transport of the node has it."""
        return 'compressed' if self.image_type == COMPRESSED_IMAGE else 'raw'

    @property
    def names(self) -> tuple[str, ...]:
        """All of the topics that are known."""
        return tuple(filter(None, (self.image, self.info)))


def find_mono_topics(types: Mapping[str, str]) -> list[MonoTopics]:
    """Return the cameras in topics of a recording, the best first: as `find_stereo_topics`, left before right."""
    images = [name for name, msgtype in types.items() if msgtype in IMAGE_TYPES and not _NO_PICTURE.search(name)]
    infos = [name for name, msgtype in types.items() if msgtype == CAMERA_INFO]
    found = [MonoTopics(name, _info_of(name, infos), types[name]) for name in images]
    return sorted(found, key=lambda one: ('rect' not in one.image, not one.info, 'right' in one.image,
                                          one.image_type != COMPRESSED_IMAGE, one.image))  # fmt: skip


def find_stereo_topics(types: Mapping[str, str]) -> list[StereoTopics]:
    """Return the stereo cameras in topics of a recording, the best first.

    types: type by topic. Images that are named as rectified come before those that are not, and compressed before raw
    ones of the same name, as they are smaller.
    """
    images = [name for name, msgtype in types.items() if msgtype in IMAGE_TYPES and not _NO_PICTURE.search(name)]
    infos = [name for name, msgtype in types.items() if msgtype == CAMERA_INFO]
    found = []
    for left in images:
        right = _partner(left, {name for name in images if types[name] == types[left]})
        if right:
            found.append(StereoTopics(left, _info_of(left, infos), right, _info_of(right, infos), types[left]))
    return sorted(found, key=lambda one: ('rect' not in one.left_image, not one.left_info or not one.right_info,
                                          one.image_type != COMPRESSED_IMAGE, one.left_image))  # fmt: skip


@dataclass(frozen=True)
class CameraPrefixes:
    """The topics of a stereo camera as camera.launch.py has them: `left`/`image`, `right`/`image`, `left`/`info`, ...

    left, right: prefixes. image, info: what follows both.
    """

    left: str
    right: str
    image: str
    info: str


def camera_prefixes(topics: StereoTopics) -> CameraPrefixes:
    """Return prefixes and names of the topics.

    Raises: DataError where left and right differ in more than their prefix.
    """
    for cut in range(1, topics.left_image.count('/') + 1):
        left, right = ('/'.join(name.split('/')[:-cut]) for name in (topics.left_image, topics.right_image))
        image, info = (name[len(left) + 1 :] for name in (topics.left_image, topics.left_info))
        if (f'{right}/{image}', f'{left}/{info}', f'{right}/{info}') == (
            topics.right_image, topics.left_info, topics.right_info,
        ):  # fmt: skip
            return CameraPrefixes(left, right, image, info)
    raise DataError(
        f'The topics of the cameras ({", ".join(topics.names)}) differ in more than a prefix. Start the player '
        '(ros2 run zeroflow_ros replay) and the node (ros2 run zeroflow_ros camera_flow_node) with remapped topics.'
    )


def _partner(left: str, images: set[str]) -> str:
    """Return the topic of the right image for a left one; '' where there is none."""
    for one, other in _SIDES:
        pattern = rf'(?<![A-Za-z]){one}(?![0-9])'
        if re.search(pattern, left):
            right = re.sub(pattern, other, left)
            if right in images:
                return right
    return ''


def _info_of(image: str, infos: Iterable[str]) -> str:
    """Return the CameraInfo beside an image, or in the nearest folder above; '' where there is none."""
    folder = image
    while '/' in folder.strip('/'):
        folder = folder.rsplit('/', 1)[0]
        beside = [name for name in infos if name.rsplit('/', 1)[0] == folder]
        if beside:
            return min(beside, key=lambda name: (not name.endswith('/camera_info'), name))
    return ''
