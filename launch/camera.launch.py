# SPDX-License-Identifier: Apache-2.0
"""Start the camera node and, on request, the object tracker and RViz.

ros2 launch zeroflow_ros camera.launch.py left:=/stereo/left right:=/stereo/right image:=image_rect_color
ros2 launch zeroflow_ros camera.launch.py left:=/cam/left right:=/cam/right image:=image_raw/compressed \
    image_transport:=compressed images_are_rectified:=false
ros2 launch zeroflow_ros camera.launch.py output_frame:=base_link objects:=true odometry_topic:=/odom
ros2 launch zeroflow_ros camera.launch.py sensor:=mono model_path:=mono.onnx camera:=/front image:=image_rect
"""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from zeroflow_ros.ros.required_nodes import RequiredNodes

CONFIG = PathJoinSubstitution([FindPackageShare('zeroflow_ros'), 'config'])
ARGUMENTS = [
    DeclareLaunchArgument(
        'sensor',
        default_value='',
        choices=['', 'stereo', 'mono'],
        description='mono: one camera, which needs model_path; empty: as params_file says.',
    ),
    DeclareLaunchArgument('left', default_value='stereo/left', description='Topics of the left camera: its prefix.'),
    DeclareLaunchArgument('right', default_value='stereo/right', description='Topics of the right camera: its prefix.'),
    DeclareLaunchArgument('camera', default_value='camera', description='Topics of one camera: its prefix.'),
    DeclareLaunchArgument('image', default_value='image_rect', description='Topic of the images below the prefixes.'),
    DeclareLaunchArgument('info', default_value='camera_info', description='Topic of CameraInfo below the prefixes.'),
    DeclareLaunchArgument(
        'model_path', default_value='', description='Model file (.onnx); empty: as params_file says.'
    ),
    DeclareLaunchArgument(
        'scale',
        default_value='',
        choices=['', 'model', 'odometry', 'camera_height'],
        description='Of one camera: where metres come from; empty: as params_file says.',
    ),
    DeclareLaunchArgument(
        'camera_height',
        default_value='',
        description='Height of the camera above the ground [m], for scale camera_height; empty: as params_file says.',
    ),
    DeclareLaunchArgument(
        'image_transport',
        default_value='',
        choices=['', 'raw', 'compressed'],
        description='Type of the images; empty: as params_file says.',
    ),
    DeclareLaunchArgument(
        'images_are_rectified',
        default_value='',
        choices=['', 'true', 'false'],
        description='false: the images are raw; empty: as params_file says.',
    ),
    DeclareLaunchArgument('odometry_topic', default_value='odometry', description='Odometry, for ego_motion odometry.'),
    DeclareLaunchArgument('namespace', default_value='', description='Namespace of the node and of its topics.'),
    DeclareLaunchArgument('node_name', default_value='camera_flow_node', description='Name of the node.'),
    DeclareLaunchArgument(
        'params_file',
        default_value=PathJoinSubstitution([CONFIG, 'camera_node.yaml']),
        description='Parameters of the node.',
    ),
    DeclareLaunchArgument(
        'ego_motion',
        default_value='',
        choices=['', 'odometry', 'tf', 'visual', 'none'],
        description='Source of the ego motion; empty: as params_file says.',
    ),
    DeclareLaunchArgument(
        'odometry_T_camera',
        default_value='',
        description='Pose [x, y, z, qx, qy, qz, qw] of the (left) optical frame in the child frame of the odometry; '
        'empty: as params_file says, or from tf.',
    ),
    DeclareLaunchArgument(
        'output_frame',
        default_value='',
        description='Frame of the clouds, whose z is up, such as base_link; empty: as params_file says.',
    ),
    DeclareLaunchArgument(
        'output_T_camera',
        default_value='',
        description='Pose of the left optical frame in output_frame; empty: as params_file says, or from tf.',
    ),
    DeclareLaunchArgument(
        'num_threads',
        default_value='',
        description='CPU threads of OpenCV and of the model; empty: as params_file says.',
    ),
    DeclareLaunchArgument(
        'autostart',
        default_value='',
        choices=['', 'true', 'false'],
        description='false: a lifecycle manager configures and activates the node; empty: as params_file says.',
    ),
    DeclareLaunchArgument(
        'use_sim_time', default_value='false', choices=['true', 'false'], description='Take the time from /clock.'
    ),
    DeclareLaunchArgument('log_level', default_value='info', description='debug, info, warn, error or fatal.'),
    DeclareLaunchArgument(
        'prefix', default_value='', description="Prefix of the node's command; 'taskset -c 2,3' pins it to cores."
    ),
    DeclareLaunchArgument(
        'shm_profile',
        default_value='true',
        choices=['true', 'false'],
        description='Set a Fast DDS profile with shared memory large enough for images and clouds.',
    ),
    DeclareLaunchArgument(
        'objects',
        default_value='false',
        choices=['true', 'false'],
        description='Also start the object tracker; it needs output_frame.',
    ),
    DeclareLaunchArgument(
        'objects_params_file', default_value='', description='Parameters of the object tracker; empty: its defaults.'
    ),
    DeclareLaunchArgument(
        'objects_ego_motion',
        default_value='odometry',
        choices=['odometry', 'tf', 'registration', 'none'],
        description='Source of the ego motion of the object tracker, which sees no images.',
    ),
    DeclareLaunchArgument(
        'required',
        default_value='false',
        choices=['true', 'false'],
        description='true: end the launch when the node or the object tracker ends by itself; else other nodes go on.',
    ),
    DeclareLaunchArgument('rviz', default_value='false', choices=['true', 'false'], description='Open RViz.'),
    DeclareLaunchArgument(
        'rviz_config', default_value=PathJoinSubstitution([CONFIG, 'camera.rviz']), description='Configuration of RViz.'
    ),
    DeclareLaunchArgument(
        'fixed_frame', default_value='odom', description='Fixed frame of RViz; of ego_motion tf, too.'
    ),
]


