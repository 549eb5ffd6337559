# SPDX-License-Identifier: Apache-2.0
"""Play a bag, compute its scene flow, and show it in RViz. Topics, frame and ego motion are read from the bag.

A bag without clouds that has a stereo camera starts the camera node. Also takes the arguments of flow.launch.py, or of
camera.launch.py.
ros2 launch zeroflow_ros replay.launch.py bag:=drive.mcap
ros2 launch zeroflow_ros replay.launch.py bag:=drive/ rate:=0.5 loop:=true rviz:=false
ros2 launch zeroflow_ros replay.launch.py bag:=drive.mcap objects:=true
ros2 launch zeroflow_ros replay.launch.py bag:=stereo.mcap sensor:=stereo ego_motion:=visual
"""

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    SetLaunchConfiguration,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.camera.stereo_topics import camera_prefixes
from zeroflow_ros.ego_motion.bag_motion import BagMotion
from zeroflow_ros.ego_motion.camera_bag import first_image, has_stereo, open_camera_motion, stereo_topics
from zeroflow_ros.ros.required_nodes import RequiredNodes
from zeroflow_ros.transforms import to_quaternion

FLOW, CAMERA = (
    PathJoinSubstitution([FindPackageShare('zeroflow_ros'), 'launch', f'{name}.launch.py'])
    for name in ('flow', 'camera')
)


def generate_launch_description() -> LaunchDescription:
    """Read the bag, start the node on its topics and clock, then play."""
    required = RequiredNodes()
    return LaunchDescription(
        [
            DeclareLaunchArgument('bag', description='rosbag2 directory, or a .mcap, .db3 or .bag file.'),
            DeclareLaunchArgument(
                'sensor',
                default_value='',
                choices=['', 'lidar', 'stereo'],
                description='What is computed; empty: clouds, or the stereo camera of a bag without clouds.',
            ),
            DeclareLaunchArgument('rate', default_value='1.0', description='Playback rate.'),
            DeclareLaunchArgument(
                'loop', default_value='false', choices=['true', 'false'], description='Play in a loop.'
            ),
            DeclareLaunchArgument('rviz', default_value='true', choices=['true', 'false'], description='Open RViz.'),
            *required.handlers(),
            OpaqueFunction(function=read_bag),
            # After the node, whose launch file sets the Fast DDS profile for both.
            OpaqueFunction(function=play, kwargs={'required': required}),
        ]
    )


def read_bag(context) -> list:
    """Set the arguments that the user did not give, from the bag, and start the node of its sensor.

    Raises: DataError when the bag cannot be read, has no cloud topic, or several without input_topic, or with
    sensor:=stereo no stereo camera; EgoMotionError when the bag lacks what ego_motion:=odometry or tf needs.
    """
    given = context.launch_configurations
    with Bag(given['bag']) as bag:
        is_stereo = given['sensor'] == 'stereo' or (
            not given['sensor'] and not bag.topics_of(POINT_CLOUD) and has_stereo(bag)
        )
        found, notes = (_of_stereo if is_stereo else _of_clouds)(bag, given)
    missing = {name: value for name, value in found.items() if value and not given.get(name)}
    text = ', '.join(f'{name}:={value}' for name, value in missing.items())
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(CAMERA if is_stereo else FLOW),
        launch_arguments={'use_sim_time': 'true', 'required': 'true'}.items(),
    )
    settings = [SetLaunchConfiguration(*item) for item in missing.items()]
    return [*(LogInfo(msg=note) for note in notes), LogInfo(msg=f'From the bag: {text}'), *settings, node]


def _of_clouds(bag: Bag, given) -> tuple[dict[str, str], list[str]]:
    """Return the arguments of flow.launch.py that a bag gives, and notes."""
    topic = bag.point_cloud_topic(given.get('input_topic', ''))
    frame_id = decode_message(next(bag.messages([topic])).cdr, POINT_CLOUD).header.frame_id.lstrip('/')
    found, notes = {'input_topic': topic, 'fixed_frame': frame_id, 'played': topic}, []
    source = given.get('ego_motion') or 'auto'
    if source in ('auto', 'odometry', 'tf'):
        motion = BagMotion(bag, source, frame_id=frame_id, odometry_topic=given.get('odometry_topic', ''),
                           cloud_topic=topic)  # fmt: skip
        found |= {'ego_motion': motion.source, 'odometry_topic': motion.topic}
        if motion.fixed_frame:  # known in tf, so right for RViz, too
            found['fixed_frame'] = motion.fixed_frame
        notes = [f'Ego motion by {motion.describe()}: {motion.note}'] if motion.note else []
        if motion.source == 'odometry':
            found['odometry_T_lidar'] = pose_text(motion.odometry_T_lidar)
    return found, notes


def _of_stereo(bag: Bag, given) -> tuple[dict[str, str], list[str]]:
    """Return the arguments of camera.launch.py that a bag gives, and notes. input_topic: of the left images."""
    topics = stereo_topics(bag, given.get('input_topic', ''))
    prefixes = camera_prefixes(topics)
    frame_id = first_image(bag, topics).header.frame_id.lstrip('/')
    found = {'left': prefixes.left, 'right': prefixes.right, 'image': prefixes.image, 'info': prefixes.info,
             'image_transport': topics.transport, 'fixed_frame': given.get('output_frame') or frame_id,
             'played': f'{topics.left_image} {topics.right_image}'}  # fmt: skip
    motion, note = open_camera_motion(bag, given.get('ego_motion') or 'auto', frame_id=frame_id,
                                      left_image=topics.left_image,
                                      odometry_topic=given.get('odometry_topic', ''))  # fmt: skip
    found['ego_motion'] = 'visual' if motion is None else motion.source
    if motion is not None:
        found |= {'odometry_topic': motion.topic, 'fixed_frame': motion.fixed_frame or found['fixed_frame']}
        if motion.source == 'odometry':
            found['odometry_T_camera'] = pose_text(motion.odometry_T_lidar)
    return found, [f'Ego motion by {found["ego_motion"]}: {note}'] if note else []


def pose_text(odometry_T_lidar) -> str:
    """Return a pose, (4, 4), as the node's parameter: [x, y, z, qx, qy, qz, qw]."""
    numbers = (*odometry_T_lidar[:3, 3], *to_quaternion(odometry_T_lidar))
    return f'[{", ".join(f"{number:.9f}" for number in numbers)}]'


def play(context, required: RequiredNodes) -> list[Node]:
    """Return the player, which ends the launch when it fails, and without RViz also when it has played.

    RViz stays open until the user closes it.
    """
    given = context.launch_configurations
    player = Node(
        package='zeroflow_ros',
        executable='replay',
        name='replay',
        arguments=[given['bag'], *(word for topic in given['played'].split() for word in ('--topic', topic)),
                   '--rate', given['rate'],
                   '--wait-for-subscribers', '1', *(['--loop'] if given['loop'] == 'true' else [])],
        output='screen',
    )  # fmt: skip
    return [required.watch(player, reason='has played the bag' if given['rviz'] == 'false' else None)]
