# SPDX-License-Identifier: Apache-2.0
"""Perturbations of a dataset: what weather, mounts, filters, sensors and odometry do to the sweeps of a vehicle.

A perturbation is named KIND or KIND:STRENGTH; KINDS lists them. Estimators are told how a turned sensor is mounted, as
by /tf_static on a vehicle; they are not with `untold`, as in pitch:10,untold and upside_down:untold.

A sweep is changed in the same way in every pair that it belongs to, and with every reading: the random numbers depend
on the seed, the name and the sweep only.
"""

import math
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from training.datasets.pairs import HISTORY, DatasetPair, GroundTruthFlow, MetaClass, PairDataset
from training.datasets.simulated_pairs import SimulatedPairs
from training.scoring.scores import Scope
from zeroflow_ros import transforms
from zeroflow_ros.errors import ConfigError, DataError
from zeroflow_ros.lidar.ground import above_ground, ground_height
from zeroflow_ros.lidar.sweep import PosedSweep, SweepPair

_STRAY_FROM, _STRAY_SCALE, _STRAY_Z = 2.0, 8.0, (-1.5, 2.0)  # m: rain and snow are seen near the sensor
_CLEARANCE = 0.3  # m: what common ground filters leave out above the ground
_BAND, _STRATUM = math.radians(0.4), 10  # elevation of a ring, that of 64 rings; rings are lost evenly over each 4 deg
_CELL_BITS = 20  # voxels to each side along an axis
_RATE_TOLERANCE = 0.1  # relative: LiDARs turn at their nominal rate within some percent


@dataclass(frozen=True)
class Kind:
    """What a kind of perturbation does. strength: the smallest and the largest one; None: it has none."""

    example: str
    text: str
    strength: tuple[float, float] | None = None


KINDS = {
    'stray': Kind('stray:0.01', 'stray returns as from rain or snow, as a share of the points', (0, 1)),
    'pitch': Kind('pitch:10', 'sensor looks up by so many degrees', (-180, 180)),
    'roll': Kind('roll:10', 'left side of the sensor is lower by so many degrees', (-180, 180)),
    'yaw': Kind('yaw:20', 'sensor is turned to the right by so many degrees', (-180, 180)),
    'upside_down': Kind('upside_down', 'sensor hangs upside down: roll:180'),
    'ground_removed': Kind('ground_removed', 'all points within 0.3 m above the ground are removed'),
    'rings': Kind('rings:0.5', 'share of the rings that is removed', (0, 0.99)),
    'decimate': Kind('decimate:0.5', 'share of the points that is removed at random', (0, 0.99)),
    'voxel': Kind('voxel:0.1', 'mean point of each voxel of this size [m]', (0.001, 100)),
    'range_noise': Kind('range_noise:0.05', 'standard deviation of the noise of the distance [m]', (0, 100)),
    'odometry': Kind(
        'odometry:1.05', 'wrong ego motion: factor of the distance, or drift forward, as in 0.5m/s, or to the left, as '
        'in 2deg/s; several with commas'
    ),
    'rate': Kind('rate:5', 'sweeps per second: every n-th of a recording, or clips simulated at that rate', (0, 1000)),
}  # fmt: skip
_AXES = {'pitch': (0, 1, 0), 'roll': (1, 0, 0), 'yaw': (0, 0, 1), 'upside_down': (1, 0, 0)}
_UNITS = {'': 'scale', 'm/s': 'drift', 'deg/s': 'turn'}


@dataclass(frozen=True)
class OdometryError:
    """Error of the ego motion. scale: factor of the distance. drift: forward [m/s]. turn: to the left [deg/s]."""

    scale: float = 1.0
    drift: float = 0.0
    turn: float = 0.0

    def step(self, older_T_newer: np.ndarray, dt: float) -> np.ndarray:
        """Return a wrong older_T_newer (4, 4) for sweeps that are dt seconds apart."""
        wrong = older_T_newer.copy()
        wrong[:3, 3] *= self.scale
        return wrong @ transforms.yaw_translation(math.radians(self.turn) * dt, self.drift * dt, 0)

    def pair(self, pair: SweepPair) -> SweepPair:
        """Return a pair, forward in time, with wrong poses; sweeps of history and future are dt apart as well."""
        eye = np.eye(4)
        history, ego0_T_newer, wrong_T_newer = [], eye, eye
        for sweep in pair.history:
            older_T_newer = transforms.invert(sweep.ego0_T_ego) @ ego0_T_newer
            wrong_T_newer = wrong_T_newer @ transforms.invert(self.step(older_T_newer, pair.dt))
            ego0_T_newer = sweep.ego0_T_ego
            history.append(PosedSweep(sweep.points, wrong_T_newer))
        ego0_T_older, wrong_T_older = pair.ego0_T_ego1, self.step(pair.ego0_T_ego1, pair.dt)
        ego0_T_ego1, future = wrong_T_older, []
        for sweep in pair.future:
            step = transforms.invert(ego0_T_older) @ sweep.ego0_T_ego
            ego0_T_older, wrong_T_older = sweep.ego0_T_ego, wrong_T_older @ self.step(step, pair.dt)
            future.append(PosedSweep(sweep.points, wrong_T_older))
        return replace(pair, ego0_T_ego1=ego0_T_ego1, history=tuple(history), future=tuple(future))


