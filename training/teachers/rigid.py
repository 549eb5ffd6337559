# SPDX-License-Identifier: Apache-2.0
"""Our fast teacher: what stands still is explained by both sweeps, what does not moves as rigid pieces."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from training.teachers.agreement import agreed
from training.teachers.misfit_field import MisfitField, disc
from training.teachers.sharpness import sharpen
from training.teachers.teacher import Flows, Times
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.transforms import rotation_matrix

_LARGE = 1.5  # m: a piece of this length may turn; a smaller one shows too little of its heading
_MAX_TURN = 0.15  # rad over a pair: 86 degrees a second
_TALL = 1.7  # height of a voxel over its side: a LiDAR's rings are farther apart than its points in a ring
_STEPS = 6  # of refinement
_POLISH_STEPS, _POLISH_POINTS, _POLISH_KERNEL = 5, 300, 0.1  # of the last fit, whose start is good; kernel [m]
_COARSE, _FINE, _AROUND = 0.4, 0.1, 0.3  # m: steps of the two searches, and how far the second reaches
_SEARCH_POINTS, _REVERSE_POINTS = 60, 150  # looked at of a piece, and of the sweep that it moves into
_NUM_STARTS, _APART = 4, 0.6  # places where refinement starts, and how far apart they are [m]
_STANDS = 0.12  # m: a point of the other sweep this near to a piece that stands belongs to that piece
_BORDER = 0.3  # m around a moved piece in which points of the other sweep ought to be explained by it
_SHARES = 0.3, 1.7  # of the time between two stamps, between two points that are taken for each other
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
    stands after all unless the other direction of time found the same motion, see `agreed`.
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
            _Direction(self.config, *sweeps[order], *trees[order], step).move()
            for order, step in ((slice(None), dt), (slice(None, None, -1), -dt))
        )
        return (
            agreed(points0, *there, trees[1], back[0]).astype(np.float32),
            agreed(points1, *back, trees[0], there[0]).astype(np.float32),
        )


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

    def move(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the flow (N, 3) [m] of the source, and the number (N,) of the piece that moves as one, -1 if none."""
        self.flow, self.moving = np.zeros((len(self.source), 3)), np.full(len(self.source), -1)
        for voxel in self.config.voxels:
            self._move_pieces(np.flatnonzero(self.moving < 0), np.array([voxel, voxel, _TALL * voxel]))
        return self.flow, self.moving

    def _move_pieces(self, rows: np.ndarray, voxel: np.ndarray) -> None:
        """Move what moves of the pieces that these rows of the source make."""
        config = self.config
        if len(rows) == 0:
            return
        piece = np.full(len(self.source) + 1, -1)  # the last row is the neighbour of what has none
        piece[rows] = _pieces(self.source[rows, :3], voxel)
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
            motion = self._motion(number, self.source[mine])
            if motion is not None:
                self.flow[mine] = (_moved(self.source[mine], *motion) - self.source[mine])[:, :3]
                self.moving[mine] = self.moving.max() + 1

    def _motion(self, number: int, points: np.ndarray):
        """Return (rotation (3, 3), shift (3,)) of a piece (N, 4), None when it stands."""
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
        best, best_misfit = None, config.improvement * still
        for start in starts:
            rotation, shift = self._refine(some, start, length > _LARGE)
            moved = np.linalg.norm((_moved(some, rotation, shift) - some).mean(0))
            misfit = self._misfit(some, rotation, shift) + self._reverse(number, points, tree, rotation, shift)
            if misfit + config.slowness * moved < best_misfit and moved > config.min_motion:
                best, best_misfit = (rotation, shift), misfit + config.slowness * moved
        if best is None:
            return None
        best = self._polish(number, points, tree, *best, length > _LARGE)
        if length <= _LARGE or len(points) < _SHARPEN_FROM:
            return best
        moved = _moved(points, *best)
        return sharpen(points, self._around(number, moved), *best, self.lag, self.rng)

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
            distance, index = self.timed_tree.query(_moved(points, rotation, shift), distance_upper_bound=reach)
            has_partner = np.isfinite(distance)
            if has_partner.sum() < 5:
                break
            weight = _weight(distance[has_partner], self.config.kernel)
            rotation, shift = self._fit(points[has_partner], self.target[index[has_partner]], weight, may_turn)
        return rotation, shift

    def _polish(self, number: int, points: np.ndarray, tree, rotation: np.ndarray, shift: np.ndarray, may_turn: bool):
        """Return (rotation, shift) after some steps with partners in both senses: what is seen in part pulls less."""
        some = self._some(points, _POLISH_POINTS)
        for step in range(_POLISH_STEPS):
            reach = max(0.4 * 0.8**step, 2 * _POLISH_KERNEL)
            distance, index = self.timed_tree.query(_moved(some, rotation, shift), distance_upper_bound=reach)
            there = np.isfinite(distance)
            around = self._some(self._around(number, _moved(points, rotation, shift)), _POLISH_POINTS)
            back, back_index = tree.query(_moved_back(around, rotation, shift), distance_upper_bound=reach)
            here = np.isfinite(back)
            if min(there.sum(), here.sum()) < 5:
                break
            mine = np.concatenate([some[there], points[back_index[here]]])
            partner = np.concatenate([self.target[index[there]], around[here]])
            weights = [_weight(d, _POLISH_KERNEL) / len(d) for d in (distance[there], back[here])]
            rotation, shift = self._fit(mine, partner, np.concatenate(weights), may_turn)
        return rotation, shift

    def _misfit(self, points: np.ndarray, rotation: np.ndarray, shift: np.ndarray) -> float:
        """Return the mean distance [m] of moved points to the target, each cut."""
        cut = self.config.cut
        moved = _moved(points, rotation, shift)
        return np.minimum(self.timed_tree.query(moved, distance_upper_bound=cut)[0], cut).mean()

    def _reverse(self, number: int, points: np.ndarray, tree, rotation: np.ndarray, shift: np.ndarray) -> float:
        """Return the mean distance [m] of the target's points around the moved piece to it, each cut."""
        cut = self.config.cut
        around = self._around(number, _moved(points, rotation, shift))
        if len(around) < 3:
            return cut / 2
        back = _moved_back(self._some(around, _REVERSE_POINTS), rotation, shift)
        return np.minimum(tree.query(back, distance_upper_bound=cut)[0], cut).mean()

    def _around(self, number: int, moved: np.ndarray) -> np.ndarray:
        """Return the target's points around a moved piece, without those that other pieces explain where they stand."""
        low, high = moved[:, :3].min(0) - _BORDER, moved[:, :3].max(0) + _BORDER
        rows = np.array(self.tree.query_ball_point((low + high) / 2, np.linalg.norm(high - low) / 2), int)
        around, stands_with = self.target[rows], self.stands_with[rows]
        is_inside = ((around[:, :3] > low) & (around[:, :3] < high)).all(1)
        return around[is_inside & ((stands_with < 0) | (stands_with == number))]

    def _fit(self, source: np.ndarray, target: np.ndarray, weight: np.ndarray, may_turn: bool):
        """Return the (rotation, shift) over ground that takes source (N, 4) best onto target (N, 4), weighted (N,)."""
        weight = weight / weight.sum()
        turn = _turn(source[:, :3], target[:, :3], weight) if may_turn else 0.0
        if abs(turn) > _MAX_TURN:
            turn = 0.0
        rotation = rotation_matrix([0, 0, turn])
        # Of the motion from stamp to stamp a pair of points shows the share of time that is between the two.
        share = np.clip(1 + (target[:, 3] - source[:, 3]) / self.lag, *_SHARES)
        centre = weight @ source[:, :3]
        turned = (source[:, :3] - centre) @ rotation.T + centre
        motion = (weight * share) @ (target[:, :3] - turned) / (weight @ share**2)
        motion[2] = 0  # roads are level over the way of a tenth of a second
        return rotation, centre - rotation @ centre + motion

    def _some(self, points: np.ndarray, most: int) -> np.ndarray:
        return points if len(points) <= most else points[self.rng.choice(len(points), most, replace=False)]


def _pieces(points: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    """Return the number (N,) of the connected piece that each point belongs to."""
    index = ((points - points.min(0)) / voxel).astype(int)
    occupied = np.zeros(index.max(0) + 1, bool)
    occupied[tuple(index.T)] = True
    number, _ = ndimage.label(occupied, np.ones((3, 3, 3)))
    return number[tuple(index.T)] - 1


def _moved(points: np.ndarray, rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return points (N, 4) that moved; when they were measured stays as it is."""
    return np.column_stack([points[:, :3] @ rotation.T + shift, points[:, 3]])


def _moved_back(points: np.ndarray, rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return np.column_stack([(points[:, :3] - shift) @ rotation, points[:, 3]])


def _weight(distance: np.ndarray, kernel: float) -> np.ndarray:
    return 1 / (1 + (distance / kernel) ** 2) ** 2


def _turn(source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """Return the turn about z [rad] that takes source (N, 3) best onto target (N, 3); weights (N,) add up to 1."""
    a, b = source - weight @ source, target - weight @ target
    return float(np.arctan2(
        weight @ (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]), weight @ (a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1])
    ))  # fmt: skip
