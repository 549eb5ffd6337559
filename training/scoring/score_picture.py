# SPDX-License-Identifier: Apache-2.0
"""Plots of scores by class, speed and distance, or by perturbation, one row of panels per dataset."""

import os
import re
from pathlib import Path

import numpy as np

from training.scoring.score_text import range_label, short_name


def draw_scores(reports: dict[str, dict[str, dict]], path: Path) -> None:
    """Write plots of the reports by dataset and estimator; the suffix of `path` selects the format."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 0.6 + 4.2 * len(reports)), layout='constrained')
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(reports), 1, squeeze=False)[:, 0]
    for part, (dataset, by_estimator) in zip(rows, reports.items(), strict=True):
        first = next(iter(by_estimator.values()))
        part.suptitle(f'{_without_folders(dataset)}: {first["pairs"]} pairs, {first["points"]:,} points')
        classes, speeds, ranges = part.subplots(1, 3)
        _by_class(classes, by_estimator)
        _by_speed(speeds, by_estimator)
        _by_range(ranges, by_estimator)
        part.legend(*classes.get_legend_handles_labels(), loc='outside lower center', ncols=5, frameon=False)
    _save(figure, path)


def draw_perturbations(reports: dict[str, dict[str, dict[str, dict]]], path: Path) -> None:
    """Write plots of the reports by dataset, perturbation and estimator; the first perturbation is clean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = max(len(by_perturbation) for by_perturbation in reports.values())
    num_bars = most * max(len(by_estimator) for part in reports.values() for by_estimator in part.values())
    figure = Figure(figsize=(14, (1.2 + 0.2 * num_bars + 0.15 * most) * len(reports)), layout='constrained')
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(reports), 1, squeeze=False)[:, 0]
    for part, (dataset, by_perturbation) in zip(rows, reports.items(), strict=True):
        first = next(iter(next(iter(by_perturbation.values())).values()))
        part.suptitle(f'{_without_folders(dataset)}: {first["pairs"]} pairs, {first["points"]:,} points')
        errors, shares = part.subplots(1, 2, sharey=True)
        _by_perturbation(errors, by_perturbation, 'dynamic_normalised_epe', 1, '%.3f')
        _by_perturbation(shares, by_perturbation, 'moving_share', 100, '%.1f')
        errors.set(title='dynamic points; lines: clean', xlabel='normalised EPE')
        shares.set(title='points predicted to be faster than 0.5 m/s; lines: clean', xlabel='share of all points [%]')
        part.legend(*errors.get_legend_handles_labels(), loc='outside lower center', ncols=5, frameon=False)
    _save(figure, path)


def _without_folders(dataset: str) -> str:
    """Return the spec of a dataset with the last part of each path only."""
    return re.sub(r'[^:+@?]*/(?=[^/])', '', dataset)


def _by_perturbation(axes, reports: dict[str, dict[str, dict]], score: str, factor: float, label: str) -> None:
    """Draw one bar per perturbation and estimator; no bar where the estimator gave no flow."""
    clean = next(iter(reports.values()))
    height = 0.8 / len(clean)
    for k, name in enumerate(clean):
        values = [factor * by_estimator[name].get(score, np.nan) for by_estimator in reports.values()]
        bars = axes.barh(np.arange(len(reports)) + (k + 0.5) * height - 0.4, values, height, label=short_name(name))
        axes.bar_label(bars, ['' if np.isnan(value) else label % value for value in values], fontsize=7, padding=2)
        axes.axvline(values[0], color=bars[0].get_facecolor(), linestyle=':', linewidth=1)
    axes.set_yticks(range(len(reports)), reports)
    axes.set_ylim(len(reports) - 0.5, -0.5)
    axes.set_xlim(0, None)
    axes.margins(x=0.1)  # room for the numbers


def _save(figure, path: Path) -> None:
    """Write a figure, complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.stem}.partial{path.suffix}')
    figure.savefig(temporary, dpi=100)
    os.replace(temporary, path)


def _by_class(axes, reports: dict[str, dict]) -> None:
    classes = [kind for kind, part in next(iter(reports.values()))['by_class'].items() if part['dynamic_points']]
    width = 0.8 / len(reports)
    for k, (name, report) in enumerate(reports.items()):
        heights = [report['by_class'][kind]['normalised_epe'] for kind in classes]
        bars = axes.bar(np.arange(len(classes)) + (k + 0.5) * width - 0.4, heights, width, label=short_name(name))
        axes.bar_label(bars, fmt='%.2f', fontsize=7)
    axes.set_xticks(range(len(classes)), [kind.replace('_', ' ') for kind in classes])
    axes.margins(y=0.1)  # room for the numbers
    axes.set(title='dynamic points, by class', ylabel='normalised EPE', ylim=(0, None))


def _by_speed(axes, reports: dict[str, dict]) -> None:
    for name, report in reports.items():
        moving = report['by_speed'][1:]
        labels, errors = [range_label(group) for group in moving], [group['normalised_epe'] for group in moving]
        axes.plot(labels, errors, marker='o', label=short_name(name))
    axes.set(title='dynamic points, by ground-truth flow', xlabel='flow over the pair [m]', ylabel='normalised EPE',
             ylim=(0, None))  # fmt: skip
    axes.grid(alpha=0.3)


def _by_range(axes, reports: dict[str, dict]) -> None:
    for name, report in reports.items():
        labels = [range_label(part) for part in report['by_range']]
        still, fast = ([part[kind] for part in report['by_range']] for kind in ('static_epe', 'dynamic_epe'))
        [line] = axes.plot(labels, fast, marker='o', label=short_name(name))
        axes.plot(labels, still, marker='o', linestyle=':', color=line.get_color())
    axes.set(title='by distance: solid above 1.4 m/s, dotted below', xlabel='distance [m]', ylabel='EPE [m]',
             ylim=(0, None))  # fmt: skip
    axes.grid(alpha=0.3)
