# SPDX-License-Identifier: Apache-2.0
"""Give each cluster of moving points the one rigid motion with which it fits the sweeps before.

A network says what moves and roughly how; the points say exactly how far, and whether it moves at all. The motion of a
cluster starts from the median of its flow and is refined against the earlier sweeps by iterative closest points. It is
a translation along the ground: over 0.1 s, that of a turning car differs from it by centimetres. A cluster moves only
if it fits the earlier sweeps clearly better in motion than at rest, and a flat piece never slides along itself.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.lidar.clusters import cluster_moving
from zeroflow_ros.lidar.nearest_points import CELL, CELLS, NONE, NearestPoints, cell_of, cells_around
from zeroflow_ros.lidar.numba_support import numba_kernels

_MOVING, _PERHAPS = 0.3, 0.2  # m/s: such points form clusters; those from the second on join one around them
_LONE = 4.0  # m/s: slower points in no cluster stand still, those near the ground from a distance of _LOW on
_LOW = 15.0  # m: nearer than this, something lower than _CLEARANCE has several points
_CLEARANCE = 0.25  # m above the lowest point around: lower points are in no cluster
_LONGEST = 25.0  # m: lorries and trams are shorter; longer clusters are no objects
_MOST_CLUSTERS = 100  # a busy street has 60; this bounds the time
_MIN_POINTS, _USED_POINTS = 5, 40  # of a cluster: fewest, and most that are used
_APART = 1e6  # m: motions are shorter than half of it
_STRIDE = 1.8  # factor of each step of the fit: it approaches from one side
_STEPS, _CONVERGED = 7, 0.001  # iterations at most; the last one moved every cluster less than this [m]
_KERNEL, _LAST_KERNEL = 0.3, 0.1  # m: distance at which a correspondence has a quarter of its weight, first and last
_ALONG = 0.05  # weight of an offset along the surface on which a point lies, as a share of that across it
_SURFACE = 0.25  # m: points of a cluster nearer than this to a point show the surface on which it lies
_PRIOR = 0.01  # weight of the network's flow, in points that agree with it, as a share of the points used
_MOST_CHANGE, _CHANGE_SHARE = 5.0, 0.5  # m/s, share of the network's flow: largest change that is accepted
# A cluster moves if its mean distance in motion is at most this share of that at rest: at 0 m/s, more per m/s, at most.
# A slow motion is soon made up. A fast object may have come into view, so that neither fits well. The side of a long
# one fits wherever it slides.
_SHARE_OF_REST, _SHARE_PER_SPEED, _MOST_SHARE = 0.65, 0.1, 0.95
_LONG = 3.0  # m: longer clusters get the largest share
_SLIDES = 0.3  # mean weight of the offsets along the motion: below it, a shorter cluster only slides along itself
_TURNING_SHARE = 1.1  # the same share where ego motion is not removed, and walls slide along themselves
_MISSED_RANGE, _MISSED_TOP = 35.0, 2.5  # m: distance, height above the ground: what the network may have missed
_MISSED_SIDE, _MISSED_HEIGHT, _MISSED_POINTS = 1.2, 0.7, 8  # m, m, number: longest side, least height, fewest points
_MISSED_START = 0.15  # m: the motion is looked for from rest and from this far along both axes, both ways
_MISSED_SHARE, _MISSED_FIT, _MISSED_REST = 0.6, 0.08, 0.03  # as _SHARE_OF_REST; m: in motion at most, at rest at least
_MISSED_SLOWEST, _MISSED_FASTEST = 0.4, 4.0  # m/s
_FOOTPRINT = 0.2  # m: cell of the area below a cluster
_BESIDE = 1.0  # m: cell of the area around it in which the ground seems to move along
_AROUND = tuple((dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy)
_GROUND_CELL, _GROUND_CELLS = 1.0, 256  # m, number: cells in which the lowest point is taken
_THREAD = ThreadPoolExecutor(1, thread_name_prefix='objects')  # beside the calling one
_BELOW, _SLOPE = 0.3, 0.06  # m, m per metre of distance: lower points are not ground


@dataclass(frozen=True)
class EarlierSweep:
    """A sweep to fit.

    points: (N, 3) float32 [m]. level_T_points: (4, 4), to the level frame, at the time of this sweep.
    intervals: time from this sweep to the one with the flow, in units of the time over which the flow is.
    """

    points: np.ndarray
    level_T_points: np.ndarray
    intervals: float


def fit_object_motion(points: np.ndarray, flow: np.ndarray, level_T_points: np.ndarray,
                      earlier: Sequence[EarlierSweep], dt: float, *, knows_ground: bool = True,
                      ego_motion_removed: bool = True) -> int:  # fmt: skip
    """Replace the flow of the points of each moving cluster by a rigid motion; return the number of clusters.

    points: (N, 3) float32 [m]. flow: (N, 3) float32 [m], towards the first of the earlier sweeps, in the axes of the
    points; changed in place. level_T_points: (4, 4), to a level frame. dt: seconds over which the flow is, positive.
    knows_ground: whether z = 0 of the level frame is on the ground. ego_motion_removed: whether the world stands still;
    where it does not, it takes less for a cluster to move.

    Clusters are made of the points that move, but not of the lowest 0.25 m above the ground around them. Points below a
    cluster, and slow ones within it, move with it. Other low points beside it stand still: one cell of the network
    holds a wheel and the road. A cluster that does not fit the earlier sweeps clearly better in motion than at rest
    stands still, as do slow points of no cluster, and a flat cluster, 3 m long at most, that would slide along itself.
    A cluster longer than 25 m is no object and keeps the flow of the network: without ego motion, the world turns.

    A network that is made for more sweeps misses people where it sees two. With one earlier sweep, and ego motion
    removed, small upright things that do not move so far are tried too.
    """
    num_objects = _fit_clusters(points, flow, level_T_points, earlier, dt, knows_ground, ego_motion_removed)
    if len(earlier) == 1 and ego_motion_removed:
        num_objects += _fit_missed(points, flow, level_T_points, earlier[0], dt, knows_ground)
    return num_objects


def _fit_clusters(points, flow, level_T_points, earlier, dt, knows_ground, ego_motion_removed) -> int:
    """Fit the clusters that the network says move; see `fit_object_motion`."""
    rows, squared = _longer_than(flow, _PERHAPS * dt)
    places = transforms.apply(level_T_points, points[rows])
    cells = _ground_cells(places)
    inside = cells[:, 0] >= 0
    rows, squared, places, cells = rows[inside], squared[inside], places[inside], cells[inside]
    is_moving = squared > (_MOVING * dt) ** 2
    if not is_moving.any():
        return 0
    ground = _lowest_around(points, level_T_points, knows_ground)
    is_high = places[:, 2] >= ground[tuple(cells.T)] + _CLEARANCE
    level_R_points = np.eye(4)
    level_R_points[:3, :3] = level_T_points[:3, :3]
    body = np.flatnonzero(is_moving & is_high)
    motion_of = transforms.apply(level_R_points, flow[rows])  # no `@`: BLAS threads wait for each other
    label = np.full(len(rows), NONE, np.int32)
    label[body] = cluster_moving(places[body], motion_of[body] / np.float32(dt), min_points=_MIN_POINTS)
    if ego_motion_removed:
        is_far = np.hypot(places[:, 0], places[:, 1]) > _LOW
        flow[rows[(is_high | is_far) & (label < 0) & (squared < (_LONE * dt) ** 2)]] = 0
    _drop_clusters(places, label)
    if not (label >= 0).any():
        return 0
    fitted = _fit(places, motion_of, label, earlier, dt, ego_motion_removed)
    nearest_label, is_beside = _footprints(places, label)
    joins = (label < 0) & (nearest_label >= 0) & (is_moving | is_high)
    label[joins] = nearest_label[joins]
    mine = label >= 0
    flow[rows[mine]] = transforms.apply(level_R_points.T, fitted)[label[mine]]
    flow[rows[~mine & is_beside & ~is_high]] = 0
    return len(fitted)


def _fit_missed(points, flow, level_T_points, sweep, dt, knows_ground) -> int:
    """Move people and the like that stand so far but fit the earlier sweep far better in motion; return their number.

    They are at most 1.2 m long, 0.7 to 2.5 m tall, within 35 m, and apart from everything else above the ground.
    """
    with np.errstate(invalid='ignore'):
        places = transforms.apply(level_T_points, points)
        cells = _ground_cells(places)
        height = places[:, 2] - _lowest_around(points, level_T_points, knows_ground)[tuple(cells.T)]
        is_near = np.hypot(places[:, 0], places[:, 1]) < _MISSED_RANGE
        rows = np.flatnonzero((cells[:, 0] >= 0) & is_near & (height >= _CLEARANCE) & (height < _MISSED_TOP))
    places, height = places[rows], height[rows]
    is_moving = np.einsum('ij,ij->i', flow[rows], flow[rows]) > (_MOVING * dt) ** 2
    label = cluster_moving(places, np.zeros_like(places), min_points=_MISSED_POINTS)
    order = np.argsort(label, kind='stable')[np.count_nonzero(label < 0) :]
    if not len(order):
        return 0
    first = np.flatnonzero(np.diff(label[order], prepend=-1))
    extent = np.maximum.reduceat(places[order, :2], first) - np.minimum.reduceat(places[order, :2], first)
    is_small = (extent.max(axis=1) <= _MISSED_SIDE) & (np.maximum.reduceat(height[order], first) >= _MISSED_HEIGHT)
    is_small &= ~np.logical_or.reduceat(is_moving[order], first)
    groups = [group for group, wanted in zip(np.split(order, first[1:]), is_small, strict=True) if wanted]
    if not groups:
        return 0
    used = [group[np.linspace(0, len(group) - 1, min(_USED_POINTS, len(group))).astype(int)] for group in groups]
    count = np.array([len(group) for group in used])
    body = places[np.concatenate(used)]
    surface = np.tile(np.float32([1, 0, 1]), (len(body), 1))
    near = NearestPoints(sweep.points, cells_around(cell_of(body), 2), sweep.level_T_points)
    motion, of_fit = np.zeros((len(used), 3), np.float32), np.full(len(used), np.inf)
    for x, y in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        start = np.tile(np.float32([x * _MISSED_START, y * _MISSED_START, 0]), (len(used), 1))
        trial, (_, of_trial, at_rest) = closest_point_motion(body, surface, count, start, [(near, sweep.intervals)])
        better = of_trial < of_fit
        motion[better], of_fit[better] = trial[better], of_trial[better]
    speed = np.linalg.norm(motion, axis=1) / dt
    moves = (of_fit < _MISSED_FIT) & (at_rest > _MISSED_REST) & (of_fit < _MISSED_SHARE * at_rest)
    moves &= (speed > _MISSED_SLOWEST) & (speed < _MISSED_FASTEST)
    points_R_level = np.eye(4)
    points_R_level[:3, :3] = level_T_points[:3, :3].T
    motion = transforms.apply(points_R_level, motion)
    for k in np.flatnonzero(moves):
        mine = rows[groups[k]]
        flow[mine[np.isfinite(flow[mine]).all(axis=1)]] = motion[k]
    return int(np.count_nonzero(moves))


def _longer_than(flow: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the finite rows of flow (N, 3) that are longer than a length [m], (K,), and their squares, (K,)."""
    if numba_kernels is not None:
        rows, squared = np.empty(len(flow), np.int64), np.empty(len(flow), np.float32)
        count = numba_kernels.longer_than(flow, np.float32(length), rows, squared)
        return rows[:count], squared[:count]
    squared = np.einsum('ij,ij->i', flow, flow)
    with np.errstate(invalid='ignore'):
        rows = np.flatnonzero((squared > length**2) & np.isfinite(squared))
    return rows, squared[rows]


