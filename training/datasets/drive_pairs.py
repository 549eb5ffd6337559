# SPDX-License-Identifier: Apache-2.0
"""Sweep pairs of recorded drives whose sweeps have poses in one world frame: nuScenes, PandaSet, Waymo."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from training.datasets.pairs import HISTORY, DatasetPair, GroundTruthFlow, from_latest
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError, EgoMotionError
from zeroflow_ros.lidar.ground import ground_height, is_ground
from zeroflow_ros.lidar.sweep import DropReason, PosedSweep, SweepPair
from zeroflow_ros.runtime.health import Finding, Level
from zeroflow_ros.runtime.run_summary import Dropped, RunSummary

_DT_RANGE = (0.04, 0.25)  # s: one or two sweep periods at 10 to 20 Hz, the range of the models
NO_FILE, NO_ROW = 'missing_file', 'unknown_token'  # reasons beside those of `DropReason`
_TILT, _DRIFT = 20.0, 30.0  # degrees: largest angles of z to up, and of the motion to the heading, of a vehicle
_MOVING = 3.0  # m/s: from here on the motion shows the heading
_FEWEST = 3  # steps at that speed
_QUATERNION_ERROR = 0.01  # of the length of a quaternion: rounding to two decimals


class DropLog:
    """Counts what was left out, with one sentence for each reason.

    counts: by reason. texts: the first sentence of each reason.
    """

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.texts: dict[str, str] = {}

    def add(self, reason: str, text: str, count: int = 1) -> None:
        """Count a reason, `count` times."""
        self.counts[reason] += count
        self.texts.setdefault(reason, text)

    def __str__(self) -> str:
        return ', '.join(f'{count} {reason}' for reason, count in self.counts.most_common())


class Drive(Protocol):
    """One drive: sweeps in order of time. It is hashable by identity.

    name: of letters, digits, '.', '_' and '-'. stamps_ns: S stamps [ns]. world_T_ego: S poses (4, 4) float64.
    dropped: sweeps that are left out of these lists. ground_z: height of the ground in the ego frame where it cannot be
    seen [m]; NaN: unknown. notes: warnings for the user.
    """

    name: str
    stamps_ns: Sequence[int]
    world_T_ego: Sequence[np.ndarray]
    dropped: DropLog
    ground_z: float = float('nan')
    notes: Sequence[str] = ()

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return points (N, 3) float32 [m] in the ego frame, and their times (N,) float32 [s] after the stamp or None.

        Rows without a return are NaN. Raises: DataError when the sweep cannot be read.
        """

    def ground(self, number: int, points: np.ndarray) -> np.ndarray | None:
        """Return which points (N, 3) of a sweep are ground, (N,) bool; None: to be found from the points."""
        return None

    def truth(self, number: int, other: int, points: np.ndarray) -> GroundTruthFlow | None:
        """Return the flow of the points (N, 3) of a sweep to the time of its neighbour `other`; None: not labelled."""


