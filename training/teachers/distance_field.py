# SPDX-License-Identifier: Apache-2.0
"""Distance to the nearest point of a cloud, from a grid whose cells are computed when first read."""

import math

import numpy as np
import torch
from scipy.spatial import cKDTree

from zeroflow_ros.errors import DataError

_MAX_CELLS = 2**31  # 8 GB of float32; on the CPU, only cells that were read take memory


class DistanceField:
    """The Euclidean distance transform of a cloud [m] with trilinear interpolation.

    A cell's value is the distance from its centre to the centre of the nearest occupied cell. It is computed when first
    read: the box of a sweep has 100 million cells of 0.1 m, and a flow reads 1 % of them.
    points: (M, 3) float32 [m], not empty. lower, upper: corners [m] of the box. cell: edge of a cell [m].
    Raises: DataError when the box has too many cells.
    Source: Fast Neural Scene Flow; it transforms the whole grid at once.
    """

    def __init__(self, points: np.ndarray, lower: np.ndarray, upper: np.ndarray, cell: float, device: str = 'cpu'):
        self.cell = cell
        self._lower = torch.from_numpy(lower.astype(np.float32)).to(device)
        self.shape = tuple(np.ceil((upper.astype(np.float64) - lower) / cell).astype(int) + 2)
        if math.prod(self.shape) > _MAX_CELLS:
            raise DataError(
                f'The clouds need a grid of {self.shape} cells of {cell} m; at most {_MAX_CELLS} are possible. '
                'Crop the clouds to the range of interest, or make the cell larger.'
            )
        occupied = np.unique(np.floor((points - lower) / np.float32(cell)).astype(np.int32), axis=0)
        self._occupied = cKDTree(occupied.astype(np.float64))
        # 1 + distance, 0 where not known yet: numpy's zeros take no memory until they are written.
        self._values = torch.from_numpy(np.zeros(math.prod(self.shape), np.float32)).to(device)
        corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing='ij'), -1).reshape(8, 3)
        self._corners = torch.from_numpy(corners).to(device)
        self._strides = torch.tensor([self.shape[1] * self.shape[2], self.shape[2], 1], device=device)

    def __call__(self, places: torch.Tensor) -> torch.Tensor:
        """Return the distance (N,) at places (N, 3) [m], with a gradient; places outside the box are clamped to it."""
        last = torch.tensor(self.shape, device=places.device) - 1
        index = ((places - self._lower) / self.cell - 0.5).clamp(min=0)  # in cells, from the centre of the first
        index = torch.minimum(index, last)
        with torch.no_grad():
            first = torch.minimum(index.floor().long(), last - 1)  # (N, 3)
            cells = ((first[:, None] + self._corners) * self._strides).sum(2)  # (N, 8)
            values = self._at(cells)
        share = (index - first)[:, None]  # (N, 1, 3)
        weight = torch.where(self._corners == 1, share, 1 - share).prod(2)  # (N, 8)
        return (weight * values).sum(1)

    def _at(self, cells: torch.Tensor) -> torch.Tensor:
        values = self._values[cells]
        unknown = cells[values == 0].unique()
        if len(unknown):
            where = np.stack(np.unravel_index(unknown.cpu().numpy(), self.shape), 1)
            distance = self.cell * self._occupied.query(where)[0]
            self._values[unknown] = torch.from_numpy(1 + distance).to(self._values)
            values = self._values[cells]
        return values - 1
