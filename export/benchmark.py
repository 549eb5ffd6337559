# SPDX-License-Identifier: Apache-2.0
"""Measure the latency of model files on this machine, by stage, from points to velocities.

usage: python3 -m export.benchmark
       python3 -m export.benchmark --model a.onnx b.onnx --bag BAG --threads 2 --json out/benchmark.json
       python3 -m export.benchmark --model tensorrt:full.onnx full.onnx --checkpoint runs/full/last.pt --compare
       python3 -m export.benchmark --revision HEAD~5 --compare
       python3 -m export.benchmark --points 10000 20000 50000 100000 200000
       python3 -m export.benchmark --cells 128 256 512 --compare

Input is a bag with its ego motion, or random clouds of 120,000 points (or each size in --points). All models process
each pair in turn, so that load on the machine affects all of them; statistics cover the pairs after the warm-up. A
checkpoint runs in plain torch, on the GPU if there is one: the baseline without export. --compare adds the latency
ratio of each model to the first one, pair by pair. Only the pipeline is measured; for node, messages and transport, use
`python3 -m zeroflow_ros.demo --bag BAG`.
"""

import argparse
import contextlib
import resource
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from itertools import count, islice, pairwise
from pathlib import Path

import numpy as np

from export.revisions import RevisionRun
from training.datasets import split_options
from training.scoring.estimators import ModelOptions
from zeroflow_ros.ego_motion.bag_motion import EGO_MOTION
from zeroflow_ros.engines.engine import IDENTITY, Engine
from zeroflow_ros.engines.selection import engine_from_spec
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import DataError, EgoMotionError, ZeroFlowError
from zeroflow_ros.lidar.sweep import Sweep, SweepPair
from zeroflow_ros.lidar.sweep_history import SweepHistory
from zeroflow_ros.pipeline import FlowPipeline
from zeroflow_ros.views.report import hardware, latency_table, percentiles, write_json

RANDOM_POINTS = 120_000
_MAX_WAITING = 20  # sweeps that wait for odometry later in the bag: 2 s at 10 Hz


def random_pairs(num_pairs: int, num_points: int, num_sweeps: int) -> Iterator[SweepPair]:
    """Yield pairs of random clouds with full history; like sweeps, they are denser near the vehicle.

    num_sweeps: sweeps of a pair and its history.
    """
    rng = np.random.default_rng(0)

    def sweep(number: int) -> Sweep:
        angle, radius = rng.uniform(-np.pi, np.pi, num_points), 50 * rng.beta(1, 3, num_points) + 1
        cloud = np.stack([radius * np.cos(angle), radius * np.sin(angle), rng.normal(-1, 0.5, num_points)], 1)
        return Sweep(cloud.astype(np.float32), (number + 1) * 100_000_000)

    return islice(_pairs(map(sweep, count()), num_sweeps), num_sweeps - 2, num_sweeps - 2 + num_pairs)


def _pairs(sweeps: Iterator[Sweep], num_sweeps: int) -> Iterator[SweepPair]:
    """Yield consecutive sweeps as pairs with identity ego motion and their history."""
    history = SweepHistory(num_sweeps)
    for previous, latest in pairwise(sweeps):
        yield history.pair(previous, latest, np.eye(4))


def bag_pairs(path: Path, num_pairs: int, num_sweeps: int, ego_motion: str = 'auto') -> Iterator[SweepPair]:
    """Yield consecutive sweeps of a bag as pairs with their ego motion; restart the bag as often as needed.

    num_sweeps: sweeps of a pair and its history, where the bag has them before it. ego_motion: see `BagMotion`.
    Sweeps whose motion is not known make no pair.
    """
    yielded = 0
    while yielded < num_pairs:
        before = yielded
        for pair in islice(_drive(path, num_sweeps, ego_motion), num_pairs - yielded):
            yielded += 1
            yield pair
        if yielded == before:
            raise DataError(
                f'{path} has no two consecutive sweeps with ego motion by {ego_motion}, so no pair. Choose another '
                '--ego-motion; none takes the ego vehicle as standing still.'
            )


