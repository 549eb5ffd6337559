# SPDX-License-Identifier: Apache-2.0
"""Label sweep pairs or stereo pairs with a teacher, without human labels.

usage: python3 -m training.label DATASET_SPEC... --teacher nsfp --out out/labels/nsfp
       python3 -m training.label DATASET_SPEC... --teacher nsfp --out out/labels/nsfp --shard 2/4 --processes 4
       python3 -m training.label stereo:drive.mcap --teacher stereo --out out/labels/stereo

Run the same command again after any interruption: intact labels are kept. Each shard is labelled by one job at a
time; different shards may run at once on machines that share the folder. With --ray, one job uses a Ray cluster whose
machines share the folder and this checkout. Exit status: 0 when every pair of the shard has a label.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from zeroflow_ros.errors import ConfigError, ZeroFlowError
from zeroflow_ros.views.report import write_json


def _shard(text: str) -> tuple[int, int]:
    k, n = text.split('/')
    return int(k), int(n)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        'training.label', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('datasets', nargs='+', metavar='DATASET_SPEC', help='datasets to label')
    parser.add_argument('--teacher', default='rigid', help='labelling method (default: %(default)s)')
    parser.add_argument('--config', type=Path, help='YAML with teacher settings that differ from the defaults')
    parser.add_argument('--out', type=Path, required=True, help='folder of the label store')
    parser.add_argument(
        '--pairs', type=int, default=0, help='largest number of pairs per dataset, evenly spread (default: all)'
    )
    parser.add_argument('--consecutive', type=int, default=1, metavar='N', help='with --pairs: spread runs of N '
                        'consecutive pairs, for students that take more than two sweeps (default: 1)')  # fmt: skip
    parser.add_argument(
        '--shard', type=_shard, default=(1, 1), metavar='K/N', help='label the K-th of N parts (default: 1/1)'
    )
    parser.add_argument('--processes', type=int, default=1, help='number of pairs to label in parallel (default: 1)')
    parser.add_argument('--ray', action='store_true', help='use the Ray cluster at RAY_ADDRESS, or a local one')
    parser.add_argument('--gpus', type=float, default=0.0, help='with --ray: GPUs per pair, for example 0.25')
    parser.add_argument(
        '--half-extent',
        type=float,
        default=51.2,
        metavar='M',
        help='label points with |x|, |y| < M [m] (default: 51.2)',
    )
    parser.add_argument('--z-range', type=float, nargs=2, default=(-3.0, 3.0), metavar=('LOW', 'HIGH'),
                        help='height range above the ground below the vehicle [m] (default: -3 3)')  # fmt: skip
    parser.add_argument(
        '--verify', action='store_true', help='read every pair and redo labels whose sweeps have changed'
    )
    return parser


def read_settings(path: Path | None) -> dict:
    """Return the mapping in a YAML file, {} for None. Raises: ConfigError when it is missing or not a mapping."""
    from training.config import read_yaml

    settings = {} if path is None else read_yaml(path)
    if not isinstance(settings, dict | None):
        raise ConfigError(f'{path} should be a mapping of settings, got {type(settings).__name__}.')
    return settings or {}


def run_job(job, **how) -> int:
    """Run a LabelJob with a progress bar, write its report, return the exit status. how: options of label_job.run."""
    from tqdm import tqdm

    from training.labels.label_job import dataset_summaries, dataset_warnings, elapsed, labelled_unit, run
    from training.provenance import provenance

    began = time.monotonic()
    summaries = dataset_summaries(job)
    for line in [*(line for summary in summaries for line in summary.warnings()), *dataset_warnings(job)]:
        print(f'training.label: {line}', file=sys.stderr)  # before hours of labelling, and again at the end
    states = Counter()
    with tqdm(unit='pair', smoothing=0.1) as bar:

        def progress(outcome, total):
            bar.total = total
            if outcome:
                states[outcome.state] += 1
                bar.set_postfix(states, refresh=False)
                bar.update()
            bar.refresh()

        outcomes = run(job, progress=progress, **how)
    k, n = job.shard
    failed = {outcome.key: outcome.reason for outcome in outcomes if outcome.state == 'failed'}
    report = job.out / 'jobs' / f'shard_{k}_of_{n}.json'
    num_points, num_labelled, num_seen = (
        sum(getattr(outcome, name) for outcome in outcomes) for name in ('num_points', 'num_labelled', 'num_seen')
    )
    write_json(report, {
        **states, 'seconds': time.monotonic() - began, 'code': provenance(), 'failures': failed,
        'points': num_points, 'points_labelled': num_labelled,
        'datasets': {summary.name: summary.dataset_report() for summary in summaries},
    })  # fmt: skip
    for reason, count in Counter(failed.values()).most_common(10):
        example = next(key for key, its_reason in failed.items() if its_reason == reason)
        print(f'training.label: {count} failed, for example {example}: {reason}', file=sys.stderr)
    if num_points:
        print(f'labels for {100 * num_labelled / num_points:.1f} % of {num_points:,} {labelled_unit(job)}')
    for summary in summaries:
        print('\n'.join(summary.dataset_lines()))
    print(
        f'{job.out}: shard {k}/{n}, {states["done"]} pairs labelled in {elapsed(began)}, '
        f'{states["kept"]} already there, {states["failed"]} failed' + (f' (each in {report})' if failed else '')
    )
    if states['done'] and not num_seen:
        print(
            'training.label: not one point above the ground was labelled. Check --half-extent and --z-range, and the '
            'warnings above: units, frame and mount of the sensor.', file=sys.stderr,
        )  # fmt: skip
        return 1
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    options = _parser().parse_args(arguments)
    if options.processes < 1 or (options.ray and options.processes > 1):
        _parser().error('--processes must be 1 or more, and cannot be combined with --ray')
    try:
        from training.labels.label_job import LabelJob
        from training.teachers.teacher_input import Crop

        crop = Crop(options.half_extent, *options.z_range)
        settings = json.dumps(read_settings(options.config), sort_keys=True)
        specs = tuple(options.datasets)
        job = LabelJob(
            specs, options.teacher, options.out, settings, crop, options.shard, options.verify, options.pairs,
            options.consecutive,
        )  # fmt: skip
        return run_job(job, processes=options.processes, on_ray=options.ray, gpus=options.gpus)
    except (ZeroFlowError, OSError) as error:
        print(f'training.label: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f'training.label: stopped. The labels in {options.out} are intact; run the same command to resume.',
            file=sys.stderr,
        )
        return 130


if __name__ == '__main__':
    sys.exit(main())
