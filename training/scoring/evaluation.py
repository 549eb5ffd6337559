# SPDX-License-Identifier: Apache-2.0
"""Score estimators on a dataset, as it is or under perturbations."""

import math
import sys

import numpy as np
from tqdm import tqdm

from training.datasets.pairs import DatasetPair, PairDataset, evenly_spread
from training.scoring.estimators import Estimator
from training.scoring.perturbations import Perturbation, perturbed
from training.scoring.scores import FlowScores, Scope
from zeroflow_ros.errors import DataError, ZeroFlowError

# Box ground truth excludes ground by itself; the grid of the lite model ends at 51.2 m.
SCOPES = {
    'av2': Scope(half_extent=51.2), 'osf': Scope(half_extent=51.2), 'bag': Scope(with_ground=True),
    'simulation': Scope(), 'nuscenes': Scope(half_extent=51.2),
    'pandaset': Scope(half_extent=51.2), 'waymo': Scope(half_extent=51.2),
}  # fmt: skip
SWEEPS = ('older', 'latest')
CLEAN = 'clean'  # name of the unperturbed dataset


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
            'simulation:FIRST-LAST, bag:BAG+BOXES.json, nuscenes:, pandaset: or waymo:.'
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


def evaluate_perturbed(dataset: PairDataset, estimators: list[Estimator], scope: Scope,
                       perturbations: list[Perturbation], *, num_pairs: int = 0, sweep: str = 'older',
                       seed: int = 0) -> dict[str, dict[str, dict]]:  # fmt: skip
    """Return the reports of `evaluate` by the name of the perturbation, first CLEAN, and by the name of the estimator.

    Where an estimator gives no flow under a perturbation, its report is {'error': the reason}. seed: of the random
    numbers. Raises: DataError when there is nothing to score, or the dataset cannot give a rate.
    """
    datasets = {change.name: perturbed(dataset, change, scope, seed) for change in perturbations}
    reports = {CLEAN: evaluate(dataset, estimators, scope, num_pairs=num_pairs, sweep=sweep)}
    for name, changed in datasets.items():
        lenient = [_LenientEstimator(estimator) for estimator in estimators]
        # The truth is valid where the scope of the unperturbed pair is: no second selection by the changed points.
        found = evaluate(changed, lenient, Scope(with_ground=True), num_pairs=num_pairs, sweep=sweep)
        reports[name] = {
            estimator.name: {'error': estimator.error} if estimator.error else found[estimator.name] | {
                'scope': reports[CLEAN][estimator.name]['scope']
            }
            for estimator in lenient
        }  # fmt: skip
    return reports


class _LenientEstimator:
    """An estimator that gives no flow from its first error on. error: its text, or ''."""

    def __init__(self, estimator: Estimator):
        self.name, self.error, self._estimator = estimator.name, '', estimator

    def flow(self, item: DatasetPair) -> np.ndarray:
        """See `Estimator.flow`."""
        try:
            if not self.error:
                return self._estimator.flow(item)
        except ZeroFlowError as error:
            self.error = str(error)
        return np.full_like(item.pair.points0, np.nan)


def without_nan(value):
    """Return a report with None for NaN and infinity, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
