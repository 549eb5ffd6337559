# SPDX-License-Identifier: Apache-2.0
"""Walls, poles and parked cars of a sweep on a grid seen from above, to test a claimed motion against the clouds.

Only cells with points at several heights count: the rings of a spinning LiDAR on the ground travel with the sensor, so
no motion fits them as well as the true one.
"""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros.transforms import invert, rotation_vector, yaw_translation

_CELL = 0.25  # m
_REACH = 40.0  # m
_SIZE = round(2 * _REACH / _CELL)
_NEAR = 2.5  # m: beyond the vehicle's own returns, which never move
_UPRIGHT = 0.4  # m from the lowest to the highest point of a cell
_MAX_POINTS = 24_000  # used; a fifth of a sweep of 64 beams
_MIN_CELLS = 120  # real streets give 360 to 1200
_WINDOW = 12.0  # m: displacements that are searched
_SECTORS = 24
_CLEAR = 0.12  # share of the structure: rounding to cells and noise of 5 cm change less
_APART = np.radians(2.0)
_TURN_STEP = np.radians(1.5)
_TURNS = np.arange(-8, 9) * _TURN_STEP  # searched where no displacement alone fits


@dataclass(frozen=True)
class Verdict:
    """What the clouds say of a claimed motion.

    decision: 'agrees', 'contradicts' or 'undecided'. seen: ego0_T_ego1 (4, 4) that fits best, to about 0.3 m.
    """

    decision: str
    seen: np.ndarray


UNDECIDED = Verdict('undecided', np.eye(4))


class UprightStructure:
    """The upright cells of one sweep.

    points: (N, 3) float32 [m], z roughly up; NaN rows are ignored.
    """

    def __init__(self, points: np.ndarray):
        self.points = _upright_points(points)  # (n, 3), one in each cell
        self._image: np.ndarray | None = None
        self._spectra: dict[int, np.ndarray] = {}

    @property
    def is_enough(self) -> bool:
        """Whether there is enough structure to decide."""
        return len(self.points) >= _MIN_CELLS

    def share(self, newer: 'UprightStructure', ego0_T_ego1: np.ndarray) -> float:
        """Return the share of the newer structure that lies on this one after a motion."""
        return float(self._hits(newer, ego0_T_ego1).mean()) if len(newer.points) else 0.0

    def compare(self, newer: 'UprightStructure', first: np.ndarray, second: np.ndarray) -> int:
        """Return 1 or 2, the motion (4, 4) that the newer structure shows clearly, or 0 where none of both is clear."""
        if not (self.is_enough and newer.is_enough):
            return 0
        shares = self.share(newer, first), self.share(newer, second)
        better, worse = max(shares), min(shares)
        if better - worse < _CLEAR or worse > 0.75 * better:
            return 0
        winner = 1 if shares[0] > shares[1] else 2
        best, other = (first, second) if winner == 1 else (second, first)
        return winner if self._is_majority(newer, best, other, reach=0) else 0

    def judge(self, newer: 'UprightStructure', claimed: np.ndarray) -> Verdict:
        """Return whether the newer structure lies on this one after the claimed motion (4, 4), or after another one."""
        if not (self.is_enough and newer.is_enough):
            return UNDECIDED
        here, best, seen = self._search(newer, claimed)
        if best < 0.3 or here < 0.75 * best:
            turned = claimed.copy()
            turned[:3, :3] = np.eye(3)  # a claim that turns wrongly hides the displacement
            for start in (turned, np.eye(4)):
                _, other, seen_other = self._search(newer, start)
                if other > best:
                    best, seen = other, seen_other
        if best < 0.35 and here < 0.25:
            turns = [self._search(newer, yaw_translation(turn, *claimed[:2, 3]), coarse=2)[1:] for turn in _TURNS]
            seen_turned = max(turns, key=lambda found: found[0])[1]
            for turn in (-_TURN_STEP / 3, 0.0, _TURN_STEP / 3):
                _, other, seen_other = self._search(newer, seen_turned @ yaw_translation(turn, 0, 0))
                if other > best:
                    best, seen = other, seen_other
        if here >= 0.25 and here >= 0.75 * best:
            return Verdict('agrees', claimed)
        between = invert(claimed) @ seen
        is_apart = np.linalg.norm(between[:2, 3]) > 2 * _CELL or np.linalg.norm(rotation_vector(between)) > _APART
        is_clear = best >= 0.28 and here <= 0.65 * best and best - here >= _CLEAR and is_apart
        if np.linalg.norm(seen[:2, 3]) < 2 * _CELL < np.linalg.norm(claimed[:2, 3]):
            is_clear = is_clear and best >= 0.55  # cars that drive along look like a sensor that stands
        if is_clear and self._is_majority(newer, seen, claimed, reach=1):
            return Verdict('contradicts', seen)
        return Verdict('undecided', seen)

    def is_better(self, newer: 'UprightStructure', best: np.ndarray, other: np.ndarray) -> bool:
        """Return whether one motion (4, 4) fits better than another one in many directions around the sensor."""
        return self._is_majority(newer, best, other, reach=1)

    def _search(self, newer: 'UprightStructure', motion: np.ndarray, coarse: int = 1):
        """Return the share at a motion, give or take a cell, the best share near it, and the motion that has it.

        coarse: size of the cells, in cells.
        """
        size, cell = _SIZE // coarse, _CELL * coarse
        if coarse not in self._spectra:
            image = np.zeros((size, size), np.float32)
            image[_cells(self.points, cell)] = 1
            self._spectra[coarse] = np.fft.rfft2(image)
        image = np.zeros((size, size), np.float32)
        image[_cells(_moved(newer.points, motion), cell)] = 1
        found = np.fft.irfft2(self._spectra[coarse] * np.conj(np.fft.rfft2(image)), s=image.shape)
        half = round(_WINDOW / cell)
        found = np.roll(found, (half, half), (0, 1))[: 2 * half + 1, : 2 * half + 1] / len(newer.points)
        row, column = np.unravel_index(int(found.argmax()), found.shape)
        shift = np.eye(4)
        shift[:2, 3] = (row - half) * cell, (column - half) * cell
        return float(found[half - 1 : half + 2, half - 1 : half + 2].max()), float(found.max()), shift @ motion

    def _is_majority(self, newer: 'UprightStructure', best: np.ndarray, other: np.ndarray, *, reach: int) -> bool:
        """Return whether the better motion wins in many directions around the sensor, not on a few large vehicles."""
        gain = self._hits(newer, best, reach).astype(int) - self._hits(newer, other, reach)
        angle = np.arctan2(newer.points[:, 1], newer.points[:, 0])
        sector = ((angle / (2 * np.pi) + 0.5) * _SECTORS).astype(int) % _SECTORS
        gains, sizes = np.bincount(sector, gain, _SECTORS), np.bincount(sector, minlength=_SECTORS)
        margin = np.maximum(2, 0.08 * sizes)
        wins, losses = np.count_nonzero(gains > margin), np.count_nonzero(gains < -margin)
        return bool(wins >= 5 and wins >= 3 * losses)

    def _hits(self, newer: 'UprightStructure', motion: np.ndarray, reach: int = 0) -> np.ndarray:
        """Return which newer points (n,) lie in an occupied cell after a motion, or up to `reach` cells beside one."""
        image = self._occupied()
        if reach:
            image = image.copy()
            for axis in (0, 1):
                image |= np.roll(image, 1, axis) | np.roll(image, -1, axis)
        moved = _moved(newer.points, motion)
        inside = (np.abs(moved[:, :2]) < _REACH - _CELL).all(axis=1)
        hits = np.zeros(len(moved), bool)
        hits[inside] = image[_cells(moved[inside])]
        return hits

    def _occupied(self) -> np.ndarray:
        if self._image is None:
            self._image = np.zeros((_SIZE, _SIZE), bool)
            self._image[_cells(self.points)] = True
        return self._image


