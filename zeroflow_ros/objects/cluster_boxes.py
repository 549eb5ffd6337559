# SPDX-License-Identifier: Apache-2.0
"""Boxes around moving clusters: heading along the velocity, sized by the visible points."""

from dataclasses import dataclass

import numpy as np

_TRIM = 0.02  # share of the points that may lie outside on each side: mixed pixels and outliers


@dataclass(frozen=True)
class ClusterBoxes:
    """Upright boxes of B clusters in one sweep.

    center: (B, 3) float64 [m], middle of the visible part. size: (B, 3) [m], along the heading, across it, and up.
    yaw: (B,) heading [rad]. velocity: (B, 3) [m/s], mean of the cluster's points. num_points: (B,).
    """

    center: np.ndarray
    size: np.ndarray
    yaw: np.ndarray
    velocity: np.ndarray
    num_points: np.ndarray

    def __len__(self) -> int:
        return len(self.yaw)


def fit_boxes(
    points: np.ndarray, velocity: np.ndarray, labels: np.ndarray, yaw: np.ndarray | None = None
) -> ClusterBoxes:
    """Return the boxes of clusters 0, 1, ... in that order.

    points: (N, 3) [m]. velocity: (N, 3) [m/s]. labels: (N,) cluster of each point, -1 for none; see `cluster_moving`.
    yaw: (B,) headings [rad]; None: each box points along the mean velocity of its cluster.
    """
    in_cluster = np.flatnonzero(labels >= 0)
    order = in_cluster[np.argsort(labels[in_cluster], kind='stable')]
    cluster, num_points = labels[order], np.bincount(labels[order])
    if len(num_points) == 0:
        empty = np.zeros((0, 3))
        return ClusterBoxes(empty, empty, np.zeros(0), empty, num_points)
    mean = np.stack([np.bincount(cluster, velocity[order, axis]) for axis in range(3)], axis=1) / num_points[:, None]
    yaw = np.arctan2(mean[:, 1], mean[:, 0]) if yaw is None else yaw
    along = np.stack([np.cos(yaw), np.sin(yaw)], axis=1)  # (B, 2)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    xy = points[order, :2].astype(np.float64)
    start = np.cumsum(num_points) - num_points
    trim = np.floor(_TRIM * num_points).astype(np.int64)
    low, high = np.empty((2, len(num_points), 3))
    x, y = np.einsum('ij,ij->i', xy, along[cluster]), np.einsum('ij,ij->i', xy, across[cluster])
    for axis, coordinate in enumerate((x, y, points[order, 2])):
        ranked = coordinate[np.lexsort((coordinate, cluster))]
        low[:, axis], high[:, axis] = ranked[start + trim], ranked[start + num_points - 1 - trim]
    middle = (low + high) / 2
    center = np.column_stack([middle[:, :1] * along + middle[:, 1:2] * across, middle[:, 2]])
    return ClusterBoxes(center, high - low, yaw, mean, num_points)
