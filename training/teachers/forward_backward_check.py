# SPDX-License-Identifier: Apache-2.0
"""Motion that both directions of time agree on."""

import numpy as np
from scipy.spatial import cKDTree

_REACH = 0.3  # m: a point that lands farther than this from any point of the other sweep meets nobody
_TOLERANCE, _AT_LEAST = 0.3, 0.1  # the two flows may differ by this share of the flow, or by so many metres
SHARE = 0.5  # of the points of a piece


def agreed(points: np.ndarray, flow: np.ndarray, piece: np.ndarray, other: cKDTree, flow_back: np.ndarray):
    """Return the flow (N, 3) [m] of the pieces whose motion the other sweep confirms; the others stand.

    Each direction of time is worked out by itself. Where half of a piece lands beside points that flow back where it
    came from, two searches found one motion; leaves, and what is half hidden, find another one each time.
    points: (N, 3) [m]. piece: (N,) number of the piece that moves as one, -1 for what stands. other: tree of the points
    (M, 3) of the other sweep. flow_back: (M, 3) [m], their flow.
    """
    moves = np.flatnonzero(piece >= 0)
    if len(moves) == 0:
        return flow
    distance, partner = other.query(points[moves] + flow[moves], distance_upper_bound=_REACH)
    has_partner = np.isfinite(distance)
    confirmed = has_partner & fits(-flow_back[np.where(has_partner, partner, 0)], flow[moves])
    number = piece[moves]
    share = np.bincount(number, confirmed) / np.maximum(np.bincount(number), 1)
    flow = flow.copy()
    flow[moves[share[number] < SHARE]] = 0
    return flow


def fits(flow: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where (N,) a flow (N, 3) is about the wanted one (N, 3) [m]."""
    allowed = np.maximum(_TOLERANCE * np.linalg.norm(wanted, axis=1), _AT_LEAST)
    return np.linalg.norm(flow - wanted, axis=1) <= allowed
