# SPDX-License-Identifier: Apache-2.0
"""ROS messages of a simulated stereo camera: images, calibration, and where the cameras are."""

from collections.abc import Callable

import numpy as np

from training.simulation.cameras.stereo_drive import SimulatedStereoFrame, StereoDrive
from training.simulation.cameras.stereo_rig import StereoRig
from zeroflow_ros import transforms
from zeroflow_ros.camera.opencv import load_opencv

SIDES = ('left', 'right')
_JPEG_QUALITY = 95
_COMPRESSED, _CAMERA_INFO = 'sensor_msgs/msg/CompressedImage', 'sensor_msgs/msg/CameraInfo'


def optical_frame(side: str) -> str:
    """Return the name of the optical frame of the 'left' or 'right' camera."""
    return f'camera_{side}_optical'


def camera_topics(store, drive: StereoDrive) -> list[tuple[str, str, Callable]]:
    """Return (topic, message type, make) of every topic; make(stamp, step) returns the message of a frame.

    store: the types of rosbags. Both images of a frame are rendered when its first one is asked for.
    """
    newest: list[tuple[int, SimulatedStereoFrame]] = []

    def image(side: str):
        def make(stamp, step: int):
            cv2 = load_opencv()
            if not newest or newest[0][0] != step:
                newest[:] = [(step, drive.frame(step))]
            pixels = cv2.cvtColor(getattr(newest[0][1], side), cv2.COLOR_RGB2BGR)
            data = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].ravel()
            header = store.types['std_msgs/msg/Header'](stamp, optical_frame(side))
            return store.types[_COMPRESSED](header, 'bgr8; jpeg compressed bgr8', data)

        return make

    topics = []
    for side in SIDES:
        topics.append((f'/stereo/{side}/camera_info', _CAMERA_INFO, _camera_info(store, drive.rig, side)))
        topics.append((f'/stereo/{side}/image_rect_color/compressed', _COMPRESSED, image(side)))
    return topics


def static_transforms(store, rig: StereoRig, base_T_sensor: np.ndarray, sensor_frame: str, stamp_ns: int):
    """Return the TFMessage from another sensor at base_T_sensor (4, 4) to both optical frames."""
    types = store.types
    stamp = types['builtin_interfaces/msg/Time'](stamp_ns // 10**9, stamp_ns % 10**9)
    header = types['std_msgs/msg/Header'](stamp, sensor_frame)
    found = []
    for number, side in enumerate(SIDES):
        base_T_camera = rig.base_T_left.copy()
        base_T_camera[:3, 3] += number * rig.camera.baseline * rig.base_T_left[:3, 0]
        pose = transforms.invert(base_T_sensor) @ base_T_camera
        transform = types['geometry_msgs/msg/Transform'](
            types['geometry_msgs/msg/Vector3'](*pose[:3, 3]),
            types['geometry_msgs/msg/Quaternion'](*transforms.to_quaternion(pose)),
        )
        found.append(types['geometry_msgs/msg/TransformStamped'](header, optical_frame(side), transform))
    return types['tf2_msgs/msg/TFMessage'](found)


def _camera_info(store, rig: StereoRig, side: str):
    camera = rig.camera
    intrinsics = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    projection = np.column_stack([intrinsics, np.zeros(3)])
    if side == 'right':
        projection[0, 3] = -camera.fx * camera.baseline
    region = store.types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)

    def make(stamp, step: int):
        header = store.types['std_msgs/msg/Header'](stamp, optical_frame(side))
        return store.types[_CAMERA_INFO](
            header, camera.height, camera.width, 'plumb_bob', np.zeros(5), intrinsics.ravel(), np.eye(3).ravel(),
            projection.ravel(), 0, 0, region,
        )  # fmt: skip

    return make