def _drive(path: Path, num_sweeps: int, ego_motion: str) -> Iterator[SweepPair]:
    """Yield the pairs of one pass over a bag."""
    from zeroflow_ros.bags.bag import Bag
    from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
    from zeroflow_ros.ego_motion.bag_motion import BagMotion
    from zeroflow_ros.lidar.point_cloud import decode_cloud

    with Bag(path) as bag:
        topic = bag.point_cloud_topic()
        frame_id = decode_message(bag.first(topic).cdr, POINT_CLOUD).header.frame_id.lstrip('/')
        motion, history = BagMotion(bag, ego_motion, frame_id=frame_id, cloud_topic=topic), SweepHistory(num_sweeps)

        def sweeps() -> Iterator[Sweep]:
            """Yield each sweep once the odometry reaches it, or is too far behind."""
            waiting: deque[Sweep] = deque()
            for message in bag.messages([topic, *filter(None, [motion.topic])]):
                if message.topic != topic:
                    motion.add_odometry(message.cdr)
                else:
                    waiting.append(decode_cloud(decode_message(message.cdr, POINT_CLOUD)))
                while waiting and (motion.covers(waiting[0].stamp_ns) or len(waiting) > _MAX_WAITING):
                    yield waiting.popleft()
            yield from waiting

        for previous, latest in pairwise(sweeps()):
            try:
                previous, latest = map(motion.to_sensor_frame, (previous, latest))
                ego0_T_ego1 = motion.between(previous, latest)
            except EgoMotionError:
                continue
            yield history.pair(previous, latest, ego0_T_ego1)


class TorchRun:
    """A checkpoint in plain torch, timed from points to flow. is_compiled: with its network compiled by torch."""

    def __init__(self, path: Path, *, is_compiled: bool = False):
        import torch

        from training.scoring.estimators import checkpoint_engine

        self._engine = checkpoint_engine(path, device='cuda' if torch.cuda.is_available() else 'cpu')
        if is_compiled:
            self._engine.compile_network()
        self.name, self.runs_on = f'{"compiled " * is_compiled}torch {path}', self._engine.runs_on
        self.num_sweeps = self._engine.card.num_sweeps

    def __call__(self, pair: SweepPair) -> dict[str, float]:
        start = time.perf_counter()
        older = [(sweep.points, IDENTITY) for sweep in pair.history]
        self._engine.infer(pair.points1, pair.points0, Stopwatch(), older=older)
        return {'total': (time.perf_counter() - start) * 1e3}


class PipelineRun:
    """A model file in the pipeline, timed by stage. options: see `FlowPipeline`."""

    def __init__(self, name: str, engine: Engine, **options):
        self.name, self.runs_on, self.num_sweeps = name, engine.runs_on, engine.card.num_sweeps
        output_on = 'latest' if engine.card.direction == 'both' else 'previous'
        self._pipeline = FlowPipeline(engine, output_on=output_on, **options)

    def __call__(self, pair: SweepPair) -> dict[str, float]:
        start = time.perf_counter()
        stages = self._pipeline.estimate(pair).stages_ms
        return stages | {'total': (time.perf_counter() - start) * 1e3}


def measure(runs: list, pairs: Iterator[SweepPair], warm_up: int) -> dict[str, dict[str, list]]:
    """Return milliseconds by run and stage, one per pair after the warm-up; all runs process each pair in turn."""
    samples: dict[str, dict[str, list]] = {run.name: {} for run in runs}
    for number, pair in enumerate(pairs):
        for run in runs:
            for stage, milliseconds in run(pair).items():
                if number >= warm_up:
                    samples[run.name].setdefault(stage, []).append(milliseconds)
    return samples


def ratios(samples: dict[str, dict[str, list]]) -> dict[str, dict[str, float]]:
    """Return percentiles over the pairs of each run's latency ratio to the first run."""
    first, *others = samples
    reference = np.array(samples[first]['total'])
    return {name: percentiles(np.array(samples[name]['total']) / reference) for name in others}


def write_untrained_lite(cells: int, folder: Path) -> Path:
    """Write an untrained lite student with cells x cells pillars; weights do not affect latency."""
    from export.onnx_graph import export_onnx
    from training.learning.checkpoint import Checkpoint
    from training.students.fastflow3d_lite import FastFlow3DLite
    from zeroflow_ros.lidar.pillars import PillarGrid

    class Untrained(Checkpoint):
        def build(self):
            return FastFlow3DLite(grid=PillarGrid(cells, 0.4, -2.0, 4.0)).eval()

    about = {'ground': 'keep', 'z_origin': 'ground', 'direction': 'both', 'licence': 'Apache-2.0'}
    export_onnx(Untrained('fastflow3d_lite', {}, about), folder / f'lite_{cells}_cells.onnx')
    return folder / f'lite_{cells}_cells.onnx'


