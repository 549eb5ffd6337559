# SPDX-License-Identifier: Apache-2.0
"""Connected components of points by the voxels they are in."""

import numpy as np

from training.teachers.planar_motion import compiled


def connected_components(points: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    """Return the number (N,) of the connected component of each point (N, 3), by voxels and their 26 neighbours.

    voxel: (3,), sides [m]. The components are numbered from 0 in order of their first voxel, x before y before z.
    """
    index = ((points - points.min(0)) / voxel).astype(np.int64) + 1
    shape = index.max(0) + 2  # an empty voxel on each side, so that the neighbours of all voxels have numbers
    voxels = (index[:, 0] * shape[1] + index[:, 1]) * shape[2] + index[:, 2]
    order = np.argsort(voxels, kind='stable')
    numbers = np.empty(len(points), np.int64)
    _number(voxels[order], order, shape[1], shape[2], numbers)
    return numbers


@compiled
def _number(voxels, order, num_y, num_z, numbers):
    """Write the component of each point into numbers (N,); voxels (N,) are sorted, of the points `order` (N,)."""
    occupied, place = np.empty(len(voxels), np.int64), np.empty(len(voxels), np.int64)
    count = 0
    for i in range(len(voxels)):
        if i == 0 or voxels[i] != voxels[i - 1]:
            occupied[count] = voxels[i]
            count += 1
        place[i] = count - 1
    parent = np.arange(count)
    # The neighbours with lower numbers are five ranges of voxel numbers, which move on as the voxel does.
    for middle in (-num_y * num_z - num_z, -num_y * num_z, -num_y * num_z + num_z, -num_z, 0):
        first = 0
        for v in range(count):
            low, high = occupied[v] + middle - 1, min(occupied[v] + middle + 1, occupied[v] - 1)
            while occupied[first] < low:
                first += 1
            other = first
            while other < v and occupied[other] <= high:
                a, b = _root(parent, v), _root(parent, other)
                parent[max(a, b)] = min(a, b)
                other += 1
    number = np.empty(count, np.int64)
    num_components = 0
    for v in range(count):  # the root of a component is its first voxel
        if parent[v] == v:
            number[v] = num_components
            num_components += 1
        else:
            number[v] = number[_root(parent, v)]
    for i in range(len(voxels)):
        numbers[order[i]] = number[place[i]]


@compiled
def _root(parent, v):
    while parent[v] != v:
        parent[v] = parent[parent[v]]
        v = parent[v]
    return v
