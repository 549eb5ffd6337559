# SPDX-License-Identifier: Apache-2.0
"""Time an iteration of NSFP against the plain form, which computes every neuron and builds new k-d trees each time.

usage: python3 -m training.teachers.benchmark --av2 LOG --iterations 20
       python3 -m training.teachers.benchmark --av2 LOG --full          # NSFP until it stops, and its three-way EPE

Both optimise the same pair (non-ground points within 51.2 m) from the same weights, in turn, on the same cores.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from training.datasets.argoverse2 import read_labelled_pair
from training.scoring.metrics import three_way_epe
from training.teachers.coordinate_network import CoordinateNetwork, cores
from training.teachers.nsfp import NSFP, NSFPConfig, TruncatedChamfer
from zeroflow_ros import transforms
from zeroflow_ros.errors import ZeroFlowError
from zeroflow_ros.lidar.ground import is_ground
from zeroflow_ros.lidar.level import SensorLevel

_REACH = 51.2  # m


class PlainNetwork(CoordinateNetwork):
    """Every neuron for every point."""

    forward = CoordinateNetwork.dense


class PlainChamfer(TruncatedChamfer):
    """Builds two new k-d trees per call."""

    def _nearest(self, queries: np.ndarray, targets: np.ndarray) -> np.ndarray:
        distance, index = cKDTree(targets).query(queries, workers=self._num_threads)
        return np.where(distance < self._reach, index, -1)

    def __init__(self, truncation: float, num_threads: int = 1):
        super().__init__(truncation, num_threads)
        self._num_threads = num_threads
        self._to_fixed = self._to_moving = self._nearest


class PlainNSFP(NSFP):
    """NSFP without its two accelerations."""

    network, loss = PlainNetwork, PlainChamfer


def non_ground_clouds(log: Path) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Return points0 (N, 3) and points1 (M, 3) of a labelled Argoverse 2 pair, float32 [m] in ego0, without ground.

    The third item is the ground truth of points0: flow (N, 3) [m], is_foreground (N,), is_dynamic (N,).
    """
    labelled = read_labelled_pair(log)
    pair = labelled.pair
    ground1 = is_ground(pair.points1, SensorLevel().update(pair.points1).level_T_sensor)
    points1 = transforms.apply(pair.ego0_T_ego1, pair.points1).astype(np.float32)
    rows0, rows1 = (
        ~ground & (np.abs(points[:, :2]) < _REACH).all(1)
        for points, ground in ((pair.points0, labelled.is_ground), (points1, ground1))
    )
    truth = tuple(values[rows0] for values in (labelled.flow, labelled.is_foreground, labelled.is_dynamic))
    return pair.points0[rows0], points1[rows1], truth


def measure(points0: np.ndarray, points1: np.ndarray, iterations: int, num_threads: int) -> dict[str, np.ndarray]:
    """Return (iterations, 4) for 'plain' and 'fast': wall time [s], CPU time [s], forward and inverse loss.

    One iteration is an optimiser step and the losses after it; the first iteration has no step.
    """
    config = NSFPConfig(num_threads=num_threads)
    clouds = [torch.from_numpy(points[cKDTree(points).indices]) for points in (points0, points1)]
    rows = {'plain': [], 'fast': []}
    with cores(num_threads) as map_blocks:
        runs = {'plain': PlainNSFP(config).steps(*clouds), 'fast': NSFP(config).steps(*clouds, map_blocks)}
        for _ in range(iterations):
            for name, run in runs.items():
                torch.set_num_threads(num_threads if name == 'plain' else 1)
                wall, cpu = time.perf_counter(), time.process_time()
                _, there, back, *_ = next(run)
                rows[name].append((time.perf_counter() - wall, time.process_time() - cpu, there, back))
    return {name: np.array(row) for name, row in rows.items()}


def main(arguments: list[str] | None = None) -> int:
    """Print the times of both; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--av2', type=Path, required=True, help='Argoverse 2 log with flow labels')
    parser.add_argument('--iterations', type=int, default=20, help='timed iterations of each form (default: 20)')
    parser.add_argument('--full', action='store_true', help='run NSFP until it stops, and score it')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads (default: 2)')
    args = parser.parse_args(arguments)
    try:
        points0, points1, truth = non_ground_clouds(args.av2)
    except ZeroFlowError as error:
        print(error, file=sys.stderr)
        return 1
    print(f'{len(points0)} and {len(points1)} points, {args.threads} threads')
    if args.full:
        start = time.perf_counter()
        fit = NSFP(NSFPConfig(num_threads=args.threads)).fit(points0, points1)
        seconds = time.perf_counter() - start
        scores = ', '.join(f'{name} {value:.3f}' for name, value in three_way_epe(fit.forward, *truth).items())
        print(f'{fit.iterations} iterations in {seconds:.0f} s; EPE [m]: {scores}')
        return 0
    medians = {}
    for name, rows in measure(points0, points1, args.iterations, args.threads).items():
        medians[name] = np.median(rows, axis=0)
        wall, cpu, *_ = medians[name]
        print(
            f'{name:5}: median {wall:.3f} s, {cpu:.3f} s of all cores; last losses {rows[-1, 2]:.5f} {rows[-1, 3]:.5f}'
        )
    ratio = medians['plain'][:2] / medians['fast'][:2]
    print(f'faster by {ratio[0]:.1f} in wall time, by {ratio[1]:.1f} in time of all cores')
    return 0


if __name__ == '__main__':
    sys.exit(main())
