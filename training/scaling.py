# SPDX-License-Identifier: Apache-2.0
"""Measure how students improve with more data: distilled and supervised students, compared with their teacher.

usage:
  python3 -m training.label simulation:0-399@out/pairs --out out/labels
  python3 -m training.scaling --labels out/labels --clips out/pairs --config config/scaling_lite.yaml --out out/scaling

For each amount n it trains one student on the pseudo-labels of the first n clips and one on their ground-truth flow,
with the same configuration, and scores all students and the teacher on unseen clips. Run the same command again after
any interruption. It writes OUT/scaling.json and OUT/scaling.png, with power laws fitted to the errors.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from training.config import load_config
from training.datasets.clip_store import ClipStore
from training.learning.pair_sources import ClipSource, LabelSource, PairSource, supervision
from training.learning.train_config import TrainConfig
from training.scoring.evaluation import evaluate, without_nan
from training.scoring.scores import Scope
from zeroflow_ros.errors import ConfigError, ZeroFlowError
from zeroflow_ros.views.report import write_json

KINDS = ('distilled', 'supervised')
SCORES = {
    'three_way_epe': ('three-way EPE [m]', lambda report: report['three_way']['mean']),
    'dynamic_normalised_epe': ('normalised EPE of dynamic points', lambda report: report['dynamic_normalised_epe']),
    'static_epe': ('EPE of static background [m]', lambda report: report['three_way']['BS']),
}


def sources(store, clips: ClipStore, amount: int) -> dict[str, PairSource]:
    """Return the sources of both kinds of students: one pair from each of the first `amount` clips.

    store: pseudo-labels of clips with seeds from 0.
    Raises: ConfigError when the store lacks a clip.
    """
    keys = tuple(f'clip_{seed:06d}' for seed in range(amount))
    if missing := sorted(set(keys) - set(store.keys())):
        raise ConfigError(
            f'{store.folder} lacks {len(missing)} of the first {amount} clips, for example {missing[0]}. '
            f'Label them with: python3 -m training.label simulation:0-{amount - 1}@{clips.folder} --out {store.folder}'
        )
    about = {'data': f'simulation, {amount} clips of 2 sweeps, seeds from 0', 'supervision': supervision(store)}
    return {
        'distilled': LabelSource(store, keys, about),
        'supervised': ClipSource(clips, amount, clips_at_first=amount),
    }


def power_law(amounts, errors) -> tuple[float, float]:
    """Return (a, b) of the best fit error = a * amount ** b, by least squares of the logarithms."""
    b, log_a = np.polyfit(np.log(amounts), np.log(errors), 1)
    return float(np.exp(log_a)), float(b)


def scaling(runs: dict[str, dict[int, dict]], teacher: dict) -> dict:
    """Return by score the teacher's value, and per kind of student the errors by amount and their power law.

    runs: reports by kind and amount; a power law needs two amounts. teacher: its report.
    """
    result = {}
    for score, (_, value) in SCORES.items():
        result[score] = {'teacher': value(teacher)}
        for kind, reports in runs.items():
            errors = [value(report) for report in reports.values()]
            factor, exponent = power_law(list(reports), errors) if len(reports) > 1 else (None, None)
            result[score][kind] = {
                'amounts': list(reports), 'errors': errors, 'factor': factor, 'exponent': exponent,
            }  # fmt: skip
    return result


def draw_scaling(result: dict, path: Path) -> None:
    """Plot the result of `scaling`: errors over amounts, fitted power laws, and the teacher."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure = Figure(figsize=(5.2 * len(SCORES), 4.4), layout='constrained')
    FigureCanvasAgg(figure)
    for axes, (score, (title, _)) in zip(figure.subplots(1, len(SCORES)), SCORES.items(), strict=True):
        part = result[score]
        for kind, color in zip(KINDS, ('tab:blue', 'tab:orange'), strict=True):
            law = part[kind]
            amounts = np.array(law['amounts'])
            axes.plot(amounts, law['errors'], 'o', color=color, label=f'{kind}{_law(law)}')
            if law['factor'] is not None:
                axes.plot(amounts, law['factor'] * amounts ** law['exponent'], '--', color=color)
        axes.axhline(part['teacher'], color='grey', label='their teacher')
        axes.set(title=title, xlabel='sweep pairs n', xscale='log', yscale='log')
        ticks = part[KINDS[0]]['amounts']
        axes.set_xticks(ticks, map(str, ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=100)


def _law(part: dict) -> str:
    return '' if part['factor'] is None else f': {part["factor"]:.2g} n^{part["exponent"]:.2f}'


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.scaling', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--labels', type=Path, required=True, help='pseudo-labels of simulated clips')
    parser.add_argument('--clips', type=Path, required=True, help='folder of these clips')
    parser.add_argument(
        '--amounts', type=int, nargs='+', default=[6, 24, 96, 360], help='numbers of sweep pairs to train on'
    )
    parser.add_argument('--supervised', type=int, nargs='+', metavar='AMOUNT',
                        help='amounts to train on ground-truth flow as well (default: all)')  # fmt: skip
    parser.add_argument('--config', type=Path, help='YAML with the fields of TrainConfig that differ from the defaults')
    parser.add_argument('--teacher', default='rigid', help='teacher that made the labels (default: %(default)s), '
                        'or labels:STORE with its labels of the dataset to score on')  # fmt: skip
    parser.add_argument(
        '--dataset', default='simulation:1000000-1000019', help='dataset to score on (default: %(default)s)'
    )
    parser.add_argument('--out', type=Path, required=True, help='folder for students and results')
    options = parser.parse_args(arguments)
    amounts = {'distilled': options.amounts, 'supervised': options.supervised or options.amounts}
    amounts = {kind: sorted(set(numbers)) for kind, numbers in amounts.items()}
    try:
        if len(amounts['distilled']) < 2 or min(map(min, amounts.values())) < 1:
            raise ConfigError(f'A power law needs two amounts or more, each 1 or more, got {amounts}.')
        from training.datasets import open_dataset
        from training.labels.label_store import LabelStore
        from training.learning.training_run import train
        from training.scoring.estimators import build_estimator

        config, dataset = load_config(TrainConfig, options.config), open_dataset(options.dataset)
        teacher = build_estimator(options.teacher if ':' in options.teacher else f'teacher:{options.teacher}')
        store, clips = LabelStore(options.labels), ClipStore(options.clips, 2)
        checkpoints = {kind: {} for kind in KINDS}
        wanted = [(amount, kind) for kind, numbers in amounts.items() for amount in numbers]
        for amount, kind in sorted(wanted, reverse=True):  # largest amount first: missing labels show at once
            print(f'{kind}, {amount} pairs', file=sys.stderr)
            source = sources(store, clips, amount)[kind]
            checkpoints[kind][amount] = train(config, options.out / f'{kind}_{amount}', source)
        paths = [str(path) for by_amount in checkpoints.values() for path in by_amount.values()]
        reports = evaluate(dataset, [teacher, *map(build_estimator, paths)], Scope())
    except ZeroFlowError as error:
        print(f'training.scaling: {error}', file=sys.stderr)
        return 1
    runs = {
        kind: {amount: reports[str(by_amount[amount])] for amount in sorted(by_amount)}
        for kind, by_amount in checkpoints.items()
    }
    result = scaling(runs, reports[teacher.name])
    write_json(options.out / 'scaling.json', without_nan({
        'scores': result, 'config': dataclasses.asdict(config), 'reports': reports,
    }))  # fmt: skip
    draw_scaling(result, options.out / 'scaling.png')
    for score, part in result.items():
        print(f'{score}: teacher {part["teacher"]:.4f}')
        for kind in KINDS:
            law = part[kind]
            errors = ', '.join(f'{n}: {e:.4f}' for n, e in zip(law['amounts'], law['errors'], strict=True))
            print(f'  {kind:10} {errors}{_law(law)}')
    print(f'Written to {options.out}/scaling.json and scaling.png')
    return 0


if __name__ == '__main__':
    sys.exit(main())