def _drop_clusters(places: np.ndarray, label: np.ndarray) -> None:
    """Take the points of long clusters out of label (K,), and those beyond the largest 100. places: (K, 3) [m].

    The other clusters are numbered without gaps.
    """
    mine = np.flatnonzero(label >= 0)
    if not len(mine):
        return
    order = mine[np.argsort(label[mine], kind='stable')]
    first = np.flatnonzero(np.diff(label[order], prepend=-1))
    extent = np.maximum.reduceat(places[order, :2], first) - np.minimum.reduceat(places[order, :2], first)
    is_short = extent.max(axis=1) <= _LONGEST
    number = np.cumsum(is_short) - 1
    label[mine] = np.where(is_short & (number < _MOST_CLUSTERS), number, NONE)[label[mine]]


def warm_up() -> None:
    """Fit a small cluster, so that compiling does not delay the first sweep in which something moves."""
    points = np.linspace([5, 5, 0], [5.5, 5.5, 1.5], 2 * _MIN_POINTS, dtype=np.float32)
    earlier = [EarlierSweep(points, np.eye(4), 1.0)]
    fit_object_motion(points, np.full_like(points, _MOVING), np.eye(4), earlier, dt=0.1)


def _lowest_around(points: np.ndarray, level_T_points: np.ndarray, knows_ground: bool) -> np.ndarray:
    """Return the height of the lowest of all points within 1 to 2 m of each ground cell, (C, C) float32 [m].

    Points far below the ground are mirror images in wet roads and cars; they are ignored if z = 0 is on the ground.
    """
    lowest = np.full((_GROUND_CELLS, _GROUND_CELLS), np.inf, np.float32)
    margin, slope = (np.float32(_BELOW), np.float32(_SLOPE)) if knows_ground else (np.float32(np.inf), np.float32(0))
    if numba_kernels is not None:
        matrix = level_T_points[:3].astype(np.float32)
        numba_kernels.lowest_in_cells(
            points, matrix, np.float32(1 / _GROUND_CELL), _GROUND_CELLS, margin, slope, lowest
        )
    else:
        mapped = transforms.apply(level_T_points, points)
        cells = _ground_cells(mapped)
        with np.errstate(invalid='ignore'):
            inside = (cells[:, 0] >= 0) & (mapped[:, 2] >= -margin - slope * np.abs(mapped[:, :2]).sum(axis=1))
        np.minimum.at(lowest, tuple(cells[inside].T), mapped[inside, 2])
    for axis in (0, 1):
        lowest = np.minimum(lowest, np.minimum(np.roll(lowest, 1, axis), np.roll(lowest, -1, axis)))
    return lowest


