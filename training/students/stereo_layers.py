# SPDX-License-Identifier: Apache-2.0
"""Layers of networks for stereo images: correlation volumes, warps, the resize and the padding of TensorFlow 1."""

import torch
from torch import Tensor
from torch.nn import functional

_LARGEST_BLOCK, _SMALLEST_BLOCK = 48, 16  # px


def correlation_1d(left: Tensor, right: Tensor, before: int, after: int) -> Tensor:
    """Return the mean over channels of left(x) * right(x + o) for offsets o = -before..after along a row.

    left, right: (B, C, H, W). Returns (B, before + after + 1, H, W); outside of the image, right is 0.
    One matrix product per block of a row computes all pairs of its pixels: a tenth of the operators that products of
    shifted images take, and CPUs compute them faster.
    """
    num = before + after + 1
    rows = _windows(functional.pad(right, (before, after)), num)
    return _band(_pixels(left), rows, num).permute(0, 3, 1, 2)


def correlation_2d(source: Tensor, target: Tensor, radius: int) -> Tensor:
    """Return the mean over channels of source(p) * target(p + o) for offsets o of a square, dy outer, dx inner.

    source, target: (B, C, H, W). Returns (B, (2 * radius + 1)^2, H, W); outside of the image, target is 0.
    """
    height, num = source.shape[2], 2 * radius + 1
    pixels = _pixels(source)
    rows = _windows(functional.pad(target, (radius, radius, radius, radius)), num)
    # One product for all row offsets would be fewer operators, and takes a fifth longer: it leaves the cache.
    bands = [_band(pixels, rows[:, k : k + height], num) for k in range(num)]
    return torch.cat(bands, dim=3).permute(0, 3, 1, 2)


def correlation_3d(source: Tensor, target: Tensor, radius: int, depth_radius: int) -> Tensor:
    """Return the 2-D correlations of source with target, shifted along its channels by s = -depth_radius..depth_radius.

    source, target: (B, C, H, W). Channel c of the shifted target is channel c + s of the target, 0 where there is none.
    Returns (B, (2 * depth_radius + 1) * (2 * radius + 1)^2, H, W), the blocks in the order of s.
    """
    if not depth_radius:
        return correlation_2d(source, target, radius)
    num_channels = target.shape[1]
    padded = functional.pad(target, (0, 0, 0, 0, depth_radius, depth_radius))
    blocks = [correlation_2d(source, padded[:, k : k + num_channels], radius) for k in range(2 * depth_radius + 1)]
    return torch.cat(blocks, dim=1)


def _block_width(width: int) -> int:
    """Return the width of the blocks into which rows are cut: few pairs of their pixels are far apart."""
    block = max(part for part in range(1, _LARGEST_BLOCK + 1) if width % part == 0)
    return width if block < _SMALLEST_BLOCK else block


def _pixels(image: Tensor) -> Tensor:
    """Return the image (B, C, H, W) divided by C, its rows cut into n blocks, (B, H, n, W / n, C)."""
    block = _block_width(image.shape[3])
    return (image.permute(0, 2, 3, 1) * (1 / image.shape[1])).unflatten(2, (image.shape[3] // block, block))


def _windows(image: Tensor, num: int) -> Tensor:
    """Return what the blocks of rows of W pixels are compared with, (B, H, n, C, W / n + num - 1).

    image: (B, C, H, W + num - 1).
    """
    rows, width = image.permute(0, 2, 1, 3), image.shape[3] - num + 1
    block = _block_width(width)
    starts = range(0, width, block)
    return torch.stack([rows[..., start : start + block + num - 1] for start in starts], dim=2)


def _band(pixels: Tensor, windows: Tensor, num: int) -> Tensor:
    """Return the sum over channels of pixels(x) * windows(x + k) for k = 0..num - 1, (B, H, W, num).

    pixels: (B, H, n, W / n, C). windows: (B, H, n, C, W / n + num - 1).
    """
    block = pixels.shape[3]
    pairs = (pixels @ windows).flatten(3)  # of all pixels of a block
    # Entry (x, x + k) of rows of length block + num - 1 is entry (x, k) of rows that are one longer.
    found = functional.pad(pairs, (0, block)).unflatten(3, (block, block + num))[..., :num]
    return found.flatten(2, 3)


def pixel_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Return the pixel coordinates (u, v) of an image, (1, 2, H, W), in the type and on the device of `like`."""
    v = torch.arange(height, dtype=like.dtype, device=like.device)[:, None].expand(height, width)
    u = torch.arange(width, dtype=like.dtype, device=like.device)[None].expand(height, width)
    return torch.stack([u, v])[None]


def sample_at(image: Tensor, pixels: Tensor, padding: str = 'border') -> Tensor:
    """Return an image (B, C, H, W) at pixel coordinates (B, 2, h, w), bilinear.

    padding: outside of the image, 'border' repeats the nearest pixel, 'zeros' is 0.
    """
    height, width = image.shape[2:]
    u, v = pixels[:, 0] * (2 / (width - 1)) - 1, pixels[:, 1] * (2 / (height - 1)) - 1
    return functional.grid_sample(
        image, torch.stack([u, v], dim=-1), mode='bilinear', padding_mode=padding, align_corners=True
    )


def warp_by_flow(image: Tensor, flow: Tensor) -> Tensor:
    """Return the image (B, C, H, W) at p + flow(p), flow (B, 2, H, W) [px]; outside, the nearest border pixel."""
    return sample_at(image, pixel_grid(*image.shape[2:], flow) + flow)


def warp_along_rows(image: Tensor, offset: Tensor) -> Tensor:
    """Return the image (B, C, H, W) at (u + offset, v), offset (B, 1, H, W) [px], as the sampler of DWARF does.

    Its interpolation weights come from clipped corners: they cancel for u + offset < 0 and u + offset >= W - 1, and in
    the whole last row. The result is 0 there.
    Source: the sampler of monodepth (Godard et al. 2017), which DWARF uses.
    """
    height, width = image.shape[2:]
    grid = pixel_grid(height, width, offset)
    u = grid[:, :1] + offset
    inside = (u >= 0) & (u < width - 1) & (grid[:, 1:] < height - 1)
    pixels = torch.cat([u, grid[:, 1:].expand(len(u), -1, -1, -1)], dim=1)
    return sample_at(image, pixels) * inside.to(image.dtype)


def legacy_upsample(image: Tensor, factor: int) -> Tensor:
    """Return the image (B, C, H, W) enlarged by a whole factor as TensorFlow 1 resizes it, bilinear.

    Pixel i of the image is pixel i * factor of the result: no offset by half a pixel. The last pixel is repeated.
    """
    return _legacy_upsample_rows(_legacy_upsample_rows(image, factor).transpose(2, 3), factor).transpose(2, 3)


def _legacy_upsample_rows(image: Tensor, factor: int) -> Tensor:
    """Return the image (B, C, H, W) enlarged to (B, C, H * factor, W)."""
    after = torch.cat([image[:, :, 1:], image[:, :, -1:]], dim=2)
    steps = [image * (1 - k / factor) + after * (k / factor) for k in range(factor)]
    return torch.stack(steps, dim=3).flatten(2, 3)


def same_padding(image: Tensor) -> Tensor:
    """Return the image padded for a 3x3 convolution of stride 2 as TensorFlow's SAME does.

    An even size is padded by one at the bottom or the right only, an odd size at both ends.
    """
    height, width = image.shape[2:]
    top, left = height % 2, width % 2
    return functional.pad(image, (left, 1, top, 1))
