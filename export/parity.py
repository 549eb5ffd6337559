# SPDX-License-Identifier: Apache-2.0
"""Compare the flow of two models: a checkpoint and a model file, or two model files, in metres.

usage: python3 -m export.parity runs/lite/last.pt model.onnx
       python3 -m export.parity model.onnx model_full.onnx --bag BAG --tolerance 0.001
       python3 -m export.parity model.onnx tensorrt:model_fp16.onnx --bag BAG --tolerance 0.005

Input: random clouds of 0, 1, 333 and 90,000 points, and points on cell borders, with two threads; with --bag also real
sweeps. Models that take more than two sweeps get two, and all that they take. The exit status is 0 only when every
difference is within the tolerance.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from zeroflow_ros.engines.parity import flow_of_clouds, largest_difference, parity_clouds
from zeroflow_ros.engines.selection import engine_from_spec
from zeroflow_ros.errors import ZeroFlowError
from zeroflow_ros.lidar.pillars import PillarGrid

Flow = Callable[[list[np.ndarray]], np.ndarray]
NUM_THREADS = 2  # some scatter errors occur only with two threads


def load_flow(path: Path) -> tuple[PillarGrid, int, Flow]:
    """Return a model's grid, the sweeps it takes, and its flow function: clouds to residual flow [m] of the first."""
    if path.suffix == '.onnx':  # also tensorrt:model.onnx
        engine = engine_from_spec(str(path), num_threads=NUM_THREADS)
    else:
        import torch

        from training.scoring.estimators import checkpoint_engine

        torch.set_num_threads(NUM_THREADS)
        engine = checkpoint_engine(path)
    return engine.card.grid, engine.card.num_sweeps, partial(flow_of_clouds, engine)


def sweeps(bag: Path, num_pairs: int, num_sweeps: int) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield (name, clouds) of consecutive sweeps of a bag, the latest first, as many as there are and a model takes."""
    from zeroflow_ros.bags.bag import Bag
    from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
    from zeroflow_ros.lidar.point_cloud import decode_cloud

    clouds = []
    with Bag(bag) as opened:
        for k, message in enumerate(opened.messages([opened.point_cloud_topic()])):
            if k > num_pairs:
                break
            clouds = [decode_cloud(decode_message(message.cdr, POINT_CLOUD)).points, *clouds][:num_sweeps]
            if len(clouds) > 1:
                yield f'sweep {k}', clouds


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'export.parity', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('first', type=Path, help='checkpoint or .onnx file')
    parser.add_argument('second', type=Path, help='checkpoint or .onnx file')
    parser.add_argument('--bag', type=Path, help='also compare on the first sweeps of this bag')
    parser.add_argument(
        '--sweeps', type=int, default=5, help='number of sweep pairs from the bag (default: %(default)s)'
    )
    parser.add_argument(
        '--tolerance', type=float, default=1e-4, help='largest accepted difference [m] (default: %(default)s)'
    )
    options = parser.parse_args(arguments)
    try:
        *about, first = load_flow(options.first)
        *other, second = load_flow(options.second)
        if about != other:
            raise ZeroFlowError(f'The models have different grids or numbers of sweeps: {about} and {other}.')
        worst = 0.0
        grid, num_sweeps = about
        real = sweeps(options.bag, options.sweeps, num_sweeps) if options.bag else ()
        for name, clouds in itertools.chain(parity_clouds(grid, num_sweeps), real):
            flows = first(clouds), second(clouds)
            difference = largest_difference(*flows)
            mean = np.nanmean(np.abs(flows[0] - flows[1])) if np.isfinite(flows[0]).any() else 0.0
            print(f'{name:36} {difference:.2e} m, mean {mean:.2e} m')
            worst = max(worst, difference)
    except ZeroFlowError as error:
        print(f'export.parity: {error}', file=sys.stderr)
        return 1
    verdict = 'equal' if worst <= options.tolerance else 'DIFFERENT'
    print(f'{verdict}: largest difference {worst:.2e} m, tolerance {options.tolerance:.0e} m')
    return 0 if worst <= options.tolerance else 1


if __name__ == '__main__':
    sys.exit(main())
