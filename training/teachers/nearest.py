# SPDX-License-Identifier: Apache-2.0
"""Repeated nearest-neighbour searches between two clouds that move a little between calls."""

import numpy as np
import torch
from scipy.ndimage import maximum_filter
from scipy.spatial import cKDTree

_ROUNDING = 1e-4  # m: rounding of float32 at 100 m, with a margin
_CELLS = 128  # cells per side of the drift map
_MAX_STALE = 0.2  # above this share of stale rows a new tree is cheaper than queries to the old one


def nearest_by_distance(queries: torch.Tensor, targets: torch.Tensor, reach: float, chunk: int = 4096) -> torch.Tensor:
    """Return which of targets (M, 3) is nearest to each of queries (N, 3), -1 where none is within reach [m].

    Compares all pairs: the plain reference, and the form for a GPU. chunk: queries per step.
    """
    found = [torch.full((0,), -1, device=queries.device)]
    for part in queries.split(chunk):
        if len(targets) == 0 or len(part) == 0:
            found.append(torch.full((len(part),), -1, device=queries.device))
            continue
        # cdist by matrix product is faster, but wrong by centimetres at 50 m.
        distance, index = torch.cdist(part, targets, compute_mode='donot_use_mm_for_euclid_dist').min(1)
        found.append(torch.where(distance < reach, index, -1))
    return torch.cat(found)


class NearestTracker:
    """The nearest target of each query from call to call; only few rows search the k-d tree again.

    Each row keeps its k nearest targets from its last search, and a lower bound on the distance to all others. The best
    of these is the nearest of all, as long as the motion since then cannot bring another target nearer. The common
    motion of all targets since the tree was built does not count: queries are shifted back by it. A row must be the
    same point in every call, and it is fast when points near each other have nearby rows.
    reach: targets this far away or farther are ignored [m]. num_threads: threads of the tree search.
    """

    def __init__(self, reach: float, num_threads: int = 1, neighbours: int = 8):
        self.reach = reach
        self.num_threads = num_threads
        self.neighbours = neighbours
        self.num_trees = self.num_looks = 0  # cost so far: trees built, rows searched
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
        """Return candidates (R, k), a lower bound (R,) [m] for all others, and the search positions (R, 3)."""
        search = 1.25 * self.reach
        self.num_looks += len(seen_from)
        distance, index = self._tree.query(
            seen_from, range(1, neighbours + 1), distance_upper_bound=search, workers=self.num_threads
        )
        candidates = np.minimum(index, self._tree.n - 1)  # n means none found: any index will do
        return candidates, np.minimum(distance[:, -1], search).astype(np.float32), seen_from.copy()

    def _best(self, queries, targets, known, seen_from, drift) -> tuple[np.ndarray, np.ndarray]:
        """Return the best candidate of each query, and the stale rows: another target may be nearer."""
        candidates, others, looked_from = known
        squared = np.stack([_squared(queries - targets.take(column, 0)) for column in candidates.T], 1)  # (R, k)
        column = squared.argmin(1)
        each = np.arange(len(column))
        best = np.sqrt(squared[each, column])
        moved = np.sqrt(_squared(seen_from - looked_from)) + drift + _ROUNDING
        stale = np.flatnonzero(others - moved < np.minimum(best, self.reach))
        return np.where(best < self.reach, candidates[each, column], -1), stale

    def _drift(self, moved: np.ndarray, queries: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return an upper bound (N,) [m] on the own motion of the targets near each query since the tree was built.

        moved: (M, 3) [m], motion of each target without the common motion.
        """
        if not moved.any():
            return np.zeros(len(queries), np.float32)
        peak = np.zeros((_CELLS, _CELLS), np.float32)
        np.maximum.at(peak.reshape(-1), self._cells(targets), np.sqrt(_squared(moved)))
        return maximum_filter(peak, 3).reshape(-1)[self._cells(queries)]

    def _cells(self, points: np.ndarray) -> np.ndarray:
        """Return the flat cell index (N,), cells of side `reach`; points outside the map count to its border."""
        column, row = np.clip(np.floor(points[:, :2] / self.reach) + _CELLS // 2, 0, _CELLS - 1).astype(np.int64).T
        return row * _CELLS + column


def _squared(vectors: np.ndarray) -> np.ndarray:
    return np.einsum('ij,ij->i', vectors, vectors)
