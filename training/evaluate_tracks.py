# SPDX-License-Identifier: Apache-2.0
r"""Score the object tracker on drives with ground-truth objects, or draw the tracked objects.

usage:
  python3 -m training.evaluate_tracks --dataset simulation:1000000-1000019
  python3 -m training.evaluate_tracks --dataset bag:BAG+BOXES.json --set min_speed=0.6 --json out/objects.json
  python3 -m training.evaluate_tracks --dataset simulation:1 --sensor hdl64 --sweeps 12 --picture out/objects.png

The flow comes from the bundled model or --model, as on the vehicle. Output per dataset, three lines:
  clusters   every cluster of ~/output/dynamic_points in every sweep, without tracking
  tracker    the tracker on ~/output/dynamic_points
  whole      the tracker on ~/output/flow, which includes static points
docs/object_tracker.md explains the objects, training/scoring/tracking_metrics.py the scores.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.datasets.tracked_boxes import TrackedBoxes
from training.scoring.evaluation import without_nan
from training.scoring.tracking_metrics import TrackingMetrics
from training.scoring.tracking_sequences import RecordedDrive, SimulatedDrive
from zeroflow_ros.engines.selection import load_engine
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import ConfigError, DataError, ZeroFlowError
from zeroflow_ros.lidar.clusters import cluster_moving
from zeroflow_ros.lidar.dynamic_points import moving_rows
from zeroflow_ros.objects.cluster_boxes import fit_boxes
from zeroflow_ros.objects.tracker import MovingObject, Tracker, TrackerOptions
from zeroflow_ros.views.report import percentiles, write_json

DYNAMIC_MIN_SPEED = 0.4  # m/s, the default of the flow node's parameter dynamic_min_speed


class ClusterBaseline:
    """Baseline without tracking: every cluster of every sweep is an object."""

    def update(self, points, velocity, ego0_T_ego1, dt) -> list[MovingObject]:
        """Return the clusters of a sweep; see `Tracker.update`."""
        rows = moving_rows(velocity, DYNAMIC_MIN_SPEED)
        boxes = fit_boxes(points[rows], velocity[rows], cluster_moving(points[rows], velocity[rows]))
        return [
            MovingObject(k, boxes.center[k], boxes.size[k], float(boxes.yaw[k]), boxes.velocity[k], 0.0, 1)
            for k in range(len(boxes))
        ]


class DynamicPointsTracker(Tracker):
    """The tracker on dynamic points only."""

    def update(self, points, velocity, ego0_T_ego1, dt) -> list[MovingObject]:
        """Return the objects of a sweep; see `Tracker.update`."""
        rows = moving_rows(velocity, DYNAMIC_MIN_SPEED)
        return super().update(points[rows], velocity[rows], ego0_T_ego1, dt)


def open_drives(spec: str, engine, *, num_sweeps: int, sensor: str | None = None) -> list:
    """Return the drives of simulation:FIRST-LAST or bag:PATH+BOXES.json.

    Raises: DataError for any other spec, or boxes that cannot be read.
    """
    if match := re.fullmatch(r'simulation:(\d+)(?:-(\d+))?', spec):
        first, last = int(match[1]), int(match[2] or match[1])
        return [SimulatedDrive(seed, engine, num_sweeps=num_sweeps, sensor=sensor) for seed in range(first, last + 1)]
    if match := re.fullmatch(r'bag:(.+)\+(.+\.json)', spec):
        return [RecordedDrive(match[1], TrackedBoxes.read(match[2]), engine)]
    raise DataError(f'{spec!r} has no ground-truth objects: expected simulation:FIRST-LAST or bag:BAG+BOXES.json.')


def evaluate(drives: list, make_trackers: dict) -> dict[str, dict]:
    """Return the report of each tracker. make_trackers: by name, a function that makes a new tracker."""
    scores = {name: TrackingMetrics() for name in make_trackers}
    update_ms: dict[str, list[float]] = {name: [] for name in make_trackers}
    for drive in tqdm(drives, unit='drive', disable=not sys.stderr.isatty()):
        trackers = {name: make() for name, make in make_trackers.items()}
        found: list[tuple] = []
        for sweep in drive.sweeps():
            objects = {}
            for name, tracker in trackers.items():
                watch = Stopwatch()
                with watch('update'):
                    objects[name] = tracker.update(sweep.points, sweep.velocity, sweep.ego0_T_ego1, sweep.dt)
                update_ms[name].append(watch.stages_ms['update'])
            found.append((sweep.number, sweep.time, objects))
        truths = drive.objects()  # recordings know them only now: velocities need the sweeps before and after
        for number, time, objects in found:
            for name, those in objects.items():
                known = drive.is_known(np.array([each.center for each in those]).reshape(-1, 3))
                kept = [each for each, is_known in zip(those, known, strict=True) if is_known]
                scores[name].add(drive.name, time, kept, truths[number])
    return {name: score.report() | {'update_ms': percentiles(update_ms[name])} for name, score in scores.items()}


def read_options(settings: list[str]) -> TrackerOptions:
    """Return the tracker options from settings NAME=VALUE.

    Raises: ConfigError for an unknown name or an invalid value.
    """
    values = {}
    for setting in settings:
        name, _, value = setting.partition('=')
        kind = TrackerOptions.__annotations__.get(name)
        try:
            values[name] = kind(value)
        except (TypeError, ValueError) as error:
            known = ', '.join(TrackerOptions.__annotations__)
            raise ConfigError(
                f'{setting!r} is not a valid NAME=VALUE setting of the tracker. Known names: {known}.'
            ) from error
    return TrackerOptions(**values)


def report_text(spec: str, reports: dict[str, dict]) -> str:
    """Return the reports on one dataset as a text table."""
    first = next(iter(reports.values()))
    categories = list(first['recall_by_category'])
    columns = ('recall', 'settled', 'false', 'fragments', 'm/s', 'mean', 'm', 'ms', 'switches')
    titles = [f'{category} ({first["due_by_category"][category]})' for category in categories]
    lines = [
        f'{spec}: {first["sweeps"]} sweeps, {first["due"]} sightings of moving objects',
        ' ' * 8 + ''.join(f'{title:>10}' for title in columns) + ''.join(f'{title:>21}' for title in titles),
    ]
    for name, r in reports.items():
        numbers = (
            r['recall'], r['settled_recall'], r['false_per_sweep'], r['fragments_per_sweep'],
            r['velocity_error_median'], r['velocity_error_mean'], r['center_error_median'], r['update_ms']['p50'],
        )  # fmt: skip
        lines.append(
            f'{name:8}' + ''.join(f'{number:10.2f}' for number in numbers) + f'{r["switches"]:10}'
            + ''.join(f'{r["recall_by_category"][category]:21.2f}' for category in categories)
        )  # fmt: skip
    return '\n'.join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.evaluate_tracks', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--dataset', nargs='+', required=True, help='simulation:FIRST-LAST or bag:BAG+BOXES.json')
    parser.add_argument('--model', default='', help='model file (default: the bundled model)')
    parser.add_argument('--sweeps', type=int, default=20, help='sweeps per simulated clip (default: 20)')
    parser.add_argument('--sensor', help='LiDAR of simulated clips (default: chosen by the seed)')
    parser.add_argument('--set', nargs='+', default=[], metavar='NAME=VALUE', help='tracker settings')
    parser.add_argument('--json', type=Path, help='write all scores to this file')
    parser.add_argument(
        '--picture', type=Path, help='draw the last sweep of the first drive to this file, without scoring'
    )
    options = parser.parse_args(arguments)
    try:
        engine = load_engine(options.model)
        tracker_options = read_options(options.set)
        opened = {
            spec: open_drives(spec, engine, num_sweeps=options.sweeps, sensor=options.sensor)
            for spec in dict.fromkeys(options.dataset)
        }
        if options.picture:
            from training.scoring.object_picture import draw_drive

            draw_drive(next(iter(opened.values()))[0], DynamicPointsTracker(tracker_options), options.picture)
            print(f'Written to {options.picture}')
            return 0
        make_trackers = {
            'clusters': ClusterBaseline,
            'tracker': lambda: DynamicPointsTracker(tracker_options),
            'whole': lambda: Tracker(tracker_options),
        }
        reports = {}
        for spec, drives in opened.items():
            reports[spec] = evaluate(drives, make_trackers)
            print(report_text(spec, reports[spec]), flush=True)
    except ZeroFlowError as error:
        print(f'training.evaluate_tracks: {error}', file=sys.stderr)
        return 1
    if options.json:
        write_json(options.json, without_nan(reports))
        print(f'Written to {options.json}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
