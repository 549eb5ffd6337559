# SPDX-License-Identifier: Apache-2.0
"""Score estimators on a dataset."""

import math
import sys

from tqdm import tqdm

from training.datasets.pairs import PairDataset, evenly_spread
from training.scoring.estimators import Estimator
from training.scoring.scores import FlowScores, Scope
from zeroflow_ros.errors import DataError

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
