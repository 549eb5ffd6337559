# SPDX-License-Identifier: Apache-2.0
"""Cluster moving points by position and velocity, without classes or shape models."""

import numpy as np

from zeroflow_ros.lidar.numba_support import numba_kernels

_CELLS_PER_REACH = 3  # finer cells follow `reach` more closely; the cost grows with the square
_CELL_BITS = 24  # bits of one axis in a cell's key: 1,400 km at 0.17 m
_LIMIT = 1e5  # m: points with a larger or NaN coordinate are in no cluster


def cluster_moving(points: np.ndarray, velocity: np.ndarray, *, reach: float = 0.5, velocity_gap: float = 1.0,
                   velocity_share: float = 0.15, min_points: int = 8) -> np.ndarray:  # fmt: skip
    """Return the cluster of each point, (N,) int32 from 0, the largest cluster first; -1: in no cluster.

    points: (N, 3) [m]. velocity: (N, 3) [m/s]; all given points count as moving, rows with NaN are in no cluster.
    Two points are connected if they are within `reach` [m] of each other seen from above, and their velocities differ
    by less than velocity_gap [m/s] plus velocity_share of the slower speed: the error of a velocity grows with the
    speed. Connected points form a cluster. Clusters of fewer than min_points points are dropped.

    The points in a cell with a side of reach / 3 are connected as one, with their mean velocity: 10,000 moving points
    are in some 2,000 cells. The mean of a cell where two objects meet differs from both, so it does not connect them.
    """
    labels = np.full(len(points), -1, np.int32)
    with np.errstate(invalid='ignore'):
        usable = np.flatnonzero((np.abs(points) < _LIMIT).all(axis=1) & np.isfinite(velocity).all(axis=1))
    if len(usable) == 0:
        return labels
    cell = reach / _CELLS_PER_REACH
    place = np.floor(points[usable, :2] / cell).astype(np.int64) + (1 << (_CELL_BITS - 1))  # (M, 2)
    keys, cell_of_point = np.unique(place[:, 0] << _CELL_BITS | place[:, 1], return_inverse=True)
    count = np.bincount(cell_of_point)
    mean = np.stack([np.bincount(cell_of_point, velocity[usable, axis]) for axis in range(3)], axis=1) / count[:, None]
    component = _connect(keys, mean, velocity_gap, velocity_share)[cell_of_point]  # (M,)
    size = np.bincount(component)
    largest_first = np.argsort(-size, kind='stable')
    number = np.empty(len(size), np.int32)
    number[largest_first] = np.where(size[largest_first] >= min_points, np.arange(len(size)), -1)
    labels[usable] = number[component]
    return labels


def _connect(keys, mean, velocity_gap, velocity_share) -> np.ndarray:
    """Return the connected component of each cell (M,), numbered by their first cells; keys (M,) are sorted."""
    if numba_kernels is None:
        return _components(len(keys), *_connected_cells(keys, mean, velocity_gap, velocity_share))
    root = np.empty(len(keys), np.int64)
    numba_kernels.connect_cells(
        keys, mean, _CELLS_PER_REACH, 1 << _CELL_BITS, float(velocity_gap), float(velocity_share), root
    )
    return np.unique(root, return_inverse=True)[1]


def _connected_cells(keys, mean, velocity_gap, velocity_share):
    """Return the indices, (E,) and (E,), of all pairs of connected cells."""
    speed = np.linalg.norm(mean, axis=1)
    firsts, seconds = [], []
    for dx in range(_CELLS_PER_REACH + 1):
        for dy in range(-_CELLS_PER_REACH, _CELLS_PER_REACH + 1):
            if (dx == 0 and dy <= 0) or dx * dx + dy * dy > _CELLS_PER_REACH**2:
                continue
            wanted = keys + ((dx << _CELL_BITS) + dy)
            found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            first = np.flatnonzero(keys[found] == wanted)
            second = found[first]
            gap = velocity_gap + velocity_share * np.minimum(speed[first], speed[second])
            difference = mean[first] - mean[second]
            near = np.einsum('ij,ij->i', difference, difference) < gap * gap
            firsts.append(first[near])
            seconds.append(second[near])
    return np.concatenate(firsts), np.concatenate(seconds)


def _components(num_nodes: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the connected component of each node, (num_nodes,), of a graph with edges first (E,) to second (E,).

    Every node takes the smallest node that it is connected to, until nothing changes.
    """
    root = np.arange(num_nodes)
    while len(first):
        low, high = np.minimum(root[first], root[second]), np.maximum(root[first], root[second])
        apart = low < high
        if not apart.any():
            break
        first, second = first[apart], second[apart]
        np.minimum.at(root, high[apart], low[apart])
        while True:
            parent = root[root]
            if (parent == root).all():
                break
            root = parent
    return np.unique(root, return_inverse=True)[1]