def generate_launch_description() -> LaunchDescription:
    """Declare the launch arguments and the actions that depend on them."""
    profile = PathJoinSubstitution([CONFIG, 'fastdds_shm.xml'])
    shared_memory = [
        SetEnvironmentVariable(variable, profile, condition=IfCondition(LaunchConfiguration('shm_profile')))
        for variable in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')  # Fast DDS 2 and 3
    ]
    return LaunchDescription([*ARGUMENTS, *shared_memory, OpaqueFunction(function=start)])


def start(context) -> list:
    """Return the node, the object tracker and RViz, with the values of the launch arguments."""
    given = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in ARGUMENTS}
    for name in ('params_file', 'objects_params_file'):  # launch only warns, and the node would use its defaults
        if given[name] and not os.path.isfile(given[name]):
            raise FileNotFoundError(f'{name}: there is no file {given[name]}')
    if given['objects'] == 'true' and not given['output_frame']:
        raise RuntimeError('objects needs output_frame, a frame whose z is up, such as output_frame:=base_link')
    use_sim_time = {'use_sim_time': given['use_sim_time'] == 'true'}
    as_text = ('sensor', 'model_path', 'scale', 'image_transport', 'ego_motion', 'output_frame')
    overrides = {name: given[name] for name in as_text if given[name]}
    if given['ego_motion'] == 'tf' and given['fixed_frame'] != 'odom':
        overrides['fixed_frame'] = given['fixed_frame']
    # Typed as in YAML; the node checks the type.
    overrides |= {
        name: LaunchConfiguration(name)
        for name in ('camera_height', 'images_are_rectified', 'odometry_T_camera', 'output_T_camera', 'num_threads',
                     'autostart')
        if given[name]
    }  # fmt: skip
    images = {side: f'{given[side]}/{given["image"]}' for side in ('left', 'right', 'camera')}
    flow = Node(
        package='zeroflow_ros',
        executable='camera_flow_node',
        name=given['node_name'],
        namespace=given['namespace'],
        parameters=[given['params_file'], overrides | use_sim_time],
        remappings=[
            ('~/input/left/image', images['left']),
            ('~/input/left/camera_info', f'{given["left"]}/{given["info"]}'),
            ('~/input/right/image', images['right']),
            ('~/input/right/camera_info', f'{given["right"]}/{given["info"]}'),
            ('~/input/image', images['camera']),
            ('~/input/camera_info', f'{given["camera"]}/{given["info"]}'),
            ('~/input/odometry', given['odometry_topic']),
        ],
        ros_arguments=['--log-level', given['log_level']],
        prefix=given['prefix'] or None,
        output='screen',
    )
    # Registration needs static points, so the tracker gets the whole flow; otherwise dynamic points are enough.
    cloud = 'flow' if given['objects_ego_motion'] == 'registration' else 'dynamic_points'
    objects = Node(
        package='zeroflow_ros',
        executable='object_tracker',
        name='object_tracker',
        namespace=given['namespace'],
        parameters=[
            *filter(None, [given['objects_params_file']]),
            {'ego_motion': given['objects_ego_motion']} | use_sim_time,
        ],
        remappings=[
            ('~/input/dynamic_points', f'{given["node_name"]}/output/{cloud}'),
            ('~/input/odometry', given['odometry_topic']),
        ],
        ros_arguments=['--log-level', given['log_level']],
        condition=IfCondition(given['objects']),
        output='screen',
    )
    rviz = Node(
        package='rviz2',
        executable='rviz2',
        namespace=given['namespace'],
        arguments=['-d', given['rviz_config'], '-f', given['fixed_frame']],
        parameters=[use_sim_time],
        # camera.rviz has the topics of a node with default names; remap them to those of this node.
        remappings=[
            ('/camera_flow_node/input/left/image', images['camera' if given['sensor'] == 'mono' else 'left']),
            ('/camera_flow_node/output/flow', f'{given["node_name"]}/output/flow'),
            ('/camera_flow_node/output/dynamic_points', f'{given["node_name"]}/output/dynamic_points'),
            ('/camera_flow_node/output/markers', f'{given["node_name"]}/output/markers'),
            ('/camera_flow_node/output/depth', f'{given["node_name"]}/output/depth'),
            ('/object_tracker/output/objects', 'object_tracker/output/objects'),
        ],
        condition=IfCondition(given['rviz']),
        output='log',
    )
    if given['required'] == 'false':
        return [flow, objects, rviz]
    required = RequiredNodes()
    return [*required.handlers(), required.watch(flow), required.watch(objects), rviz]
