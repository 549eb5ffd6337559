# SPDX-License-Identifier: Apache-2.0
"""Score stereo estimators on a dataset of stereo pairs."""

import sys
import time

import numpy as np
from tqdm import tqdm

from training.datasets.pairs import evenly_spread
from training.datasets.stereo_pairs import StereoDatasetPair, StereoPairDataset
from training.scoring.depth_metrics import DepthScores
from training.scoring.mono_metrics import MonoScores
from training.scoring.stereo_estimators import NoEarlierImageError, estimate_pair, takes_one_camera
from training.scoring.stereo_metrics import StereoScores, fill_background
from training.scoring.stereo_velocity import VelocityScores, measured_velocity
from zeroflow_ros.camera.stereo import StereoEstimator, StereoFlow
from zeroflow_ros.errors import DataError, EgoMotionError


def evaluate_stereo(dataset: StereoPairDataset, estimators: list[StereoEstimator], *, num_pairs: int = 0,
                    sweep: str = 'older') -> dict[str, dict]:  # fmt: skip
    """Return the report of each estimator by its name.

    It has the entries of `StereoScores.report` as 'pixels', those of `DepthScores.report` as 'depth', for estimators of
    one camera those of `MonoScores.report` as 'one_camera', and those of `VelocityScores.report` as 'velocity', where
    the dataset has such ground truth, and 'ms_per_pair', the median time of an estimate. Pairs without ground truth are
    skipped. A pair whose ego motion an estimator cannot tell counts in 'failed_pairs', and its pixels as outliers. A
    pair without the earlier image that an estimator of one camera needs counts in 'skipped_pairs' and in no score.
    num_pairs: largest number of pairs, evenly spread; 0 means all. sweep: whose pixels are scored, older or latest.
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
        if any(part is not None for part in (item.truth, item.boxes, item.depth)):
            num_scored += 1
            for estimator in estimators:
                scores[estimator.name].add(item, estimator)
    if num_scored == 0:
        raise DataError(
            f'None of {len(indices)} pairs of {dataset.name} has ground truth. Score on '
            'kitti_scene_flow:.../training, on a bag with boxes: stereo:BAG+BOXES.json, or on the depth of a LiDAR: '
            'stereo:BAG?clouds=BAG, kitti_raw:DATE/DRIVE?depth=velodyne.'
        )
    for name, of_estimator in scores.items():
        if of_estimator.skipped and not of_estimator.num_scored:
            raise DataError(f'{name} can be scored on none of the pairs of {dataset.name}. {of_estimator.skipped[0]}')
    return {name: of_estimator.report() for name, of_estimator in scores.items()}


class _Scores:
    """All scores of one estimator."""

    def __init__(self):
        self._pixels, self._velocity, self._depth = StereoScores(), VelocityScores(), DepthScores()
        self._one_camera = MonoScores()
        self._milliseconds: list[float] = []
        self._failures: list[str] = []
        self.skipped: list[str] = []  # why, of each pair
        self.num_scored = 0

    def add(self, item: StereoDatasetPair, estimator: StereoEstimator) -> None:
        began = time.perf_counter()
        try:
            found = estimate_pair(estimator, item)
        except NoEarlierImageError as error:
            self.skipped.append(str(error))
            return
        except EgoMotionError as error:
            self._failures.append(f'{item.key}: {error}')
            found = _nothing(item)
        else:
            self._milliseconds.append(1e3 * (time.perf_counter() - began))
        self.num_scored += 1
        camera = item.reference.camera
        true_depth = item.depth if item.truth is None else camera.depth(item.truth.disparity)
        if true_depth is not None:
            self._depth.add(camera.depth(fill_background(found.disparity)), true_depth)
        if item.truth is not None:
            self._pixels.add(item.truth, found, camera)
            if takes_one_camera(estimator):
                self._one_camera.add(item.truth, found, camera)
        if item.boxes is not None and item.other_T_reference is None:
            raise DataError(
                f'{item.key}: velocities in boxes need the ego motion of the dataset. Use a bag with odometry or tf.'
            )
        if item.other_T_reference is None:
            return
        if item.boxes is not None:
            measured = measured_velocity(item, found)
            self._velocity.add_boxes(measured, item.boxes, item.other_T_reference, item.dt)
        elif item.truth is not None and item.truth.is_moving is not None:
            self._velocity.add_truth(measured_velocity(item, found), item.truth, item)

    def report(self) -> dict:
        pixels, velocity, depth = self._pixels.report(), self._velocity.report(), self._depth.report()
        one_camera = self._one_camera.report()
        return {
            'ms_per_pair': float(np.median(self._milliseconds)) if self._milliseconds else float('nan'),
            'failed_pairs': len(self._failures),
            'failures': self._failures[:10],
            'skipped_pairs': len(self.skipped),
            **({'pixels': pixels} if pixels['pairs'] else {}),
            **({'one_camera': one_camera} if one_camera['images'] else {}),
            **({'depth': depth} if depth['images'] else {}),
            **({'velocity': velocity} if velocity['pairs'] else {}),
        }


def _nothing(item: StereoDatasetPair) -> StereoFlow:
    """Return an estimate without any value, whose pixels are all outliers."""
    nothing = np.full(item.reference.left.shape[:2], np.nan, np.float32)
    flow = np.repeat(nothing[..., None], 2, axis=-1)
    return StereoFlow(nothing, nothing, flow, nothing, nothing, nothing, np.zeros(nothing.shape, bool))
