# SPDX-License-Identifier: Apache-2.0
"""Small bags of a stereo camera on a vehicle: raw grey images, CameraInfo, odometry, /tf_static."""

from pathlib import Path

import numpy as np
from tiny_bag import new_bag

from zeroflow_ros.bags.cdr import ODOMETRY, TRANSFORMS
from zeroflow_ros.camera.stereo_topics import CAMERA_INFO, IMAGE

LEFT, RIGHT = '/stereo/left/image_rect', '/stereo/right/image_rect'
START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 100_000_000
WIDTH, HEIGHT, FOCAL, BASELINE = 32, 16, 30.0, 0.4
STEP = 0.5  # m that the vehicle drives forward between two frames
# The left camera looks forward, 1.2 m above base_link and 0.1 m to its left.
BASE_T_LEFT = np.array([[0, 0, 1, 0.3], [-1, 0, 0, 0.1], [0, -1, 0, 1.2], [0, 0, 0, 1]], np.float64)
_QUATERNION = (-0.5, 0.5, -0.5, 0.5)


def picture(frame: int, side: int) -> np.ndarray:
    """Return an image (H, W) uint8; side: 0 is left."""
    return np.random.default_rng(10 * frame + side).integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)


def messages(num_frames: int, *, store, is_ros1: bool, odometry: bool, mount: bool, infos: bool):
    """Yield (topic, msgtype, time_ns, message)."""
    types = store.types
    sequence = {'seq': 0} if is_ros1 else {}

    def header(stamp_ns, frame_id):
        stamp = types['builtin_interfaces/msg/Time'](stamp_ns // 10**9, stamp_ns % 10**9)
        return types['std_msgs/msg/Header'](**sequence, stamp=stamp, frame_id=frame_id)

    def make(name, *numbers):
        return types[f'geometry_msgs/msg/{name}'](*map(float, numbers))

    if mount:
        pose = types['geometry_msgs/msg/Transform'](
            make('Vector3', *BASE_T_LEFT[:3, 3]), make('Quaternion', *_QUATERNION)
        )
        one = types['geometry_msgs/msg/TransformStamped'](header(START_NS, 'base_link'), 'left_optical', pose)
        yield '/tf_static', TRANSFORMS, START_NS, types[TRANSFORMS]([one])
    for frame in range(num_frames):
        stamp_ns = START_NS + frame * PERIOD_NS
        for side, topic in enumerate((LEFT, RIGHT)):
            frame_id = ('left_optical', 'right_optical')[side]
            if infos:
                k = np.array([FOCAL, 0, WIDTH / 2, 0, FOCAL, HEIGHT / 2, 0, 0, 1])
                p = np.array([FOCAL, 0, WIDTH / 2, -side * FOCAL * BASELINE, 0, FOCAL, HEIGHT / 2, 0, 0, 0, 1, 0])
                roi = types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
                info = types[CAMERA_INFO](
                    header(stamp_ns, frame_id), HEIGHT, WIDTH, 'plumb_bob', np.zeros(5), k, np.eye(3).ravel(), p, 0, 0,
                    roi,
                )  # fmt: skip
                yield topic.replace('image_rect', 'camera_info'), CAMERA_INFO, stamp_ns, info
            data = picture(frame, side).ravel()
            yield topic, IMAGE, stamp_ns, types[IMAGE](
                header(stamp_ns, frame_id), HEIGHT, WIDTH, 'mono8', 0, WIDTH, data
            )  # fmt: skip
        if odometry:  # recorded after its images
            pose = types['geometry_msgs/msg/PoseWithCovariance'](
                types['geometry_msgs/msg/Pose'](make('Point', STEP * frame, 0, 0), make('Quaternion', 0, 0, 0, 1)),
                np.zeros(36),
            )
            twist = types['geometry_msgs/msg/TwistWithCovariance'](
                types['geometry_msgs/msg/Twist'](make('Vector3', 10 * STEP, 0, 0), make('Vector3', 0, 0, 0)),
                np.zeros(36),
            )
            message = types[ODOMETRY](header(stamp_ns, 'odom'), 'base_link', pose, twist)
            yield '/odometry', ODOMETRY, stamp_ns + 1_000_000, message


def write_stereo_bag(path: Path, num_frames: int = 4, *, storage: str = 'mcap', odometry: bool = True,
                     mount: bool = True, infos: bool = True,
                     spoil=lambda topic, number, message: message) -> Path:  # fmt: skip
    """Write a bag and return its path. spoil: returns the message to write for the number-th of a topic, None: none."""
    with new_bag(path, storage) as (path, store, write):
        numbers = {}
        for topic, msgtype, time_ns, message in messages(
            num_frames, store=store, is_ros1=storage == 'rosbag1', odometry=odometry, mount=mount, infos=infos
        ):
            number = numbers[topic] = numbers.get(topic, -1) + 1
            message = spoil(topic, number, message)
            if message is not None:
                write(topic, msgtype, time_ns, message)
    return path
