# SPDX-License-Identifier: Apache-2.0
r"""Score flow estimators on data with ground-truth flow: sweeps by class, speed and range, stereo pairs as KITTI does.

usage:
  python3 -m training.evaluate --estimator zero embedded --dataset simulation:1000000-1000019
  python3 -m training.evaluate --estimator zero nearest model.onnx runs/lite/last.pt teacher:nsfp labels:out/labels \
      --dataset av2:LOG bag:BAG+BOXES.json --json out/scores.json --picture out/scores.png

  python3 -m training.evaluate --estimator embedded --dataset bag:BAG+BOXES.json --sweep latest \
      --perturb stray:0.01 stray:0.05 pitch:10 upside_down ground_removed decimate:0.5 --picture out/robustness.png

  python3 -m training.evaluate --estimator classical --dataset kitti_scene_flow:KITTI/training --json out/stereo.json
  python3 -m training.evaluate --estimator mono.onnx last.pt 'selfsup.ckpt?flip=true' --dataset 'stereo:BAG?clouds=BAG'

estimators: zero, nearest (nearest neighbour), embedded (the bundled model), a model file, a checkpoint,
  teacher:NAME, labels:STORE
datasets: simulation:FIRST-LAST (seeds; seeds from 1000000 on are never trained on), av2:LOG_OR_SPLIT,
  osf:SCENES, bag:BAG+BOXES.json, nuscenes:ROOT, pandaset:ROOT?trust_pickles=true, waymo:FOLDER
stereo: estimators classical, opencv, MODEL.onnx, a checkpoint, teacher:stereo, labels:STORE; models of one camera, too:
  docs/mono_scores.md; datasets kitti_scene_flow:ROOT, kitti_raw:DATE/DRIVE?depth=velodyne, stereo:BAG+BOXES.json,
  stereo:BAG?clouds=BAG, stereo_simulation:FIRST-LAST
perturbations, of any strength: stray:0.01, pitch:10, roll:10, yaw:20, upside_down, ground_removed, rings:0.5,
  decimate:0.5, voxel:0.1, range_noise:0.05, odometry:1.05 (or 0.5m/s or 2deg/s), rate:5;
  the mount of a turned sensor is told, except in pitch:10,untold and upside_down:untold

Flow is residual: ego motion removed. Points without flow count as zero flow. docs/evaluation.md explains the scores.
"""

import argparse
import sys
from pathlib import Path

from training.scoring.estimators import build_estimator
from training.scoring.evaluation import CLEAN, SCOPES, SWEEPS, evaluate, evaluate_perturbed, without_nan
from training.scoring.perturbations import parse_perturbation
from training.scoring.score_text import perturbation_text, score_text, stereo_score_text
from training.scoring.scores import Scope
from training.scoring.stereo_estimators import build_stereo_estimator
from training.scoring.stereo_evaluation import evaluate_stereo
from zeroflow_ros.errors import ConfigError, ZeroFlowError
from zeroflow_ros.views.report import write_json

_DEFAULT = {'sweeps': ('zero', 'embedded'), 'stereo': ('classical',)}


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.evaluate', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--estimator', nargs='+', help='estimators to score (default: zero embedded; on stereo pairs: classical)'
    )
    parser.add_argument('--dataset', nargs='+', required=True, help='datasets to score on')
    parser.add_argument(
        '--pairs', type=int, default=0, help='largest number of pairs per dataset, evenly spread (default: all)'
    )
    parser.add_argument(
        '--sweep', choices=SWEEPS, default='older',
        help='sweep of each pair whose points are scored; the node publishes on the latest one (default: older)',
    )  # fmt: skip
    parser.add_argument(
        '--perturb', nargs='+', default=[], metavar='KIND', help='perturbations to score under, beside the clean data'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of random perturbations (default: 0)')
    parser.add_argument('--json', type=Path, help='write all scores to this file, with every class and speed bucket')
    parser.add_argument('--picture', type=Path, help='write plots of the scores to this file')
    options = parser.parse_args(arguments)
    try:
        from training.datasets import SENSORS, STEREO, open_dataset, sensor_of

        perturbations = [parse_perturbation(text) for text in dict.fromkeys(options.perturb)]
        built, reports, without_flow = {}, {}, []
        for spec in dict.fromkeys(options.dataset):
            scope = SCOPES.get(spec.partition(':')[0], Scope())
            chosen = {'num_pairs': options.pairs, 'sweep': options.sweep}
            dataset = open_dataset(spec, SENSORS)
            sensor = sensor_of(dataset)
            if sensor not in built:
                specs = dict.fromkeys(options.estimator or _DEFAULT[sensor])
                built[sensor] = [(build_stereo_estimator if sensor == STEREO else build_estimator)(s) for s in specs]
            estimators = built[sensor]
            if sensor == STEREO:
                if perturbations or options.picture:
                    raise ConfigError(
                        f'--{"perturb" if perturbations else "picture"} is for sweeps, and {spec} holds stereo pairs. '
                        'training.inspect_flow draws them.'
                    )
                reports[spec] = evaluate_stereo(dataset, estimators, **chosen)
                print(stereo_score_text(spec, reports[spec]), flush=True)
                print(''.join(f'  {line}\n' for line in getattr(dataset, 'warnings', ())), end='', flush=True)
                continue
            if perturbations:
                reports[spec] = evaluate_perturbed(
                    dataset, estimators, scope, perturbations, seed=options.seed, **chosen
                )
                print(perturbation_text(spec, reports[spec]), flush=True)
            else:
                reports[spec] = evaluate(dataset, estimators, scope, **chosen)
                print(score_text(spec, reports[spec]), flush=True)
            clean = reports[spec][CLEAN] if perturbations else reports[spec]
            without_flow += [f'{name} on {spec}' for name, report in clean.items() if not report['share_with_flow']]
            if summary := getattr(dataset, 'summary', None):
                print('\n'.join(summary.dataset_lines()), flush=True)
                for report in clean.values():
                    report['dataset'] = summary.dataset_report()
    except ZeroFlowError as error:
        print(f'training.evaluate: {error}', file=sys.stderr)
        return 1
    if options.json:
        write_json(options.json, without_nan(reports))
    if options.picture:
        from training.scoring.score_picture import draw_perturbations, draw_scores

        (draw_perturbations if perturbations else draw_scores)(reports, options.picture)
    for path in filter(None, (options.json, options.picture)):
        print(f'Written to {path}')
    if without_flow:
        print(
            f'training.evaluate: not one point got a velocity from {", ".join(without_flow)}. Check frame, units and '
            'mount of the sensor; warnings are above.', file=sys.stderr,
        )  # fmt: skip
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
