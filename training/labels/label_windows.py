# SPDX-License-Identifier: Apache-2.0
"""Windows of more than two sweeps from labels of pairs, where the newer sweep of one is the older sweep of the next.

A store does not say where a pair was in its drive, and needs not: two labels that share a sweep hold the same points,
row by row, in two frames. The rigid motion between them is exact to the rounding of the files, and a wrong neighbour
does not fit.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from training.datasets.training_pair import TrainingPair
from training.labels.label_store import LabelStore
from training.teachers.pseudo_label import PseudoLabel
from zeroflow_ros import transforms

_MOST_ROWS = 2000  # of a cloud that are compared
_FEWEST_ROWS = 100
_SPREAD = 0.5  # m, standard deviation along the second axis: points on one line leave the rotation open
_ROUNDING = 2e-3  # m per axis, both files round to 0.5 mm per axis
_DT_RATIO = 1.25  # of neighbours: a window has one dt


class LabelChain:
    """Which label of a store continues which, and the motion between their frames.

    keys: of the labels that may be used. Raises: DataError when a label is missing or damaged.
    """

    def __init__(self, store: LabelStore, keys: Iterable[str]):
        self._store = store
        older_sweeps, newer_sweeps, dt = {}, defaultdict(list), {}
        for key in keys:
            points0, points1, dt[key] = store.read_clouds(key)
            older_sweeps[key] = _Fingerprint(points0)
            newer = _Fingerprint(points1)
            newer_sweeps[newer.counts].append((key, newer))
        self._previous: dict[str, tuple[str, np.ndarray]] = {}  # key: (key of the label before, transform from it)
        for key, older in older_sweeps.items():
            found = [
                (before, key_T_before) for before, newer in newer_sweeps[older.counts]
                if before != key and max(dt[before], dt[key]) <= _DT_RATIO * min(dt[before], dt[key])
                and (key_T_before := older.transform_from(newer)) is not None
            ]  # fmt: skip
            if len(found) == 1:  # a sensor that repeats its cloud fits more than once
                self._previous[key] = found[0]

    def window(self, key: str, num_sweeps: int) -> list[tuple[str, np.ndarray]]:
        """Return (key, label_T_that) of the labels of a window that ends with the label `key`, in order of time.

        num_sweeps: largest number of sweeps in the window, 2 or more. label_T_that: (4, 4), maps points in the frame of
        that label into the frame of the last one.
        """
        window = [(key, np.eye(4))]
        while len(window) < num_sweeps - 1 and window[0][0] in self._previous:
            first, label_T_first = window[0]
            before, first_T_before = self._previous[first]
            if before in (used for used, _ in window):
                break
            window.insert(0, (before, label_T_first @ first_T_before))
        return window

    def training_pair(self, key: str, num_sweeps: int) -> TrainingPair:
        """Return the window that ends with a label, as long as labels continue each other, in the frame of that label.

        num_sweeps: its largest number of sweeps. Its first sweep has the flow of the first label, its last sweep that
        of the last label. Raises: DataError when a label is missing or damaged.
        """
        window = self.window(key, num_sweeps)
        if len(window) == 1:
            return self._store.training_pair(key)
        labels = [self._store.read(name) for name, _ in window]
        return joined_labels(labels, [label_T_that for _, label_T_that in window])


def joined_labels(labels: list[PseudoLabel], last_T_label: list[np.ndarray]) -> TrainingPair:
    """Return consecutive labels as one window in the frame of the last label.

    last_T_label: (4, 4), maps the points of each label into the frame of the last one.
    """
    first, last = labels[0], labels[-1]
    clouds = [
        transforms.apply(last_T_this, label.points0) for label, last_T_this in zip(labels, last_T_label, strict=True)
    ]
    clouds.append(last.points1)
    kept = [np.isfinite(points).all(axis=1) for points in clouds]
    clouds = [points[rows] for points, rows in zip(clouds, kept, strict=True)]
    turn = last_T_label[0][:3, :3].astype(np.float32)
    ends = {'flow0': first.flow0 @ turn.T, 'is_ground0': first.is_ground0, 'dynamic0': first.dynamic0,
            'flow1': last.flow1, 'is_ground1': last.is_ground1, 'dynamic1': last.dynamic1}  # fmt: skip
    ends = {
        name: array[kept[-1] if name.endswith('1') else kept[0]] for name, array in ends.items() if array is not None
    }
    return TrainingPair(points0=clouds[0], points1=clouds[-1], dt=last.dt, between=tuple(clouds[1:-1]), **ends)


class _Fingerprint:
    """Some rows of a cloud (N, 3) [m], evenly spread over those with a return, to recognise it in another frame."""

    def __init__(self, points: np.ndarray):
        finite = np.flatnonzero(np.isfinite(points).all(axis=1))
        self.counts = len(points), len(finite)
        self._rows = finite[:: max(1, len(finite) // _MOST_ROWS)]
        self._points = points[self._rows].astype(np.float64)

    def transform_from(self, other: '_Fingerprint') -> np.ndarray | None:
        """Return self_T_other (4, 4) if both are the same cloud moved rigidly, else None."""
        if self.counts != other.counts or len(self._rows) < _FEWEST_ROWS or (self._rows != other._rows).any():
            return None
        self_T_other = rigid_transform(other._points, self._points)
        if self_T_other is None:
            return None
        moved = other._points @ self_T_other[:3, :3].T + self_T_other[:3, 3]
        return self_T_other if np.abs(moved - self._points).max() <= _ROUNDING else None


def rigid_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray | None:
    """Return target_T_source (4, 4) that moves source (N, 3) closest to target (N, 3) [m], row by row.

    None for fewer than three points, and where all are near one line. Source: Kabsch (1976).
    """
    if len(source) < 3:
        return None
    middle_source, middle_target = source.mean(axis=0), target.mean(axis=0)
    left, spread, right = np.linalg.svd((target - middle_target).T @ (source - middle_source) / len(source))
    if spread[1] < _SPREAD**2:
        return None
    turn = left @ np.diag([1, 1, np.sign(np.linalg.det(left @ right))]) @ right
    target_T_source = np.eye(4)
    target_T_source[:3, :3] = turn
    target_T_source[:3, 3] = middle_target - turn @ middle_source
    return target_T_source
