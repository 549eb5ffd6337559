# SPDX-License-Identifier: Apache-2.0
"""A stereo camera that looks at textured rectangles, some of which move: images with exact scene flow."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame

CAMERA = StereoCamera(256, 128, 220.0, 220.0, 127.5, 63.5, 0.4)
DT = 0.1


@dataclass(frozen=True)
class Plane:
    """A rectangle across the z axis of the world: centre [m], half its width and height [m], velocity [m/s]."""

    centre: tuple[float, float, float]
    half_size: tuple[float, float]
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seed: int = 0
    contrast: float = 1.0


WALL = Plane((0, 0, 12), (40, 40))
STATIC_SCENE = (WALL, Plane((-2.2, 0.5, 6), (0.9, 1.0), seed=1), Plane((2.6, -0.6, 7.5), (0.8, 1.2), seed=2))
MOVER = Plane((0.1, 0.2, 4.5), (0.6, 0.6), (3.0, 0.0, 1.0), seed=3)


@dataclass(frozen=True)
class Truth:
    """Exact scene flow of the reference frame: (H, W) and (H, W, 2) [px]; plane (H, W): index of the plane seen."""

    disparity: np.ndarray
    other_disparity: np.ndarray
    flow: np.ndarray
    plane: np.ndarray


def camera_motion(axis_angle=(0, 0, 0), translation=(0, 0, 0)) -> np.ndarray:
    """Return world_T_left of the later frame; the earlier one is at the origin of the world."""
    pose = np.eye(4)
    pose[:3, :3] = transforms.rotation_matrix(axis_angle)
    pose[:3, 3] = translation
    return pose


@cache
def _texture(seed: int) -> np.ndarray:
    rng, texture = np.random.default_rng(seed), np.zeros((512, 512))
    for cell in (2, 4, 8, 32):  # every scale: the images are matched at half size, too
        noise = rng.normal(size=(512 // cell, 512 // cell))
        texture += np.kron(noise, np.ones((cell, cell))) * cell**0.3
    return np.clip(128 + 30 * texture, 0, 255)


def _hit(pose: np.ndarray, planes, time: float):
    """Return the plane seen by each pixel of a camera at a pose, and the point of it (H, W, 3) in the world."""
    rays = CAMERA.rays.astype(np.float64) @ pose[:3, :3].T
    nearest = np.full(rays.shape[:2], np.inf)
    index, point = np.full(rays.shape[:2], -1), np.zeros(rays.shape)
    for k, plane in enumerate(planes):
        centre = np.array(plane.centre) + time * np.array(plane.velocity)
        along = (centre[2] - pose[2, 3]) / rays[..., 2]
        place = pose[:3, 3] + along[..., None] * rays
        inside = (np.abs(place[..., :2] - centre[:2]) <= plane.half_size).all(axis=-1)
        nearer = inside & (along > 0) & (along < nearest)
        nearest[nearer], index[nearer], point[nearer] = along[nearer], k, place[nearer]
    return index, point


def _image(pose: np.ndarray, planes, time: float) -> np.ndarray:
    index, point = _hit(pose, planes, time)
    image = np.zeros(index.shape)
    for k, plane in enumerate(planes):
        rows, columns = np.nonzero(index == k)
        offset = point[rows, columns, :2] - (np.array(plane.centre) + time * np.array(plane.velocity))[:2]
        place = offset * (110 / plane.centre[2] ** 0.5) + 256  # texels per metre: some pixels each
        cell = np.floor(place).astype(int)
        fraction, texture = place - cell, _texture(plane.seed)
        u, v = cell[:, 0] % 511, cell[:, 1] % 511
        a, b = fraction[:, 0], fraction[:, 1]
        value = (texture[v, u] * (1 - a) + texture[v, u + 1] * a) * (1 - b)
        value += (texture[v + 1, u] * (1 - a) + texture[v + 1, u + 1] * a) * b
        image[rows, columns] = 128 + plane.contrast * (value - 128)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def stereo_frame(planes, time: float = 0.0, pose: np.ndarray | None = None) -> StereoFrame:
    """Return what the camera sees at a time [s] from a pose world_T_left."""
    pose = np.eye(4) if pose is None else pose
    right = pose.copy()
    right[:3, 3] += pose[:3, 0] * CAMERA.baseline
    return StereoFrame(_image(pose, planes, time), _image(right, planes, time), CAMERA, int(time * 1e9))


def stereo_pair(planes, pose: np.ndarray) -> tuple[StereoFrame, StereoFrame]:
    """Return the frames at 0 from the origin, and at DT from a pose."""
    return stereo_frame(planes), stereo_frame(planes, DT, pose)


def truth(planes, pose: np.ndarray, *, reverse: bool = False) -> Truth:
    """Return the scene flow from the frame at 0 to that at DT, or with `reverse` back from that at DT."""
    times, poses = ((DT, 0.0), (pose, np.eye(4))) if reverse else ((0.0, DT), (np.eye(4), pose))
    index, point = _hit(poses[0], planes, times[0])
    velocity = np.array([plane.velocity for plane in planes])[index]
    seen = transforms.invert(poses[0])
    other = transforms.invert(poses[1])
    pixels, disparity = CAMERA.project(point @ seen[:3, :3].T + seen[:3, 3])
    moved = point + velocity * (times[1] - times[0])
    other_pixels, other_disparity = CAMERA.project(moved @ other[:3, :3].T + other[:3, 3])
    return Truth(disparity, other_disparity, (other_pixels - pixels).astype(np.float32), index)


def other_T_reference(pose: np.ndarray, *, reverse: bool = False) -> np.ndarray:
    """Return the ego motion of the pair."""
    return pose if reverse else transforms.invert(pose)
