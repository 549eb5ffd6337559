# SPDX-License-Identifier: Apache-2.0
"""FastFlow3D and its XL form, layer for layer as in ZeroFlow; official checkpoints load unchanged.

Source: Jund et al., Scalable Scene Flow from Point Clouds in the Real World; Vedder et al., ZeroFlow.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.students.pillar_net import PillarEmbedder, PillarStudent
from zeroflow_ros.lidar.pillars import PillarGrid


class ConvNormGelu(nn.Module):
    """3x3 convolution with bias, batch norm, exact GELU."""

    def __init__(self, num_in: int, num_out: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(num_in, num_out, 3, stride, padding=1)
        self.batchnorm = nn.BatchNorm2d(num_out)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        return functional.gelu(self.batchnorm(self.conv(image)))


class UpsampleSkip(nn.Module):
    """Merge a coarse map with the encoder map of twice its resolution. Linear throughout: no norm, no activation."""

    def __init__(self, num_coarse: int, num_latent: int, num_out: int):
        super().__init__()
        self.u1_u2 = nn.Sequential(
            nn.Conv2d(num_coarse, num_latent, 1), nn.Upsample(scale_factor=2, mode='bilinear', align_corners=False)
        )
        self.u3 = nn.Conv2d(num_latent, num_latent, 1)
        self.u4_u5 = nn.Sequential(
            nn.Conv2d(2 * num_latent, num_out, 3, padding=1), nn.Conv2d(num_out, num_out, 3, padding=1)
        )

    def forward(self, coarse: Tensor, lateral: Tensor) -> Tensor:
        """(B, coarse, H, W), (B, latent, 2H, 2W) -> (B, out, 2H, 2W)."""
        return self.u4_u5(torch.cat([self.u1_u2(coarse), self.u3(lateral)], dim=1))


class Backbone(nn.Module):
    """A siamese encoder over both pseudo-images and one decoder over their concatenated levels.

    num_channels: channels of the pseudo-image. depths: convolutions per encoder stage; each stage doubles the channels.
    """

    def __init__(self, num_channels: int, depths: tuple[int, ...]):
        super().__init__()
        self.num_stages = len(depths)
        for stage, depth in enumerate(depths, start=1):
            num_in = num_channels * 2 ** (stage - 1)
            layers = [ConvNormGelu(num_in, 2 * num_in, 2)]
            layers += [ConvNormGelu(2 * num_in, 2 * num_in, 1) for _ in range(depth - 1)]
            setattr(self, f'encoder_step_{stage}', nn.Sequential(*layers))
        for step in range(1, self.num_stages + 1):
            num_coarse = 2 * num_channels * 2 ** (self.num_stages - step + 1)
            lateral = 2 * num_channels * 2 ** (self.num_stages - step)
            setattr(self, f'decoder_step{step}', UpsampleSkip(num_coarse, lateral, lateral))
        setattr(self, f'decoder_step{self.num_stages + 1}', nn.Conv2d(2 * num_channels, 2 * num_channels, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 2C, G, G) -> (B, 2C, G, G); the channels of the first sweep come first."""
        levels = [images]
        for stage in range(1, self.num_stages + 1):
            step = getattr(self, f'encoder_step_{stage}')
            if self.training:  # separate batch statistics for each sweep
                level = torch.cat([step(image) for image in levels[-1].chunk(2, dim=1)], dim=1)
            else:
                level = step(levels[-1].unflatten(1, (2, -1)).flatten(0, 1)).unflatten(0, (-1, 2)).flatten(1, 2)
            levels.append(level)  # (B, 2C * 2^stage, G / 2^stage, G / 2^stage)
        image = levels.pop()
        for step in range(1, self.num_stages + 1):
            image = getattr(self, f'decoder_step{step}')(image, levels.pop())
        return getattr(self, f'decoder_step{self.num_stages + 1}')(image)

    def merge_layers(self) -> None:
        """Merge the last layer of each decoder step with the first of the next: there is no nonlinearity between."""
        for step in range(1, self.num_stages):
            this, following = (getattr(self, f'decoder_step{k}') for k in (step, step + 1))
            pointwise = following.u1_u2[0]
            this.u4_u5[1] = merged(this.u4_u5[1], pointwise.weight, pointwise.bias)
            following.u1_u2[0] = nn.Identity()


@torch.no_grad()
def merged(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return one convolution equal to `conv` followed by a 1x1 convolution with `weight` (out, in, 1, 1)."""
    matrix = weight.flatten(1).double()
    both = nn.Conv2d(conv.in_channels, len(matrix), conv.kernel_size, conv.stride, conv.padding)
    both.weight.copy_(torch.einsum('oc,cihw->oihw', matrix, conv.weight.double()))
    both.bias.copy_(matrix @ conv.bias.double() + bias.double())
    return both


class Head(nn.Module):
    """Two-layer MLP per point."""

    def __init__(self, num_in: int):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(num_in, 32), nn.GELU(), nn.Linear(32, 3))


class FastFlow3D(PillarStudent):
    """The student of the ZeroFlow papers: 6.8 M parameters at 0.2 m, XL 110.6 M at 0.1 m."""

    head_block = 1
    head_activation = 'gelu'
    is_merged = False  # whether the head's first layer is merged into the backbone's last

    def __init__(self, name: str, grid: PillarGrid, num_channels: int, depths: tuple[int, ...]):
        super().__init__()
        self.name = name
        self.grid = grid
        self.embedder = PillarEmbedder(num_channels)
        self.backbone = Backbone(num_channels, depths)
        self.head = Head(4 * num_channels + 3)

    def hidden(self, images: Tensor) -> Tensor:
        """Return the head's hidden layer from both pseudo-images and the backbone's output; see `PillarStudent`."""
        maps = self.backbone(images)
        of_images, of_maps, bias = self._first_layer()
        if not self.is_merged:
            maps = functional.conv2d(maps, of_maps)
        return functional.conv2d(images, of_images, bias) + maps

    def head_layers(self) -> tuple[Tensor, nn.Linear]:
        """Return the weight of the offsets, and the last layer."""
        return self.head.decoder[0].weight[:, -3:], self.head.decoder[2]

    def merge_layers(self) -> None:
        """See `PillarStudent`; saves a tenth of the arithmetic."""
        self.backbone.merge_layers()
        name = f'decoder_step{self.backbone.num_stages + 1}'
        _, of_maps, bias = self._first_layer()
        setattr(self.backbone, name, merged(getattr(self.backbone, name), of_maps, torch.zeros_like(bias)))
        self.is_merged = True

    def _first_layer(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the head's first layer without the offsets: its weights for the images and for the maps, its bias."""
        first, half = self.head.decoder[0], 2 * self.num_channels
        return first.weight[:, :half, None, None], first.weight[:, half : 2 * half, None, None], first.bias


def fastflow3d() -> FastFlow3D:
    """512 x 512 pillars of 0.2 m: 6,815,619 parameters, 344 GFLOP a pair."""
    return FastFlow3D('fastflow3d', PillarGrid(512, 0.2, -3.0, 3.0), num_channels=32, depths=(4, 6, 6))


def fastflow3d_xl() -> FastFlow3D:
    """1024 x 1024 pillars of 0.1 m: 110,618,147 parameters, 7.3 TFLOP a pair."""
    return FastFlow3D('fastflow3d_xl', PillarGrid(1024, 0.1, -3.0, 3.0), num_channels=64, depths=(4, 6, 6, 6))
