# SPDX-License-Identifier: Apache-2.0
"""The stereo cameras that can be simulated: how they see, where they are mounted, and their faults."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import DataError

# Axes of an optical frame (x right, y down, z forward) in those of a vehicle (x forward, y left, z up).
BASE_R_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
# Source: calibration of KITTI raw, 2011_09_26, cameras 2 and 3 (rectified).
_KITTI = StereoCamera(1242, 375, 721.5377, 721.5377, 609.5593, 172.854, 0.5327)
_KITTI_HEIGHT, _KITTI_FORWARD = 1.65, 0.3  # [m]

# Name -> width and height [px]; the field of view is the same.
CAMERAS = {'kitti': (1242, 375), 'kitti_half': (621, 188), 'kitti_quarter': (310, 94)}


def image_size(camera: str) -> tuple[int, int]:
    """Return width and height [px] of a camera of CAMERAS. Raises: DataError for an unknown one."""
    if camera not in CAMERAS:
        raise DataError(f'There is no stereo camera {camera!r}. Choose one of: {", ".join(CAMERAS)}.')
    return CAMERAS[camera]


@dataclass(frozen=True)
class CameraFaults:
    """What differs between real images and perfect ones.

    exposure: brightness that the exposure aims at, relative to a usual one. gamma: of the tone curve.
    read_noise, shot_noise: standard deviation in the dark, and its growth with the square root of the light; both are
    relative to full scale. blur: standard deviation [px] at 1242 px of width. vignetting: loss of light in the corners.
    gains: (2, 3) of red, green and blue in the left and the right camera.
    right_rotation: (3,) rotation vector [rad] by which the right camera is not where its calibration says.
    right_focal: factor on its focal length.
    """

    exposure: float
    gamma: float
    read_noise: float
    shot_noise: float
    blur: float
    vignetting: float
    gains: np.ndarray
    right_rotation: np.ndarray
    right_focal: float

    @staticmethod
    def draw(rng: np.random.Generator) -> 'CameraFaults':
        """Return the faults of one clip."""
        colour = rng.normal(0, 0.03, 3)
        return CameraFaults(
            exposure=float(np.exp(rng.normal(0, 0.3))),
            gamma=rng.uniform(1.6, 2.2),
            read_noise=rng.uniform(0.0008, 0.003),
            shot_noise=rng.uniform(0.006, 0.018),
            blur=rng.uniform(0.35, 0.7),
            vignetting=rng.uniform(0, 0.35),
            gains=1 + colour + rng.normal(0, 0.012, (2, 3)) + rng.normal(0, 0.015, (2, 1)),
            # Some hundredths of a degree: 0.01 degrees are 0.13 px at a focal length of 721 px.
            right_rotation=np.radians(rng.normal(0, 0.012, 3)),
            right_focal=1 + rng.normal(0, 2e-4),
        )

    @staticmethod
    def none() -> 'CameraFaults':
        """Return the faults of a perfect camera."""
        return CameraFaults(1.0, 2.0, 0.0, 0.0, 0.0, 0.0, np.ones((2, 3)), np.zeros(3), 1.0)


@dataclass(frozen=True)
class StereoRig:
    """A stereo camera on a vehicle.

    camera: as its calibration says; exact for the left one.
    base_T_left: (4, 4) float64, optical frame of the left camera on the vehicle; the base is on the ground.
    """

    camera: StereoCamera
    base_T_left: np.ndarray
    faults: CameraFaults

    @staticmethod
    def draw(rng: np.random.Generator, camera: str = 'kitti', varied: bool = False) -> 'StereoRig':
        """Return a rig of CAMERAS with random faults.

        varied: with random focal length, baseline and mount around those of KITTI; else exactly those.
        Raises: DataError for an unknown camera.
        """
        size = image_size(camera)
        faults = CameraFaults.draw(rng)
        model, height, forward, aside, turn = _KITTI, _KITTI_HEIGHT, _KITTI_FORWARD, 0.06, np.zeros(3)
        if varied:
            focal = _KITTI.fx * rng.uniform(0.8, 1.25)
            cx, cy = _KITTI.cx + rng.normal(0, 10), _KITTI.cy + rng.normal(0, 8)
            model = StereoCamera(_KITTI.width, _KITTI.height, focal, focal, cx, cy, rng.uniform(0.3, 0.65))
            height, forward, aside = rng.uniform(1.3, 2.1), rng.uniform(0.0, 0.8), rng.uniform(-0.2, 0.4)
            turn = np.radians(rng.normal(0, [0.7, 1.3, 0.7]))
        pose = np.eye(4)
        pose[:3, :3] = transforms.rotation_matrix(turn) @ BASE_R_OPTICAL
        pose[:3, 3] = forward, aside, height
        return StereoRig(model.scaled(*size), pose, faults)

    def view(self, odom_T_left: np.ndarray, side: int, *, real: bool = True) -> 'View':
        """Return the view of the left (0) or right (1) camera; odom_T_left: (4, 4), pose of the left optical frame.

        real: with the errors of the calibration, as the image is; else as the calibration says.
        """
        camera, pose, factor = self.camera, odom_T_left.copy(), 1.0
        if side:
            pose[:3, 3] += odom_T_left[:3, 0] * camera.baseline
            if real:
                pose[:3, :3] = pose[:3, :3] @ transforms.rotation_matrix(self.faults.right_rotation)
                factor = self.faults.right_focal
        return View(camera.width, camera.height, camera.fx * factor, camera.fy * factor, camera.cx, camera.cy, pose)


@dataclass(frozen=True)
class View:
    """A pinhole camera at one place: size and intrinsics [px], and odom_T_camera (4, 4) of its optical frame."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    odom_T_camera: np.ndarray

    def rays(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return origins and unit directions in odom of the pixels (u, v) (N,), (N, 3) float32 each."""
        x, y = (u - self.cx) / self.fx, (v - self.cy) / self.fy
        right, down, forward = self.odom_T_camera[:3, :3].T
        directions = x[:, None] * right + y[:, None] * down + forward
        directions /= np.sqrt(1 + x * x + y * y)[:, None]
        origins = np.broadcast_to(self.odom_T_camera[:3, 3], directions.shape)
        return np.ascontiguousarray(origins, np.float32), directions.astype(np.float32)

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return u and v of every pixel, row after row, (H * W,) float64 each."""
        v, u = np.divmod(np.arange(self.width * self.height, dtype=np.float64), self.width)
        return u, v

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels (N, 2) and depths (N,) [m] of points (N, 3) in odom; not positive behind the camera."""
        local = transforms.apply(transforms.invert(self.odom_T_camera), np.asarray(points, np.float64))
        z = np.where(np.abs(local[:, 2]) > 1e-6, local[:, 2], 1e-6)
        return np.stack([self.fx * local[:, 0] / z + self.cx, self.fy * local[:, 1] / z + self.cy], axis=1), local[:, 2]
