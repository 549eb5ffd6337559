# SPDX-License-Identifier: Apache-2.0
"""Score a model file on data with true flow: simulated clips, an Argoverse 2 log, a bag with tracked boxes.

usage: python3 -m training.evaluate --simulation 20
       python3 -m training.evaluate --model model.onnx --av2 LOG --boxes BAG BOXES.json --json out/evaluation.json

Rows that get no flow (outside the model's grid) count as zero flow. Flow is residual: ego motion removed.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from training.metrics import epe, normalised_epe, three_way_epe
from zeroflow_ros import transforms
from zeroflow_ros.engine import Engine, load_engine
from zeroflow_ros.errors import ZeroFlowError
from zeroflow_ros.pipeline import FlowPipeline
from zeroflow_ros.report import write_json
from zeroflow_ros.sweep import SweepPair

_MOVING = 0.5  # m/s
_DYNAMIC = 0.05  # m over the pair, as in Argoverse 2
HELD_OUT_SEED = 1_000_000  # simulated clips from here on are never trained on


def _known(velocity: np.ndarray) -> np.ndarray:
    return np.nan_to_num(velocity, nan=0.0)


def score_argoverse2(engine: Engine, log: Path) -> dict[str, float]:
    """Return three-way EPE [m] over the non-ground points of the first pair within 51.2 m, and that of zero flow."""
    from training.datasets.argoverse2 import read_labelled_pair

    labelled = read_labelled_pair(log)
    flow = _known(FlowPipeline(engine, output_on='previous').estimate(labelled.pair).velocity) * labelled.pair.dt
    rows = ~labelled.is_ground & (np.abs(labelled.pair.points0[:, :2]) < 51.2).all(1)
    args = labelled.flow[rows], labelled.is_foreground[rows], labelled.is_dynamic[rows]
    scores = three_way_epe(flow[rows], *args)
    zero = three_way_epe(np.zeros_like(flow[rows]), *args)
    dynamic = rows & labelled.is_dynamic
    return scores | {
        'dynamic_normalised_epe': normalised_epe(flow[dynamic], labelled.flow[dynamic]),
        'zero_flow_three_way': zero['three_way'],
        'zero_flow_FD': zero['FD'],
    }


def score_boxes(engine: Engine, bag_path: Path, boxes_path: Path) -> dict:
    """Return the EPE [m/s] of points in moving (> 0.5 m/s) and resting boxes, and the share of all points that move."""
    from training.datasets.tracked_boxes import box_points, read_boxes
    from zeroflow_ros.bags import Bag
    from zeroflow_ros.offline import OfflineFlow
    from zeroflow_ros.point_cloud import decode_cloud

    boxes = read_boxes(boxes_path)
    movers: dict[str, list] = {}
    resting, moving_share = [], []
    with Bag(bag_path) as bag:
        for k, result in enumerate(OfflineFlow(bag, engine)):
            if result.estimate is None or not 0 < k < len(boxes):
                continue
            velocity = _known(result.estimate.velocity)
            moving_share.append(float((np.linalg.norm(velocity, axis=1) > _MOVING).mean()))
            points = decode_cloud(result.message).points
            for box in box_points(points, boxes[k], boxes[k - 1], result.ego0_T_ego1, result.estimate.dt):
                sample = velocity[box.rows], box.velocity
                if np.median(np.linalg.norm(box.velocity, axis=1)) > _MOVING:
                    movers.setdefault(box.category, []).append(sample)
                else:
                    resting.append(epe(*sample))
    if not movers:
        raise ZeroFlowError(f'{bag_path} and {boxes_path}: no moving box with points; do they belong together?')
    stacked = {name: [np.concatenate(part) for part in zip(*samples, strict=True)] for name, samples in movers.items()}
    everything = [np.concatenate(part) for part in zip(*stacked.values(), strict=True)]
    return {
        'mover_epe_mps': float(epe(*everything).mean()),
        'mover_normalised_epe': normalised_epe(*everything),
        'by_category': {name: normalised_epe(*pair) for name, pair in sorted(stacked.items())},
        'zero_flow_epe_mps': float(np.linalg.norm(everything[1], axis=1).mean()),
        'resting_box_epe_mps': float(np.concatenate(resting).mean()) if resting else float('nan'),
        'moving_share': float(np.mean(moving_share)),
    }


def score_simulation(engine: Engine, num_clips: int) -> dict:
    """Return three-way EPE [m] and dynamic normalised EPE, by category, on held-out clips; non-ground points only."""
    from training.datasets.simulation import Category, simulate_clip

    flows, truths, categories = [], [], []
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + num_clips):
        clip = simulate_clip(seed, num_sweeps=2)
        sweep0, sweep1 = clip.sweeps
        ego0_T_ego1 = transforms.invert(sweep0.odom_T_lidar) @ sweep1.odom_T_lidar
        dt = (sweep1.stamp_ns - sweep0.stamp_ns) * 1e-9
        pair = SweepPair(sweep0.points, sweep1.points, ego0_T_ego1, dt)
        # The pipeline's velocity points from the past to the sweep: flow to the previous sweep, turned round.
        flow = -_known(FlowPipeline(engine).estimate(pair).velocity) * dt
        rows = sweep1.category != Category.GROUND
        flows.append(flow[rows])
        truths.append(clip.flow(1, 0)[rows])
        categories.append(sweep1.category[rows])
    flow, truth, category = (np.concatenate(part) for part in (flows, truths, categories))
    is_dynamic = np.linalg.norm(truth, axis=1) >= _DYNAMIC
    by_category = {
        kind.name.lower(): normalised_epe(flow[rows], truth[rows])
        for kind in Category
        if (rows := is_dynamic & (category == kind)).any()
    }
    return three_way_epe(flow, truth, category != Category.BACKGROUND, is_dynamic) | {
        'dynamic_normalised_epe': normalised_epe(flow[is_dynamic], truth[is_dynamic]),
        'by_category': by_category,
    }


def table(report: dict) -> str:
    """Return the scores as text."""
    lines = []
    for name, scores in report.items():
        lines.append(name)
        for key, value in scores.items():
            if isinstance(value, dict):
                lines.append(f'  {key:24}' + '  '.join(f'{part} {number:.3f}' for part, number in value.items()))
            else:
                lines.append(f'  {key:24}{value:.4f}')
    return '\n'.join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.evaluate', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--model', default='', help='.onnx file (default: the model in the package)')
    parser.add_argument(
        '--simulation', type=int, default=0, metavar='CLIPS', help='held-out simulated clips to score on'
    )
    parser.add_argument('--av2', type=Path, metavar='LOG', help='folder of an Argoverse 2 log with flow_labels.feather')
    parser.add_argument('--boxes', type=Path, nargs=2, metavar=('BAG', 'JSON'), help='bag and its tracked boxes')
    parser.add_argument('--json', type=Path, help='write the scores here as well')
    options = parser.parse_args(arguments)
    if not (options.simulation or options.av2 or options.boxes):
        parser.error('nothing to score on: give --simulation, --av2 or --boxes')
    try:
        engine, report = load_engine(options.model), {}
        if options.simulation:
            report['simulation'] = score_simulation(engine, options.simulation)
        if options.av2:
            report['argoverse2'] = score_argoverse2(engine, options.av2)
        if options.boxes:
            report['boxes'] = score_boxes(engine, *options.boxes)
    except ZeroFlowError as error:
        print(f'training.evaluate: {error}', file=sys.stderr)
        return 1
    print(table(report))
    if options.json:
        write_json(options.json, report)
        print(f'Written to {options.json}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
