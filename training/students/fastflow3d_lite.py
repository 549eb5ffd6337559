# SPDX-License-Identifier: Apache-2.0
"""FastFlow3D for two CPU cores: a quarter of the cells, narrow layers, output at half resolution."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.students.pillar_net import PillarEmbedder, PillarStudent
from zeroflow_ros.lidar.pillars import PillarGrid


def conv_norm_relu(num_in: int, num_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU(inplace=True)
    )


def stage(num_in: int, num_out: int, depth: int) -> nn.Sequential:
    """`depth` convolutions, the first of stride 2."""
    layers = [conv_norm_relu(num_in, num_out, 2)] + [conv_norm_relu(num_out, num_out) for _ in range(depth - 1)]
    return nn.Sequential(*layers)


class LiteStudent(PillarStudent):
    """256 x 256 pillars of 0.4 m, z from -2 to 4 m above the ground; everything except the head.

    Three differences from FastFlow3D, all for two CPU cores. The encoder reads both sweeps at once: half the work, and
    its first layer sees motion of less than a cell. Full-resolution layers cost most on a CPU, so there are none: the
    decoder ends at cells of 0.8 m and gives the head four outputs per cell, one for each 0.4 m quarter. The features
    are offsets in the pillar, without x and y: the same scene looks the same everywhere.

    num_hidden: H, features per cell for the head. num_sweeps: sweeps that it takes. num_channels: channels of a
    pseudo-image. widths: of encoder stages.
    """

    head_block = 2

    def __init__(self, num_hidden: int, *, num_sweeps: int = 2, num_channels: int = 16,
                 widths: tuple[int, int, int] = (32, 64, 128),
                 grid: PillarGrid = PillarGrid(256, 0.4, -2.0, 4.0)):  # noqa: B008 - frozen  # fmt: skip
        super().__init__()
        self.grid, self.num_sweeps = grid, num_sweeps
        in_cell = 2 / grid.cell  # offsets in a cell become [-1, 1]
        self.embedder = PillarEmbedder(num_channels, (0, 0, 0.5, in_cell, in_cell, 1.0, in_cell, in_cell, 0.5))
        w1, w2, w3 = widths
        self.encoder1 = stage(num_sweeps * num_channels, w1, 2)
        self.encoder2 = stage(w1, w2, 3)
        self.encoder3 = stage(w2, w3, 3)
        self.decoder3 = nn.Sequential(conv_norm_relu(w3, w3), nn.Conv2d(w3, w2, 1))
        self.decoder2 = nn.Sequential(conv_norm_relu(2 * w2, w2), nn.Conv2d(w2, w1, 1))
        self.decoder1 = conv_norm_relu(2 * w1, w1)
        self.head_decoder = nn.Conv2d(w1, 4 * num_hidden, 1)
        self.head_pillars = nn.Conv2d(num_sweeps * num_channels, 4 * num_hidden, 2, stride=2, bias=False)

    def hidden(self, images: Tensor) -> Tensor:
        """Return the features for the head, (B, 4H, G/2, G/2); see `PillarStudent`."""
        level1 = self.encoder1(images)  # (B, w1, G/2, G/2)
        level2 = self.encoder2(level1)
        level3 = self.encoder3(level2)  # (B, w3, G/8, G/8)
        decoded = self.decoder3(level3)
        decoded = self.decoder2(torch.cat([_double(decoded), level2], 1))
        decoded = self.decoder1(torch.cat([_double(decoded), level1], 1))  # (B, w1, G/2, G/2)
        return self.head_decoder(decoded) + self.head_pillars(images)


class FastFlow3DLite(LiteStudent):
    """FastFlow3D for two CPU cores; see `LiteStudent`."""

    head_activation = 'leaky_relu'

    def __init__(self, name: str = 'fastflow3d_lite', num_hidden: int = 32, **sizes):
        super().__init__(num_hidden, **sizes)
        self.name = name
        self.head_offset = nn.Linear(3, num_hidden, bias=False)
        self.head_out = nn.Linear(num_hidden, 3)

    def head_layers(self) -> tuple[Tensor, nn.Linear]:
        """Return the weight of the offsets, and the last layer."""
        return self.head_offset.weight, self.head_out


def _double(image: Tensor) -> Tensor:
    return functional.interpolate(image, scale_factor=2, mode='nearest')


def fastflow3d_lite() -> FastFlow3DLite:
    """256 x 256 pillars of 0.4 m, for 10 Hz on two CPU cores."""
    return FastFlow3DLite()


def fastflow3d_lite_5() -> FastFlow3DLite:
    """The same with the four sweeps before the latest one instead of one."""
    return FastFlow3DLite('fastflow3d_lite_5', num_sweeps=5)
