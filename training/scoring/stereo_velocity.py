# SPDX-License-Identifier: Apache-2.0
"""Scores of the velocities of pixels, ego motion removed: of movers, and of what stands."""

from dataclasses import dataclass, fields

import numpy as np

from training.datasets.stereo_pairs import StereoBox, StereoDatasetPair, StereoTruth
from training.scoring.metrics import ratio
from zeroflow_ros import transforms
from zeroflow_ros.camera.pixel_velocity import PixelVelocity, is_moving, pixel_velocity
from zeroflow_ros.camera.stereo import StereoFlow

MOVING = 0.5  # m/s
SIGMAS = 3.0  # as many standard deviations does the speed of a point have that the node calls moving
RANGE = 30.0  # m: points are scored up to here
# As for sweeps: boxes are annotated tightly, and their lowest part is ground.
_MARGIN, _GROUND_MARGIN, _MIN_POINTS = 0.1, 0.15, 5
_AROUND = 0.5  # m around a box where a point is neither of the object nor of the background


def measured_velocity(item: StereoDatasetPair, found: StereoFlow) -> PixelVelocity:
    """Return the velocities that a node publishes: ego motion of the estimator, else that of the dataset.

    Raises: ValueError when neither is known.
    """
    other_T_reference = item.other_T_reference if found.other_T_reference is None else found.other_T_reference
    return pixel_velocity(found, item.reference.camera, item.dt, other_T_reference=other_T_reference)


@dataclass
class _Sums:
    """Sums over a group of points; errors and speeds in m/s."""

    points: float = 0
    error: float = 0
    speed: float = 0  # the true one
    with_velocity: float = 0
    fast: float = 0  # points with a measured speed above 0.5 m/s
    moving: float = 0  # those of them that are also above 3 standard deviations

    def add(self, velocity: np.ndarray, sigma: np.ndarray, true: np.ndarray) -> None:
        """Add points: velocity (N, 3), NaN where there is none, which counts as 0; sigma (N,); true (N, 3) [m/s]."""
        has_velocity = np.isfinite(velocity).all(1)
        velocity = np.where(has_velocity[:, None], velocity, 0)
        measured = np.linalg.norm(velocity, axis=1)
        self.points += len(velocity)
        self.error += np.linalg.norm(velocity - true, axis=1).sum()
        self.speed += np.linalg.norm(true, axis=1).sum()
        self.with_velocity += np.count_nonzero(has_velocity)
        self.fast += np.count_nonzero(measured > MOVING)
        self.moving += np.count_nonzero(is_moving(measured, sigma, min_speed=MOVING, sigmas=SIGMAS))

    def __add__(self, other: '_Sums') -> '_Sums':
        names = [field.name for field in fields(self)]
        return _Sums(*(getattr(self, name) + getattr(other, name) for name in names))


