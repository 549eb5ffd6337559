# SPDX-License-Identifier: Apache-2.0
"""What the demo needs to know of a bag: its sensor, the node for it, and the parameters of that node."""

import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.camera.stereo_topics import IMAGE_TYPES, MonoTopics, StereoTopics
from zeroflow_ros.ego_motion.bag_motion import BagMotion, static_transforms
from zeroflow_ros.ego_motion.camera_bag import first_image, has_stereo, mono_topics, open_camera_motion, stereo_topics
from zeroflow_ros.engines.mono_card import is_mono_model
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.runtime.camera_health import CAMERAS, ONE_CAMERA
from zeroflow_ros.runtime.health import CLOUDS, InputKind
from zeroflow_ros.transforms import to_quaternion
from zeroflow_ros.views.recorded_flow import draw_busy_frame, draw_busy_sweep

BASE_FRAME = 'base_link'


@dataclass(frozen=True)
class Source:
    """A bag with clouds, and the node's parameters for it.

    odometry_topic: '' for other sources. ego_motion, odometry_T_lidar, fixed_frame: as the node's parameters; the
    pose has 7 numbers, or is empty. num_sweeps: number of sweeps in the bag. seconds: duration of the bag.
    note: why the ego motion is not from odometry; '' where it is. base_T_lidar: mount of the sensor on base_frame by
    /tf_static, as the node's parameters.
    module, flow_node, stages, kind, noun, draw: the program and its node, the stages of the report, its words, and the
    function that draws the result.
    """

    module: ClassVar[str] = 'zeroflow_ros.node'
    flow_node: ClassVar[str] = '/flow_node'
    stages: ClassVar[tuple] = ('decode', 'ego_motion', 'pillars', 'inference', 'objects', 'publish')
    kind: ClassVar[InputKind] = CLOUDS
    draw: ClassVar[Callable] = staticmethod(draw_busy_sweep)

    path: Path
    topic: str
    odometry_topic: str
    ego_motion: str
    odometry_T_lidar: tuple
    num_sweeps: int
    seconds: float
    fixed_frame: str = ''
    note: str = ''
    base_T_lidar: tuple = ()
    base_frame: str = BASE_FRAME

    @property
    def played(self) -> tuple[str, ...]:
        """Topics of the sensor, to be played."""
        return (self.topic,)

    def node_arguments(self, args) -> list[str]:
        """Return the ROS arguments of the node; args: the command line of the demo."""
        remaps = {'~/input/pointcloud': self.topic}
        parameters = {'ego_motion': self.ego_motion, 'num_threads': args.threads, 'use_sim_time': 'true'}
        if self.odometry_topic:
            remaps['~/input/odometry'] = self.odometry_topic
            parameters['odometry_T_lidar'] = _as_parameter(self.odometry_T_lidar)
        if mount := args.base_T_lidar or self.base_T_lidar:
            parameters['base_T_lidar'] = _as_parameter(mount)
        if self.base_frame != BASE_FRAME:
            parameters['base_frame'] = self.base_frame or "''"
        if args.sensor_height is not None:
            parameters['sensor_height'] = float(args.sensor_height)
        if self.fixed_frame:
            parameters['fixed_frame'] = self.fixed_frame
        if args.model:
            parameters['model_path'] = Path(args.model).absolute()
        return _arguments(remaps, parameters)


@dataclass(frozen=True)
class CameraSource:
    """A bag with a stereo camera or one camera, and the camera node's parameters for it; as `Source` otherwise.

    topics: of one camera, the model says so. odometry_T_camera: as the node's parameter; 7 numbers, or empty.
    """

    module: ClassVar[str] = 'zeroflow_ros.camera_node'
    flow_node: ClassVar[str] = '/camera_flow_node'
    stages: ClassVar[tuple] = ('decode', 'ego_motion', 'estimate', 'velocity', 'publish')
    draw: ClassVar[Callable] = staticmethod(draw_busy_frame)

    path: Path
    topics: StereoTopics | MonoTopics
    odometry_topic: str
    ego_motion: str
    odometry_T_camera: tuple
    num_sweeps: int
    seconds: float
    fixed_frame: str = ''
    note: str = ''

    @property
    def topic(self) -> str:
        """Topic of the (left) images."""
        return self.topics.left_image

    @property
    def kind(self) -> InputKind:
        """The words for what is played."""
        return ONE_CAMERA if self._is_mono else CAMERAS

    @property
    def _is_mono(self) -> bool:
        return isinstance(self.topics, MonoTopics)

    @property
    def played(self) -> tuple[str, ...]:
        """Topics of the sensor, to be played."""
        return (self.topic,) if self._is_mono else (self.topics.left_image, self.topics.right_image)

    def node_arguments(self, args) -> list[str]:
        """Return the ROS arguments of the node; args: the command line of the demo."""
        topics = self.topics
        parameters = {'ego_motion': self.ego_motion, 'num_threads': args.threads, 'use_sim_time': 'true'}
        parameters['image_transport'] = topics.transport
        if self._is_mono:
            remaps = {'~/input/image': topics.image, '~/input/camera_info': topics.info}
            parameters['sensor'] = 'mono'
        else:
            remaps = {
                '~/input/left/image': topics.left_image, '~/input/left/camera_info': topics.left_info,
                '~/input/right/image': topics.right_image, '~/input/right/camera_info': topics.right_info,
            }  # fmt: skip
        if args.model:
            parameters['model_path'] = Path(args.model).absolute()
        if self.odometry_topic:
            remaps['~/input/odometry'] = self.odometry_topic
            parameters['odometry_T_camera'] = _as_parameter(self.odometry_T_camera)
        if self.fixed_frame:
            parameters['fixed_frame'] = self.fixed_frame
        return _arguments(remaps, parameters)


