# SPDX-License-Identifier: Apache-2.0
"""The pillar feature net that every student starts with, in torch; `zeroflow_ros.pillars` is its numpy twin."""

import torch
from torch import Tensor, nn

from zeroflow_ros.pillars import PillarGrid


class PillarGridTensors:
    """The arithmetic of `PillarGrid` on tensors, in forms that export to ONNX."""

    def __init__(self, grid: PillarGrid):
        self.grid = grid
        self.num_cells = grid.cells**2

    def assign(self, points: Tensor) -> Tensor:
        """Return the flat cell index (N,) int64 of points (N, 3); num_cells (one past the last) when outside."""
        grid = self.grid
        column = torch.floor(points[:, 0] * (1 / grid.cell) + grid.cells / 2)
        row = torch.floor(points[:, 1] * (1 / grid.cell) + grid.cells / 2)
        z = points[:, 2]
        inside = (column >= 0) & (column < grid.cells) & (row >= 0) & (row < grid.cells)
        inside = inside & (z >= grid.z_min) & (z < grid.z_max)
        flat = (torch.where(inside, row, 0.0) * grid.cells + torch.where(inside, column, 0.0)).to(torch.int64)
        return torch.where(inside, flat, self.num_cells)

    def centre_offsets(self, points: Tensor, cell_index: Tensor) -> Tensor:
        """Return each point's offset (N, 3) [m] from the centre of its pillar."""
        grid = self.grid
        column = (cell_index % grid.cells).to(points.dtype)
        row = torch.div(cell_index, grid.cells, rounding_mode='floor').to(points.dtype)
        centre = torch.stack(
            [
                (column + 0.5 - grid.cells / 2) * grid.cell,
                (row + 0.5 - grid.cells / 2) * grid.cell,
                torch.full_like(column, (grid.z_min + grid.z_max) / 2),
            ],
            dim=1,
        )
        return points - centre


class PillarFeatureNet(nn.Module):
    """One Linear 9 -> C, batch norm and ReLU per point, then the mean over each pillar.

    feature_scale: what the 9 features are multiplied by before the Linear. Raw coordinates reach 50 m and offsets in
        a pillar 0.2 m; unscaled, a fresh network does not see the offsets, in which all motion below a cell lies.
    Source: FastFlow3D as ZeroFlow implements it, parameter names included; there the scale is 1.
    """

    def __init__(self, num_channels: int, feature_scale: tuple[float, ...] = (1.0,) * 9):
        super().__init__()
        self.register_buffer('feature_scale', torch.tensor(feature_scale), persistent=False)
        layer = nn.Sequential(
            nn.Linear(9, num_channels, bias=False), nn.BatchNorm1d(num_channels, eps=1e-3, momentum=0.01), nn.ReLU()
        )
        self.pfn_layers = nn.ModuleList([layer])

    def forward(self, points: Tensor, cell_index: Tensor, offsets: Tensor, num_cells: int) -> Tensor:
        """Return the pillar table (C, num_cells) of points (N, 3).

        cell_index: (N,) int64 in [0, num_cells]; num_cells marks a point outside, which reaches no pillar.
        offsets: (N, 3) from the pillar's centre [m].
        """
        # scatter_add and not index_add: the latter becomes ScatterND(add), which TensorRT refuses and ONNX Runtime
        # computes wrongly with two threads.
        ones = torch.ones_like(points[:, :1])
        counts = torch.zeros(num_cells + 1, 1, dtype=points.dtype, device=points.device)
        counts = counts.scatter_add(0, cell_index[:, None], ones).clamp(min=1)
        sums = torch.zeros(num_cells + 1, 3, dtype=points.dtype, device=points.device)
        sums = sums.scatter_add(0, cell_index[:, None].expand(-1, 3), points)
        means = (sums / counts)[cell_index]
        features = torch.cat([points, points - means, offsets], dim=1) * self.feature_scale  # (N, 9)
        encoded = self.pfn_layers[0](features)  # (N, C)
        num_channels = encoded.shape[1]
        table = torch.zeros(num_cells + 1, num_channels, dtype=points.dtype, device=points.device)
        table = table.scatter_add(0, cell_index[:, None].expand(-1, num_channels), encoded) / counts
        return table[:num_cells].T

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Return (weight (C, 9), bias (C,)) of the Linear with scale and batch norm's running statistics folded in."""
        linear, norm = self.pfn_layers[0][0], self.pfn_layers[0][1]
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return linear.weight * self.feature_scale * scale[:, None], norm.bias - norm.running_mean * scale


