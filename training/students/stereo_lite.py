# SPDX-License-Identifier: Apache-2.0
"""A small student of stereo images for two CPU cores: it matches around the positions that ego motion predicts."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.students.camera_student import CameraStudent, StereoPrediction
from training.students.fastflow3d_lite import conv_norm_relu, stage
from training.students.stereo_layers import correlation_1d, correlation_2d, pixel_grid, sample_at

_FINEST = 4  # pixels per cell, along an axis, of the finest level of the decoder
_NEAREST = 0.1  # smallest ratio of the depths in the other frame and in the reference frame
_LOG_SIGMA = (-4.0, 5.0)  # bounds of the logarithm of the error's scale [px]


class StereoLite(CameraStudent):
    """Disparity of both frames, then motion as the difference from what ego motion does to a static scene.

    One encoder reads all four images at 1/2 to 1/16 of their size. At 1/4, each left image is compared with all cells
    of its right image's row up to num_disparities; an hourglass turns the similarities into a disparity. Disparity and
    ego motion give the position and the disparity that each pixel of a static scene has in the other frame. The
    difference from there is searched in squares of cells at 1/16, 1/8 and 1/4, coarse to fine. Without ego motion the
    search starts at the same pixel. Learned weights of nine cells give each pixel its values, so edges stay sharp.
    Full-resolution layers cost most on a CPU, so there are none.

    widths: channels at 1/2, 1/4, 1/8 and 1/16 of the image. num_disparities: of the search along a row [cells of 4 px].
    """

    name = 'stereo_lite'
    multiple = 16
    resize = 'scale'
    default_size = (640, 192)  # half of KITTI's
    log_sigma = True
    uses_ego_motion = True

    def __init__(self, widths: tuple[int, int, int, int] = (16, 32, 48, 64), num_disparities: int = 24):
        super().__init__()
        self.num_disparities = num_disparities
        w1, w2, w3, w4 = widths
        self.encoder1 = conv_norm_relu(3, w1, 2)
        self.encoder2, self.encoder3, self.encoder4 = stage(w1, w2, 2), stage(w2, w3, 2), stage(w3, w4, 2)
        self.to3, self.to2 = nn.Conv2d(w4, w3, 1), nn.Conv2d(w3, w2, 1)
        self.match2, self.match3 = nn.Conv2d(w2, w2, 3, padding=1), nn.Conv2d(w3, w3, 3, padding=1)
        self.hourglass = Hourglass(num_disparities + w2, w2, w3, w4)
        self.head_disparity = nn.Conv2d(w2, num_disparities + 1, 1)
        self.search4 = _search(81 + w4 + 2, w4, w4)
        self.search3 = _search(81 + w3 + 4 + w4, w4, w3)
        self.search2 = _search(49 + 2 * w2 + 9 + w3, 64, 64)
        self.context = nn.Sequential(_dilated(64, 2), _dilated(64, 4))
        self.residual4, self.residual3 = _zero_head(w4, 2), _zero_head(w3, 2)
        self.residual2 = _zero_head(64, 4 + 3)
        self.weights = nn.Conv2d(64, 9 * _FINEST**2, 1)

    def forward(self, left0: Tensor, right0: Tensor, left1: Tensor, right1: Tensor,
                ego_motion: Tensor | None = None) -> StereoPrediction:  # fmt: skip
        """See `CameraStudent`."""
        self.check_size(left0)
        maps2, maps3, maps4 = self.features(torch.cat([left0, left1, right0, right1]))
        (lefts, rights), both3, both4 = maps2.chunk(2), maps3.chunk(2)[0], maps4.chunk(2)[0]
        disparities, hidden = self.disparity(lefts, rights)  # (2B, 1, h, w) [cells]
        (disparity, other), hidden = disparities.chunk(2), hidden.chunk(2)[0]
        if ego_motion is None:
            ego_motion = torch.eye(3, 4, dtype=left0.dtype, device=left0.device).expand(len(left0), 3, 4)
        residual, from_above = self._search_from(disparity, ego_motion, both3.chunk(2), both4.chunk(2))
        here, there = lefts.chunk(2)
        static, static_disparity = static_motion(disparity, ego_motion, 1)
        flow = static + residual
        target = pixel_grid(*flow.shape[2:], flow) + flow
        found = sample_at(other, target)  # the disparity that the other frame has there
        volume = correlation_2d(here, sample_at(there, target, 'zeros'), 3)
        cues = torch.cat([flow, residual, disparity, static_disparity, found, found - static_disparity,
                          found - disparity], dim=1)  # fmt: skip
        features = self.search2(_joined(volume, here, hidden, cues, from_above))
        features = features + self.context(features)
        values = self.residual2(features)
        values, log_sigma = values[:, :4], values[:, 4:].clamp(*_LOG_SIGMA)
        coarse = torch.cat([disparity, found, flow], dim=1)
        pixels = convex_upsample((coarse + values) * _FINEST, self.weights(features), _FINEST)
        log_sigma = functional.interpolate(log_sigma, scale_factor=_FINEST, mode='nearest')
        return StereoPrediction(
            functional.relu(pixels[:, :1]),
            functional.relu(pixels[:, 1:2]),
            pixels[:, 2:],
            log_sigma,
            coarse * _FINEST,
        )

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features of images (B, 3, H, W) at 1/4, 1/8 and 1/16 of their size."""
        level2 = self.encoder2(self.encoder1(images))
        level3 = self.encoder3(level2)
        level4 = self.encoder4(level3)
        level3 = self.match3(level3 + _double(self.to3(level4)))
        return self.match2(level2 + _double(self.to2(level3))), level3, level4

    def disparity(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return the disparity (B, 1, h, w) [cells] of features (B, C, h, w), and the features that it came from."""
        similarity = correlation_1d(left, right, self.num_disparities - 1, 0).flip(1)
        hidden = self.hourglass(_joined(similarity, left))
        scores = self.head_disparity(hidden)
        share = torch.softmax((scores[:, :-1] + similarity * left.shape[1] ** 0.5).permute(0, 2, 3, 1), dim=3)
        steps = torch.arange(self.num_disparities, dtype=left.dtype, device=left.device)
        return (share @ steps[:, None]).permute(0, 3, 1, 2) + scores[:, -1:], hidden

    def _search_from(self, disparity, ego_motion, maps3, maps4) -> tuple[Tensor, Tensor]:
        """Return what the flow [cells at 1/4] adds to that of a static scene, and features, from the coarser levels."""
        smooth = functional.avg_pool2d(disparity, 3, 1, 1)
        (here, there), static = maps4, static_motion(smooth[:, :, ::4, ::4] / 4, ego_motion, 4)[0]
        volume = correlation_2d(here, sample_at(there, pixel_grid(*static.shape[2:], static) + static, 'zeros'), 4)
        features = self.search4(_joined(volume, here, static))
        residual, features = _double(self.residual4(features)) * 2, _double(features)
        (here, there), static = maps3, static_motion(smooth[:, :, ::2, ::2] / 2, ego_motion, 2)[0]
        flow = static + residual
        volume = correlation_2d(here, sample_at(there, pixel_grid(*flow.shape[2:], flow) + flow, 'zeros'), 4)
        features = self.search3(_joined(volume, here, flow, residual, features))
        return _double(residual + self.residual3(features)) * 2, _double(features)


class Hourglass(nn.Module):
    """Convolutions at 1, 1/2 and 1/4 of the input's size. num_in: its channels. w2, w3, w4: channels of the levels."""

    def __init__(self, num_in: int, w2: int, w3: int, w4: int):
        super().__init__()
        self.first = conv_norm_relu(_whole_blocks(num_in), w2)
        self.down3, self.down4 = stage(w2, w3, 1), stage(w3, w4, 2)
        self.up3 = nn.Sequential(conv_norm_relu(w4 + w3, w3), nn.Conv2d(w3, w2, 1))
        self.up2 = conv_norm_relu(2 * w2, w2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_in, h, w) -> (B, w2, h, w)."""
        level2 = self.first(x)
        level3 = self.down3(level2)
        level3 = self.up3(torch.cat([_double(self.down4(level3)), level3], dim=1))
        return self.up2(torch.cat([_double(level3), level2], dim=1))


def static_motion(disparity: Tensor, ego_motion: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return flow (B, 2, h, w) and disparity (B, 1, h, w) in the other frame that ego motion gives a static scene.

    disparity: (B, 1, h, w). All are in cells of step * 4 px. ego_motion: (B, 3, 4) of pixels, see
    zeroflow_ros.camera.static_scene.
    """
    batch, _, height, width = disparity.shape
    size = float(step * _FINEST)
    pixels = pixel_grid(height, width, disparity)
    where = torch.cat([pixels.expand(batch, 2, height, width), torch.full_like(disparity, 1 / size), disparity], dim=1)
    moved = (ego_motion @ where.flatten(2)).reshape(batch, 3, height, width)  # divided by the size of a cell
    ratio = (moved[:, 2:] * size).clamp(min=_NEAREST)
    return moved[:, :2] / ratio - pixels, disparity / ratio


def convex_upsample(cells: Tensor, weights: Tensor, factor: int) -> Tensor:
    """Return cells (B, C, h, w) enlarged by a whole factor; a pixel is a weighted mean of nine cells, its own amid.

    weights: (B, 9 * factor^2, h, w), logarithms, of which those beyond +-10 count as that. Source: RAFT (Teed and Deng
    2020), which has a softmax; on a CPU, that of another axis than the last costs more than the exponentials.
    """
    batch, channels, height, width = cells.shape
    shares = weights.clamp(-10, 10).exp().reshape(batch, 9, factor**2, height, width)
    padded = functional.pad(cells, (1, 1, 1, 1), mode='replicate')
    total = torch.zeros(1, dtype=cells.dtype, device=cells.device)
    for k in range(9):
        y, x = divmod(k, 3)
        near = padded[:, :, None, y : y + height, x : x + width]
        total = total + near * shares[:, k, None]  # (B, C, factor^2, h, w)
    total = total / shares.sum(dim=1, keepdim=True)
    return functional.pixel_shuffle(total.flatten(1, 2), factor).reshape(
        batch, channels, height * factor, width * factor
    )


def _search(num_in: int, num_hidden: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(conv_norm_relu(_whole_blocks(num_in), num_hidden), conv_norm_relu(num_hidden, num_out))


def _whole_blocks(num: int) -> int:
    """Return the next multiple of 16 channels: ONNX Runtime's fast convolutions take no other number."""
    return -(-num // 16) * 16


def _joined(*maps: Tensor) -> Tensor:
    """Return maps (B, C, h, w) as one, with channels of zeros up to whole blocks."""
    missing = sum(part.shape[1] for part in maps)
    missing = _whole_blocks(missing) - missing
    like = maps[0]
    zeros = [torch.zeros(len(like), missing, *like.shape[2:], dtype=like.dtype, device=like.device)] if missing else []
    return torch.cat([*maps, *zeros], dim=1)


def _dilated(width: int, rate: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=rate, dilation=rate, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def _zero_head(num_in: int, num_out: int) -> nn.Conv2d:
    """A convolution that gives 0 before training: the student begins with a static scene."""
    head = nn.Conv2d(num_in, num_out, 3, padding=1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _double(image: Tensor) -> Tensor:
    return functional.interpolate(image, scale_factor=2, mode='nearest')


def stereo_lite() -> StereoLite:
    """The student for 10 Hz on two CPU cores."""
    return StereoLite()
