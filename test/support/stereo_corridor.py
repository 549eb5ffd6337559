# SPDX-License-Identifier: Apache-2.0
"""A stereo camera in a street of textured boards, one of which moves: frames, messages and bags with exact truth."""

from functools import cache
from pathlib import Path

import numpy as np
from tiny_bag import new_bag

from zeroflow_ros.bags.cdr import ODOMETRY, TRANSFORMS, typestore
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame
from zeroflow_ros.camera.stereo_topics import CAMERA_INFO, IMAGE

CAMERA = StereoCamera(224, 112, 200.0, 200.0, 111.5, 55.5, 0.4)
LEFT, RIGHT = '/stereo/left', '/stereo/right'
ODOMETRY_TOPIC = '/odometry'
START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 100_000_000
EGO_SPEED = 1.0  # m/s, along the optical axis
MOVER_SPEED = 2.0  # m/s, to the right
WALL, MOVER = 8.0, 4.0  # m ahead of the camera at the start
# Boards that stand: depth at the start, left and right edge [m], number of the texture.
_STANDING = ((3.0, 0.8, 1.6, 3), (5.5, -2.2, -1.2, 5), (5.0, 0.6, 1.2, 4))
# The camera looks forward, 0.3 m ahead of base_link and 1.2 m above it.
BASE_T_LEFT = np.array([[0, 0, 1, 0.3], [-1, 0, 0, 0.0], [0, -1, 0, 1.2], [0, 0, 0, 1]], np.float64)
_QUATERNION = (-0.5, 0.5, -0.5, 0.5)
_CELL = 0.1  # m of texture: 2.5 pixels at the wall


@cache
def _texture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (600, 600)).astype(np.float64)
    return (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, (1, 1), (0, 1))) / 4


