# SPDX-License-Identifier: Apache-2.0
"""Score the dynamic/static labels of teachers on simulated drives.

usage: python3 -m training.evaluate_dynamic --teacher dufomap rigid --seeds 1000000-1000009

It labels the middle pair of each clip; teachers that process whole drives see all sweeps of the clip.
Points faster than 0.5 m/s are dynamic. Points above the ground inside the crop are scored.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.teachers.dynamic_labels import STATIC, from_flow
from training.teachers.teacher import DriveTeacher, run_teacher
from training.teachers.teacher_input import Crop, teacher_input
from zeroflow_ros.errors import DataError, ZeroFlowError
from zeroflow_ros.views.report import write_json

_MOVING = 0.5  # m/s


@dataclass
class DynamicScores:
    """Counts of points, and run time.

    hits: dynamic points labelled dynamic. false_alarms: static ones labelled dynamic. misses: dynamic ones labelled
    static. seconds: total run time. sweeps: number of processed sweeps.
    """

    hits: int = 0
    false_alarms: int = 0
    misses: int = 0
    seconds: float = 0.0
    sweeps: int = 0

    def add(self, is_dynamic: np.ndarray, predicted: np.ndarray) -> None:
        """Count points. is_dynamic: (N,) bool, ground truth. predicted: (N,) bool."""
        self.hits += int((is_dynamic & predicted).sum())
        self.false_alarms += int((~is_dynamic & predicted).sum())
        self.misses += int((is_dynamic & ~predicted).sum())

    def report(self) -> dict[str, float]:
        """Return precision, recall, IoU and seconds per sweep; NaN where a denominator is 0."""
        return {
            'precision': _share(self.hits, self.false_alarms), 'recall': _share(self.hits, self.misses),
            'iou': _share(self.hits, self.false_alarms + self.misses),
            'seconds_a_sweep': self.seconds / max(1, self.sweeps),
        }  # fmt: skip


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else float('nan')


def score(teacher, drive, scores: DynamicScores) -> None:
    """Label the middle pair of a drive (a dataset with ground-truth flow); score the labels of its older sweep."""
    index = len(drive) // 2
    item = drive[index]
    seen = teacher_input(item, Crop())
    began = time.perf_counter()
    if isinstance(teacher, DriveTeacher):
        dynamic = teacher.label_in_drive(drive, index, item, seen).dynamic0
        scores.sweeps += len(drive) + 1  # the map of all sweeps takes most of the time
    else:
        label = run_teacher(teacher, seen)
        dynamic = from_flow(label.points0, label.flow0, label.is_ground0, label.dt)
        scores.sweeps += 2
    scores.seconds += time.perf_counter() - began
    speed = np.linalg.norm(item.truth.flow[seen.rows0], axis=1) / item.pair.dt
    scores.add(speed > _MOVING, dynamic[seen.rows0] > STATIC)


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.evaluate_dynamic', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--teacher', nargs='+', default=['dufomap', 'rigid'], help='teachers to score (default: dufomap rigid)'
    )
    parser.add_argument(
        '--seeds', default='1000000-1000009', metavar='FIRST-LAST', help='seeds of the clips (default: %(default)s)'
    )
    parser.add_argument('--sweeps', type=int, default=20, help='sweeps per clip (default: 20)')
    parser.add_argument('--json', type=Path, help='write the scores to this file')
    options = parser.parse_args(arguments)
    first, _, last = options.seeds.partition('-')
    if not (first.isdecimal() and (last or first).isdecimal() and options.sweeps > 1):
        parser.error('--seeds must be FIRST-LAST, for example 1000000-1000009, and --sweeps 2 or more')
    try:
        from tqdm import tqdm

        from training.datasets.simulated_pairs import ClipDrive
        from training.simulation.clips import simulate_clip
        from training.teachers import build_teacher

        teachers = {name: build_teacher(name) for name in options.teacher}
        scores = {name: DynamicScores() for name in teachers}
        seeds = range(int(first), int(last or first) + 1)
        if not seeds:
            raise DataError(f'--seeds go from FIRST to LAST, got {options.seeds}.')
        for seed in tqdm(seeds, unit='clip', disable=None):
            drive = ClipDrive(simulate_clip(seed, num_sweeps=options.sweeps))
            for name, teacher in teachers.items():
                score(teacher, drive, scores[name])
    except ZeroFlowError as error:
        print(f'training.evaluate_dynamic: {error}', file=sys.stderr)
        return 1
    reports = {name: counted.report() for name, counted in scores.items()}
    print(f'{"":12}{"precision":>10}{"recall":>10}{"IoU":>10}{"s/sweep":>10}')
    for name, report in reports.items():
        print(f'{name:12}' + ''.join(f'{value:10.3f}' for value in report.values()))
    if options.json:
        write_json(options.json, reports)
        print(f'Written to {options.json}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
