# SPDX-License-Identifier: Apache-2.0
"""Estimate the lowest possible error against tracked boxes: boxes are annotated sweep by sweep, so they jitter.

usage:
  python3 -m training.box_jitter BAG+BOXES.json
  python3 -m training.box_jitter BAG+BOXES.json --estimator embedded teacher:rigid

For each pair, a straight line is fitted to the box's velocities in the neighbouring pairs that share neither of the
pair's two boxes; the yaw rate is fitted in the same way. This smooth motion is scored against the boxes like an
estimator. Its error is the jitter plus the deviation of the motion from a straight line. Smaller differences between
estimators are not significant.

Estimator (points, no boxes), boxes, and smooth motion (other boxes) err independently. Their three pairwise distances
give the error of each one: the three-cornered hat, as used to compare clocks.
"""

import argparse
import sys
from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from training.datasets.rosbag import BagPairs, open_pairs
from training.datasets.tracked_boxes import pose_of
from training.scoring import metrics
from training.scoring.estimators import KINDS, Estimator, build_estimator
from training.scoring.evaluation import SCOPES
from training.scoring.score_text import score_text
from training.scoring.scores import FlowScores
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError, ZeroFlowError

_AROUND, _FEWEST = range(2, 9), 3  # neighbouring pairs used for the fit, and the fewest that are enough


class BoxMotion(NamedTuple):
    """Motion of a box over a pair. velocity: (3,) of its centre [m/s], in the drive frame. turn_rate: [rad/s]."""

    velocity: np.ndarray
    turn_rate: float


def smooth_flow(pairs: BagPairs) -> list[np.ndarray]:
    """Return per pair the flow (N, 3) float32 [m] of the older sweep from the boxes of other pairs; 0 elsewhere.

    Raises: DataError when the bag has no boxes.
    """
    if pairs.boxes is None:
        raise DataError(f'{pairs.path} has no boxes. Add them: {pairs.path}+BOXES.json')
    motions, poses = _track_motions(pairs)
    flows = []
    for index, (run, drive_T_ego0) in enumerate(poses):
        pair, boxes = pairs[index].pair, pairs.boxes.sweeps[pairs.numbers(index)[0]]
        drive_T_ego1 = drive_T_ego0 @ pair.ego0_T_ego1
        moved = []
        for box in boxes:
            motion = _fit_motion(motions[run, box['track_id']], index)
            if motion is not None:
                pose = drive_T_ego0 @ pose_of(box)
                pose[:3, 3] += motion.velocity * pair.dt
                pose = transforms.invert(drive_T_ego1) @ pose
                yaw = np.arctan2(pose[1, 0], pose[0, 0]) + motion.turn_rate * pair.dt
                moved.append(box | {'center': pose[:3, 3].tolist(), 'yaw': float(yaw)})
        flows.append(replace(pairs.boxes, sweeps=[boxes, moved]).ground_truth_flow(pair, 0, 1).flow)
    return flows


def _track_motions(pairs: BagPairs) -> tuple[dict[tuple, dict[int, BoxMotion]], list[tuple[int, np.ndarray]]]:
    """Return each track's motion by (run, track) and by pair, and each pair's run and drive_T_ego0 (4, 4).

    A run is a series of pairs without a gap; its poses share one frame.
    """
    motions, poses, drive_T_ego0, run, last = defaultdict(dict), [], np.eye(4), 0, None
    for index in range(len(pairs)):
        (number0, number1), (ego0_T_ego1, dt) = pairs.numbers(index), pairs.motion(index)
        run += last not in (None, number0)
        boxes0, boxes1 = (pairs.boxes.sweeps[number] for number in (number0, number1))
        drive_T_ego1 = drive_T_ego0 @ ego0_T_ego1
        before = {box['track_id']: drive_T_ego0 @ pose_of(box) for box in boxes0}
        for box in boxes1:
            if box['track_id'] in before:
                pose0, pose1 = before[box['track_id']], drive_T_ego1 @ pose_of(box)
                turn = pose0[:3, :3].T @ pose1[:3, :3]
                motions[run, box['track_id']][index] = BoxMotion(
                    (pose1 - pose0)[:3, 3] / dt, np.arctan2(turn[1, 0], turn[0, 0]) / dt
                )
        poses.append((run, drive_T_ego0))
        drive_T_ego0, last = drive_T_ego1, number1
    return motions, poses


