# SPDX-License-Identifier: Apache-2.0
"""How low an error against tracked boxes can be: boxes are drawn sweep by sweep, and jitter.

usage:
  python3 -m training.box_jitter BAG+BOXES.json
  python3 -m training.box_jitter BAG+BOXES.json --estimator embedded teacher:rigid

A straight line through the velocities of a box in the pairs around, those that share none of its two boxes with the
pair in question, says how it moves; so does one through its turn rates. This smooth motion is scored against the boxes
as they are, as an estimator is. It errs by the jitter, and by what a straight line misses of a motion: errors of that
size do not tell a good flow from a better one.

Of an estimator, the boxes and the smooth motion no two share what they err by: the estimator sees points and no boxes,
the smooth motion other boxes. So the three distances between them say how far each is from the truth that nobody
knows: the three-cornered hat, by which clocks are compared.
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

_AROUND, _FEWEST = range(2, 9), 3  # pairs before and after that say how a box moves, and how few say nothing


class Motion(NamedTuple):
    """Of a box over a pair. velocity: (3,) of its centre [m/s], in the frame of the drive. turn_rate: [rad/s]."""

    velocity: np.ndarray
    turn_rate: float


def smooth_flow(pairs: BagPairs) -> list[np.ndarray]:
    """Return the flow (N, 3) float32 [m] of each pair's older sweep as the boxes of other pairs say, else 0.

    Raises: DataError when the bag comes without boxes.
    """
    if pairs.boxes is None:
        raise DataError(f'{pairs.path} comes without boxes. Say them: {pairs.path}+BOXES.json')
    motions, poses = _motions(pairs)
    flows = []
    for index, (run, drive_T_ego0) in enumerate(poses):
        pair, boxes = pairs[index].pair, pairs.boxes.sweeps[pairs.numbers(index)[0]]
        drive_T_ego1 = drive_T_ego0 @ pair.ego0_T_ego1
        moved = []
        for box in boxes:
            motion = _smooth(motions[run, box['track_id']], index)
            if motion is not None:
                pose = drive_T_ego0 @ pose_of(box)
                pose[:3, 3] += motion.velocity * pair.dt
                pose = transforms.invert(drive_T_ego1) @ pose
                yaw = np.arctan2(pose[1, 0], pose[0, 0]) + motion.turn_rate * pair.dt
                moved.append(box | {'center': pose[:3, 3].tolist(), 'yaw': float(yaw)})
        flows.append(replace(pairs.boxes, sweeps=[boxes, moved]).true_flow(pair, 0, 1).flow)
    return flows


def _motions(pairs: BagPairs) -> tuple[dict[tuple, dict[int, Motion]], list[tuple[int, np.ndarray]]]:
    """Return how each track moves, by (run, track) and by pair; and of each pair its run and drive_T_ego0 (4, 4).

    Pairs of a run follow each other without a gap, in one frame.
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
                motions[run, box['track_id']][index] = Motion(
                    (pose1 - pose0)[:3, 3] / dt, np.arctan2(turn[1, 0], turn[0, 0]) / dt
                )
        poses.append((run, drive_T_ego0))
        drive_T_ego0, last = drive_T_ego1, number1
    return motions, poses


def _smooth(motions: dict[int, Motion], index: int) -> Motion | None:
    """Return what the lines through a track's motions around a pair say of it; None when there are too few."""
    offsets = [offset for step in _AROUND for offset in (-step, step) if index + offset in motions]
    if len(offsets) < _FEWEST:
        return None
    values = np.array([[*motions[index + offset].velocity, motions[index + offset].turn_rate] for offset in offsets])
    *velocity, turn_rate = np.polyfit(offsets, values, 1)[1]
    return Motion(np.array(velocity), turn_rate)


def own_errors(flow: np.ndarray, boxes: np.ndarray, smooth: np.ndarray) -> tuple[float, float, float]:
    """Return the root mean square error of each of three flows (N, 3), of which no two err alike; NaN: they do.

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
    """Return two things by name: reports, also of the smooth motion, and scores of each estimator where boxes move.

    The latter are the normalised EPE and the `own_errors` [m] of points that move by their box and by its smooth
    motion: a box that stands and jitters is in the reports alone. They are empty when nothing moves.
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
    boxes, of_moving = moving['boxes'], {}
    for name in (estimator.name for estimator in estimators if len(boxes)):
        normalised = metrics.epe(moving[name], boxes).mean() / np.linalg.norm(boxes, axis=1).mean()
        of_moving[name] = (float(normalised), *own_errors(moving[name], boxes, moving[smooth_name]))
    return {name: score.report() for name, score in scores.items()}, of_moving


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.box_jitter', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('bag', help='BAG+BOXES.json, with the options of bags')
    parser.add_argument('--estimator', nargs='*', default=[], help=f'what to compare with them: {KINDS}')
    options = parser.parse_args(arguments)
    try:
        names = dict.fromkeys(('zero', *options.estimator))
        reports, of_moving = score(open_pairs(options.bag), [build_estimator(name) for name in names])
    except ZeroFlowError as error:
        print(f'training.box_jitter: {error}', file=sys.stderr)
        return 1
    print(score_text(options.bag, reports))
    if of_moving:
        print('  where boxes move: normalised EPE; own error [m, rms]; that of the boxes, of their smooth motion')
    for name, values in of_moving.items():
        print(f'    {name:40}' + ''.join(f'{value:10.4f}' for value in values))
    return 0


if __name__ == '__main__':
    sys.exit(main())
