# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours between two clouds, again and again while they move a little."""

import numpy as np
import torch
from scipy.ndimage import maximum_filter
from scipy.spatial import cKDTree

_ROUNDING = 1e-4  # m: of float32 at some 100 m, with a margin
_CELLS = 128  # of a side of the map of what moved
_MAX_STALE = 0.2  # share of the rows beyond which a new tree is cheaper than questions to an old one


def nearest_by_distance(queries: torch.Tensor, targets: torch.Tensor, reach: float, chunk: int = 4096) -> torch.Tensor:
    """Return which of targets (M, 3) is nearest to each of queries (N, 3), -1 where none is within reach [m].

    All pairs are compared: the plain way, and the one for a GPU. chunk: queries at a time.
    """
    found = [torch.full((0,), -1, device=queries.device)]
    for part in queries.split(chunk):
        if len(targets) == 0 or len(part) == 0:
            found.append(torch.full((len(part),), -1, device=queries.device))
            continue
        # The fast way of cdist, by a matrix product, is wrong by centimetres at 50 m.
        distance, index = torch.cdist(part, targets, compute_mode='donot_use_mm_for_euclid_dist').min(1)
        found.append(torch.where(distance < reach, index, -1))
    return torch.cat(found)


class NearestTracker:
    """Which target is nearest to each query, from one call to the next: few rows need a new look into the k-d tree.

    A row keeps its k nearest targets from its last look, and how near any other target was at least. As long as query
    and targets have moved less against each other since then than would let another target come nearer than the best
    of these, the best of these is the nearest of all. What all targets moved in common since the tree was built does
    not count: the tree is asked as if it had moved along. Rows have to stay the same points from call to call, and
    neighbours in space should be neighbours in the rows.
    reach: a target this far away, or farther, is none [m]. num_threads: of the tree's search.
    """

    def __init__(self, reach: float, num_threads: int = 1, neighbours: int = 8):
        self.reach = reach
        self.num_threads = num_threads
        self.neighbours = neighbours
        self.num_trees = self.num_looks = 0  # what it cost so far: trees built, rows looked up
        self._tree: cKDTree | None = None

    def __call__(self, queries: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the row (N,) of the nearest of targets (M, 3) for queries (N, 3), -1 where none is within reach."""
        if len(queries) == 0 or len(targets) == 0:
            return np.full(len(queries), -1)
        if self._tree is not None:
            moved = targets - self._planted
            common = moved.mean(0)
            seen_from = queries - common
            drift = self._drift(moved - common, queries, targets)
            nearest, stale = self._best(queries, targets, self._known, seen_from, drift)
            if len(stale) <= _MAX_STALE * len(queries):
                for neighbours in (self.neighbours, 8 * self.neighbours):
                    look = self._look(seen_from[stale], neighbours)
                    if neighbours == self.neighbours:
                        for known, new in zip(self._known, look, strict=True):
                            known[stale] = new
                    nearest[stale], still = self._best(queries[stale], targets, look, seen_from[stale], drift[stale])
                    stale = stale[still]
                    if len(stale) == 0:
                        return nearest
        self._tree, self._planted = cKDTree(targets), targets.copy()
        self.num_trees += 1
        self._known = self._look(queries, self.neighbours)
        return self._best(queries, targets, self._known, queries, np.float32(0))[0]

    def _look(self, seen_from: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return candidates (R, k), how far any other target is at least (R,), and the places asked about (R, 3)."""
        search = 1.25 * self.reach
        self.num_looks += len(seen_from)
        distance, index = self._tree.query(
            seen_from, range(1, neighbours + 1), distance_upper_bound=search, workers=self.num_threads
        )
        candidates = np.minimum(index, self._tree.n - 1)  # n means none: then any will do
        return candidates, np.minimum(distance[:, -1], search).astype(np.float32), seen_from.copy()

    def _best(self, queries, targets, known, seen_from, drift) -> tuple[np.ndarray, np.ndarray]:
        """Return the best candidate of each query, and the rows where another target may be nearer."""
        candidates, others, looked_from = known
        squared = np.stack([_squared(queries - targets.take(column, 0)) for column in candidates.T], 1)  # (R, k)
        column = squared.argmin(1)
        each = np.arange(len(column))
        best = np.sqrt(squared[each, column])
        moved = np.sqrt(_squared(seen_from - looked_from)) + drift + _ROUNDING
        stale = np.flatnonzero(others - moved < np.minimum(best, self.reach))
        return np.where(best < self.reach, candidates[each, column], -1), stale

    def _drift(self, moved: np.ndarray, queries: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return how far any target within reach of each query has moved by itself since the tree was built, or more.

        moved: (M, 3) [m] of each target.
        """
        if not moved.any():
            return np.zeros(len(queries), np.float32)
        peak = np.zeros((_CELLS, _CELLS), np.float32)
        np.maximum.at(peak.reshape(-1), self._cells(targets), np.sqrt(_squared(moved)))
        return maximum_filter(peak, 3).reshape(-1)[self._cells(queries)]

    def _cells(self, points: np.ndarray) -> np.ndarray:
        """Return cells as long as the reach; what lies outside the map counts to its rim, next to its neighbours."""
        column, row = np.clip(np.floor(points[:, :2] / self.reach) + _CELLS // 2, 0, _CELLS - 1).astype(np.int64).T
        return row * _CELLS + column


def _squared(vectors: np.ndarray) -> np.ndarray:
    return np.einsum('ij,ij->i', vectors, vectors)
