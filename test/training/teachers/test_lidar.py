# SPDX-License-Identifier: Apache-2.0
"""The LiDAR teacher of stereo cameras: clouds and images of one scene, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from textured_planes import CAMERA, DT, MOVER, STATIC_SCENE, camera_motion, other_T_reference, stereo_pair, truth

from training.teachers import build_teacher
from training.teachers.lidar import check_same_scene, visible_points
from zeroflow_ros import transforms
from zeroflow_ros.bags.bag import BagWriter
from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, TRANSFORMS, typestore
from zeroflow_ros.camera.stereo import StereoFrame
from zeroflow_ros.errors import ConfigError, DataError, EgoMotionError

POSE = camera_motion(translation=(0, 0, 0.5))
SCENE = (*STATIC_SCENE, MOVER)
START_NS = 10**18
# x forward, y left, z up; 0.3 m behind the camera and 0.2 m above it
LEFT_T_LIDAR = np.array([[0, -1, 0, 0], [0, 0, -1, -0.2], [1, 0, 0, -0.3], [0, 0, 0, 1]], np.float64)


def cloud(k: int) -> np.ndarray:
    """Return what the LiDAR measures at time k * DT, (N, 3) float32: what the camera sees, and ground around it."""
    true = truth(SCENE, POSE, reverse=k == 1)
    points = CAMERA.points(true.disparity.astype(np.float32)).reshape(-1, 3)[::5]
    rng = np.random.default_rng(0)
    ground = np.c_[rng.uniform(-20, 2, (3000, 1)), rng.uniform(-10, 10, (3000, 1)), np.full((3000, 1), -1.7)]
    return np.concatenate([transforms.apply(transforms.invert(LEFT_T_LIDAR), points), ground]).astype(np.float32)


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    """Write two clouds with odometry and the mount of the camera."""
    path, types = tmp_path_factory.mktemp('drive') / 'clouds', typestore().types

    def make(name, *numbers):
        return types[f'geometry_msgs/msg/{name}'](*map(float, numbers))

    def header(stamp_ns, frame_id):
        stamp = types['builtin_interfaces/msg/Time'](stamp_ns // 10**9, stamp_ns % 10**9)
        return types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame_id)

    def write(topic, msgtype, time_ns, message):
        writer.write(topic, msgtype, time_ns, bytes(typestore().serialize_cdr(message, msgtype)))

    with BagWriter(path) as writer:
        translation, turn = LEFT_T_LIDAR[:3, 3], transforms.to_quaternion(LEFT_T_LIDAR)
        mount = types['geometry_msgs/msg/Transform'](make('Vector3', *translation), make('Quaternion', *turn))
        static = types['geometry_msgs/msg/TransformStamped'](header(START_NS, 'left_optical'), 'lidar', mount)
        write('/tf_static', TRANSFORMS, START_NS, types[TRANSFORMS]([static]))
        fields = [types['sensor_msgs/msg/PointField'](name, 4 * i, 7, 1) for i, name in enumerate('xyz')]
        for k in range(2):
            stamp_ns, points = START_NS + k * 10**8, cloud(k)
            pose = types['geometry_msgs/msg/Pose'](make('Point', 0.5 * k, 0, 0), make('Quaternion', 0, 0, 0, 1))
            twist = types['geometry_msgs/msg/Twist'](make('Vector3', 5, 0, 0), make('Vector3', 0, 0, 0))
            odometry = types[ODOMETRY](
                header(stamp_ns, 'odom'), 'lidar',
                types['geometry_msgs/msg/PoseWithCovariance'](pose, np.zeros(36)),
                types['geometry_msgs/msg/TwistWithCovariance'](twist, np.zeros(36)),
            )  # fmt: skip
            write('/odometry', ODOMETRY, stamp_ns, odometry)
            message = types[POINT_CLOUD](
                header(stamp_ns, 'lidar'), 1, len(points), fields, False, 12, 12 * len(points),
                points.view(np.uint8).ravel(), True,
            )  # fmt: skip
            write('/points', POINT_CLOUD, stamp_ns, message)
    return path


@pytest.fixture(scope='module')
def teacher(bag):
    return build_teacher('lidar', {'clouds': f'{bag}?ego_motion=odometry'})


@pytest.fixture(scope='module')
def pair():
    frames = stereo_pair(SCENE, POSE)
    return [replace(frame, stamp_ns=START_NS + k * 10**8, frame_id='left_optical') for k, frame in enumerate(frames)]


@pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'backward'])
def test_points_of_the_lidar_are_labels_of_the_pixels_that_show_them(teacher, pair, reverse):
    reference, other = pair[::-1] if reverse else pair
    true = truth(SCENE, POSE, reverse=reverse)
    flow = teacher.label(reference, other, -DT if reverse else DT, other_T_reference(POSE, reverse=reverse))
    measured = flow.is_measured
    assert 0.1 < measured.mean() < 0.25 and (flow.is_disparity_measured == np.isfinite(flow.disparity)).all()
    assert (measured == np.isfinite(flow.flow).all(axis=-1)).all()
    np.testing.assert_allclose(flow.other_T_reference, other_T_reference(POSE, reverse=reverse), atol=1e-6)
    assert (np.abs(flow.disparity - true.disparity)[measured] > 1).mean() < 0.02  # px
    mover = (true.plane == 3) & measured
    assert mover.sum() > 200
    for part, limit in ((mover, 0.2), (measured & ~mover, 0.02)):  # the rigid teacher finds the mover's motion
        assert (np.linalg.norm(flow.flow - true.flow, axis=-1)[part] > 2).mean() < limit
        assert (np.abs(flow.other_disparity - true.other_disparity)[part] > 1).mean() < limit


def test_clouds_that_do_not_belong_to_the_images_are_refused(teacher, pair, bag):
    reference, other = pair
    late = [replace(frame, stamp_ns=frame.stamp_ns + 40_000_000) for frame in pair]
    with pytest.raises(DataError, match=r'no sweep pair at the times of the images: the nearest is 0\.040 s'):
        teacher.label(*late, DT)
    with pytest.raises(DataError, match='the stamps of the images say'):
        teacher.label(reference, other, -DT)
    with pytest.raises(EgoMotionError, match='clouds of the same drive'):
        teacher.label(reference, other, DT, np.eye(4))
    with pytest.raises(DataError, match=r"does not connect the clouds, in 'lidar'.*'front_optical'"):
        teacher.label(replace(reference, frame_id='front_optical'), other, DT)
    elsewhere = [
        replace(frame, left=np.ascontiguousarray(frame.left[::-1, ::-1]), right=np.ascontiguousarray(frame.right[::-1]))
        for frame in pair
    ]
    with pytest.raises(DataError, match='show different scenes'):
        teacher.label(*elsewhere, DT)
    with pytest.raises(DataError, match='of one camera'):
        moved = replace(CAMERA, baseline=0.3)
        teacher.label(reference, StereoFrame(other.left, other.right, moved, other.stamp_ns, 'left_optical'), DT)
    with pytest.raises(ConfigError, match='`clouds: PATH`'):
        build_teacher('lidar')


@pytest.mark.parametrize('label, points, expected', [
    ('none', np.zeros((0, 3)), []),
    ('behind, too near, outside, no return', [[0, 0, -5], [0, 0, 0.5], [30, 0, 5], [np.nan] * 3], []),
    ('two in one pixel', [[0, 0, 9], [0, 0, 5], [0, 0, 7]], [1]),
    ('past an edge', [[0, 0, 5], [0.1, 0, 9], [1, 0, 9]], [0, 2]),  # 2 px from the near point, and 24 px
    ('one surface', [[0, 0, 9], [0.1, 0, 9.2]], [0, 1]),
])  # fmt: skip
def test_points_that_the_camera_sees(label, points, expected):
    points = np.array(points, np.float32).reshape(-1, 3)
    assert visible_points(points, CAMERA, 3, 4, 0.06).tolist() == expected, label


def test_few_points_in_the_image_are_no_label(pair):
    disparity = np.full((CAMERA.height, CAMERA.width), np.nan, np.float32)
    disparity[50, 100:120] = 10
    with pytest.raises(DataError, match='20 points in the image'):
        check_same_scene(pair[0], disparity)
