# SPDX-License-Identifier: Apache-2.0
"""Which points move, and in which body: what SeFlow's losses need to know of a sweep instead of its flow."""

import numpy as np

from zeroflow_ros.objects.clusters import cluster_moving

NOT_ASKED, GROUND, STATIC, UNCLUSTERED, FIRST_CLUSTER = -2, -1, 0, 1, 2
_REACH, _MIN_POINTS = 0.7, 20  # m, points: of a body. Source: SeFlow's HDBSCAN, min_cluster_size 20 and epsilon 0.7
_MIN_SPEED = 0.5  # m/s: what flows slower stands


def from_flow(points: np.ndarray, flow: np.ndarray, is_ground: np.ndarray, dt: float) -> np.ndarray:
    """Return the dynamic labels (N,) int32 that a known flow amounts to; the flow itself is given up.

    points: (N, 3) [m]. flow: (N, 3) [m] residual, NaN where it is not known. is_ground: (N,) bool. dt: seconds.
    What flows faster than 0.5 m/s moves. Moving points near to each other, with like velocities, are one body.
    """
    with np.errstate(invalid='ignore'):
        moves = np.linalg.norm(flow, axis=1) > _MIN_SPEED * dt
    labels = from_motion(points, moves, is_ground, flow / dt)
    labels[np.isnan(flow).any(axis=1) & ~is_ground] = NOT_ASKED
    return labels


def from_motion(points: np.ndarray, moves: np.ndarray, is_ground: np.ndarray, velocity=None) -> np.ndarray:
    """Return the dynamic labels (N,) int32 of points of which only is known that they move, and maybe how.

    points: (N, 3) [m]. moves, is_ground: (N,) bool; ground never moves. velocity: (N, 3) [m/s]: what moves otherwise
    than its neighbours is another body; None: neighbours are one body. Bodies of fewer than 20 points are none.
    """
    labels = np.where(is_ground, GROUND, STATIC).astype(np.int32)
    rows = np.flatnonzero(moves & ~is_ground)
    velocity = np.zeros((len(rows), 3)) if velocity is None else velocity[rows]
    body = cluster_moving(points[rows], velocity, reach=_REACH, min_points=_MIN_POINTS)
    labels[rows] = np.where(body < 0, UNCLUSTERED, body + FIRST_CLUSTER)
    return labels