class PillarEmbedder(nn.Module):
    """Holds the feature net under the name that published checkpoints use."""

    def __init__(self, num_channels: int, feature_scale: tuple[float, ...] = (1.0,) * 9):
        super().__init__()
        self.feature_net = PillarFeatureNet(num_channels, feature_scale)


class PillarStudent(nn.Module):
    """A student on pillars of two sweeps: a backbone over two pseudo-images and a head per point.

    Subclasses set `grid`, `embedder`, and implement `features` and `head_flow`.
    """

    name: str
    grid: PillarGrid
    embedder: PillarEmbedder

    def features(self, image0: Tensor, image1: Tensor) -> tuple[Tensor, ...]:
        """Return what the head reads, from pseudo-images (B, C, G, G) of the two sweeps."""
        raise NotImplementedError

    def head_flow(self, features: tuple[Tensor, ...], cell0: Tensor, offset0: Tensor) -> Tensor:
        """Return the residual flow (N, 3) [m] of the points of one sample; features have no batch axis."""
        raise NotImplementedError

    @property
    def num_channels(self) -> int:
        """Channels of the pseudo-image."""
        return self.embedder.feature_net.pfn_layers[0][0].out_features

    def pseudo_image(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (image (C, G, G), cell index (N,), offsets (N, 3)) of points (N, 3) [m]."""
        tensors = PillarGridTensors(self.grid)
        cell_index = tensors.assign(points)
        offsets = tensors.centre_offsets(points, cell_index)
        table = self.embedder.feature_net(points, cell_index, offsets, tensors.num_cells)  # (C, G*G)
        return table.reshape(-1, self.grid.cells, self.grid.cells), cell_index, offsets

    def forward(self, points0: Tensor, points1: Tensor) -> Tensor:
        """Return the residual flow (N, 3) [m] of points0 (N, 3) towards points1 (M, 3), both in one frame.

        The value at points outside the grid means nothing.
        """
        image0, cell0, offset0 = self.pseudo_image(points0)
        image1, _, _ = self.pseudo_image(points1)
        last = self.grid.cells**2 - 1
        return self.dense(image0[None], image1[None], cell0.clamp(max=last), offset0)

    def dense(self, image0: Tensor, image1: Tensor, cell0: Tensor, offset0: Tensor) -> Tensor:
        """Return the flow (N, 3) [m] from pseudo-images (1, C, G, G), cell indices (N,) and offsets (N, 3)."""
        features = self.features(image0, image1)
        return self.head_flow(tuple(f[0] for f in features), cell0, offset0)

    def forward_both(
        self, pairs: list[tuple[Tensor, Tensor]], rows: list[tuple[Tensor, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return for each pair of clouds in one frame the flow [m] of some points of the first, and of the second.

        All points must be inside the grid. Both directions of time share the pseudo-images.
        rows: for each pair, the row numbers of the points of each cloud whose flow is wanted.
        """
        encoded = [(self.pseudo_image(points0), self.pseudo_image(points1)) for points0, points1 in pairs]
        images0, images1 = (torch.stack([both[cloud][0] for both in encoded]) for cloud in (0, 1))
        flows = []
        for cloud, features in enumerate((self.features(images0, images1), self.features(images1, images0))):
            flows.append([])
            for sample, both in enumerate(encoded):
                wanted = rows[sample][cloud]
                _, cell_index, offsets = both[cloud]
                flows[-1].append(
                    self.head_flow(tuple(f[sample] for f in features), cell_index[wanted], offsets[wanted])
                )
        return list(zip(*flows, strict=True))


def gather_columns(image: Tensor, cell_index: Tensor) -> Tensor:
    """Return the columns (N, C) of an image (C, H, W) at flat cell indices (N,)."""
    return image.flatten(1).T.index_select(0, cell_index)  # its backward is an index_add: 5x faster than []'s