def examine(path: Path, topic: str = '', ego_motion: str = 'auto', fixed_frame: str = '',
            model: str = '', base_frame: str = BASE_FRAME) -> Source | CameraSource:  # fmt: skip
    """Return the sensor, the ego motion and the size of a bag. 'auto' uses tf only where the node can read it.

    topic: of clouds or of (left) images; '': the clouds of the bag, or the stereo camera of a bag without clouds.
    model: model file; one for one camera uses one of the bag. base_frame: frame whose z is up, on which /tf_static says
    how a LiDAR is mounted; '': do not look.
    Raises: DataError, EgoMotionError or ConfigError when it cannot be used.
    """
    with Bag(path) as bag:
        images = {found.name for found in bag.topics if found.msgtype in IMAGE_TYPES}
        if model and is_mono_model(model):
            return _examine_camera(bag, mono_topics(bag, topic), ego_motion, fixed_frame)
        if topic in images or (not topic and not bag.topics_of(POINT_CLOUD) and has_stereo(bag)):
            return _examine_camera(bag, stereo_topics(bag, topic), ego_motion, fixed_frame)
        topic = bag.point_cloud_topic(topic)
        first = decode_message(bag.first(topic).cdr, POINT_CLOUD)
        of_clouds = {'frame_id': first.header.frame_id.lstrip('/'), 'cloud_topic': topic}
        motion = BagMotion(bag, ego_motion, fixed_frame=fixed_frame, **of_clouds)
        note = motion.note
        if motion.source == 'tf' and not _has_tf(ego_motion):
            motion = BagMotion(bag, 'registration', **of_clouds)
            note += ' The bag has ego motion on /tf, but tf2_ros is not installed.'
        pose = _pose(motion.odometry_T_lidar) if motion.source == 'odometry' else ()
        frames = base_frame.lstrip('/'), of_clouds['frame_id']
        mount = _pose(static_transforms(bag, *frames).lookup(*frames)) if all(frames) else ()
        return Source(bag.path, topic, motion.topic, motion.source, pose, _count(bag, topic), bag.duration,
                      motion.fixed_frame, note, mount, frames[0])  # fmt: skip


def _examine_camera(bag: Bag, topics: StereoTopics | MonoTopics, ego_motion: str, fixed_frame: str) -> CameraSource:
    frame_id = first_image(bag, topics).header.frame_id.lstrip('/')
    motion, note = open_camera_motion(
        bag, ego_motion, frame_id=frame_id, left_image=topics.left_image, fixed_frame=fixed_frame
    )
    if motion is not None and motion.source == 'tf' and not _has_tf(ego_motion):
        motion, note = None, f'{note} The bag has ego motion on /tf, but tf2_ros is not installed.'
    num_frames, seconds = _count(bag, topics.left_image), bag.duration
    if motion is None:
        return CameraSource(bag.path, topics, '', 'none' if ego_motion == 'none' else 'visual', (), num_frames,
                            seconds, '', note)  # fmt: skip
    pose = _pose(motion.odometry_T_lidar) if motion.source == 'odometry' else ()
    return CameraSource(bag.path, topics, motion.topic, motion.source, pose, num_frames, seconds, motion.fixed_frame,
                        note)  # fmt: skip


def _has_tf(ego_motion: str) -> bool:
    """Return whether the node can read tf. Raises: ConfigError where it cannot, but the user wants it."""
    has_tf = importlib.util.find_spec('tf2_ros') is not None
    if not has_tf and ego_motion == 'tf':
        raise ConfigError(
            'The node needs the ROS package tf2_ros for ego motion from tf, which is not installed. Install '
            'ros-$ROS_DISTRO-tf2-ros-py, or compute offline: python3 -m zeroflow_ros.replay BAG --offline.'
        )
    return has_tf


def _count(bag: Bag, topic: str) -> int:
    """Return the number of messages of a topic; print the notes on the bag."""
    if bag.duration and bag.notes:  # the duration may add one
        print('\n'.join(bag.notes), file=sys.stderr)
    return next(found.num_messages for found in bag.topics if found.name == topic)


def _pose(target_T_source: np.ndarray | None) -> tuple:
    """Return a pose (4, 4) as 7 numbers, as parameters of the node have it; () for None."""
    if target_T_source is None:
        return ()
    return (*map(float, target_T_source[:3, 3]), *map(float, to_quaternion(target_T_source)))


def _as_parameter(pose: Iterable[float]) -> str:
    return '[' + ', '.join(f'{number:.17g}' if number % 1 else f'{number:.1f}' for number in pose) + ']'


def _arguments(remaps: dict, parameters: dict) -> list[str]:
    words = [word for name, topic in remaps.items() for word in ('-r', f'{name}:={topic}')]
    return words + [word for name, value in parameters.items() for word in ('-p', f'{name}:={value}')]
