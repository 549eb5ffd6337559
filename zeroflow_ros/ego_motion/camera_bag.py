# SPDX-License-Identifier: Apache-2.0
"""The stereo camera or the camera of a bag, and the ego motion of the left one; without ROS."""

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import ODOMETRY, decode_message
from zeroflow_ros.camera.stereo_topics import MonoTopics, StereoTopics, find_mono_topics, find_stereo_topics
from zeroflow_ros.ego_motion.bag_motion import BagMotion
from zeroflow_ros.errors import ConfigError, DataError, EgoMotionError

EGO_MOTION = ('auto', 'odometry', 'tf', 'visual', 'none')


def has_stereo(bag: Bag) -> bool:
    """Return whether a bag has left and right images with CameraInfo."""
    return bool(_complete(bag))


def stereo_topics(bag: Bag, left_image: str = '') -> StereoTopics:
    """Return the topics of the stereo camera of a bag. left_image: topic of the one that is meant; '': the best.

    Raises: DataError that lists what the bag has where there is none.
    """
    complete = _complete(bag)
    chosen = [one for one in complete if left_image in ('', one.left_image, one.right_image)]
    if chosen:
        return chosen[0]
    if complete:
        names = ', '.join(one.left_image for one in complete)
        raise DataError(f'{bag.path} has no stereo camera with left images on {left_image}. It has {names}.')
    what = 'CameraInfo of the stereo images' if _stereo_cameras(bag) else 'left and right images with CameraInfo'
    raise DataError(f'{bag.path} lacks {what}. It has:\n{bag.list_topics()}')


def has_camera(bag: Bag) -> bool:
    """Return whether a bag has images with CameraInfo."""
    return any(one.info for one in _cameras(bag))


def mono_topics(bag: Bag, image: str = '') -> MonoTopics:
    """Return the topics of one camera of a bag. image: topic of the one that is meant; '': the best.

    Raises: DataError that lists what the bag has where there is none.
    """
    cameras = _cameras(bag)
    complete = [one for one in cameras if one.info]
    chosen = [one for one in complete if image in ('', one.image)]
    if chosen:
        return chosen[0]
    if any(image == one.image for one in cameras):
        raise DataError(f'{bag.path} has no CameraInfo beside {image}, without which there is no depth. It has:\n'
                        f'{bag.list_topics()}')  # fmt: skip
    if complete:
        names = ', '.join(one.image for one in complete)
        raise DataError(f'{bag.path} has no camera with images on {image}. It has {names}.')
    raise DataError(f'{bag.path} lacks images with CameraInfo. It has:\n{bag.list_topics()}')


def _cameras(bag: Bag) -> list[MonoTopics]:
    return find_mono_topics({topic.name: topic.msgtype for topic in bag.topics if topic.num_messages})


def first_image(bag: Bag, topics: StereoTopics | MonoTopics):
    """Return the first left image that can be read. Raises: DataError where there is none."""
    for recorded in bag.messages([topics.left_image]):
        try:
            return decode_message(recorded.cdr, topics.image_type)
        except DataError:
            continue
    raise DataError(f'{bag.path}: no message on {topics.left_image} can be read as a {topics.image_type}.')


def open_camera_motion(bag: Bag, source: str, *, frame_id: str, left_image: str, odometry_topic: str = '',
                       odometry_T_camera=None, fixed_frame: str = '',
                       stamp_offset: float | None = None) -> tuple[BagMotion | None, str]:  # fmt: skip
    """Return the ego motion of the left optical frame, None where the images or nobody tells it; and a note.

    source: one of EGO_MOTION; 'auto' is odometry where the bag has it, else tf, else visual. The note says why 'auto'
    does not use what comes first. frame_id: of the left images. left_image: their topic. The others: see `BagMotion`.
    Raises: DataError or EgoMotionError when the bag lacks what a source needs, such as how the camera is mounted.
    """
    if source not in EGO_MOTION:
        raise ConfigError(f'Ego motion of cameras must be one of {", ".join(EGO_MOTION)}, got {source!r}.')
    if source in ('visual', 'none'):
        return None, ''
    notes = []
    for one in ('odometry', 'tf') if source == 'auto' else (source,):
        try:
            if one == 'odometry' and odometry_T_camera is None:
                _check_frames(bag, odometry_topic, frame_id)
            motion = BagMotion(bag, one, frame_id=frame_id, odometry_topic=odometry_topic, cloud_topic=left_image,
                               odometry_T_lidar=odometry_T_camera, fixed_frame=fixed_frame,
                               stamp_offset=stamp_offset)  # fmt: skip
            return motion, ' '.join(notes)
        except (DataError, EgoMotionError) as error:
            if source != 'auto' or odometry_topic:
                raise
            notes.append(str(error).split(' It has:\n')[0])  # a note is a sentence, not a list of topics
    return None, ' '.join(notes)


def _check_frames(bag: Bag, requested: str, frame_id: str) -> None:
    """Raises: EgoMotionError where a frame has no name: an optical frame is never that of an odometry."""
    topic = bag.odometry_topic(requested)
    if not topic:
        return
    child_frame = decode_message(bag.first(topic).cdr, ODOMETRY).child_frame_id.lstrip('/')
    if not child_frame or not frame_id:
        missing = 'child_frame_id of the odometry' if not child_frame else 'frame_id of the images'
        raise EgoMotionError(
            f'The {missing} is empty, so nothing says how the camera is mounted. Give the pose of the left optical '
            'frame in the frame that the odometry moves: --odometry-T-camera X Y Z QX QY QZ QW.'
        )


def _complete(bag: Bag) -> list[StereoTopics]:
    return [one for one in _stereo_cameras(bag) if one.left_info and one.right_info]


def _stereo_cameras(bag: Bag) -> list[StereoTopics]:
    return find_stereo_topics({topic.name: topic.msgtype for topic in bag.topics if topic.num_messages})
