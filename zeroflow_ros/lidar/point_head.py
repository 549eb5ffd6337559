# SPDX-License-Identifier: Apache-2.0
"""The point head: compute the flow of every point from the network's hidden layer per cell (CPU)."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zeroflow_ros.lidar.numba_support import numba_kernels
from zeroflow_ros.lidar.pillars import PillarGrid
from zeroflow_ros.lidar.quantization import Quantization
from zeroflow_ros.transforms import apply

ACTIVATIONS = ('leaky_relu', 'gelu')
LEAK = 0.1  # slope of leaky_relu below 0
# Chunks keep each product below 2**18 multiplications, which OpenBLAS runs on one thread. Its threads wait for each
# other, which takes 80 times as long as the product on a busy machine.
_CHUNK = 2048


@dataclass(frozen=True)
class PointHead:
    """The last two layers of a student: flow = weight @ activation(hidden[cell] + offset_weight @ offset) + bias.

    A Linear commutes with a gather, so the network computes the first layer once per cell, and each point adds only
    its offset from the centre of its pillar. The network then takes no points, and all its tensors have fixed sizes.

    block: side, in cells, of the square blocks in which the hidden layer is stored; see `flow`.
    offset_weight: (H, 3) float32. weight: (3, H) float32. bias: (3,) float32 [m]. activation: one of ACTIVATIONS.
    """

    grid: PillarGrid
    block: int
    offset_weight: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    activation: str

    def __post_init__(self):
        shapes = self.offset_weight.shape, self.weight.shape, self.bias.shape
        num_hidden = len(self.offset_weight)
        if num_hidden == 0 or shapes != ((num_hidden, 3), (3, num_hidden), (3,)):
            raise ValueError(f'A point head needs weights of shape (H, 3), (3, H) and (3,), got {shapes}')
        if self.block < 1 or self.grid.cells % self.block:
            raise ValueError(f'{self.grid.cells} cells do not divide into blocks of {self.block}')
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'The activation of a point head must be one of {ACTIVATIONS}, got {self.activation!r}')

    @cached_property
    def row_of_cell(self) -> np.ndarray:
        """Row of the hidden layer for each cell, (cells * cells,) int32."""
        blocks = self.grid.cells // self.block
        rows = np.arange(self.grid.cells**2, dtype=np.int32).reshape(blocks, blocks, self.block, self.block)
        return np.ascontiguousarray(rows.transpose(0, 2, 1, 3)).reshape(-1)

    @cached_property
    def _packed(self) -> np.ndarray:
        return np.concatenate([self.offset_weight.T, self.weight]).astype(np.float32).reshape(-1)

    def flow(
        self,
        points: np.ndarray,
        network_T_points: np.ndarray,
        cell_index: np.ndarray,
        hidden: np.ndarray,
        out: np.ndarray,
        quantization: Quantization | None = None,
    ) -> None:
        """Write the residual flow of each point [m] into out (N, 3) float32; NaN where a point has no cell.

        points: (N, 3) float32 [m]. network_T_points: (4, 4), maps points to the frame of the grid. cell_index: (N,)
        int32, -1 outside. hidden: (G / b, G / b, b, b, H) float32: row and column of the block of b x b cells, then
        row and column within the block. quantization: how it is stored, where it is uint8.
        Uses the numba kernels where available, else numpy.
        """
        if numba_kernels is None:
            self.flow_numpy(points, network_T_points, cell_index, hidden, out, quantization)
            return
        write = numba_kernels.make_flow_points(len(self.offset_weight), None if self.activation == 'gelu' else LEAK)
        matrix = network_T_points[:3].astype(np.float32)
        zero_point, scale = (quantization.zero_point, quantization.scale) if quantization else (0, 1)
        write(points, matrix, cell_index, self.grid.centres, self.row_of_cell, hidden.reshape(-1),
              np.float32(zero_point), np.float32(scale), self._packed, self.bias, out)  # fmt: skip

    def flow_numpy(self, points, network_T_points, cell_index, hidden, out, quantization=None) -> None:
        """Write the result of `flow`, without numba."""
        table = hidden.reshape(-1, len(self.offset_weight))
        out[:] = np.nan
        rows = np.flatnonzero(cell_index >= 0)
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            cell = np.take(cell_index, chunk)
            offset = self.grid.centre_offsets(apply(network_T_points, np.take(points, chunk, axis=0)), cell)
            layer = np.take(table, np.take(self.row_of_cell, cell), axis=0)
            layer = layer if quantization is None else quantization.real(layer)
            layer += offset @ self.offset_weight.T
            layer = _gelu(layer) if self.activation == 'gelu' else np.maximum(layer, np.float32(LEAK) * layer)
            out[chunk] = layer @ self.weight.T + self.bias


def _gelu(layer: np.ndarray) -> np.ndarray:
    erf = np.frompyfunc(math.erf, 1, 1)(layer * np.float32(0.5**0.5)).astype(np.float32)  # numpy has no erf
    return np.float32(0.5) * layer * (1 + erf)
