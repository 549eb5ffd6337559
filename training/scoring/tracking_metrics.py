# SPDX-License-Identifier: Apache-2.0
"""How well tracked objects agree with those that are truly there: found, false, and how fast."""

from collections import defaultdict

import numpy as np

from training.datasets.ground_truth_objects import TrueObject
from zeroflow_ros.objects.tracker import MovingObject

MOVING = 0.5  # m/s: a true object that is faster must be found
_STANDING = 0.25  # m/s: an object where only slower things are is false; between the two, nothing is asked
_MIN_POINTS = 10  # on an object, below which it need not be found
_REACH = 50.0  # m, along x and y: the model gives flow up to 51.2 m
_MARGIN = 0.5  # m: an object is a true one's if its middle lies in the other's outline, grown by this
_SETTLED = 0.5  # s: what has been in sight for this time should have been confirmed


class TrackScores:
    """Counts over sweeps and drives.

    An object belongs to a true one when its middle lies in the outline of that; each true one has at most one, the
    nearest, and further ones are fragments of it. An object on nothing that moves is false.
    """

    def __init__(self):
        self._num_sweeps = self._num_false = self._num_fragments = self._num_switches = 0
        self._found: list[tuple] = []  # category, whether found, whether settled; one of each true object and sweep
        self._velocity_errors: list[float] = []
        self._center_errors: list[float] = []
        self._numbers: dict[tuple, int] = {}  # of the object that was last matched to a true one
        self._since: dict[tuple, float] = {}  # when a true object began to be in sight

    def add(self, drive: str, time: float, objects: list[MovingObject], truths: list[TrueObject]) -> None:
        """Take a sweep at a time [s] of a drive; objects where the truth is not known must be left out before."""
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
        """Return the object of each true one, by its index; the nearest pairs choose first."""
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
        """Return the figures: shares, counts per sweep, errors in m/s and m; NaN where there is nothing to say."""
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
