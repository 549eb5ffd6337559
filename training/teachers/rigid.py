# SPDX-License-Identifier: Apache-2.0
"""The fast teacher: points that match the other sweep in place are static; other segments move as rigid bodies."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from training.datasets.pairs import Times
from training.teachers.connected_components import connected_components
from training.teachers.forward_backward_check import MIN_CONSISTENT_SHARE, flows_agree, keep_consistent_motion
from training.teachers.planar_motion import STILL, apply
from training.teachers.point_grid import PointGrid, numbers_in_box
from training.teachers.segment_motion import moved_box, polish_step, refine_starts, reverse_distance
from training.teachers.sharpness import refine_by_sharpness, spread_rows
from training.teachers.teacher import Flows
from training.teachers.truncated_distance_field import TruncatedDistanceField, disc
from zeroflow_ros.errors import ConfigError

_LARGE = 1.5  # m: segments from this length on may rotate; the heading of shorter ones is not visible
_TALL = 1.7  # voxel height over its side: rings are farther apart than the points of one ring
_STEPS = 6  # ICP iterations of the refinement
_POLISH_STEPS, _POLISH_POINTS, _POLISH_KERNEL = 5, 300, 0.1  # of the last fit: iterations, points, kernel [m]
_COARSE, _FINE, _AROUND = 0.4, 0.1, 0.3  # m: grid steps of the two searches, radius of the second
_SEARCH_POINTS, _REVERSE_POINTS = 60, 150  # points used of a segment, and of the target sweep around it
_NUM_STARTS, _APART = 4, 0.6  # starts of the refinement, and their least distance [m]
_STATIC_MATCH = 0.12  # m: a target point this near to a segment at rest matches that segment
_BORDER = 0.3  # m around a moved segment: it must account for the target points in there
_SPLIT_NEAR = 0.2  # m: source points this near to the origin of a target segment are split off for it
_SPLIT_POINTS, _SPLIT_SHARE = 100, 0.8  # fewest points split off, and share of the target segment: fewer are chance
_SPLIT_IMPROVEMENT = 0.5  # `improvement` for points that are split off: few of those truly move
_LAG = 2.0  # m/s: scales a difference in measurement time to a distance in the correspondence search
_MOST_POINTS = 1000  # of any choice of points of a segment
_SHARPEN_FROM = 60  # points: larger segments are refined by `refine_by_sharpness`


@dataclass(frozen=True)
class RigidConfig:
    """Settings of the rigid teacher.

    voxels: points in touching voxels of this side form one segment [m]. Each next size segments the points that are
    static so far: at 0.3 m, a person at a wall and the wall are one segment. min_points: fewest points of a moving
    segment.
    max_extent: longer segments are static: buildings, hedges [m]. max_speed: [m/s].
    cut: nearest-neighbour distances are truncated at this [m]. kernel: distance at which a correspondence has a quarter
    of its weight in the refinement [m]; below 0.1, two LiDARs with a phase of 50 ms show a fast car twice and the two
    copies are matched with each other. min_misfit: segments with a lower mean distance between the sweeps, summed over
    both directions, are static [m]. screen: the search must lower the mean distance to this share before refinement.
    improvement: the motion must lower the mean distance to this share of its value at rest.
    slowness: mean distance that is added per metre of motion. min_motion: shorter motions are static [m].
    refine_points: points of a segment used in refinement. seed: of the random choice of points.
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
        if self.refine_points > _MOST_POINTS:
            raise ConfigError(
                f'refine_points of the rigid teacher should be at most {_MOST_POINTS}, got {self.refine_points}.'
            )
        if not self.voxels or min(self.voxels) <= 0:
            raise ConfigError(f'voxels of the rigid teacher should be some sizes above 0, got {self.voxels}.')


