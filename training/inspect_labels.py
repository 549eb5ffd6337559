# SPDX-License-Identifier: Apache-2.0
"""Inspect pseudo-labels before training on them: one picture and one line of quality measures per label.

usage: python3 -m training.inspect_labels out/labels/nsfp --out pictures
       python3 -m training.inspect_labels out/labels/nsfp --out pictures --worst --count 20

Signs of a bad label: static structures move (wrong ego motion); moving objects are grey, or their arrows differ within
one object; points displaced by their flow (orange) miss the newer sweep (white). Points that are hidden in the newer
sweep have large residuals in good labels as well.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from training.datasets.pairs import evenly_spread
from zeroflow_ros.errors import ZeroFlowError
from zeroflow_ros.views.report import write_json

_COLUMNS = (
    ('num_points', 'points', '{:,}'), ('moving_share', 'moving', '{:.1%}'), ('median_speed', 'm/s', '{:.1f}'),
    ('misfit_before', 'misfit', '{:.3f}'), ('misfit_after', 'after', '{:.3f}'),
    ('moving_misfit_before', 'movers', '{:.3f}'), ('moving_misfit_after', 'after', '{:.3f}'),
    ('worse_share', 'worse', '{:.0%}'), ('missed_share', 'missed', '{:.1%}'), ('round_trip', 'return', '{:.3f}'),
)  # fmt: skip

_LEGEND = """misfit: mean nearest-neighbour distance to the newer sweep [m], before and after the flow; movers: the same
for moving points; worse: share of moving points that their flow moves away from the newer sweep; missed: share of
points far from the newer sweep, within 2.5 m of points of it that no flow reaches; return: median forward-backward
error [m]"""


def table(figures: dict) -> str:
    """Return LabelQuality by key as a text table, the most suspicious first."""
    lines = [' '.join(f'{head:>8}' for _, head, _ in _COLUMNS) + '  key']
    for key, row in sorted(figures.items(), key=lambda entry: -entry[1].suspicion):
        cells = (form.format(getattr(row, name)) for name, _, form in _COLUMNS)
        lines.append(' '.join(f'{cell:>8}' for cell in cells) + f'  {key}')
    return '\n'.join(lines)


def inspect(folder: Path, out: Path, *, count: int, worst: bool) -> tuple[dict, list[str]]:
    """Draw labels of a store into a folder; return quality measures by key, and the errors of unreadable labels.

    worst: measure all labels and draw the most suspicious ones; otherwise measure and draw evenly spread ones.
    Raises: DataError when there is no store, or it has no labels.
    """
    from tqdm import tqdm

    from training.labels.label_picture import draw_label
    from training.labels.label_quality import label_residuals
    from training.labels.label_store import LabelStore
    from zeroflow_ros.errors import DataError

    store = LabelStore(folder)
    keys = store.keys()
    if not keys:
        raise DataError(f'{folder} has no labels yet. Run the label job that made it again.')
    figures, damaged = {}, []

    def look(key: str, is_drawn: bool) -> None:
        try:
            label = store.read(key)
        except DataError as error:
            damaged.append(str(error))
            return
        residuals = label_residuals(label)
        figures[key] = residuals.quality()
        if is_drawn:
            draw_label(
                label, residuals, figures[key], out / f'{key.replace("/", "_")}.png', teacher=store.about['teacher']
            )

    chosen = keys if worst else [keys[place] for place in evenly_spread(len(keys), count)]
    for key in tqdm(chosen, unit='label'):
        look(key, is_drawn=not worst)
    if worst:
        for key in sorted(figures, key=lambda key: -figures[key].suspicion)[:count]:
            look(key, is_drawn=True)
    rows = {key: dataclasses.asdict(row) for key, row in figures.items()}
    finite = {key: {n: v if np.isfinite(v) else None for n, v in row.items()} for key, row in rows.items()}
    write_json(out / 'figures.json', finite)
    return figures, damaged


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.inspect_labels', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('store', type=Path, help='folder of a label store')
    parser.add_argument('--out', type=Path, required=True, help='folder for the pictures and figures.json')
    parser.add_argument('--count', type=int, default=8, help='number of pictures (default: 8)')
    parser.add_argument(
        '--worst', action='store_true', help='draw the most suspicious labels instead of evenly spread ones'
    )
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error('--count must be 1 or more')
    try:
        figures, damaged = inspect(options.store, options.out, count=options.count, worst=options.worst)
    except (ZeroFlowError, OSError) as error:
        print(f'training.inspect_labels: {error}', file=sys.stderr)
        return 1
    print(table(figures))
    print(_LEGEND)
    for line in damaged:
        print(f'training.inspect_labels: {line}', file=sys.stderr)
    print(f'{options.out}: {min(len(figures), options.count)} pictures, measures of {len(figures)} labels')
    return 1 if damaged else 0


if __name__ == '__main__':
    sys.exit(main())
