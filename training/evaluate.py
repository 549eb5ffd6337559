# SPDX-License-Identifier: Apache-2.0
r"""Score anything that gives flow on data with true flow, by class, speed and range.

usage:
  python3 -m training.evaluate --estimator zero embedded --dataset simulation:1000000-1000019
  python3 -m training.evaluate --estimator zero nearest model.onnx runs/lite/last.pt teacher:nsfp labels:out/labels \
      --dataset av2:LOG bag:BAG+BOXES.json --json out/scores.json --picture out/scores.png

estimators: zero, nearest (nearest neighbour), embedded (the model in the package), a model file, a checkpoint,
  teacher:NAME, labels:STORE
datasets: simulation:FIRST-LAST (seeds; trainings leave out those from 1000000 on), av2:LOG_OR_SPLIT,
  osf:SCENES, bag:BAG+BOXES.json

Flow is residual: ego motion removed. Rows that get no flow count as zero flow. docs/evaluation.md explains the scores.
"""

import argparse
import math
import sys
from pathlib import Path

from tqdm import tqdm

from training.datasets.pairs import PairDataset, evenly_spread
from training.estimators import Estimator, build_estimator
from training.score_text import score_text
from training.scores import FlowScores, Scope
from zeroflow_ros.errors import DataError, ZeroFlowError
from zeroflow_ros.report import write_json

# Boxes leave out their own ground; the grid of the lite model ends at 51.2 m.
SCOPES = {
    'av2': Scope(half_extent=51.2), 'osf': Scope(half_extent=51.2), 'bag': Scope(with_ground=True),
    'simulation': Scope(),
}  # fmt: skip


def evaluate(dataset: PairDataset, estimators: list[Estimator], scope: Scope, *,
             num_pairs: int = 0) -> dict[str, dict]:  # fmt: skip
    """Return the report of each estimator by its name.

    Pairs without true flow are passed over. num_pairs: the most to look at, evenly spread; 0 means all.
    Raises: DataError when there is nothing to score.
    """
    if len(dataset) == 0:
        raise DataError(f'{dataset.name} has no pairs to score on.')
    indices, num_scored = evenly_spread(len(dataset), num_pairs), 0
    scores = {estimator.name: FlowScores(scope) for estimator in estimators}
    for index in tqdm(indices, desc=dataset.name, unit='pair', disable=not sys.stderr.isatty()):
        item = dataset[index]
        if item.truth is not None:
            for estimator in estimators:
                scores[estimator.name].add(item, estimator.flow(item))
            num_scored += 1
    if num_scored == 0:
        raise DataError(
            f'None of {len(indices)} pairs of {dataset.name} has true flow. Score on a labelled log, or on a bag with '
            'boxes: bag:BAG+BOXES.json.'
        )
    return {name: score.report() for name, score in scores.items()}


def without_nan(value):
    """Return a report with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.evaluate', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--estimator', nargs='+', default=['zero', 'embedded'], help='default: zero embedded')
    parser.add_argument('--dataset', nargs='+', required=True)
    parser.add_argument('--pairs', type=int, default=0, help='look at no more pairs of each dataset, evenly spread')
    parser.add_argument('--json', type=Path, help='write all scores here, with every class and speed bucket')
    parser.add_argument('--picture', type=Path, help='write a picture of them here')
    options = parser.parse_args(arguments)
    try:
        from training.datasets import open_dataset

        estimators = [build_estimator(spec) for spec in dict.fromkeys(options.estimator)]
        reports = {}
        for spec in dict.fromkeys(options.dataset):
            scope = SCOPES.get(spec.partition(':')[0], Scope())
            reports[spec] = evaluate(open_dataset(spec), estimators, scope, num_pairs=options.pairs)
            print(score_text(spec, reports[spec]), flush=True)
    except ZeroFlowError as error:
        print(f'training.evaluate: {error}', file=sys.stderr)
        return 1
    if options.json:
        write_json(options.json, without_nan(reports))
    if options.picture:
        from training.score_picture import draw_scores

        draw_scores(reports, options.picture)
    for path in filter(None, (options.json, options.picture)):
        print(f'Written to {path}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