class Rigid:
    """A Teacher; see training/teachers/teacher.py.

    Each sweep is divided into segments (connected components of voxels). A segment that does not match the other sweep
    in place searches for the planar motion (x, y, and yaw if it is long) with the lowest mean distance in both
    directions: from its points to the other sweep, and from the other sweep's points around the moved segment to it.
    Without the second, a partly visible wall slides along itself. The motion of a large segment is refined on its
    surface, see `refine_by_sharpness`: the rings of a LiDAR do not move with a car. A segment is static unless the
    search backward in time found the same motion, see `keep_consistent_motion`. Objects that touch in one sweep form
    one segment; it is split as in the other sweep and searched again.
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
        grids = [PointGrid(sweep) for sweep in sweeps]
        nearest = [grids[1 - k].nearest(grids[k], self.config.cut) for k in (0, 1)]
        forward, backward = (
            _Direction(self.config, *sweeps[order], *grids[order], *nearest[order], step)
            for order, step in ((slice(None), dt), (slice(None, None, -1), -dt))
        )
        confirmed = forward.consistent_flow(backward), backward.consistent_flow(forward)
        forward.split_touching_segments(backward, confirmed[0])
        backward.split_touching_segments(forward, confirmed[1])
        flow0, flow1 = forward.consistent_flow(backward), backward.consistent_flow(forward)
        return flow0.astype(np.float32), flow1.astype(np.float32)


class _Direction:
    """The flow of one sweep (`source`) to another (`target`), dt seconds later, or earlier.

    Rows of both sweeps: x, y, z [m], and _LAG times the measurement time after the stamp of the sweep [m].
    nearest, target_nearest: (distances, rows) of the nearest target points to the source's, and the other way round.
    """

    def __init__(self, config, source, target, source_grid, target_grid, nearest, target_nearest, dt):
        self.config, self.source, self.source_grid, self.target_grid = config, source, source_grid, target_grid
        self.tree = target_grid.tree
        self.lag = _LAG * dt
        # One set for all choices: the draws of a segment do not depend on how many segments came before it.
        self.draws = np.random.default_rng(config.seed).random(_MOST_POINTS)
        cut = config.cut
        # Truncated nearest-neighbour distances at rest [m]: of source points (N,), and of target points (M,).
        self.misfit, (self.target_misfit, self.nearest) = nearest[0], target_nearest
        self.reaches = np.maximum(cut * 0.8 ** np.arange(_STEPS), 1.5 * config.kernel)
        reach = config.max_speed * abs(dt)
        self.coarse, self.fine = disc(reach, _COARSE), disc(_AROUND, _FINE)
        self.field = TruncatedDistanceField(target[:, :3], reach + 1, cut)
        # For each source point: flow (N, 3) [m], its moving segment (N,) or -1, and its segment in the last pass (N,).
        self.flow, (self.moving, self.segment) = np.zeros((len(source), 3)), np.full((2, len(source)), -1)
        for voxel in config.voxels:
            self._move_segments(np.flatnonzero(self.moving < 0), np.array([voxel, voxel, _TALL * voxel]))

    def consistent_flow(self, other: '_Direction') -> np.ndarray:
        """Return the flow (N, 3) [m] that the reverse search confirms, see `keep_consistent_motion`."""
        return keep_consistent_motion(self.source[:, :3], self.flow, self.moving, self.tree, other.flow)

    def split_touching_segments(self, other: '_Direction', confirmed: np.ndarray) -> None:
        """Split off points where a segment of the other sweep originates but this sweep has merged it with others.

        The split-off points move on their own if their own search finds the reverse of that segment's motion.
        confirmed: (N, 3) [m], see `consistent_flow`.
        """
        unlabelled = np.full(len(self.source), -1)
        for segment in np.unique(other.moving[other.moving >= 0]):
            theirs = np.flatnonzero(other.moving == segment)
            origin = other.source[theirs, :3] + other.flow[theirs]
            low, high = origin.min(0) - _SPLIT_NEAR, origin.max(0) + _SPLIT_NEAR
            rows = numbers_in_box(self.source_grid.arrays, self.source_grid.rows, low, high, unlabelled, 0)
            distance, match = cKDTree(origin).query(self.source[rows, :3], distance_upper_bound=_SPLIT_NEAR)
            is_near = np.isfinite(distance)
            mine, reverse = rows[is_near], -other.flow[theirs[match[is_near]]]
            if len(mine) < _SPLIT_POINTS or flows_agree(confirmed[mine], reverse).mean() >= MIN_CONSISTENT_SHARE:
                continue
            if np.isfinite(other.tree.query(origin, distance_upper_bound=_SPLIT_NEAR)[0]).mean() < _SPLIT_SHARE:
                continue
            numbers, counts = np.unique(self.segment[mine], return_counts=True)
            self._label_segments(np.isin(np.arange(len(self.source)), mine) - 1)
            motion = self._motion(numbers[counts.argmax()], 0, self.source[mine], _SPLIT_IMPROVEMENT)
            if motion is not None and flows_agree(self._flow(mine, motion), reverse).mean() >= MIN_CONSISTENT_SHARE:
                self._move(mine, motion)

    def _flow(self, rows: np.ndarray, motion) -> np.ndarray:
        x, y = self.source[rows, :2].T
        moved_x, moved_y = apply(motion, x, y)
        return np.stack([moved_x - x, moved_y - y, np.zeros(len(x))], axis=1)

    def _label_segments(self, segment: np.ndarray) -> None:
        self.labels = segment[self.source_grid.rows]

    def _move(self, rows: np.ndarray, motion) -> None:
        self.flow[rows] = self._flow(rows, motion)
        self.moving[rows] = self.moving.max() + 1

    def _move_segments(self, rows: np.ndarray, voxel: np.ndarray) -> None:
        """Segment these rows of the source, and set the flow of the moving segments."""
        config = self.config
        if len(rows) == 0:
            return
        segment = np.full(len(self.source) + 1, -1)  # the last row is the index of "no neighbour" in KD-trees
        segment[rows] = connected_components(self.source[rows, :3], voxel)
        self.segment = segment[:-1]
        self._label_segments(self.segment)
        order = rows[np.argsort(segment[rows], kind='stable')]
        starts = np.searchsorted(segment[order], np.arange(segment.max() + 2))
        near_segment = segment[self.nearest]
        # Target points that match a segment at rest are no evidence of another segment that would move there.
        self.static_match = np.where(self.target_misfit < _STATIC_MATCH, near_segment, -1)[self.target_grid.rows]
        count, num_segments = np.diff(starts), segment.max() + 1
        has_near = near_segment >= 0
        num_near = np.bincount(near_segment[has_near], minlength=num_segments)
        target_sum = np.bincount(near_segment[has_near], self.target_misfit[has_near], num_segments)
        target_mean = np.where(num_near > 0, target_sum / np.maximum(num_near, 1), config.cut)
        misfit = np.bincount(segment[rows], self.misfit[rows]) / count + target_mean
        for number in np.flatnonzero((count >= config.min_points) & (misfit > config.min_misfit)):
            mine = order[starts[number] : starts[number + 1]]
            motion = self._motion(number, number, self.source[mine], config.improvement)
            if motion is not None:
                self._move(mine, motion)

    def _motion(self, number: int, label: int, points: np.ndarray, improvement: float):
        """Return the motion of a segment (N, 4), None if it is static; see training/teachers/planar_motion.py.

        number: of the segment among those at rest. label: of its points in self.labels. improvement: see RigidConfig.
        """
        config = self.config
        length = np.ptp(points[:, :2], axis=0).max()
        if length > config.max_extent:
            return None
        starts = self._search(points)
        if not starts:
            return None
        may_rotate = bool(length > _LARGE)
        some = self._subsample(points, config.refine_points)
        motions, (distances, ways) = np.empty((len(starts), 4)), np.empty((2, len(starts)))
        still = refine_starts(
            self.target_grid.arrays, some, np.array(starts), self.reaches, config.kernel, self.lag, may_rotate,
            config.cut, motions, distances, ways,
        )  # fmt: skip
        still += self._reverse_distance(number, label, points, STILL)
        best, best_misfit = None, improvement * still
        for motion, distance, way in zip(map(tuple, motions.tolist()), distances, ways, strict=True):
            misfit = distance + self._reverse_distance(number, label, points, motion) + config.slowness * way
            if misfit < best_misfit and way > config.min_motion:
                best, best_misfit = motion, misfit
        if best is None:
            return None
        best = self._polish(number, label, points, best, may_rotate)
        if length <= _LARGE or len(points) < _SHARPEN_FROM:
            return best
        return refine_by_sharpness(points, self._target_around(number, points, best), best, self.lag, self.draws)

    def _search(self, points: np.ndarray) -> list[np.ndarray]:
        """Return planar translations (2,) to refine; none if no translation is much better than standing still."""
        some = self._subsample(points, _SEARCH_POINTS)
        still = self.field.mean_distance(some, np.zeros((1, 2)))[0]
        misfit = self.field.mean_distance(some, self.coarse)
        starts = [np.zeros(2)]
        for k in np.argsort(misfit)[:60]:
            if all(np.hypot(*(self.coarse[k] - start)) > _APART for start in starts[1:]):
                starts.append(self.coarse[k])
            if len(starts) > _NUM_STARTS:
                break
        lowest, refined = np.inf, []
        for start in starts:
            around = self.fine + start
            misfit = self.field.mean_distance(some, around)
            lowest = min(lowest, misfit.min())
            refined.append(around[misfit.argmin()])
        return refined if lowest <= self.config.screen * still else []

    def _polish(self, number: int, label: int, points: np.ndarray, motion, may_rotate: bool):
        """Return the motion after some ICP steps in both directions: partial views then bias less."""
        some = self._subsample(points, _POLISH_POINTS)
        for step in range(_POLISH_STEPS):
            reach = max(0.4 * 0.8**step, 2 * _POLISH_KERNEL)
            around = self._target_around(number, points, motion, _POLISH_POINTS)
            is_enough, motion = polish_step(
                self.target_grid.arrays, self.source_grid.arrays, self.labels, label, some, around, motion, reach,
                _POLISH_KERNEL, self.lag, may_rotate,
            )  # fmt: skip
            if not is_enough:
                break
        return motion

    def _reverse_distance(self, number: int, label: int, points: np.ndarray, motion) -> float:
        """Return the mean truncated distance [m] from the target's points around the moved segment to that segment."""
        around = self._target_around(number, points, motion, _REVERSE_POINTS)
        if len(around) < 3:
            return self.config.cut / 2
        return reverse_distance(self.source_grid.arrays, self.labels, label, around, motion, self.config.cut)

    def _target_around(self, number: int, points: np.ndarray, motion, most: int | None = None) -> np.ndarray:
        """Return the target's points around a moved segment, without those that match another segment at rest.

        most: if there are more, so many of them, see `spread_rows`.
        """
        box, grid = moved_box(points, motion, _BORDER), self.target_grid
        ranks = numbers_in_box(grid.arrays, grid.ranks, *box, self.static_match, number)
        return grid.ranked[ranks if most is None else self._subsample(ranks, most)]

    def _subsample(self, points: np.ndarray, most: int) -> np.ndarray:
        return points[spread_rows(len(points), most, self.draws)]
