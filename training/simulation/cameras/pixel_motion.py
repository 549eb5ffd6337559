# SPDX-License-Identifier: Apache-2.0
"""Exact scene flow of the pixels of a simulated frame, from their disparity and the motion of the bodies they show."""

from dataclasses import dataclass

import numpy as np

from training.simulation.sensors.lidar import Category
from zeroflow_ros import transforms
from zeroflow_ros.camera.stereo import StereoCamera

STATIC_WORLD = 0  # number of the body that everything but the actors belongs to
NO_BODY = -1  # where a pixel sees the sky
NO_CATEGORY = 255
_NEAREST = 0.05  # [m]; nearer than that, or behind the camera, points have no pixel
_LONGEST = 512 / 1242  # of the width: the files of KITTI hold no longer flow, and such points are far outside the image


@dataclass(frozen=True)
class PixelMotion:
    """Exact motion of the pixels of one frame to the time of another, as a perfect stereo camera would see it.

    other_disparity: (H, W) float32 [px]. flow: (H, W, 2) float32 [px]. Both are NaN for the sky, for what is behind the
    camera at the time of the other frame, and for flow beyond 41 % of the width along an axis, 512 px at 1242 px.
    is_moving: (H, W) bool, what moves by itself between the two.
    """

    other_disparity: np.ndarray
    flow: np.ndarray
    is_moving: np.ndarray


def pixel_motion(
    camera: StereoCamera, disparity: np.ndarray, body: np.ndarray, odom_T_left: np.ndarray, odom_T_bodies: np.ndarray
) -> PixelMotion:
    """Return the motion of a frame's pixels to another time.

    disparity: (H, W) [px], NaN for the sky. body: (H, W) number of the body that each pixel shows, or NO_BODY.
    odom_T_left: (2, 4, 4), pose of the left optical frame at the time of the frame and at the other time.
    odom_T_bodies: (2, B, 4, 4), those of the bodies.
    """
    moved = moved_points(camera, disparity, body, odom_T_left, odom_T_bodies)
    moved[~(moved[..., 2] > _NEAREST)] = np.nan
    pixels, other_disparity = camera.project(moved)
    v, u = np.mgrid[: camera.height, : camera.width]
    flow = (pixels - np.stack([u, v], axis=-1)).astype(np.float32)
    too_long = np.abs(flow).max(axis=-1) > _LONGEST * camera.width
    flow[too_long], other_disparity[too_long] = np.nan, np.nan
    moves = (odom_T_bodies[0] != odom_T_bodies[1]).any(axis=(1, 2))
    moves[STATIC_WORLD] = False
    return PixelMotion(other_disparity, flow, np.append(moves, False)[body])  # NO_BODY is -1: the entry at the end


def moved_points(
    camera: StereoCamera, disparity: np.ndarray, body: np.ndarray, odom_T_left: np.ndarray, odom_T_bodies: np.ndarray
) -> np.ndarray:
    """Return the points of a frame's pixels at the other time, (H, W, 3) float64 [m]; arguments as for pixel_motion.

    In the optical frame of the left camera at that time; NaN for the sky.
    """
    points = pixel_points(camera, disparity)
    other_T_odom = transforms.invert(odom_T_left[1])
    moved = transforms.apply(other_T_odom @ odom_T_left[0], points.reshape(-1, 3)).reshape(points.shape)
    moved[body == NO_BODY] = np.nan
    moves = (odom_T_bodies[0] != odom_T_bodies[1]).any(axis=(1, 2))
    for number in np.flatnonzero(moves):
        rows = body == number
        if rows.any():
            now, then = odom_T_bodies[:, number]
            motion = other_T_odom @ then @ transforms.invert(now) @ odom_T_left[0]
            moved[rows] = transforms.apply(motion, points[rows])
    return moved


def pixel_points(camera: StereoCamera, disparity: np.ndarray) -> np.ndarray:
    """Return the point of each pixel in the left optical frame, (H, W, 3) float64 [m]; NaN for the sky."""
    v, u = np.mgrid[: camera.height, : camera.width]
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], axis=-1)
    depth = camera.fx * camera.baseline / (disparity.astype(np.float64) - camera.disparity_at_infinity)
    return rays * depth[..., None]


def is_object(category: np.ndarray) -> np.ndarray:
    """Return which pixels show a road user, (H, W) bool."""
    return (category >= Category.CAR) & (category < Category.EGO)