def _moved(points: np.ndarray, motion: np.ndarray) -> np.ndarray:
    moved = points @ motion[:3, :3].T.astype(np.float32)
    moved += motion[:3, 3].astype(np.float32)
    return moved


def _cells(points: np.ndarray, cell: float = _CELL) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the cells of the points (n, 3) that are on the grid."""
    cells = np.floor((points[:, :2] + np.float32(_REACH)) * np.float32(1 / cell)).astype(np.int32)
    cells = cells[((cells >= 0) & (cells < round(2 * _REACH / cell))).all(axis=1)]
    return cells[:, 0], cells[:, 1]


def _upright_points(points: np.ndarray) -> np.ndarray:
    """Return one point of each cell that has points at several heights, (n, 3)."""
    # An odd step: an even one would take every other ring of a cloud that is stored column by column.
    x, y, z = np.ascontiguousarray(points[:: (1 + len(points) // _MAX_POINTS) | 1].T)
    with np.errstate(invalid='ignore', over='ignore'):
        squared = x * x + y * y
        used = np.flatnonzero((squared > _NEAR**2) & (squared < (_REACH - _CELL) ** 2) & (np.abs(z) < 8.0))
    if not len(used):
        return np.zeros((0, 3), np.float32)
    x, y, z = x[used], y[used], z[used]
    scale = np.float32(1 / _CELL)
    cell = ((x + np.float32(_REACH)) * scale).astype(np.int32) * _SIZE
    cell += ((y + np.float32(_REACH)) * scale).astype(np.int32)
    order = np.argsort(cell)
    cell, z = cell[order], z[order]
    start = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
    upright = np.maximum.reduceat(z, start) - np.minimum.reduceat(z, start) > _UPRIGHT
    first = start[upright]
    return np.stack([x[order[first]], y[order[first]], z[first]], axis=1)