def _sample(seed: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the brightness of a wall at its points [m], bilinear."""
    u, v = x / _CELL + 300, y / _CELL + 300
    column, row = np.floor(u).astype(int), np.floor(v).astype(int)
    fu, fv, texture = u - column, v - row, _texture(seed)

    def at(r, c):
        return texture[np.clip(r, 0, 599), np.clip(c, 0, 599)]

    return (at(row, column) * (1 - fu) + at(row, column + 1) * fu) * (1 - fv) + (
        at(row + 1, column) * (1 - fu) + at(row + 1, column + 1) * fu
    ) * fv


def on_mover(seconds: float, shift: float = 0.0) -> np.ndarray:
    """Return which pixels (H, W) of a camera `shift` metres to the right show the mover."""
    rays, depth = CAMERA.rays.astype(np.float64), MOVER - EGO_SPEED * seconds
    x, y = rays[..., 0] * depth + shift, rays[..., 1] * depth
    return (np.abs(x - MOVER_SPEED * seconds + 0.7) < 0.45) & (np.abs(y) < 0.75)


def disparity(number: int) -> np.ndarray:
    """Return the disparity (H, W) [px] of the left image of frame `number`."""
    seconds = number * PERIOD_NS * 1e-9
    depth = np.full((CAMERA.height, CAMERA.width), WALL - EGO_SPEED * seconds)
    for start, left, right, _ in sorted(_STANDING, reverse=True):  # the nearest last
        near = start - EGO_SPEED * seconds
        x = CAMERA.rays[..., 0] * near
        depth[(x > left) & (x < right)] = near
    depth[on_mover(seconds)] = MOVER - EGO_SPEED * seconds
    return CAMERA.fx * CAMERA.baseline / depth


def frame(number: int, frame_id: str = 'left_optical') -> StereoFrame:
    """Return the frame 0.1 s times its number after the start."""
    seconds = number * PERIOD_NS * 1e-9
    rays, images = CAMERA.rays.astype(np.float64), []
    for shift in (0.0, CAMERA.baseline):
        far, near = WALL - EGO_SPEED * seconds, MOVER - EGO_SPEED * seconds
        wall = _sample(1, rays[..., 0] * far + shift, rays[..., 1] * far)
        for start, left, right, texture in sorted(_STANDING, reverse=True):  # the nearest last
            depth = start - EGO_SPEED * seconds
            x, y = rays[..., 0] * depth + shift, rays[..., 1] * depth
            wall = np.where((x > left) & (x < right), _sample(texture, x, y), wall)
        mover = _sample(2, rays[..., 0] * near + shift - MOVER_SPEED * seconds, rays[..., 1] * near)
        images.append(np.where(on_mover(seconds, shift), mover, wall).astype(np.uint8))
    return StereoFrame(*images, CAMERA, START_NS + number * PERIOD_NS, frame_id)


def _header(types, stamp_ns: int, frame_id: str):
    return types['std_msgs/msg/Header'](types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 10**9)), frame_id)


def image_message(number: int, side: int):
    """Return the Image of the left (0) or right (1) camera, as rosbags has it."""
    types, one = typestore().types, frame(number)
    pixels = (one.left, one.right)[side]
    frame_id = ('left_optical', 'right_optical')[side]
    return types[IMAGE](_header(types, one.stamp_ns, frame_id), *pixels.shape, 'mono8', 0, pixels.shape[1],
                        pixels.ravel())  # fmt: skip


def info_message(number: int, side: int):
    """Return the CameraInfo of the left (0) or right (1) camera."""
    types, c = typestore().types, CAMERA
    k = np.array([c.fx, 0, c.cx, 0, c.fy, c.cy, 0, 0, 1.0])
    p = np.array([c.fx, 0, c.cx, -side * c.fx * c.baseline, 0, c.fy, c.cy, 0, 0, 0, 1, 0.0])
    roi = types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    frame_id = ('left_optical', 'right_optical')[side]
    return types[CAMERA_INFO](_header(types, START_NS + number * PERIOD_NS, frame_id), c.height, c.width, 'plumb_bob',
                              np.zeros(5), k, np.eye(3).ravel(), p, 0, 0, roi)  # fmt: skip


def odometry_message(number: int):
    """Return the Odometry of base_link, which drives forward."""
    types = typestore().types

    def make(name, *numbers):
        return types[f'geometry_msgs/msg/{name}'](*map(float, numbers))

    pose = types['geometry_msgs/msg/Pose'](
        make('Point', EGO_SPEED * number * 0.1, 0, 0), make('Quaternion', 0, 0, 0, 1)
    )
    twist = types['geometry_msgs/msg/Twist'](make('Vector3', EGO_SPEED, 0, 0), make('Vector3', 0, 0, 0))
    return types[ODOMETRY](
        _header(types, START_NS + number * PERIOD_NS, 'odom'), 'base_link',
        types['geometry_msgs/msg/PoseWithCovariance'](pose, np.zeros(36)),
        types['geometry_msgs/msg/TwistWithCovariance'](twist, np.zeros(36)),
    )  # fmt: skip


def mount_message():
    """Return the transform of the left camera on base_link, for /tf_static."""
    types = typestore().types
    translation = types['geometry_msgs/msg/Vector3'](*BASE_T_LEFT[:3, 3].tolist())
    pose = types['geometry_msgs/msg/Transform'](translation, types['geometry_msgs/msg/Quaternion'](*_QUATERNION))
    one = types['geometry_msgs/msg/TransformStamped'](_header(types, START_NS, 'base_link'), 'left_optical', pose)
    return types[TRANSFORMS]([one])


def transform_message(number: int):
    """Return the transform of base_link in odom, for /tf."""
    types, odometry = typestore().types, odometry_message(number)
    pose = odometry.pose.pose
    translation = types['geometry_msgs/msg/Vector3'](pose.position.x, pose.position.y, pose.position.z)
    moved = types['geometry_msgs/msg/Transform'](translation, pose.orientation)
    return types[TRANSFORMS]([types['geometry_msgs/msg/TransformStamped'](odometry.header, 'base_link', moved)])


def write_world(path: Path, num_frames: int = 4, *, odometry: bool = True, tf: bool = False) -> Path:
    """Write a bag of the camera with odometry or /tf, and return its path."""
    with new_bag(path, store=typestore()) as (path, _, write):
        write('/tf_static', TRANSFORMS, START_NS, mount_message())
        for number in range(num_frames):
            time_ns = START_NS + number * PERIOD_NS
            for side, folder in enumerate((LEFT, RIGHT)):
                write(f'{folder}/camera_info', CAMERA_INFO, time_ns, info_message(number, side))
                write(f'{folder}/image_rect', IMAGE, time_ns, image_message(number, side))
            if tf:
                write('/tf', TRANSFORMS, time_ns + 1_000_000, transform_message(number))
            if odometry:
                write(ODOMETRY_TOPIC, ODOMETRY, time_ns + 1_000_000, odometry_message(number))
    return path
