# SPDX-License-Identifier: Apache-2.0
"""Latency of model files on this machine, stage by stage, from points to velocities.

usage: python3 -m export.benchmark
       python3 -m export.benchmark --model a.onnx b.onnx --bag BAG --threads 2 --json out/benchmark.json
       python3 -m export.benchmark --checkpoint runs/full/last.pt --model full.onnx

Input is a bag, or by default random clouds of 120,000 points. The models take turns on each pair, so that a busy
moment of the machine hits all of them; figures are over the pairs after the warm-up. A checkpoint runs in plain torch,
as the baseline that one would use without an export. This is the pipeline alone: for the node, its messages and the
transport use `python3 -m zeroflow_ros.demo --bag BAG`.
"""

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from export.parity import load_flow
from zeroflow_ros.engine import Engine, engine_of
from zeroflow_ros.errors import DataError, ZeroFlowError
from zeroflow_ros.pipeline import FlowPipeline
from zeroflow_ros.report import hardware, latency_table, percentiles, write_json
from zeroflow_ros.sweep import SweepPair

RANDOM_POINTS = 120_000


def random_pairs(num_pairs: int) -> Iterator[SweepPair]:
    """Yield pairs of random clouds, denser near the vehicle as a sweep is."""
    rng = np.random.default_rng(0)

    def cloud() -> np.ndarray:
        angle, radius = rng.uniform(-np.pi, np.pi, RANDOM_POINTS), 50 * rng.beta(1, 3, RANDOM_POINTS) + 1
        return np.stack([radius * np.cos(angle), radius * np.sin(angle), rng.normal(-1, 0.5, RANDOM_POINTS)], 1)

    for _ in range(num_pairs):
        yield SweepPair(cloud().astype(np.float32), cloud().astype(np.float32), np.eye(4), 0.1)


def bag_pairs(path: Path, num_pairs: int) -> Iterator[SweepPair]:
    """Yield consecutive sweeps of a bag as pairs, again from the start as often as needed; ego motion plays no part."""
    from zeroflow_ros.bags import Bag
    from zeroflow_ros.cdr import POINT_CLOUD, decode_message
    from zeroflow_ros.point_cloud import decode_cloud

    yielded = 0
    while yielded < num_pairs:
        previous, before = None, yielded
        with Bag(path) as bag:
            for message in bag.messages([bag.point_cloud_topic()]):
                points = decode_cloud(decode_message(message.cdr, POINT_CLOUD)).points
                if previous is not None and yielded < num_pairs:
                    yielded += 1
                    yield SweepPair(previous, points, np.eye(4), 0.1)
                previous = points
        if yielded == before:
            raise DataError(f'{path} has no two sweeps to make a pair of.')


class TorchRun:
    """A checkpoint in plain torch, timed from points to flow."""

    def __init__(self, path: Path):
        self.name = f'torch {path}'
        _, self._flow = load_flow(path)

    def __call__(self, pair: SweepPair) -> dict[str, float]:
        start = time.perf_counter()
        self._flow(pair.points1, pair.points0)
        return {'total': (time.perf_counter() - start) * 1e3}


class PipelineRun:
    """A model file in the pipeline, timed by stage."""

    def __init__(self, name: str, engine: Engine):
        self.name = name
        self._pipeline = FlowPipeline(engine, output_on='latest' if engine.card.direction == 'both' else 'previous')

    def __call__(self, pair: SweepPair) -> dict[str, float]:
        start = time.perf_counter()
        stages = self._pipeline.estimate(pair).stages_ms
        return stages | {'total': (time.perf_counter() - start) * 1e3}


def measure(runs: list, pairs: Iterator[SweepPair], warm_up: int) -> dict[str, dict]:
    """Return latency percentiles [ms] by run and stage; the runs take turns on each pair."""
    samples: dict[str, dict[str, list]] = {run.name: {} for run in runs}
    for number, pair in enumerate(pairs):
        for run in runs:
            for stage, milliseconds in run(pair).items():
                if number >= warm_up:
                    samples[run.name].setdefault(stage, []).append(milliseconds)
    return {name: {stage: percentiles(ms) for stage, ms in stages.items()} for name, stages in samples.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'export.benchmark', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--model', nargs='+', default=[''], help='.onnx files (default: the model in the package)')
    parser.add_argument('--checkpoint', type=Path, help='run this checkpoint in plain torch as well')
    parser.add_argument('--bag', type=Path, help='take sweeps from this bag')
    parser.add_argument('--pairs', type=int, default=50, help='pairs to measure (default: %(default)s)')
    parser.add_argument('--warm-up', type=int, default=5, help='pairs before that (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=2, help='of the engine (default: %(default)s)')
    parser.add_argument('--json', type=Path, help='write the figures here as well')
    options = parser.parse_args(arguments)
    try:
        runs = [PipelineRun(name or 'embedded', engine_of(name, num_threads=options.threads)) for name in options.model]
        if options.checkpoint:
            runs.append(TorchRun(options.checkpoint))
        num_pairs = options.warm_up + options.pairs
        pairs = bag_pairs(options.bag, num_pairs) if options.bag else random_pairs(num_pairs)
        figures = measure(runs, pairs, options.warm_up)
    except ZeroFlowError as error:
        print(f'export.benchmark: {error}', file=sys.stderr)
        return 1
    report = {'hardware': hardware(), 'input': str(options.bag or f'random, {RANDOM_POINTS} points'), 'models': figures}
    report['memory_mb'] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    for name, stages in figures.items():
        print(f'{name}\n{latency_table(stages)}\n')
    print(f'{report["hardware"]["cpu"]}, {options.threads} threads, input {report["input"]}, {report["memory_mb"]} MB')
    if options.json:
        write_json(options.json, report)
        print(f'Written to {options.json}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
