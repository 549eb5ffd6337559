# SPDX-License-Identifier: Apache-2.0
r"""Score flow estimators on data with ground-truth flow, by class, speed and range.

usage:
  python3 -m training.evaluate --estimator zero embedded --dataset simulation:1000000-1000019
  python3 -m training.evaluate --estimator zero nearest model.onnx runs/lite/last.pt teacher:nsfp labels:out/labels \
      --dataset av2:LOG bag:BAG+BOXES.json --json out/scores.json --picture out/scores.png

estimators: zero, nearest (nearest neighbour), embedded (the bundled model), a model file, a checkpoint,
  teacher:NAME, labels:STORE
datasets: simulation:FIRST-LAST (seeds; seeds from 1000000 on are never trained on), av2:LOG_OR_SPLIT,
  osf:SCENES, bag:BAG+BOXES.json

Flow is residual: ego motion removed. Points without flow count as zero flow. docs/evaluation.md explains the scores.
"""

import argparse
import sys
from pathlib import Path

from training.scoring.estimators import build_estimator
from training.scoring.evaluation import SCOPES, SWEEPS, evaluate, without_nan
from training.scoring.score_text import score_text
from training.scoring.scores import Scope
from zeroflow_ros.errors import ZeroFlowError
from zeroflow_ros.views.report import write_json


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.evaluate', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--estimator', nargs='+', default=['zero', 'embedded'], help='estimators to score (default: zero embedded)'
    )
    parser.add_argument('--dataset', nargs='+', required=True, help='datasets to score on')
    parser.add_argument(
        '--pairs', type=int, default=0, help='largest number of pairs per dataset, evenly spread (default: all)'
    )
    parser.add_argument(
        '--sweep', choices=SWEEPS, default='older',
        help='sweep of each pair whose points are scored; the node publishes on the latest one (default: older)',
    )  # fmt: skip
    parser.add_argument('--json', type=Path, help='write all scores to this file, with every class and speed bucket')
    parser.add_argument('--picture', type=Path, help='write plots of the scores to this file')
    options = parser.parse_args(arguments)
    try:
        from training.datasets import open_dataset

        estimators = [build_estimator(spec) for spec in dict.fromkeys(options.estimator)]
        reports = {}
        for spec in dict.fromkeys(options.dataset):
            scope = SCOPES.get(spec.partition(':')[0], Scope())
            reports[spec] = evaluate(
                open_dataset(spec), estimators, scope, num_pairs=options.pairs, sweep=options.sweep
            )
            print(score_text(spec, reports[spec]), flush=True)
    except ZeroFlowError as error:
        print(f'training.evaluate: {error}', file=sys.stderr)
        return 1
    if options.json:
        write_json(options.json, without_nan(reports))
    if options.picture:
        from training.scoring.score_picture import draw_scores

        draw_scores(reports, options.picture)
    for path in filter(None, (options.json, options.picture)):
        print(f'Written to {path}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
