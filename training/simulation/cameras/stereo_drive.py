# SPDX-License-Identifier: Apache-2.0
"""Drives of a stereo camera through simulated streets: images, and the exact scene flow of every pixel.

A drive is a function of its seed and its options alone; a frame does not depend on which other frames are made.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from training.simulation.cameras.pixel_motion import (
    NO_BODY,
    NO_CATEGORY,
    STATIC_WORLD,
    PixelMotion,
    moved_points,
    pixel_motion,
    pixel_points,
)
from training.simulation.cameras.renderer import Hits, Renderer, develop, exposure_of
from training.simulation.cameras.stereo_rig import StereoRig, View
from training.simulation.cameras.world import Instant, World
from training.simulation.streets.street import Street, make_street
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError

RATE_HZ = 10.0
_EGO_HEIGHT = 1.75  # [m]; make_street makes the ego vehicle's roof lower than that


@dataclass(frozen=True)
class SimulatedStereoFrame:
    """What a stereo camera saw at one time, and what is there.

    left, right: (H, W, 3) uint8 RGB. stamp: seconds from the start. odom_T_left: (4, 4) float64, pose of the left
    optical frame.
    disparity: (H, W) float32 [px] of the left image, exact for the calibration; NaN where there is only sky.
    body: (H, W) int16, STATIC_WORLD, the number of an actor plus 1, or NO_BODY. category: (H, W) uint8, a Category, or
    NO_CATEGORY. is_visible_right: (H, W) bool, whether the right camera sees the same point.
    odom_T_bodies: (B, 4, 4) float64, poses of the static world and of the actors.
    """

    left: np.ndarray
    right: np.ndarray
    stamp: float
    odom_T_left: np.ndarray
    disparity: np.ndarray
    body: np.ndarray
    category: np.ndarray
    is_visible_right: np.ndarray
    odom_T_bodies: np.ndarray


class StereoDrive:
    """A stereo camera on the ego vehicle of a street.

    Frames are rendered when they are asked for.
    """

    def __init__(self, seed: int, street: Street, times: np.ndarray, rig: StereoRig, rng: np.random.Generator):
        self.seed, self.street, self.times, self.rig = seed, street, times, rig
        self.world = World.of(street)
        self.renderer = Renderer(self.world, rng)
        self._instants: dict[int, Instant] = {}

    def __len__(self) -> int:
        return len(self.times)

    def odom_T_left(self, step: int) -> np.ndarray:
        """Return the pose of the left optical frame, (4, 4) float64."""
        return self.street.ego.odom_T_body[step] @ self.rig.base_T_left

    @cached_property
    def exposure(self) -> float:
        """Factor on the light of all frames: it is set at the start of the drive, from a small image."""
        camera = self.rig.camera
        small = StereoRig(camera.scaled(camera.width // 8, camera.height // 8), self.rig.base_T_left, self.rig.faults)
        light, _ = self.renderer.render(self._at(0), small.view(self.odom_T_left(0), 0))
        return exposure_of(light, self.rig.faults)

    def frame(self, step: int) -> SimulatedStereoFrame:
        """Return the frame at one of the times of the drive."""
        instant, pose = self._at(step), self.odom_T_left(step)
        images, hits = [], None
        for side in (0, 1):
            view = self.rig.view(pose, side)
            light, seen = self.renderer.render(instant, view)
            hits = hits or seen
            noise = np.random.default_rng([self.seed, 7, step, side])
            images.append(develop(light, self.exposure, self.rig.faults, side, noise))
        view = self.rig.view(pose, 0)
        there = (hits.triangle >= 0).reshape(view.height, view.width)
        triangle = hits.triangle.reshape(there.shape)
        body = np.where(there, self.world.body[triangle], NO_BODY).astype(np.int16)
        disparity = self.rig.camera.disparity(_exact_depth(instant, view, hits).reshape(there.shape))
        points = transforms.apply(pose, pixel_points(self.rig.camera, disparity)[there])
        is_visible_right = np.zeros(there.shape, bool)
        is_visible_right[there] = self._is_visible(instant, self.rig.view(pose, 1, real=False), points)
        return SimulatedStereoFrame(
            *images, float(self.times[step]), pose, disparity, body,
            np.where(there, self.world.category[triangle], NO_CATEGORY).astype(np.uint8),
            is_visible_right, self.world.odom_T_bodies[step],
        )  # fmt: skip

    def visibility(self, frame: SimulatedStereoFrame, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return whether the left and the right camera see the points of a frame's pixels at `step`, (H, W) bool each.

        A point is seen where its pixel is inside the image and nothing hides it.
        """
        pose = self.odom_T_left(step)
        moved = moved_points(self.rig.camera, frame.disparity, frame.body, *self._poses(frame, step))
        there = np.isfinite(moved[..., 2])
        points, instant = transforms.apply(pose, moved[there]), self._at(step)
        seen = []
        for side in (0, 1):
            is_visible = np.zeros(there.shape, bool)
            is_visible[there] = self._is_visible(instant, self.rig.view(pose, side, real=False), points)
            seen.append(is_visible)
        return seen[0], seen[1]

    def motion(self, frame: SimulatedStereoFrame, step: int) -> PixelMotion:
        """Return the exact motion of a frame's pixels to the time of `step`."""
        return pixel_motion(self.rig.camera, frame.disparity, frame.body, *self._poses(frame, step))

    def velocity(self, frame: SimulatedStereoFrame, step: int) -> np.ndarray:
        """Return the mean velocity of a frame's pixels until `step`, (H, W, 3) float32 [m/s], ego motion removed.

        In the optical frame of the left camera at the time of the frame; 0 on the static world, NaN for the sky.
        """
        poses, bodies = self._poses(frame, step)
        # With the camera at rest only the bodies move.
        moved = moved_points(self.rig.camera, frame.disparity, frame.body, poses[[0, 0]], bodies)
        velocity = (moved - pixel_points(self.rig.camera, frame.disparity)) / (self.times[step] - frame.stamp)
        velocity[frame.body == STATIC_WORLD] = 0
        return velocity.astype(np.float32)

    def _poses(self, frame: SimulatedStereoFrame, step: int) -> tuple[np.ndarray, np.ndarray]:
        left = np.stack([frame.odom_T_left, self.odom_T_left(step)])
        return left, np.stack([frame.odom_T_bodies, self.world.odom_T_bodies[step]])

    def _at(self, step: int) -> Instant:
        if step not in self._instants:
            while len(self._instants) >= 2:  # the frame and its neighbour: scenes are large
                self._instants.pop(next(iter(self._instants)))
            self._instants[step] = self.world.at(step)
        return self._instants[step]

    def _is_visible(self, instant: Instant, view: View, points: np.ndarray) -> np.ndarray:
        """Return which points (N, 3) [m] in odom are inside the image of a view and not hidden, (N,) bool."""
        pixels, depth = view.project(points)
        is_visible = (depth > 0.05) & (np.abs(pixels[:, 0] - (view.width - 1) / 2) <= view.width / 2)
        is_visible &= np.abs(pixels[:, 1] - (view.height - 1) / 2) <= view.height / 2
        rows = np.flatnonzero(is_visible)
        origins, directions = view.rays(*pixels[rows].T)
        _, distance = self.renderer.cast(instant, origins, directions, 1 / view.fx)
        wanted = np.linalg.norm(points[rows] - view.odom_T_camera[:3, 3], axis=1)
        # 2 cm and 0.2 %: rounding of the ray caster on surfaces seen at a grazing angle
        is_visible[rows] = distance > wanted * 0.998 - 0.02
        return is_visible


