# SPDX-License-Identifier: Apache-2.0
"""Fuzz the project with hostile input and report the failures.

usage: .venv/bin/python test/fuzz/fuzz.py
       .venv/bin/python test/fuzz/fuzz.py --target clouds --cases 1000 --seed 7
       .venv/bin/python test/fuzz/fuzz.py --target bags --seed 0 --first 123 --cases 1

Each target runs in a separate process with limits on its address space and on the time per case. Each case must return
a result or raise a ZeroFlowError; anything else (a crash, a hang, a huge allocation, growing memory) is a finding,
reported with its case. Writes out/fuzz.json; the exit status is 1 when there are findings.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'test' / 'support')]

from fuzz_process import Report, run_target  # noqa: E402

from zeroflow_ros.views.report import write_json  # noqa: E402

# name: (module:class, cases of a full run)
TARGETS = {
    'clouds': ('fuzz_clouds:Clouds', 20_000),
    'dds': ('fuzz_dds:Dds', 2_000),
    'cards': ('fuzz_cards:Cards', 5_000),
    'bags': ('fuzz_bags:Bags', 5_000),
    'yaml': ('fuzz_yaml:Yaml', 5_000),
    'images': ('fuzz_images:Images', 10_000),
    'camera_dds': ('fuzz_camera_dds:CameraDds', 2_000),
}
_SHOWN = 12


def fuzz(target: str, *, cases: int = 0, seed: int = 0, first: int = 0, folder: Path) -> Report:
    """Run one target by name. cases: number of cases; 0: a full run."""
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'  # hostile clouds are for nobody else
    spec, full = TARGETS[target]
    return run_target(target, spec, seed=seed, cases=cases or full, first=first, folder=folder)


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser('fuzz', description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--target', choices=(*TARGETS, 'all'), default='all')
    parser.add_argument('--cases', type=int, default=0, help='cases per target (default: a full run)')
    parser.add_argument('--seed', type=int, default=0, help='random seed of the cases (default: 0)')
    parser.add_argument('--first', type=int, default=0, help='number of the first case (default: 0)')
    parser.add_argument(
        '--out', type=Path, default=ROOT / 'out' / 'fuzz.json', help='report to write (default: out/fuzz.json)'
    )
    options = parser.parse_args(arguments)
    reports = []
    for target in TARGETS if options.target == 'all' else [options.target]:
        report = fuzz(target, cases=options.cases, seed=options.seed, first=options.first,
                      folder=options.out.parent / 'fuzz')  # fmt: skip
        print(report.line(), flush=True)
        for finding in report.findings[:_SHOWN]:
            print(f'  case {finding["case"]}, {finding["kind"]}: {finding["text"]}\n  again: {finding["again"]}')
        reports.append(report)
        write_json(options.out, {'targets': [vars(report) for report in reports]})
    print(f'Written to {options.out}')
    return int(any(report.findings for report in reports))


if __name__ == '__main__':
    sys.exit(main())
