# SPDX-License-Identifier: Apache-2.0
"""Tracking metrics: recall, false objects, ID switches, and velocity errors against ground-truth objects."""

from collections import defaultdict

import numpy as np

from training.datasets.ground_truth_objects import GroundTruthObject
from zeroflow_ros.objects.tracker import MovingObject

MOVING = 0.5  # m/s: a faster ground-truth object counts for recall
_STANDING = 0.25  # m/s: an object on slower ones only is false; speeds between the two limits count for neither
_MIN_POINTS = 10  # objects with fewer points do not count for recall
_REACH = 50.0  # m, along x and y: the model gives flow up to 51.2 m
_MARGIN = 0.5  # m: an object matches if its centre is in a ground-truth box enlarged by this
_SETTLED = 0.5  # s: an object visible for this long should be confirmed


class TrackingMetrics:
    """Counts over sweeps and drives.

    A tracked object matches a ground-truth object when its centre is inside that one's box. The nearest is the match;
    further ones are fragments. An object in no box of a moving object is false.
    """

    def __init__(self):
        self._num_sweeps = self._num_false = self._num_fragments = self._num_switches = 0
        self._found: list[tuple] = []  # (category, found, settled) per ground-truth object and sweep
        self._velocity_errors: list[float] = []
        self._center_errors: list[float] = []
        self._numbers: dict[tuple, int] = {}  # track ID of the last match per ground-truth object
        self._since: dict[tuple, float] = {}  # time at which a ground-truth object became visible

    def add(self, drive: str, time: float, objects: list[MovingObject], truths: list[GroundTruthObject]) -> None:
        """Add a sweep at a time [s] of a drive. objects: only those where the ground truth is known."""
        self._num_sweeps += 1
        centers = np.array([each.center for each in objects]).reshape(-1, 3)
        holds = np.array([truth.holds(centers, _MARGIN) for truth in truths], bool).reshape(len(truths), len(objects))
        moves = np.array([truth.speed > _STANDING for truth in truths], bool)
        belongs = holds[moves].any(axis=0)
        matched = self._match(objects, truths, holds & moves[:, None])
        self._num_false += int(np.count_nonzero(~belongs))
        self._num_fragments += int(np.count_nonzero(belongs)) - len(matched)
        in_sight = set()
        for index, truth in enumerate(truths):
            near = (np.abs(truth.center[:2]) < _REACH).all()
            if truth.speed <= MOVING or truth.num_points < _MIN_POINTS or not near:
                continue
            key = drive, truth.track_id
            in_sight.add(key)
            settled = time - self._since.setdefault(key, time) >= _SETTLED - 1e-6
            found = matched.get(index)
            self._found.append((truth.category, found is not None, settled))
            if found is None:
                continue
            self._velocity_errors.append(float(np.hypot(*(found.velocity - truth.velocity)[:2])))
            self._center_errors.append(float(np.hypot(*(found.center - truth.center)[:2])))
            self._num_switches += self._numbers.get(key, found.track_id) != found.track_id
            self._numbers[key] = found.track_id
        for key in [key for key in self._since if key[0] == drive and key not in in_sight]:
            del self._since[key]

    @staticmethod
    def _match(objects, truths, holds: np.ndarray) -> dict[int, MovingObject]:
        """Return the matched object by index of the ground-truth object; greedy, nearest pairs first."""
        pairs = sorted(
            (float(np.hypot(*(objects[k].center - truths[j].center)[:2])), j, k) for j, k in np.argwhere(holds)
        )
        matched: dict[int, MovingObject] = {}
        taken = set()
        for _, j, k in pairs:
            if j not in matched and k not in taken:
                matched[j] = objects[k]
                taken.add(k)
        return matched

    def report(self) -> dict:
        """Return shares, counts per sweep, and errors in m/s and m; NaN without data."""
        by_category = defaultdict(list)
        for category, found, _ in self._found:
            by_category[category].append(found)
        return {
            'sweeps': self._num_sweeps,
            'due': len(self._found),
            'recall': _mean([found for _, found, _ in self._found]),
            'settled_recall': _mean([found for _, found, settled in self._found if settled]),
            'recall_by_category': {category: _mean(found) for category, found in sorted(by_category.items())},
            'due_by_category': {category: len(found) for category, found in sorted(by_category.items())},
            'false_per_sweep': self._num_false / max(self._num_sweeps, 1),
            'fragments_per_sweep': self._num_fragments / max(self._num_sweeps, 1),
            'velocity_error_median': _median(self._velocity_errors),
            'velocity_error_mean': _mean(self._velocity_errors),
            'center_error_median': _median(self._center_errors),
            'switches': self._num_switches,
        }


def _mean(values) -> float:
    return float(np.mean(values)) if len(values) else float('nan')


def _median(values) -> float:
    return float(np.median(values)) if len(values) else float('nan')
