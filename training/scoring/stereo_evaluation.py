# SPDX-License-Identifier: Apache-2.0
"""Score stereo estimators on a dataset of stereo pairs."""

import sys
import time

import numpy as np
from tqdm import tqdm

from training.datasets.pairs import evenly_spread
from training.datasets.stereo_pairs import StereoDatasetPair, StereoPairDataset
from training.scoring.stereo_metrics import BoxScores, StereoScores, moved_points
from zeroflow_ros import transforms
from zeroflow_ros.camera.stereo import StereoEstimator, StereoFlow
from zeroflow_ros.errors import DataError


def evaluate_stereo(dataset: StereoPairDataset, estimators: list[StereoEstimator], *, num_pairs: int = 0,
                    sweep: str = 'older') -> dict[str, dict]:  # fmt: skip
    """Return the report of each estimator by its name.

    It has the entries of `StereoScores.report` as 'pixels' and those of `BoxScores.report` as 'boxes', where the
    dataset has such ground truth, and 'ms_per_pair', the median time of an estimate. Pairs without ground truth are
    skipped. num_pairs: largest number of pairs, evenly spread; 0 means all. sweep: whose pixels are scored, older or
    latest.
    Raises: DataError when there is nothing to score.
    """
    if len(dataset) == 0:
        raise DataError(f'{dataset.name} has no pairs to score on.')
    if sweep == 'latest' and not hasattr(dataset, 'latest'):
        raise DataError(
            f'{dataset.name} has ground truth of the older frame of a pair only. Score without --sweep latest, or on '
            'stereo:BAG+BOXES.json.'
        )
    indices, scores = evenly_spread(len(dataset), num_pairs), {e.name: _Scores() for e in estimators}
    num_scored = 0
    for index in tqdm(indices, desc=dataset.name, unit='pair', disable=not sys.stderr.isatty()):
        item = dataset[index] if sweep == 'older' else dataset.latest(index)
        if item.truth is not None or item.boxes is not None:
            num_scored += 1
            for estimator in estimators:
                scores[estimator.name].add(item, estimator)
    if num_scored == 0:
        raise DataError(
            f'None of {len(indices)} pairs of {dataset.name} has ground truth. Score on '
            'kitti_scene_flow:.../training, or on a bag with boxes: stereo:BAG+BOXES.json.'
        )
    return {name: of_estimator.report() for name, of_estimator in scores.items()}


class _Scores:
    """All scores of one estimator."""

    def __init__(self):
        self._pixels, self._boxes = StereoScores(), BoxScores()
        self._milliseconds: list[float] = []
        self._num_without_motion = 0

    def add(self, item: StereoDatasetPair, estimator: StereoEstimator) -> None:
        began = time.perf_counter()
        found = estimator.estimate(item.reference, item.other, item.other_T_reference)
        self._milliseconds.append(1e3 * (time.perf_counter() - began))
        if item.truth is not None:
            self._pixels.add(item.truth, found, item.reference.camera)
        if item.boxes is None:
            return
        if item.other_T_reference is None:
            raise DataError(
                f'{item.key}: velocities in boxes need the ego motion of the dataset. Use a bag with odometry or tf.'
            )
        points, velocity = measured_velocity(item, found)
        self._boxes.add(points, velocity, item.boxes, item.other_T_reference, item.dt)

    def report(self) -> dict:
        pixels, boxes = self._pixels.report(), self._boxes.report()
        return {
            'ms_per_pair': float(np.median(self._milliseconds)),
            **({'pixels': pixels} if pixels['pairs'] else {}),
            **({'boxes': boxes} if boxes['pairs'] else {}),
        }


def measured_velocity(item: StereoDatasetPair, found: StereoFlow) -> tuple[np.ndarray, np.ndarray]:
    """Return the measured points (N, 3) [m] of the reference frame and their velocity (N, 3) [m/s], ego motion removed.

    The ego motion is that of the dataset. Pixels whose values are filled in are left out.
    """
    camera = item.reference.camera
    points, moved = camera.points(found.disparity), moved_points(camera, found.flow, found.other_disparity)
    rows = found.is_measured & np.isfinite(points).all(-1) & np.isfinite(moved).all(-1)
    points, moved = points[rows].astype(np.float64), moved[rows].astype(np.float64)
    return points, (transforms.apply(transforms.invert(item.other_T_reference), moved) - points) / item.dt