def open_runs(options, cleanup: contextlib.ExitStack) -> list:
    """Return the runs of the command-line options, in order."""
    runs = []
    for name in options.model:
        path, chosen = split_options(name, ModelOptions)
        engine = engine_from_spec(path, num_threads=options.threads)
        runs.append(PipelineRun(name or 'embedded', engine, **vars(chosen)))
    folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
    for cells in options.cells:
        engine = engine_from_spec(str(write_untrained_lite(cells, folder)), num_threads=options.threads)
        runs.append(PipelineRun(f'untrained, {cells} x {cells} cells', engine))
    if options.checkpoint:
        runs.append(TorchRun(options.checkpoint))
        if options.compile:
            runs.append(TorchRun(options.checkpoint, is_compiled=True))
    for revision in options.revision:
        for model in options.model:
            run = RevisionRun(revision, model, options.threads)
            cleanup.callback(run.close)
            runs.append(run)
    return runs


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'export.benchmark', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        '--model', nargs='+', default=[''],
        help='MODEL.onnx or tensorrt:MODEL.onnx (default: the bundled model); options: MODEL.onnx?refinements=1',
    )  # fmt: skip
    parser.add_argument('--checkpoint', type=Path, help='also run this checkpoint in plain torch')
    parser.add_argument('--compile', action='store_true', help='with --checkpoint: also with torch.compile')
    parser.add_argument(
        '--cells',
        type=int,
        nargs='+',
        default=[],
        help='also run untrained lite models with these grid sizes, in cells per side',
    )
    parser.add_argument('--revision', nargs='+', default=[], help='also run zeroflow_ros of these git revisions')
    parser.add_argument('--bag', type=Path, help='bag with the input sweeps (default: random clouds)')
    parser.add_argument('--ego-motion', choices=EGO_MOTION, default='auto',
                        help='source of the ego motion in the bag; none: standing still (default: auto)')  # fmt: skip
    parser.add_argument(
        '--points', type=int, nargs='+', default=[RANDOM_POINTS], help='sizes of random clouds (default: 120000)'
    )
    parser.add_argument('--compare', action='store_true', help='also print latency ratios to the first model')
    parser.add_argument('--pairs', type=int, default=50, help='number of pairs to measure (default: %(default)s)')
    parser.add_argument(
        '--warm-up', type=int, default=5, help='number of warm-up pairs, not measured (default: %(default)s)'
    )
    parser.add_argument('--threads', type=int, default=2, help='CPU threads of the engine (default: %(default)s)')
    parser.add_argument('--json', type=Path, help='also write the results to this file')
    options = parser.parse_args(arguments)
    try:
        with contextlib.ExitStack() as cleanup:
            runs = open_runs(options, cleanup)
            num_pairs, num_sweeps = options.warm_up + options.pairs, max(run.num_sweeps for run in runs)
            inputs = (
                {str(options.bag): bag_pairs(options.bag, num_pairs, num_sweeps, options.ego_motion)} if options.bag
                else {f'random, {num} points': random_pairs(num_pairs, num, num_sweeps) for num in options.points}
            )  # fmt: skip
            samples = {name: measure(runs, pairs, options.warm_up) for name, pairs in inputs.items()}
    except ZeroFlowError as error:
        print(f'export.benchmark: {error}', file=sys.stderr)
        return 1
    report = {'hardware': hardware(), 'runs_on': {run.name: run.runs_on for run in runs}, 'inputs': {}}
    for name, of_run in samples.items():
        figures = {run: {stage: percentiles(ms) for stage, ms in stages.items()} for run, stages in of_run.items()}
        report['inputs'][name] = {'models': figures} | ({'ratios': ratios(of_run)} if options.compare else {})
        print(f'{name}\n')
        for run, stages in figures.items():
            print(f'{run} ({report["runs_on"][run]})\n{latency_table(stages)}\n')
        for run, ratio in report['inputs'][name].get('ratios', {}).items():
            print(f'{run} takes {ratio["p50"]:.2f} times as long as {runs[0].name} (median; p95 {ratio["p95"]:.2f})\n')
    report['memory_mb'] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f'{report["hardware"]["cpu"]}, {report["memory_mb"]} MB')
    if options.json:
        write_json(options.json, report)
        print(f'Written to {options.json}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