@dataclass(frozen=True)
class Perturbation:
    """A named perturbation.

    strength: that of its kind; 0 where it has none. odometry: error of the ego motion. untold: the estimators do
    not get the mount.
    """

    name: str
    kind: str
    strength: float = 0.0
    odometry: OdometryError = OdometryError()
    untold: bool = False

    @cached_property
    def sensor_T_level(self) -> np.ndarray:
        """The mount, (4, 4): maps points of the sensor as it was into the frame of the turned one."""
        sensor_T_level = np.eye(4)
        if self.kind in _AXES:
            degrees = 180.0 if self.kind == 'upside_down' else self.strength
            sensor_T_level[:3, :3] = transforms.rotation_matrix(np.radians(degrees) * np.array(_AXES[self.kind]))
        return sensor_T_level

    def sweep(self, points: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return a changed sweep, (K, 3) float32 [m] in the frame of the changed sensor, and its rows in the original.

        points: (N, 3) float32 [m], z up. The rows (K,) are -1 for points that were added.
        """
        if self.kind in _AXES:
            return transforms.apply(self.sensor_T_level, points), np.arange(len(points))
        if self.kind not in _SWEEP_CHANGES:
            return points, np.arange(len(points))
        # A sensor with fewer rings lacks the same ones in all sweeps.
        sweep = () if self.kind == 'rings' else (len(points), zlib.crc32(np.ascontiguousarray(points)))
        rng = np.random.default_rng((seed, zlib.crc32(self.name.encode()), *sweep))
        return _SWEEP_CHANGES[self.kind](points, self.strength, rng)

    def item(
        self, item: DatasetPair, seed: int = 0, *, is_latest: bool = False, sweep: Callable | None = None
    ) -> DatasetPair:
        """Return a changed pair with its ground truth, ground masks and times.

        is_latest: whether sweep 0 is the newer one. sweep: used in place of `sweep`, to store what it returned.
        """
        sweep = sweep or (lambda points: self.sweep(points, seed))
        pair = item.pair
        (points0, rows0), (points1, rows1) = sweep(pair.points0), sweep(pair.points1)
        sensor_T_level = self.sensor_T_level
        level_T_sensor = transforms.invert(sensor_T_level)
        history, future = (
            tuple(PosedSweep(sweep(s.points)[0], sensor_T_level @ s.ego0_T_ego @ level_T_sensor) for s in beside)
            for beside in (pair.history, pair.future)
        )
        changed = SweepPair(
            points0, points1, sensor_T_level @ pair.ego0_T_ego1 @ level_T_sensor, pair.dt, history, future
        )
        if self.kind == 'odometry':
            changed = self.odometry.pair(changed.reversed()).reversed() if is_latest else self.odometry.pair(changed)
        truth, times = item.truth, item.times
        if truth is not None:
            truth = GroundTruthFlow(
                transforms.apply(sensor_T_level, _of_rows(truth.flow, rows0, 0)),
                _of_rows(truth.meta_class, rows0, MetaClass.IGNORED),
                _of_rows(truth.is_valid, rows0, False),
            )
        if times is not None:
            times = tuple(
                _of_rows(known, rows, known.mean() if len(known) else 0)
                for known, rows in zip(times, (rows0, rows1), strict=True)
            )
        masks = _of_rows(item.is_ground0, rows0, False), _of_rows(item.is_ground1, rows1, False)
        mount = item.mount
        if self.kind in _AXES:
            mount = None if self.untold else (np.eye(4) if mount is None else mount) @ level_T_sensor
        return DatasetPair(self.key(item.key), changed, *masks, truth, times, mount)

    def key(self, key: str) -> str:
        """Return the key of a changed pair: labels of the pair itself are not labels of that."""
        return f'{key}_{re.sub(r"[^a-z0-9.-]", "_", self.name)}'


class PerturbedPairs:
    """A dataset under a perturbation.

    Ground truth is valid in points that `scope` selects in the unperturbed pair, so the same points are scored.
    """

    def __init__(self, dataset: PairDataset, perturbation: Perturbation, scope: Scope, seed: int = 0):
        self.name = f'{dataset.name} {perturbation.name}'
        self._dataset, self._perturbation, self._scope, self._seed = dataset, perturbation, scope, seed
        self._recent: OrderedDict = OrderedDict()  # consecutive pairs share most of their sweeps

    def __len__(self) -> int:
        return len(self._dataset)

    def key(self, index: int) -> str:
        """Return the key of a pair and the name of the perturbation."""
        return self._perturbation.key(self._dataset.key(index))

    def __getitem__(self, index: int) -> DatasetPair:
        return self._changed(self._dataset[index], is_latest=False)

    def latest(self, index: int) -> DatasetPair:
        """Return a pair seen from its newer sweep; the dataset must have this method as well."""
        return self._changed(self._dataset.latest(index), is_latest=True)

    def _changed(self, item: DatasetPair, is_latest: bool) -> DatasetPair:
        if item.truth is not None:
            item = replace(item, truth=replace(item.truth, is_valid=self._scope.rows(item)))
        return self._perturbation.item(item, self._seed, is_latest=is_latest, sweep=self._sweep)

    def _sweep(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = len(points), zlib.crc32(np.ascontiguousarray(points))
        if key not in self._recent:
            self._recent[key] = self._perturbation.sweep(points, self._seed)
        self._recent.move_to_end(key)
        while len(self._recent) > 2 * HISTORY + 4:
            self._recent.popitem(last=False)
        return self._recent[key]


def parse_perturbation(text: str) -> Perturbation:
    """Return the perturbation that a text names.

    Raises: ConfigError for an unknown kind or a strength out of range; it lists the kinds.
    """
    kind, _, strength = text.partition(':')
    if kind not in KINDS:
        raise ConfigError(f'Unknown perturbation {text!r}. The kinds are:\n{kinds_text()}')
    if kind == 'odometry':
        return Perturbation(text, kind, odometry=_odometry_error(text, strength))
    limits, parts = KINDS[kind].strength, strength.split(',')
    untold = kind in _AXES and parts[-1] == 'untold'
    if untold:
        strength = ','.join(parts[:-1])
    if limits is None:
        if strength:
            raise ConfigError(f'{kind} has no strength, got {text!r}. The kinds are:\n{kinds_text()}')
        return Perturbation(text, kind, untold=untold)
    try:
        number = float(strength)
    except ValueError:
        number = math.nan
    if not limits[0] <= number <= limits[1] or number == 0:
        raise ConfigError(
            f'{kind} needs a strength from {limits[0]:g} to {limits[1]:g} and not 0, as in {KINDS[kind].example}; got '
            f'{text!r}. The kinds are:\n{kinds_text()}'
        )
    return Perturbation(text, kind, number, untold=untold)


def kinds_text() -> str:
    """Return an example of each kind and what it does, one per line."""
    lines = [f'  {kind.example:18}{kind.text}' for kind in KINDS.values()]
    return '\n'.join(
        [*lines, 'The mount of a turned sensor is told, except in pitch:10,untold and upside_down:untold.']
    )


def perturbed(dataset: PairDataset, perturbation: Perturbation, scope: Scope, seed: int = 0) -> PairDataset:
    """Return a dataset under a perturbation; scope: see `PerturbedPairs`.

    Raises: DataError when the dataset cannot give the rate.
    """
    if perturbation.kind == 'rate':
        dataset = _at_rate(dataset, perturbation)
    return PerturbedPairs(dataset, perturbation, scope, seed)


def _at_rate(dataset: PairDataset, perturbation: Perturbation) -> PairDataset:
    """Return a dataset at the rate of a perturbation: every n-th sweep of a drive, or other simulated clips."""
    if isinstance(dataset, SimulatedPairs):
        return dataset.at_rate(perturbation.strength)
    if not hasattr(dataset, 'every'):
        raise DataError(
            f'{dataset.name} cannot give {perturbation.name}: only drives have the flow over several sweeps, and only '
            'simulations other rates. Use bag:BAG+BOXES.json or simulation:SEEDS@FOLDER.'
        )
    rate = 1 / float(np.median([dataset.motion(index)[1] for index in range(len(dataset))]))
    step = max(1, round(rate / perturbation.strength))
    if abs(rate / step / perturbation.strength - 1) > _RATE_TOLERANCE:
        known = ', '.join(f'rate:{rate / part:.3g}' for part in (1, 2, 3, 4))
        raise DataError(
            f'{dataset.name} has {rate:.3g} sweeps per second and cannot give {perturbation.name}. It can give every '
            f'n-th sweep: {known}, and so on.'
        )
    return dataset.every(step)


def _odometry_error(text: str, strength: str) -> OdometryError:
    values = {}
    for part in strength.split(','):
        match = re.fullmatch(r'([-+]?\d*\.?\d+)(m/s|deg/s|)', part)
        if not match or _UNITS[match[2]] in values:
            raise ConfigError(
                f'odometry needs a factor, a drift in m/s, a drift in deg/s, or several with commas, as in '
                f'odometry:1.05, odometry:0.5m/s and odometry:1.05,2deg/s; got {text!r}. The kinds are:\n{kinds_text()}'
            )
        values[_UNITS[match[2]]] = float(match[1])
    return OdometryError(**values)


def _of_rows(values: np.ndarray, rows: np.ndarray, added) -> np.ndarray:
    """Return the values of the rows (K,); `added` where a row is -1."""
    taken = np.full((len(rows), *values.shape[1:]), added, values.dtype)
    taken[rows >= 0] = values[rows[rows >= 0]]
    return taken


def _add_stray_returns(points: np.ndarray, share: float, rng: np.random.Generator):
    """Add points at all azimuths, exponentially rarer with the distance, none of them below the ground."""
    number = round(share * np.isfinite(points).all(1).sum())
    distance, azimuth = _STRAY_FROM + rng.exponential(_STRAY_SCALE, number), rng.uniform(-np.pi, np.pi, number)
    ground = ground_height(points)
    low = max(_STRAY_Z[0], min(ground, 0.0)) if np.isfinite(ground) else _STRAY_Z[0]
    z = rng.uniform(low, _STRAY_Z[1], number)
    stray = np.column_stack([distance * np.cos(azimuth), distance * np.sin(azimuth), z]).astype(np.float32)
    return np.concatenate([points, stray]), np.append(np.arange(len(points)), np.full(number, -1))


def _remove_ground(points: np.ndarray, _strength: float, _rng: np.random.Generator):
    rows = np.flatnonzero(above_ground(points, _CLEARANCE))
    return points[rows], rows


def _remove_rings(points: np.ndarray, share: float, rng: np.random.Generator):
    """Remove a share of the bands of elevation, each _BAND wide, evenly over the strata."""
    strata = math.ceil(math.pi / _BAND / _STRATUM)
    up_to = np.floor(np.arange(strata + 1) * share * _STRATUM + 0.5).astype(int)
    is_lost = np.concatenate([rng.permutation(_STRATUM) < number for number in np.diff(up_to)])
    elevation = np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1]))
    band = np.nan_to_num((elevation + np.pi / 2) / _BAND).astype(np.int64)
    rows = np.flatnonzero(~is_lost[np.minimum(band, len(is_lost) - 1)] | np.isnan(elevation))
    return points[rows], rows


def _decimate(points: np.ndarray, share: float, rng: np.random.Generator):
    rows = np.flatnonzero(rng.random(len(points)) >= share)
    return points[rows], rows


def _voxel_means(points: np.ndarray, size: float, _rng: np.random.Generator):
    """Return the mean point of each voxel, with the row of the point nearest to it."""
    rows = np.flatnonzero(np.isfinite(points).all(1))
    xyz, half = points[rows].astype(np.float64), 1 << _CELL_BITS
    x, y, z = np.clip(np.floor(xyz / size), -half, half - 1).astype(np.int64).T + half
    key = ((x << _CELL_BITS + 1 | y) << _CELL_BITS + 1) | z
    _, voxel, counts = np.unique(key, return_inverse=True, return_counts=True)
    means = np.column_stack([np.bincount(voxel, xyz[:, axis], len(counts)) for axis in range(3)]) / counts[:, None]
    order = np.lexsort((np.linalg.norm(xyz - means[voxel], axis=1), voxel))
    nearest = order[np.flatnonzero(np.diff(voxel[order], prepend=-1))]
    return means.astype(np.float32), rows[nearest]


def _add_range_noise(points: np.ndarray, deviation: float, rng: np.random.Generator):
    distance = np.maximum(np.linalg.norm(points, axis=1), 1e-3)
    factor = 1 + deviation * rng.standard_normal(len(points)) / distance
    return (points * factor[:, None]).astype(np.float32), np.arange(len(points))


_SWEEP_CHANGES = {
    'stray': _add_stray_returns, 'ground_removed': _remove_ground, 'rings': _remove_rings, 'decimate': _decimate,
    'voxel': _voxel_means, 'range_noise': _add_range_noise,
}  # fmt: skip
