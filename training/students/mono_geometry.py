# SPDX-License-Identifier: Apache-2.0
"""Depth, points, projection and warps of one camera, as networks for monocular scene flow use them.

Points and scene flow are in the optical frame (x right, y down, z forward) [m]. Disparity is a fraction of the width of
the image, positive. Intrinsics (B, 3, 3) [px] belong to the size of the maps beside them; skew is not used.
"""

import torch
from torch import Tensor
from torch.nn import functional

from training.students.stereo_layers import pixel_grid, sample_at

BASELINE = 0.54  # m, of a stereo camera that would see the disparity
NEAREST, FARTHEST = 1e-3, 80.0  # m, bounds of the depth
_LEAST_DISPARITY = 1e-4  # px, added
_LEAST_DEPTH = 1e-8  # m, added
_FARTHEST_PIXEL = 1.5  # widths of the image; bound of both projected coordinates
COVERED = 0.999  # of a pixel's four neighbours, by weight, that lie inside the image


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Return the image (B, C, h, w) as (B, C, height, width), bilinear, corners on corners, without antialiasing."""
    return functional.interpolate(image, (height, width), mode='bilinear', align_corners=True)


def scaled_intrinsics(intrinsics: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Return intrinsics (B, 3, 3) of images of another size; sizes are (height, width) [px].

    Plain ratios, without a term of half a pixel. Skew becomes 0.
    """
    ratios = intrinsics.new_tensor([new_size[1] / size[1], new_size[0] / size[0], 1.0])[:, None]
    return _without_skew(intrinsics) * ratios


def flipped_intrinsics(intrinsics: Tensor, width: int) -> Tensor:
    """Return the intrinsics (B, 3, 3) of images that are flipped left to right: cx becomes width - cx.

    Exact would be width - 1 - cx; the networks were trained so.
    """
    flipped = intrinsics.clone()
    flipped[:, 0, 2] = width - intrinsics[:, 0, 2]
    return flipped


def depth_of(disparity: Tensor, intrinsics: Tensor) -> Tensor:
    """Return depth (B, 1, h, w) [m] from disparity (B, 1, h, w), between NEAREST and FARTHEST."""
    pixels = disparity * disparity.shape[3]
    focal = intrinsics[:, 0, 0].reshape(-1, 1, 1, 1)
    return (focal * BASELINE / (pixels + _LEAST_DISPARITY)).clamp(NEAREST, FARTHEST)


def points_of(disparity: Tensor, intrinsics: Tensor) -> Tensor:
    """Return the points (B, 3, h, w) [m] that pixels with a disparity (B, 1, h, w) show."""
    focal, centre = _focal_and_centre(intrinsics)
    depth = depth_of(disparity, intrinsics)
    rays = (pixel_grid(*disparity.shape[2:], disparity) - centre) / focal
    return torch.cat([rays * depth, depth], dim=1)


def project(points: Tensor, intrinsics: Tensor) -> Tensor:
    """Return the pixels (B, 2, h, w) of points (B, 3, h, w), within 1.5 widths of the first pixel.

    Points behind the camera get mirrored pixels.
    """
    pixels = (_without_skew(intrinsics) @ points.flatten(2)).reshape(points.shape)
    pixels = pixels[:, :2] / (pixels[:, 2:] + _LEAST_DEPTH)
    bound = _FARTHEST_PIXEL * points.shape[3]
    return pixels.clamp(-bound, bound)


def target_pixels(scene_flow: Tensor, disparity: Tensor, intrinsics: Tensor) -> Tensor:
    """Return the pixels (B, 2, h, w) to which scene flow (B, 3, h, w) [m] moves what pixels show."""
    return project(points_of(disparity, intrinsics) + scene_flow, intrinsics)


def optical_flow(scene_flow: Tensor, disparity: Tensor, intrinsics: Tensor) -> Tensor:
    """Return the optical flow (B, 2, h, w) [px] of scene flow (B, 3, h, w) [m] and disparity (B, 1, h, w)."""
    return target_pixels(scene_flow, disparity, intrinsics) - pixel_grid(*disparity.shape[2:], disparity)


def warp(image: Tensor, pixels: Tensor, covered: float = COVERED) -> Tensor:
    """Return an image (B, C, h, w) at pixels (B, 2, h, w), bilinear, 0 where less than `covered` of it is inside."""
    inside = sample_at(torch.ones_like(image[:, :1]), pixels, 'zeros') > covered
    return sample_at(image, pixels, 'zeros') * inside.to(image.dtype)


def _without_skew(intrinsics: Tensor) -> Tensor:
    return intrinsics * intrinsics.new_tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])


def _focal_and_centre(intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], dim=1)
    return focal[:, :, None, None], intrinsics[:, :2, 2, None, None]