class DrivePairs:
    """Consecutive sweeps of some drives, in the ego frame.

    step: each pair consists of every step-th sweep. skipped: what made no pair, by reason. summary: the same as a
    report. Raises: DataError with the reason when there is no pair.
    """

    def __init__(self, name: str, drives: Sequence[Drive], *, step: int = 1):
        self.name, self._drives, self._step = name, drives, step
        self._pairs: list[tuple[Drive, int]] = []
        self._with_next: set[tuple[Drive, int]] = set()  # sweeps that make a pair with the next one
        log = DropLog()
        for drive in drives:
            for reason, count in drive.dropped.counts.items():
                log.add(reason, drive.dropped.texts[reason], count)
            stamps = drive.stamps_ns[::step]
            if problem := _pose_problem(drive):
                log.add(DropReason.EGO_MOTION.value, problem, max(len(stamps) - 1, 1))
                continue
            for k in range(len(stamps) - 1):
                dt = (stamps[k + 1] - stamps[k]) * 1e-9
                reason = _no_pair(dt, step)
                if reason is None:
                    self._pairs.append((drive, k * step))
                    self._with_next.add((drive, k * step))
                else:
                    text = f'{drive.name}: {stamps[k]} and the next sweep are {dt:.3f} s apart'
                    log.add(reason.value, f'{text}, expected {_DT_RANGE[0]} to {_DT_RANGE[1] * step} s')
        self.skipped = log.counts
        num_sweeps = sum(len(drive.stamps_ns) for drive in drives) + sum(
            drive.dropped.counts.total() for drive in drives
        )
        dropped = [Dropped(reason, count, log.texts[reason]) for reason, count in log.counts.most_common()]
        notes = [Finding('recording', 'input', Level.WARN, note, 1) for drive in drives for note in drive.notes]
        self.summary = RunSummary(name, num_sweeps, len(self._pairs), 0, 0, dropped, notes)
        if not self._pairs:
            raise DataError(
                f'{name} holds no sweep pair in {len(drives)} drives ({str(log) or "fewer than two sweeps"}). '
                + ' '.join(f'{text}.' for text in log.texts.values())
            )

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """Return drive/stamp of the older sweep [ns]."""
        drive, number = self._pairs[index]
        return f'{drive.name}/{drive.stamps_ns[number]}'

    def motion(self, index: int) -> tuple[np.ndarray, float]:
        """Return ego0_T_ego1 (4, 4) of a pair and the seconds between its sweeps, without reading them."""
        drive, number = self._pairs[index]
        after = number + self._step
        dt = (drive.stamps_ns[after] - drive.stamps_ns[number]) * 1e-9
        return transforms.invert(drive.world_T_ego[number]) @ drive.world_T_ego[after], dt

    def __getitem__(self, index: int) -> DatasetPair:
        drive, number = self._pairs[index]
        item = self._without_truth(index)
        return replace(item, truth=drive.truth(number, number + self._step, item.pair.points0))

    def latest(self, index: int) -> DatasetPair:
        """Return a pair seen from its newer sweep, with the ground truth of that sweep; see `from_latest`."""
        drive, number = self._pairs[index]
        item = from_latest(self._without_truth(index))
        return replace(item, truth=drive.truth(number + self._step, number, item.pair.points0))

    def every(self, step: int) -> 'DrivePairs':
        """Return the pairs of every step-th sweep, as from a sensor of a lower rate. Raises: DataError for none."""
        return DrivePairs(self.name, self._drives, step=self._step * step)

    def _without_truth(self, index: int) -> DatasetPair:
        drive, number = self._pairs[index]
        after = number + self._step
        ego0_T_world = transforms.invert(drive.world_T_ego[number])
        (points0, times0), (points1, times1) = _read(drive, number), _read(drive, after)

        def posed(numbers) -> tuple[PosedSweep, ...]:
            return tuple(PosedSweep(_read(drive, k)[0], ego0_T_world @ drive.world_T_ego[k]) for k in numbers)

        history, future = [], []
        while len(history) < HISTORY and (drive, number - (1 + len(history)) * self._step) in self._with_next:
            history.append(number - (1 + len(history)) * self._step)
        while len(future) < HISTORY and (drive, after + len(future) * self._step) in self._with_next:
            future.append(after + (1 + len(future)) * self._step)
        pair = SweepPair(points0.copy(), points1.copy(), *self.motion(index), posed(history), posed(future))
        times = None if times0 is None or times1 is None else (times0.copy(), times1.copy())
        ground0, ground1 = _ground(drive, number).copy(), _ground(drive, after).copy()
        return DatasetPair(self.key(index), pair, ground0, ground1, None, times)


def unit_quaternion_pose(translation, quaternion_xyzw, what: str) -> np.ndarray:
    """Return the (4, 4) transform of a translation [m] and a quaternion (x, y, z, w) of a data set.

    Raises: DataError when a number is not finite or the quaternion is not of length 1, as angles or matrices are. what:
    for the message.
    """
    try:
        dst_T_src = transforms.from_quaternion(translation, quaternion_xyzw)
    except EgoMotionError as error:
        raise DataError(f'{what}: {error}') from error
    length = float(np.linalg.norm(np.asarray(quaternion_xyzw, np.float64)))
    if abs(length - 1) > _QUATERNION_ERROR:
        raise DataError(
            f'{what}: a rotation should be a quaternion of length 1, got one of length {length:.4g}. Check that it is '
            'no list of angles, and that none of its numbers was rounded.'
        )
    return dst_T_src