def _ground_cells(points: np.ndarray) -> np.ndarray:
    """Return the cell of points (N, 3) along x and y, (N, 2); -1 outside and in NaN rows."""
    with np.errstate(invalid='ignore'):
        cells = np.floor(points[:, :2] / _GROUND_CELL) + _GROUND_CELLS // 2
        inside = ((cells >= 0) & (cells < _GROUND_CELLS)).all(axis=1)
    return np.where(inside[:, None], cells, -1).astype(np.int64)


def _fit(places, motion_of, label, earlier, dt, ego_motion_removed) -> np.ndarray:
    """Return the motion of each cluster, (C, 3) float32 [m], 0 where it stands still.

    places: (K, 3), level. motion_of: (K, 3) [m], flow of the network. label: (K,), the cluster of each point.
    """
    body = np.flatnonzero(label >= 0)
    count = np.bincount(label[body])
    first, offsets = np.cumsum(count) - count, _APART * np.arange(len(count))
    start = np.zeros((len(count), 3), np.float32)
    for axis in (0, 1):  # the medians, by one sort
        start[:, axis] = np.sort(offsets[label[body]] + motion_of[body, axis])[first + count // 2] - offsets
    body = body[np.argsort(label[body], kind='stable')]
    rank = np.arange(len(body)) - first[label[body]]
    share = np.minimum(1, _USED_POINTS / count)[label[body]]
    used = np.flatnonzero(np.floor((rank + 1) * share) > np.floor(rank * share))  # evenly spread
    surface = _surface_weights(places[body], np.append(first, len(body)), used)
    cluster, body = label[body[used]], places[body[used]]
    count = np.bincount(cluster)

    def prepare(sweep: EarlierSweep) -> tuple[NearestPoints, float]:
        reach = cell_of(np.concatenate([body, body + start[cluster] * np.float32(sweep.intervals)]))
        return NearestPoints(sweep.points, cells_around(reach, 2), sweep.level_T_points), sweep.intervals

    others = [_THREAD.submit(prepare, sweep) for sweep in earlier[1:]]
    sweeps = [prepare(earlier[0]), *(other.result() for other in others)]
    motion, (of_start, of_fit, at_rest) = closest_point_motion(body, surface, count, start, sweeps)
    change = np.linalg.norm(motion - start, axis=1)
    limit = np.maximum(_MOST_CHANGE * dt, _CHANGE_SHARE * np.linalg.norm(start, axis=1))
    better = (of_fit < of_start) & (change < limit)
    motion = np.where(better[:, None], motion, start)
    speed = np.linalg.norm(motion, axis=1) / dt
    first = np.cumsum(count) - count
    extent = np.maximum.reduceat(body[:, :2], first) - np.minimum.reduceat(body[:, :2], first)
    is_long = extent.max(axis=1) > _LONG
    share = np.where(is_long, _MOST_SHARE, _SHARE_OF_REST + _SHARE_PER_SPEED * speed)
    share = np.minimum(share, _MOST_SHARE) if ego_motion_removed else _TURNING_SHARE
    stands = np.where(better, of_fit, of_start) > share * at_rest
    if ego_motion_removed:
        stands |= ~is_long & (_weight_along(motion, surface, first, count) < _SLIDES)
    motion[stands] = 0
    return motion


def _weight_along(motion: np.ndarray, surface: np.ndarray, first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the mean weight of the offsets along the motion of each cluster, (C,).

    It is near _ALONG for a flat piece that slides along itself: the end of a wall that comes into view looks so.
    """
    x, y = np.repeat(motion[:, :2] / np.maximum(np.linalg.norm(motion, axis=1), 1e-6)[:, None], count, axis=0).T
    xx, xy, yy = surface.T
    return np.add.reduceat(xx * x * x + 2 * xy * x * y + yy * y * y, first) / count


def _surface_weights(points: np.ndarray, first: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return a symmetric matrix for each used point, (Q, 3) float32: xx, xy, yy, with which to weight its offsets.

    points: (K, 3) [m], of all clusters, one after the other. first: (C + 1,), where each begins. used: (Q,), rows.
    Seen from above, the side of a car is a line. It says how far the car moves across it, and the closest points say
    wrongly that nothing moves along it: with less weight there, the ends decide. The matrix is 1 for other shapes.
    """
    weights = np.empty((len(used), 3), np.float32)
    cluster = np.searchsorted(first, used, side='right') - 1
    if numba_kernels is not None:
        numba_kernels.surface_weights(points, first, used, cluster, _SURFACE, _ALONG, weights)
        return weights
    for k, (row, mine) in enumerate(zip(used, cluster, strict=True)):
        around = (points[first[mine] : first[mine + 1], :2] - points[row, :2]).astype(np.float64)
        around = around[np.einsum('ij,ij->i', around, around) < _SURFACE**2]
        weights[k] = 1, 0, 1
        if len(around) < 4:
            continue
        spread, axes = np.linalg.eigh(np.cov(around.T, bias=True))  # the larger one is last
        if spread[1] < 1e-4:
            continue
        less = 1 - min(1, _ALONG + 2 * max(spread[0], 0) / spread[1])
        x, y = axes[:, 1]
        weights[k] = 1 - less * x * x, -less * x * y, 1 - less * y * y
    return weights


def closest_point_motion(body: np.ndarray, surface: np.ndarray, count: np.ndarray, start: np.ndarray,
                         sweeps: Sequence[tuple[NearestPoints, float]]) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the translation of each cluster along the ground and its mean distances to the sweeps, (C, 3), (3, C) [m].

    body: (Q, 3) float32 [m], the points of all clusters, one after the other. surface: (Q, 3) float32, weights of their
    offsets: xx, xy, yy. count: (C,), their numbers. start: (C, 3) float32 [m]. sweeps: each with the number of
    intervals over which it is reached. The distances are at the start, after the fit, and at rest, each summed over the
    sweeps.
    """
    kernels = np.geomspace(_KERNEL, _LAST_KERNEL, _STEPS)
    if numba_kernels is not None:
        motion, misfits = np.zeros_like(start), np.zeros((len(start), 3))
        near = [sweep for sweep, _ in sweeps]
        first = np.concatenate([[0], np.cumsum(count)])
        arguments = (
            body, surface, first, start, np.cumsum([0, *(len(sweep.points) for sweep in near)]),
            np.stack([sweep.starts for sweep in near]), np.concatenate([sweep.points for sweep in near]),
            np.float32([intervals for _, intervals in sweeps]),
            (np.float32(1 / CELL), CELLS, np.float32(CELL)), kernels, _PRIOR, _STRIDE, _CONVERGED, motion, misfits,
        )  # fmt: skip
        middle = int(np.searchsorted(first, first[-1] / 2))  # half of the points
        other = _THREAD.submit(numba_kernels.fit_clusters, (0, middle), *arguments)
        numba_kernels.fit_clusters((middle, len(start)), *arguments)
        other.result()
        return motion, misfits.T
    num_clusters, cluster = len(count), np.repeat(np.arange(len(count)), count)
    motion, active = start.copy(), np.ones(num_clusters, bool)
    for kernel in kernels:
        some = active[cluster]
        pull, weight = np.zeros((num_clusters, 2)), np.zeros((num_clusters, 3))
        for near, intervals in sweeps:
            moved = body[some] + motion[cluster[some]] * np.float32(intervals)
            rows, distance = near.query(moved)
            found = rows != NONE
            mine, away = cluster[some][found], distance[found]
            xx, xy, yy = surface[some][found].T / (1 + (away / kernel) ** 2) ** 2
            for part, of_points in enumerate((xx, xy, yy)):
                weight[:, part] += np.bincount(mine, of_points, num_clusters) * intervals
            x, y, _ = (near.points[rows[found]] - moved[found]).T
            for axis, of_points in enumerate((xx * x + xy * y, xy * x + yy * y)):
                pull[:, axis] += np.bincount(mine, of_points, num_clusters)
        pull += (_PRIOR * count)[:, None] * (start - motion)[:, :2]
        xx, xy, yy = (weight + (_PRIOR * count)[:, None] * [1, 0, 1]).T
        change = np.stack([yy * pull[:, 0] - xy * pull[:, 1], xx * pull[:, 1] - xy * pull[:, 0]], axis=1)
        change = (_STRIDE * change / (xx * yy - xy * xy)[:, None]).astype(np.float32)
        change[~active] = 0
        motion[:, :2] += change
        active &= np.abs(change).max(axis=1) > _CONVERGED
        if not active.any():
            break
    misfits = np.zeros((3, num_clusters))
    for misfit, trial in zip(misfits, (start, motion, np.zeros_like(start)), strict=True):
        for near, intervals in sweeps:
            distance = near.query(body + trial[cluster] * np.float32(intervals))[1]
            misfit += np.bincount(cluster, distance, num_clusters) / count
    return motion, misfits


def _footprints(places: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cluster under which each place (K, 3) lies, (K,), NONE for none, and whether it is near one, (K,).

    Under: in a cell of a point of the cluster or next to it. Near: the same, in cells of 1 m.
    """
    inside = np.flatnonzero(label >= 0)[::-1]  # where clusters overlap, the larger one is written last
    others = np.flatnonzero(label < 0)
    under, is_near = label.copy(), label >= 0
    owner, cell = _grid(places, _FOOTPRINT)
    owner[tuple(cell[inside].T)] = label[inside]
    under[others] = _owner_around(owner, cell[others])
    owner, cell = _grid(places, _BESIDE)
    owner[tuple(cell[inside].T)] = 0
    is_near[others] = _owner_around(owner, cell[others]) != NONE
    return under, is_near


def _owner_around(owner: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Return the owner of each cell (M, 2) or, where it has none, of a cell next to it, (M,) int32."""
    if numba_kernels is not None:
        found = np.empty(len(cell), np.int32)
        numba_kernels.owner_around(owner, cell, found)
        return found
    x, y = cell.T
    found = owner[x, y]
    for dx, dy in _AROUND:
        found = np.where(found == NONE, owner[x + dx, y + dy], found)
    return found


def _grid(places: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of NONE with a border, and the cell of each place in it, (K, 2)."""
    cell = np.floor(places[:, :2] / np.float32(side)).astype(np.int64)
    cell -= cell.min(axis=0) - 1
    return np.full(cell.max(axis=0) + 2, NONE, np.int32), cell
