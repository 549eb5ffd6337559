# SPDX-License-Identifier: Apache-2.0
"""The pillar feature net of all students, in torch; `zeroflow_ros.lidar.pillars` is its numpy twin."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from zeroflow_ros.lidar.pillars import PillarGrid
from zeroflow_ros.lidar.point_head import LEAK


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

    feature_scale: factors of the 9 features before the Linear. Raw coordinates reach 50 m and offsets in
        a pillar 0.2 m; unscaled, an untrained network ignores the offsets, which carry all motion below a cell.
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
        """Return the pillar table (num_cells, C) of points (N, 3).

        cell_index: (N,) int64 in [0, num_cells]; num_cells marks a point outside the grid, which is in no pillar.
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
        return table[:num_cells]

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
    """A student on pillars of two or more sweeps: a backbone over their pseudo-images, and a head per point.

    Most heads have two layers, the first linear in the maps and in the point's offset from the centre of its pillar. A
    linear layer commutes with a gather, so the part of the maps is computed per cell, and each point adds the part of
    its offset. Such a student sets `head_activation` and implements `head_layers`; the vehicle runs its head beside
    the network. Any other head sets `form` to 'gather' and implements `points_flow`, which becomes part of the network.
    All set `grid`, `embedder`, `head_block`, and implement `hidden`.
    """

    name: str
    num_sweeps: int = 2  # that it takes; it works with two, the images of missing older ones are 0
    grid: PillarGrid
    embedder: PillarEmbedder
    form: str = 'dense'  # of the model file that the vehicle runs, see zeroflow_ros.engines.model_card
    head_block: int  # cells along each side of the square of cells that share a column of `hidden`
    head_activation: str  # one of zeroflow_ros.lidar.point_head.ACTIVATIONS

    def hidden(self, images: Tensor) -> Tensor:
        """Return the features of each cell for the head: its hidden layer without the offsets, if it has one.

        images: (B, S * C, G, G), pseudo-images of S = num_sweeps sweeps: the one that gets the flow, its neighbour in
        time, then those beyond the neighbour. Returns (B, b * b * H, G / b, G / b) for blocks of b x b cells; the H
        channels of the cell at (row, column) of its block start at (row * b + column) * H.
        """
        raise NotImplementedError

    def head_layers(self) -> tuple[Tensor, nn.Linear]:
        """Return the weight (H, 3) of the offsets in the hidden layer, and the layer from hidden to flow."""
        raise NotImplementedError

    def merge_layers(self) -> None:
        """Merge adjacent linear layers in place, before an export; the output stays the same."""

    @property
    def num_channels(self) -> int:
        """Channels of one pseudo-image."""
        return self.embedder.feature_net.pfn_layers[0][0].out_features

    def pseudo_image(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (image (C, G, G), cell index (N,), offsets (N, 3)) of points (N, 3) [m]."""
        table, cell_index, offsets = self._pillars(points)
        return table.T.reshape(-1, self.grid.cells, self.grid.cells), cell_index, offsets

    def _pillars(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (pillar table (G * G, C), cell index (N,), offsets (N, 3)) of points (N, 3) [m]."""
        tensors = PillarGridTensors(self.grid)
        cell_index = tensors.assign(points)
        offsets = tensors.centre_offsets(points, cell_index)
        return self.embedder.feature_net(points, cell_index, offsets, tensors.num_cells), cell_index, offsets

    def forward(self, points0: Tensor, points1: Tensor, *older: Tensor) -> Tensor:
        """Return the residual flow (N, 3) [m] of points0 (N, 3) towards points1 (M, 3), both in one frame.

        older: (K, 3) [m], sweeps beyond points1 in time, the nearest first, in the same frame; any number of them may
        be missing. The value at points outside the grid is undefined.
        """
        image0, cell0, offset0 = self.pseudo_image(points0)
        images = [image0, *(self.pseudo_image(points)[0] for points in (points1, *older))]
        images += [torch.zeros_like(image0)] * (self.num_sweeps - len(images))
        last = self.grid.cells**2 - 1
        hidden = self.hidden(torch.cat(images)[None])
        return self.head_flow(hidden[0], cell0.clamp(max=last), offset0)

    def hidden_rows(self, hidden: Tensor) -> Tensor:
        """Return one sample's hidden layer (b * b * H, G / b, G / b) with the channels last: (G * G, H).

        Cells are in the order of blocks: row of blocks, column of blocks, row in the block, column in the block.
        """
        return hidden.flatten(1).T.reshape(self.grid.cells**2, -1)

    def head_flow(self, hidden: Tensor, cell0: Tensor, offset0: Tensor) -> Tensor:
        """Return the flow (N, 3) [m] of points in cells (N,) with offsets (N, 3), from one sample's `hidden`."""
        return self.points_flow(self.hidden_rows(hidden).index_select(0, self._row_of(cell0)), offset0)

    def _row_of(self, cell: Tensor) -> Tensor:
        """Return the row in `hidden_rows` of each cell (N,)."""
        cells, block = self.grid.cells, self.head_block
        row, column = torch.div(cell, cells, rounding_mode='floor'), cell % cells
        block_row, block_column = (torch.div(index, block, rounding_mode='floor') for index in (row, column))
        in_block = (row - block_row * block) * block + column - block_column * block
        return (block_row * (cells // block) + block_column) * block**2 + in_block

    def points_flow(self, gathered: Tensor, offsets: Tensor) -> Tensor:
        """Return the flow (N, 3) [m] of points from the `hidden` of their cells (N, H) and their offsets (N, 3)."""
        offset_weight, last = self.head_layers()
        return last(_ACTIVATIONS[self.head_activation](torch.addmm(gathered, offsets, offset_weight.T)))

    def forward_both(
        self,
        windows: list[tuple[Tensor, ...]],
        rows: list[tuple[Tensor, Tensor]],
        used: list[int] | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Return for each window the flow [m] of some points of its first sweep, and of its last.

        windows: of each sample, consecutive sweeps in one frame and in order of time, 2 to `num_sweeps`. The flow of
        the first is towards the second, that of the last towards the last but one: forward and backward flow share the
        pseudo-images. All points must be inside the grid.
        rows: for each window, the row numbers of the points of its first and last sweep to return flow for.
        used: sweeps of each window that the flow in either direction may use, 2 or more; None: all.
        Under autocast only the maps have low precision: bfloat16 would round coordinates of 50 m to 0.25 m.
        """
        device = windows[0][0].device.type
        # Cast once, at the first map: otherwise each layer copies its input to cast it.
        map_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        full_precision = torch.autocast(device, enabled=False)
        used = used or [len(window) for window in windows]
        with full_precision:
            encoded = [[self._pillars(points) for points in window] for window in windows]
        empty = torch.zeros(self.grid.cells**2, self.num_channels, dtype=map_dtype, device=device)
        flows = []
        for backward in (False, True):
            in_order = [window[::-1] if backward else window for window in encoded]
            slots = []  # of every sweep that the student takes: the tables (B, G * G, C) of all samples
            for k in range(self.num_sweeps):
                slots.append(torch.stack([
                    window[k][0].to(map_dtype) if k < number else empty
                    for window, number in zip(in_order, used, strict=True)
                ]))  # fmt: skip
            rows_of_cells = torch.cat(slots, dim=2).unflatten(1, (self.grid.cells, self.grid.cells))
            images = rows_of_cells.permute(0, 3, 1, 2)  # channels last in memory, as convolutions take it
            # All samples in one table: its gradient has the memory layout of the maps and needs no copy.
            table = self.hidden(images).permute(0, 2, 3, 1).reshape(len(windows) * self.grid.cells**2, -1)
            wanted = [ends[backward] for ends in rows]
            index, offsets = [], []
            for sample, (window, chosen) in enumerate(zip(in_order, wanted, strict=True)):
                _, cell_index, cell_offsets = window[0]
                index.append(self._row_of(cell_index[chosen]) + sample * self.grid.cells**2)
                offsets.append(cell_offsets[chosen])
            with full_precision:
                # index_select and not []: its backward is an index_add, which is 5x faster.
                gathered = table.index_select(0, torch.cat(index)).float()
                flow = self.points_flow(gathered, torch.cat(offsets))
            flows.append(flow.split([len(chosen) for chosen in wanted]))
        return list(zip(*flows, strict=True))


_ACTIVATIONS = {'leaky_relu': lambda hidden: functional.leaky_relu(hidden, LEAK), 'gelu': functional.gelu}
