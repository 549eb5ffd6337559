# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.errors import EgoMotionError

ROOT = np.sqrt(0.5)


def random_pose(rng):
    return transforms.from_quaternion(rng.normal(0, 50, 3), rng.normal(size=4))


QUATERNIONS = [
    ('none', [0, 0, 0, 1], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    ('90 deg left', [0, 0, ROOT, ROOT], [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    ('180 deg about x', [1, 0, 0, 0], [[1, 0, 0], [0, -1, 0], [0, 0, -1]]),
    ('180 deg about y', [0, 1, 0, 0], [[-1, 0, 0], [0, 1, 0], [0, 0, -1]]),
    ('180 deg about z', [0, 0, 1, 0], [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]),
    ('of length 3', [0, 0, 3 * ROOT, 3 * ROOT], [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    ('negative w', [0, 0, -ROOT, -ROOT], [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
]


@pytest.mark.parametrize(('quaternion', 'rotation'), [q[1:] for q in QUATERNIONS], ids=[q[0] for q in QUATERNIONS])
def test_quaternion_by_hand(quaternion, rotation):
    pose = transforms.from_quaternion([1, 2, 3], quaternion)
    np.testing.assert_allclose(pose[:3, :3], rotation, atol=1e-15)
    np.testing.assert_array_equal(pose[:, 3], [1, 2, 3, 1])
    back = transforms.to_quaternion(pose)
    assert back[3] >= 0
    np.testing.assert_allclose(np.linalg.norm(back), 1)
    np.testing.assert_allclose(transforms.from_quaternion([1, 2, 3], back), pose, atol=1e-15)


@pytest.mark.parametrize(
    ('translation', 'quaternion'),
    [([0, 0, 0], [0, 0, 0, 0]), ([np.nan, 0, 0], [0, 0, 0, 1]), ([0, np.inf, 0], [0, 0, 0, 1]),
     ([0, 0, 0], [0, 0, np.nan, 1]), ([0, 0, 0], [0, 0, np.inf, 1]), ([0, 0, 0], [0, 0, 1e200, 1e200])],
)  # fmt: skip
def test_a_pose_that_is_none(translation, quaternion):
    with pytest.raises(EgoMotionError, match='finite translation and a quaternion of length 1'):
        transforms.from_quaternion(translation, quaternion)


def test_inverse_cancels_and_rotations_stay_rigid():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = random_pose(rng), random_pose(rng)
        np.testing.assert_allclose(transforms.invert(a) @ a, np.eye(4), atol=1e-12)
        np.testing.assert_allclose(transforms.invert(a @ b), transforms.invert(b) @ transforms.invert(a), atol=1e-11)
        np.testing.assert_allclose(a[:3, :3] @ a[:3, :3].T, np.eye(3), atol=1e-14)
        assert np.linalg.det(a[:3, :3]) == pytest.approx(1)


def test_rotation_vector_and_matrix_are_inverse():
    rng = np.random.default_rng(1)
    for angle in [0, 1e-14, 1e-9, 1e-4, 0.5, 3, np.pi - 1e-6]:
        axis = rng.normal(size=3)
        vector = axis / np.linalg.norm(axis) * angle
        pose = np.eye(4)
        pose[:3, :3] = transforms.rotation_matrix(vector)
        np.testing.assert_allclose(transforms.rotation_vector(pose), vector, atol=1e-9)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_apply(dtype):
    pose = transforms.yaw_translation(np.pi / 2, 10, 20, 30)
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 5], [np.nan] * 3], dtype)
    moved = transforms.apply(pose, points)
    assert moved.dtype == dtype
    np.testing.assert_allclose(moved, [[10, 20, 30], [10, 21, 30], [8, 20, 35], [np.nan] * 3], atol=1e-5)
    assert transforms.apply(pose, points[:0]).shape == (0, 3)


def test_apply_in_float32_is_good_to_micrometres():
    rng = np.random.default_rng(2)
    pose, points = transforms.yaw_translation(0.3, 2, 1), rng.uniform(-60, 60, (10_000, 3))
    error = transforms.apply(pose, points.astype(np.float32)) - transforms.apply(pose, points)
    assert np.abs(error).max() < 2e-5  # m: 60 m has a spacing of 4e-6 in float32, and a few of them add up


def test_interpolate():
    rng = np.random.default_rng(3)
    a, b = random_pose(rng), random_pose(rng)
    np.testing.assert_allclose(transforms.interpolate(a, b, 0), a, atol=1e-12)
    np.testing.assert_allclose(transforms.interpolate(a, b, 1), b, atol=1e-12)
    left = transforms.interpolate(np.eye(4), transforms.yaw_translation(3.0, 4, 2), 0.25)
    np.testing.assert_allclose(left, transforms.yaw_translation(0.75, 1, 0.5), atol=1e-12)
    beyond = transforms.interpolate(np.eye(4), transforms.yaw_translation(0.2, 1, 0), 1.5)
    np.testing.assert_allclose(beyond, transforms.yaw_translation(0.3, 1.5, 0), atol=1e-12)
    short_way = transforms.interpolate(
        transforms.yaw_translation(3.0, 0, 0), transforms.yaw_translation(-3.0, 0, 0), 0.5
    )
    np.testing.assert_allclose(short_way[:3, :3], transforms.yaw_translation(np.pi, 0, 0)[:3, :3], atol=1e-12)
