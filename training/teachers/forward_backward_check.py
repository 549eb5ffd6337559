# SPDX-License-Identifier: Apache-2.0
"""Forward-backward check: keep only motion that the reverse search confirms."""

import numpy as np
from scipy.spatial import cKDTree

_REACH = 0.3  # m: a moved point farther than this from the other sweep has no correspondence
_TOLERANCE, _AT_LEAST = 0.3, 0.1  # the flows may differ by this share of the flow, and by at least so many metres
MIN_CONSISTENT_SHARE = 0.5  # of the points of a segment


def keep_consistent_motion(
    points: np.ndarray, flow: np.ndarray, segment: np.ndarray, other: cKDTree, flow_back: np.ndarray
):
    """Return the flow (N, 3) [m] of the segments whose motion the other sweep confirms, 0 for the others.

    Both directions of time are searched independently. A motion is kept if half of the segment's points land beside
    points whose flow leads back to the start. Leaves and half-hidden objects get a different motion in each search.
    points: (N, 3) [m]. segment: (N,) number of the moving segment, -1 for static points. other: k-d tree of the points
    (M, 3) of the other sweep. flow_back: (M, 3) [m], their flow.
    """
    moves = np.flatnonzero(segment >= 0)
    if len(moves) == 0:
        return flow
    distance, match = other.query(points[moves] + flow[moves], distance_upper_bound=_REACH)
    has_match = np.isfinite(distance)
    confirmed = has_match & flows_agree(-flow_back[np.where(has_match, match, 0)], flow[moves])
    number = segment[moves]
    share = np.bincount(number, confirmed) / np.maximum(np.bincount(number), 1)
    flow = flow.copy()
    flow[moves[share[number] < MIN_CONSISTENT_SHARE]] = 0
    return flow


def flows_agree(flow: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where a flow (N, 3) is within tolerance of the wanted one (N, 3) [m], (N,) bool."""
    allowed = np.maximum(_TOLERANCE * np.linalg.norm(wanted, axis=1), _AT_LEAST)
    return np.linalg.norm(flow - wanted, axis=1) <= allowed
