# SPDX-License-Identifier: Apache-2.0
"""Score estimators on a dataset."""

import math
import sys

from tqdm import tqdm

from training.datasets.pairs import PairDataset, evenly_spread
from training.scoring.estimators import Estimator
from training.scoring.scores import FlowScores, Scope
from zeroflow_ros.errors import DataError

# Box ground truth excludes ground by itself; the grid of the lite model ends at 51.2 m.
SCOPES = {
    'av2': Scope(half_extent=51.2), 'osf': Scope(half_extent=51.2), 'bag': Scope(with_ground=True),
    'simulation': Scope(),
}  # fmt: skip
SWEEPS = ('older', 'latest')


def evaluate(dataset: PairDataset, estimators: list[Estimator], scope: Scope, *,
             num_pairs: int = 0, sweep: str = 'older') -> dict[str, dict]:  # fmt: skip
    """Return the report of each estimator by its name.

    Pairs without ground-truth flow are skipped. num_pairs: largest number of pairs, evenly spread; 0 means all.
    sweep: whose points are scored, one of SWEEPS; the node publishes on the latest one.
    Raises: DataError when there is nothing to score.
    """
    if len(dataset) == 0:
        raise DataError(f'{dataset.name} has no pairs to score on.')
    if sweep == 'latest' and not hasattr(dataset, 'latest'):
        raise DataError(
            f'{dataset.name} has ground truth of the older sweep of a pair only. Score without --sweep latest, or on '
            'simulation:FIRST-LAST or bag:BAG+BOXES.json.'
        )
    indices, num_scored = evenly_spread(len(dataset), num_pairs), 0
    scores = {estimator.name: FlowScores(scope) for estimator in estimators}
    for index in tqdm(indices, desc=dataset.name, unit='pair', disable=not sys.stderr.isatty()):
        item = dataset[index] if sweep == 'older' else dataset.latest(index)
        if item.truth is not None:
            for estimator in estimators:
                scores[estimator.name].add(item, estimator.flow(item))
            num_scored += 1
    if num_scored == 0:
        raise DataError(
            f'None of {len(indices)} pairs of {dataset.name} has ground-truth flow. Score on a labelled log, or on '
            'a bag with boxes: bag:BAG+BOXES.json.'
        )
    return {name: score.report() for name, score in scores.items()}


def without_nan(value):
    """Return a report with None for NaN and infinity, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