class VelocityScores:
    """Scores within 30 m of the camera, against tracked boxes or the ground truth of pixels.

    With boxes, a point belongs to the object of the box that its measured position is in, which moves when the median
    speed of its points is above 0.5 m/s; what is more than 0.5 m from all boxes stands: give boxes only where every
    moving object in the image has one. With ground truth, `is_moving` says what moves.
    """

    def __init__(self):
        self._movers, self._resting, self._background = _Sums(), _Sums(), _Sums()
        self._num_pairs = self._num_boxes = self._num_seen = 0

    def add_boxes(self, measured: PixelVelocity, boxes: tuple[StereoBox, ...], other_T_reference: np.ndarray,
                  dt: float) -> None:  # fmt: skip
        """Add a pair with boxes. other_T_reference: (4, 4); dt: seconds from the reference to the other frame."""
        points, velocity, sigma = (part.reshape(-1, *part.shape[2:]) for part in measured)
        rows = np.flatnonzero(np.linalg.norm(points, axis=1) < RANGE)  # not those with NaN
        points, velocity, sigma = points[rows].astype(np.float64), velocity[rows].astype(np.float64), sigma[rows]
        self._num_pairs += 1
        is_background = np.ones(len(points), bool)
        for box in boxes:
            inside, around = _inside(box, points)
            is_background &= ~around
            is_near = np.linalg.norm(box.reference_T_box[:3, 3]) < RANGE
            self._num_boxes += is_near
            if np.count_nonzero(inside) < _MIN_POINTS:
                continue
            self._num_seen += is_near
            true = box.velocity(points[inside], other_T_reference, dt)
            moves = np.median(np.linalg.norm(true, axis=1)) > MOVING
            (self._movers if moves else self._resting).add(velocity[inside], sigma[inside], true)
        still = np.zeros((np.count_nonzero(is_background), 3))
        self._background.add(velocity[is_background], sigma[is_background], still)

    def add_truth(self, measured: PixelVelocity, truth: StereoTruth, item: StereoDatasetPair) -> None:
        """Add a pair with the ground truth of its pixels, `is_moving` included, and ego motion."""
        zero = np.zeros_like(truth.disparity)
        known = truth.has_disparity & truth.has_other_disparity & truth.has_flow
        true = pixel_velocity(
            StereoFlow(truth.disparity, truth.other_disparity, truth.flow, zero, zero, zero, known),
            item.reference.camera, item.dt, other_T_reference=item.other_T_reference,
        )  # fmt: skip
        known = np.isfinite(true.velocity).all(-1) & (np.linalg.norm(true.points, axis=-1) < RANGE)
        self._num_pairs += 1
        for group, moves in ((self._movers, truth.is_moving), (self._background, ~truth.is_moving)):
            rows = known & moves
            group.add(measured.velocity[rows], measured.speed_sigma[rows], true.velocity[rows])

    def report(self) -> dict:
        """Return the scores by name, NaN without points.

        mover_normalised_epe: mean error by mean speed of movers, 1 for zero velocity; points without velocity count as
        standing. mover_found_share: of their points, those that the node calls moving: faster than 0.5 m/s and than 3
        standard deviations. static_fast_share, static_moving_share: of standing points with a velocity, those that are
        faster than 0.5 m/s, and those that the node calls moving. share_of_boxes_seen: of boxes within 30 m, those
        with 5 points or more.
        """
        movers, static = self._movers, self._resting + self._background
        return {
            'pairs': self._num_pairs,
            'mover_points': int(movers.points),
            'mover_normalised_epe': float(ratio(movers.error, movers.speed)),
            'mover_epe_mps': float(ratio(movers.error, movers.points)),
            'mover_speed_mps': float(ratio(movers.speed, movers.points)),
            'mover_with_velocity_share': float(ratio(movers.with_velocity, movers.points)),
            'mover_found_share': float(ratio(movers.moving, movers.points)),
            'static_points': int(static.points),
            'static_fast_share': float(ratio(static.fast, static.with_velocity)),
            'static_moving_share': float(ratio(static.moving, static.with_velocity)),
            'resting_box_points': int(self._resting.points),
            'resting_box_epe_mps': float(ratio(self._resting.error, self._resting.points)),
            'resting_box_fast_share': float(ratio(self._resting.fast, self._resting.with_velocity)),
            'background_fast_share': float(ratio(self._background.fast, self._background.with_velocity)),
            'share_of_boxes_seen': float(ratio(self._num_seen, self._num_boxes)),
        }


def _inside(box: StereoBox, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which points (N, 3) are of the object in a box, and which are near it, (N,) bool each."""
    in_box = transforms.apply(transforms.invert(box.reference_T_box), points)
    half = np.asarray(box.size, np.float64) / 2
    beyond = np.abs(in_box) - half
    object_ = (beyond <= (_MARGIN, _MARGIN, 0)).all(1) & (in_box[:, 2] > -half[2] + _GROUND_MARGIN)
    return object_, (beyond <= _AROUND).all(1)
