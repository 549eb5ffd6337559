# SPDX-License-Identifier: Apache-2.0
"""Dynamic/static labels and clusters: what SeFlow's losses need of a sweep instead of its flow."""

import numpy as np

from zeroflow_ros.lidar.clusters import cluster_moving

NOT_LABELLED, GROUND, STATIC, UNCLUSTERED, FIRST_CLUSTER = -2, -1, 0, 1, 2
_REACH, _MIN_POINTS = 0.7, 20  # m, points: of a cluster. Source: SeFlow's HDBSCAN, min_cluster_size 20 and epsilon 0.7
_MIN_SPEED = 0.5  # m/s: slower points are static


def from_flow(points: np.ndarray, flow: np.ndarray, is_ground: np.ndarray, dt: float) -> np.ndarray:
    """Return the dynamic labels (N,) int32 that follow from a known flow.

    points: (N, 3) [m]. flow: (N, 3) [m] residual, NaN where it is not known. is_ground: (N,) bool. dt: seconds.
    Points faster than 0.5 m/s are dynamic. Nearby dynamic points with similar velocities form a cluster.
    """
    with np.errstate(invalid='ignore'):
        moves = np.linalg.norm(flow, axis=1) > _MIN_SPEED * dt
    labels = from_motion(points, moves, is_ground, flow / dt)
    labels[np.isnan(flow).any(axis=1) & ~is_ground] = NOT_LABELLED
    return labels


def from_motion(points: np.ndarray, moves: np.ndarray, is_ground: np.ndarray, velocity=None) -> np.ndarray:
    """Return the dynamic labels (N,) int32 of points that are known to be dynamic or static.

    points: (N, 3) [m]. moves, is_ground: (N,) bool; ground is never dynamic. velocity: (N, 3) [m/s]: points that move
    differently are in different clusters; None: by distance only. Clusters have at least 20 points.
    """
    labels = np.where(is_ground, GROUND, STATIC).astype(np.int32)
    rows = np.flatnonzero(moves & ~is_ground)
    velocity = np.zeros((len(rows), 3)) if velocity is None else velocity[rows]
    body = cluster_moving(points[rows], velocity, reach=_REACH, min_points=_MIN_POINTS)
    labels[rows] = np.where(body < 0, UNCLUSTERED, body + FIRST_CLUSTER)
    return labels
