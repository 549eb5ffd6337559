# SPDX-License-Identifier: Apache-2.0
"""Our fast teacher: what stands still is explained by both sweeps, what does not moves as rigid pieces."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from training.datasets.pairs import Times
from training.teachers.forward_backward_check import SHARE, agreed, fits
from training.teachers.planar_motion import closeness, fitted, moved_back, moved_by
from training.teachers.sharpness import sharpen
from training.teachers.teacher import Flows
from training.teachers.truncated_distance_field import MisfitField, disc
from zeroflow_ros.errors import ConfigError

_LARGE = 1.5  # m: a piece of this length may turn; a smaller one shows too little of its heading
_TALL = 1.7  # height of a voxel over its side: a LiDAR's rings are farther apart than its points in a ring
_STEPS = 6  # of refinement
_POLISH_STEPS, _POLISH_POINTS, _POLISH_KERNEL = 5, 300, 0.1  # of the last fit, whose start is good; kernel [m]
_COARSE, _FINE, _AROUND = 0.4, 0.1, 0.3  # m: steps of the two searches, and how far the second reaches
_SEARCH_POINTS, _REVERSE_POINTS = 60, 150  # looked at of a piece, and of the sweep that it moves into
_NUM_STARTS, _APART = 4, 0.6  # places where refinement starts, and how far apart they are [m]
_STANDS = 0.12  # m: a point of the other sweep this near to a piece that stands belongs to that piece
_BORDER = 0.3  # m around a moved piece in which points of the other sweep ought to be explained by it
_CUT_NEAR = 0.2  # m: so near to where a piece of the other sweep came from lies what is cut out for it
_CUT_POINTS, _CUT_SHARE = 100, 0.8  # of what is cut out, and of the other piece: less finds its like by chance
_CUT_IMPROVEMENT = 0.5  # as `improvement` of what is cut out: few things that were in one piece with others move
_LAG = 2.0  # m/s: partners of the search that were measured at other times count as so much farther apart
_SHARPEN_FROM = 60  # points of a piece whose surface says more about its motion than its points do


@dataclass(frozen=True)
class RigidConfig:
    """Settings of the rigid teacher.

    voxels: points in touching voxels of this side are one piece [m]; each next size looks at what still stands then,
    for a person at a wall is one piece with it at first. min_points: of a piece that may move.
    max_extent: a longer piece stands: buildings, hedges [m]. max_speed: [m/s].
    cut: distances between sweeps count up to this [m]. kernel: distance at which a partner has a quarter of its
    weight in the refinement [m]; below 0.1 the two copies that two LiDARs at 50 ms of phase make of a fast car are
    taken for each other. min_misfit: pieces whose two sweeps are nearer to each other than this stand [m], sum of both
    directions. screen: the search must lower the misfit to this share before a piece is looked at closely.
    improvement: motion must lower the misfit to this share of that of standing still.
    slowness: misfit that a metre of motion must pay for. min_motion: [m]. seed: of the points that are looked at.
    """

    voxels: tuple[float, ...] = (0.3, 0.1)
    min_points: int = 8
    max_extent: float = 15.0
    max_speed: float = 32.0
    cut: float = 0.5
    kernel: float = 0.2
    min_misfit: float = 0.1
    screen: float = 0.85
    improvement: float = 0.75
    slowness: float = 0.01
    min_motion: float = 0.05
    refine_points: int = 100
    seed: int = 0

    def __post_init__(self):
        for name in ('min_points', 'max_speed', 'cut', 'kernel', 'refine_points'):
            if not getattr(self, name) > 0:
                raise ConfigError(f'{name} of the rigid teacher should be above 0, got {getattr(self, name)}.')
        if not self.voxels or min(self.voxels) <= 0:
            raise ConfigError(f'voxels of the rigid teacher should be some sizes above 0, got {self.voxels}.')


class Rigid:
    """A Teacher; see training/teachers/teacher.py.

    Each sweep falls into connected pieces. A piece that the other sweep does not explain where it is looks for the
    motion over ground (x, y, and a turn if it is long) that fits best in both senses: its points to the other sweep,
    and the other sweep's points around the moved piece back to it. Without the second, a wall seen in part slides.
    Of a large piece its surface says how it moves, see `sharpen`: the rings of a LiDAR do not move with a car. A piece
    stands after all unless the other direction of time found the same motion, see `agreed`. Two bodies that touch in
    one sweep are one piece there; they are cut as the other sweep has them, and asked again.
    """

    name = 'rigid'

    def __init__(self, config: RigidConfig | None = None):
        self.config = config or RigidConfig()

    def label(self, points0: np.ndarray, points1: np.ndarray, dt: float, *, times: Times | None = None) -> Flows:
        """Return the residual flow [m] of points0 (N, 3) to points1 (M, 3), and of points1 back; see `Teacher`."""
        if len(points0) == 0 or len(points1) == 0:
            return np.zeros((len(points0), 3), np.float32), np.zeros((len(points1), 3), np.float32)
        times = times or (np.zeros(len(points0)), np.zeros(len(points1)))
        sweeps = [
            np.column_stack([p, _LAG * t]).astype(np.float64) for p, t in zip((points0, points1), times, strict=True)
        ]
        trees = [cKDTree(sweep[:, :3]) for sweep in sweeps]
        there, back = (
            _Direction(self.config, *sweeps[order], *trees[order], step)
            for order, step in ((slice(None), dt), (slice(None, None, -1), -dt))
        )
        confirmed = there.confirmed_by(back), back.confirmed_by(there)
        there.cut_out(back, confirmed[0])
        back.cut_out(there, confirmed[1])
        return there.confirmed_by(back).astype(np.float32), back.confirmed_by(there).astype(np.float32)


class _Direction:
    """The flow of one sweep (`source`) to another (`target`), dt seconds later, or earlier.

    A row of either is x, y, z and the time of the point after the stamp of its sweep as a distance, _LAG times it [m].
    Trees of sweeps know only where points are; `timed_tree`, also when.
    """

    def __init__(self, config, source, target, source_tree, target_tree, dt):
        self.config, self.source, self.target, self.tree = config, source, target, target_tree
        self.timed_tree = cKDTree(target)
        self.lag = _LAG * dt
        self.rng = np.random.default_rng(config.seed)
        cut = config.cut
        misfit = np.minimum(target_tree.query(source[:, :3], distance_upper_bound=cut)[0], cut)
        back, nearest = source_tree.query(target[:, :3], distance_upper_bound=cut)
        self.misfit, self.back, self.nearest = misfit, np.minimum(back, cut), nearest
        reach = config.max_speed * abs(dt)
        self.coarse, self.fine = disc(reach, _COARSE), disc(_AROUND, _FINE)
        self.field = MisfitField(target[:, :3], reach + 1, cut)
        # Of the source: flow (N, 3) [m]; number (N,) of the piece that moves as one, and of that which was asked last.
        self.flow, (self.moving, self.piece) = np.zeros((len(source), 3)), np.full((2, len(source)), -1)
        for voxel in config.voxels:
            self._move_pieces(np.flatnonzero(self.moving < 0), np.array([voxel, voxel, _TALL * voxel]))

    def confirmed_by(self, other: '_Direction') -> np.ndarray:
        """Return the flow (N, 3) [m] that the other direction of time found as well, see `agreed`."""
        return agreed(self.source[:, :3], self.flow, self.moving, self.tree, other.flow)

    def cut_out(self, other: '_Direction', confirmed: np.ndarray) -> None:
        """Look again at what pieces of the other sweep came from and this sweep has in one piece with something else.

        What is cut out so moves by itself, if its own search finds what the other piece says, backwards.
        confirmed: (N, 3) [m], see `confirmed_by`.
        """
        for piece in np.unique(other.moving[other.moving >= 0]):
            theirs = np.flatnonzero(other.moving == piece)
            origin = other.source[theirs, :3] + other.flow[theirs]
            low, high = origin.min(0) - _CUT_NEAR, origin.max(0) + _CUT_NEAR
            rows = np.flatnonzero(((self.source[:, :3] > low) & (self.source[:, :3] < high)).all(1))
            distance, partner = cKDTree(origin).query(self.source[rows, :3], distance_upper_bound=_CUT_NEAR)
            is_near = np.isfinite(distance)
            mine, wanted = rows[is_near], -other.flow[theirs[partner[is_near]]]
            if len(mine) < _CUT_POINTS or fits(confirmed[mine], wanted).mean() >= SHARE:
                continue
            if np.isfinite(other.tree.query(origin, distance_upper_bound=_CUT_NEAR)[0]).mean() < _CUT_SHARE:
                continue
            numbers, counts = np.unique(self.piece[mine], return_counts=True)
            motion = self._motion(numbers[counts.argmax()], self.source[mine], _CUT_IMPROVEMENT)
            if motion is not None and fits(self._flow(mine, motion), wanted).mean() >= SHARE:
                self._move(mine, motion)

    def _flow(self, rows: np.ndarray, motion) -> np.ndarray:
        return (moved_by(self.source[rows], *motion) - self.source[rows])[:, :3]

    def _move(self, rows: np.ndarray, motion) -> None:
        self.flow[rows] = self._flow(rows, motion)
        self.moving[rows] = self.moving.max() + 1

    def _move_pieces(self, rows: np.ndarray, voxel: np.ndarray) -> None:
        """Move what moves of the pieces that these rows of the source make."""
        config = self.config
        if len(rows) == 0:
            return
        piece = np.full(len(self.source) + 1, -1)  # the last row is the neighbour of what has none
        piece[rows] = _pieces(self.source[rows, :3], voxel)
        self.piece = piece[:-1]
        order = rows[np.argsort(piece[rows], kind='stable')]
        starts = np.searchsorted(piece[order], np.arange(piece.max() + 2))
        near_piece = piece[self.nearest]
        # Points of the target that a piece explains where it stands do not speak for another that would move there.
        self.stands_with = np.where(self.back < _STANDS, near_piece, -1)
        count, num_pieces = np.diff(starts), piece.max() + 1
        has_near = near_piece >= 0
        num_near = np.bincount(near_piece[has_near], minlength=num_pieces)
        mean_back = np.bincount(near_piece[has_near], self.back[has_near], num_pieces) / np.maximum(num_near, 1)
        both = np.bincount(piece[rows], self.misfit[rows]) / count + np.where(num_near > 0, mean_back, config.cut)
        for number in np.flatnonzero((count >= config.min_points) & (both > config.min_misfit)):
            mine = order[starts[number] : starts[number + 1]]
            motion = self._motion(number, self.source[mine], config.improvement)
            if motion is not None:
                self._move(mine, motion)

    def _motion(self, number: int, points: np.ndarray, improvement: float):
        """Return (rotation (3, 3), shift (3,)) of a piece (N, 4), None when it stands.

        improvement: see RigidConfig.
        """
        config = self.config
        length = np.ptp(points[:, :2], axis=0).max()
        if length > config.max_extent:
            return None
        starts = self._search(points)
        if not starts:
            return None
        some = self._some(points, config.refine_points)
        tree = cKDTree(points)
        still = self._misfit(some, np.eye(3), np.zeros(3)) + self._reverse(number, points, tree, np.eye(3), np.zeros(3))
        best, best_misfit = None, improvement * still
        for start in starts:
            rotation, shift = self._refine(some, start, length > _LARGE)
            moved = np.linalg.norm((moved_by(some, rotation, shift) - some).mean(0))
            misfit = self._misfit(some, rotation, shift) + self._reverse(number, points, tree, rotation, shift)
            if misfit + config.slowness * moved < best_misfit and moved > config.min_motion:
                best, best_misfit = (rotation, shift), misfit + config.slowness * moved
        if best is None:
            return None
        best = self._polish(number, points, tree, *best, length > _LARGE)
        if length <= _LARGE or len(points) < _SHARPEN_FROM:
            return best
        return sharpen(points, self._around(number, moved_by(points, *best)), *best, self.lag, self.rng)

    def _search(self, points: np.ndarray) -> list[np.ndarray]:
        """Return shifts (2,) over ground from which to refine; none when no shift is much better than none."""
        some = self._some(points, _SEARCH_POINTS)
        still = self.field.misfit(some, np.zeros((1, 2)))[0]
        misfit = self.field.misfit(some, self.coarse)
        starts = [np.zeros(2)]
        for k in np.argsort(misfit)[:60]:
            if all(np.hypot(*(self.coarse[k] - start)) > _APART for start in starts[1:]):
                starts.append(self.coarse[k])
            if len(starts) > _NUM_STARTS:
                break
        lowest, refined = np.inf, []
        for start in starts:
            around = self.fine + start
            misfit = self.field.misfit(some, around)
            lowest = min(lowest, misfit.min())
            refined.append(around[misfit.argmin()])
        return refined if lowest <= self.config.screen * still else []

    def _refine(self, points: np.ndarray, start: np.ndarray, may_turn: bool):
        """Return (rotation, shift) after some steps of robust ICP over ground."""
        rotation, shift = np.eye(3), np.array([*start, 0.0])
        for step in range(_STEPS):
            reach = max(self.config.cut * 0.8**step, 1.5 * self.config.kernel)
            distance, index = self.timed_tree.query(moved_by(points, rotation, shift), distance_upper_bound=reach)
            has_partner = np.isfinite(distance)
            if has_partner.sum() < 5:
                break
            weight = closeness(distance[has_partner], self.config.kernel)
            rotation, shift = fitted(points[has_partner], self.target[index[has_partner]], weight, self.lag, may_turn)
        return rotation, shift

    def _polish(self, number: int, points: np.ndarray, tree, rotation: np.ndarray, shift: np.ndarray, may_turn: bool):
        """Return (rotation, shift) after some steps with partners in both senses: what is seen in part pulls less."""
        some = self._some(points, _POLISH_POINTS)
        for step in range(_POLISH_STEPS):
            reach = max(0.4 * 0.8**step, 2 * _POLISH_KERNEL)
            distance, index = self.timed_tree.query(moved_by(some, rotation, shift), distance_upper_bound=reach)
            there = np.isfinite(distance)
            around = self._some(self._around(number, moved_by(points, rotation, shift)), _POLISH_POINTS)
            back, back_index = tree.query(moved_back(around, rotation, shift), distance_upper_bound=reach)
            here = np.isfinite(back)
            if min(there.sum(), here.sum()) < 5:
                break
            mine = np.concatenate([some[there], points[back_index[here]]])
            partner = np.concatenate([self.target[index[there]], around[here]])
            weights = [closeness(d, _POLISH_KERNEL) / len(d) for d in (distance[there], back[here])]
            rotation, shift = fitted(mine, partner, np.concatenate(weights), self.lag, may_turn)
        return rotation, shift

    def _misfit(self, points: np.ndarray, rotation: np.ndarray, shift: np.ndarray) -> float:
        """Return the mean distance [m] of moved points to the target, each cut."""
        cut = self.config.cut
        moved = moved_by(points, rotation, shift)
        return np.minimum(self.timed_tree.query(moved, distance_upper_bound=cut)[0], cut).mean()

    def _reverse(self, number: int, points: np.ndarray, tree, rotation: np.ndarray, shift: np.ndarray) -> float:
        """Return the mean distance [m] of the target's points around the moved piece to it, each cut."""
        cut = self.config.cut
        around = self._around(number, moved_by(points, rotation, shift))
        if len(around) < 3:
            return cut / 2
        back = moved_back(self._some(around, _REVERSE_POINTS), rotation, shift)
        return np.minimum(tree.query(back, distance_upper_bound=cut)[0], cut).mean()

    def _around(self, number: int, moved: np.ndarray) -> np.ndarray:
        """Return the target's points around a moved piece, without those that other pieces explain where they stand."""
        low, high = moved[:, :3].min(0) - _BORDER, moved[:, :3].max(0) + _BORDER
        rows = np.array(self.tree.query_ball_point((low + high) / 2, np.linalg.norm(high - low) / 2), int)
        around, stands_with = self.target[rows], self.stands_with[rows]
        is_inside = ((around[:, :3] > low) & (around[:, :3] < high)).all(1)
        return around[is_inside & ((stands_with < 0) | (stands_with == number))]

    def _some(self, points: np.ndarray, most: int) -> np.ndarray:
        return points if len(points) <= most else points[self.rng.choice(len(points), most, replace=False)]


def _pieces(points: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    """Return the number (N,) of the connected piece that each point belongs to."""
    index = ((points - points.min(0)) / voxel).astype(int)
    occupied = np.zeros(index.max(0) + 1, bool)
    occupied[tuple(index.T)] = True
    number, _ = ndimage.label(occupied, np.ones((3, 3, 3)))
    return number[tuple(index.T)] - 1