def _pose_problem(drive: Drive) -> str:
    """Return why the poses of a drive cannot be those of a vehicle with x forward, y left and z up; '' if they can.

    A rotation shows no mirrored axis by itself: its determinant is 1 if translations alone are left-handed, or if the
    numbers of a quaternion are in another order. The vehicle then lies on its side, or drives sideways.
    """
    if len(drive.world_T_ego) == 0:
        return ''
    poses, stamps = np.asarray(drive.world_T_ego, np.float64), np.asarray(drive.stamps_ns, np.int64)
    advice = (
        'Expected right-handed frames, x forward, y left, z up. Check the order of the numbers of the rotations, and '
        'that no axis is mirrored.'
    )
    tilt = np.degrees(np.arccos(np.clip(poses[:, 2, 2], -1, 1)))
    if (tilt > _TILT).any():
        return (
            f'{drive.name}: z of the vehicle points up to {tilt.max():.0f} degrees away from up in '
            f'{np.count_nonzero(tilt > _TILT)} of {len(poses)} poses. {advice[:-1]}'
        )
    steps = np.einsum('nji,nj->ni', poses[:-1, :3, :3], np.diff(poses[:, :3, 3], axis=0))[:, :2]
    speed = np.linalg.norm(steps, axis=1) / np.maximum(np.diff(stamps) * 1e-9, 1e-3)
    drift = np.degrees(np.arctan2(np.abs(steps[:, 1]), np.abs(steps[:, 0])))[speed > _MOVING]
    if len(drift) >= _FEWEST and np.median(drift) > _DRIFT:
        return (
            f'{drive.name}: the vehicle drives {np.median(drift):.0f} degrees to the side of its heading. {advice[:-1]}'
        )
    return ''


def rigid_transform(matrix, what: str) -> np.ndarray:
    """Return 16 numbers as a (4, 4) float64 transform.

    Raises: DataError when it is not a rotation and a translation, for example mirrored. what: for the message.
    """
    pose = np.asarray(matrix, np.float64).reshape(-1)
    if pose.shape != (16,) or not np.isfinite(pose).all():
        raise DataError(f'{what} should be 16 finite numbers of a 4 x 4 matrix, got {pose.tolist()[:17]}.')
    pose = pose.reshape(4, 4)
    rotation = pose[:3, :3]
    is_large = np.abs(rotation).max() > 2  # its square could overflow
    if (
        is_large
        or np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3
        or np.abs(pose[3] - [0, 0, 0, 1]).max() > 1e-6
    ):
        raise DataError(f'{what} should be a rotation and a translation, got {pose.round(4).tolist()}.')
    if np.linalg.det(rotation) < 0:
        raise DataError(f'{what} is mirrored (its determinant is -1): expected right-handed frames, x forward, y left.')
    return pose


def _no_pair(dt: float, step: int) -> DropReason | None:
    if dt == 0:
        return DropReason.DUPLICATE
    if dt < 0:
        return DropReason.OUT_OF_ORDER
    if dt < _DT_RANGE[0]:
        return DropReason.TOO_CLOSE
    return DropReason.GAP if dt > _DT_RANGE[1] * step else None


@lru_cache(maxsize=2 * HISTORY + 4)  # consecutive pairs share most of their sweeps
def _read(drive: Drive, number: int) -> tuple[np.ndarray, np.ndarray | None]:
    return drive.read(number)


@lru_cache(maxsize=4)  # the newer sweep of a pair is the older one of the next
def _ground(drive: Drive, number: int) -> np.ndarray:
    """Return the ground mask (N,) bool of a sweep: that of the drive, else by Patchwork++ at the height it shows."""
    points = _read(drive, number)[0]
    mask = drive.ground(number, points)
    if mask is not None:
        return mask
    height = ground_height(points)
    height = height if np.isfinite(height) else drive.ground_z
    if not (np.isfinite(height) and np.isfinite(points).any()):
        return np.zeros(len(points), bool)
    level_T_ego = np.eye(4)
    level_T_ego[2, 3] = -height
    return is_ground(points, level_T_ego)