def simulate_stereo(
    seed: int, *, camera: str = 'kitti', num_frames: int = 2, varied: bool = False, alongside: bool = False
) -> StereoDrive:
    """Return the stereo drive of `seed`.

    camera: a key of stereo_rig.CAMERAS. varied: a camera that differs from KITTI's in mount, baseline and focal length.
    alongside: with one or two large vehicles close beside the ego vehicle.
    Raises: DataError on an unknown camera, fewer than two frames, or a negative seed.
    """
    if seed < 0 or num_frames < 2:
        raise DataError(
            f'A stereo drive needs a seed of 0 or more and two frames or more, got {seed} and {num_frames}.'
        )
    times = np.arange(num_frames) / RATE_HZ
    beside = np.random.default_rng([seed, 4]) if alongside else None
    street = make_street(np.random.default_rng([seed, 1]), times, _EGO_HEIGHT, beside)
    return stereo_drive(seed, street, times, camera=camera, varied=varied)


def stereo_drive(
    seed: int, street: Street, times: np.ndarray, *, camera: str = 'kitti', varied: bool = False
) -> StereoDrive:
    """Return the drive of a stereo camera through a street that exists, at `times` (S,) [s]; see simulate_stereo."""
    rig = StereoRig.draw(np.random.default_rng([seed, 5]), camera, varied)
    return StereoDrive(seed, street, times, rig, np.random.default_rng([seed, 6]))


def _exact_depth(instant: Instant, view: View, hits: Hits) -> np.ndarray:
    """Return the depth of every pixel (H * W,) float64 [m]: its ray with the plane of its triangle; NaN for the sky."""
    depth = np.full(len(hits.triangle), np.nan)
    rows = np.flatnonzero(hits.triangle >= 0)
    triangle = hits.triangle[rows]
    corners, pose = instant.world.corners[triangle], instant.odom_T_bodies[instant.world.body[triangle]]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal = np.einsum('nij,nj->ni', pose[:, :3, :3], normal)
    corner = np.einsum('nij,nj->ni', pose[:, :3, :3], corners[:, 0]) + pose[:, :3, 3] - view.odom_T_camera[:3, 3]
    u, v = (array[rows] for array in view.pixels())
    x, y = (u - view.cx) / view.fx, (v - view.cy) / view.fy
    right, down, forward = view.odom_T_camera[:3, :3].T
    rays = x[:, None] * right + y[:, None] * down + forward
    along = np.einsum('ij,ij->i', normal, rays)
    exact = np.einsum('ij,ij->i', normal, corner) / np.where(np.abs(along) > 1e-12, along, np.nan)
    found = hits.distance[rows] / np.sqrt(1 + x * x + y * y)
    # Edge-on triangles: what the ray caster found is better than a division by nearly nothing.
    depth[rows] = np.where(np.abs(exact - found) < 0.01 * found, exact, found)
    return depth