def _fit_motion(motions: dict[int, BoxMotion], index: int) -> BoxMotion | None:
    """Return the line fit through a track's motions around a pair; None when there are too few."""
    offsets = [offset for step in _AROUND for offset in (-step, step) if index + offset in motions]
    if len(offsets) < _FEWEST:
        return None
    values = np.array([[*motions[index + offset].velocity, motions[index + offset].turn_rate] for offset in offsets])
    *velocity, turn_rate = np.polyfit(offsets, values, 1)[1]
    return BoxMotion(np.array(velocity), turn_rate)


def three_cornered_hat(flow: np.ndarray, boxes: np.ndarray, smooth: np.ndarray) -> tuple[float, float, float]:
    """Return the root mean square error of each of three flows (N, 3) with independent errors.

    NaN: the errors are not independent.

    Source: the three-cornered hat of Gray and Allan, A method for estimating the frequency stability of an individual
    oscillator (1974).
    """
    pairs = ((flow, boxes), (boxes, smooth), (smooth, flow))
    of_flow_boxes, of_boxes_smooth, of_smooth_flow = (((a - b) ** 2).sum(1).mean() for a, b in pairs)
    squares = np.array([
        of_flow_boxes + of_smooth_flow - of_boxes_smooth,
        of_flow_boxes + of_boxes_smooth - of_smooth_flow,
        of_boxes_smooth + of_smooth_flow - of_flow_boxes,
    ])  # fmt: skip
    return tuple(np.sqrt(np.where(squares >= 0, squares, np.nan) / 2).tolist())


def score(pairs: BagPairs, estimators: list[Estimator]) -> tuple[dict[str, dict], dict[str, tuple]]:
    """Return by name the reports (also of the smooth motion), and each estimator's scores on moving boxes.

    The scores are the normalised EPE and the `three_cornered_hat` [m] over points that move both by their box and by
    its smooth motion, so that static boxes that jitter are left out. They are empty when nothing moves.
    """
    scope, smooth_name = SCOPES['bag'], 'smooth boxes'
    scores = {name: FlowScores(scope) for name in (*(e.name for e in estimators), smooth_name)}
    flows = defaultdict(list)
    for index, smooth in enumerate(smooth_flow(pairs)):
        item = pairs[index]
        slower = np.minimum(*(np.linalg.norm(flow, axis=1) for flow in (item.truth.flow, smooth)))
        moves = scope.rows(item) & (slower >= metrics.DYNAMIC)
        scores[smooth_name].add(item, smooth)
        flows['boxes'].append(item.truth.flow[moves])
        flows[smooth_name].append(smooth[moves])
        for estimator in estimators:
            flow = estimator.flow(item)
            scores[estimator.name].add(item, flow)
            flows[estimator.name].append(np.nan_to_num(flow[moves]))
    moving = {name: np.concatenate(parts).astype(np.float64) for name, parts in flows.items()}
    boxes, moving_scores = moving['boxes'], {}
    for name in (estimator.name for estimator in estimators if len(boxes)):
        normalised = metrics.epe(moving[name], boxes).mean() / np.linalg.norm(boxes, axis=1).mean()
        moving_scores[name] = (float(normalised), *three_cornered_hat(moving[name], boxes, moving[smooth_name]))
    return {name: score.report() for name, score in scores.items()}, moving_scores


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.box_jitter', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('bag', help='BAG+BOXES.json; accepts the options of bag: datasets')
    parser.add_argument('--estimator', nargs='*', default=[], help=f'estimators to compare with the boxes: {KINDS}')
    options = parser.parse_args(arguments)
    try:
        names = dict.fromkeys(('zero', *options.estimator))
        reports, moving_scores = score(open_pairs(options.bag), [build_estimator(name) for name in names])
    except ZeroFlowError as error:
        print(f'training.box_jitter: {error}', file=sys.stderr)
        return 1
    print(score_text(options.bag, reports))
    if moving_scores:
        print('  moving boxes: normalised EPE; RMS error [m] of the estimator, of the boxes, of their smooth motion')
    for name, values in moving_scores.items():
        print(f'    {name:40}' + ''.join(f'{value:10.4f}' for value in values))
    return 0


if __name__ == '__main__':
    sys.exit(main())
