# SPDX-License-Identifier: Apache-2.0
"""Time the pipeline of the zeroflow_ros package in PYTHONPATH, pair by pair; `export.revisions` starts it.

usage: python3 export/revision_worker.py MODEL THREADS

Reads from standard input a JSON line (points: [N, M], ego0_T_ego1, dt) and the points of the newer and the older sweep
as float32; answers with a JSON line, milliseconds by stage. Uses only functions that all revisions have.
"""

import json
import sys
import time

import numpy as np

from zeroflow_ros.pipeline import FlowPipeline

try:
    from zeroflow_ros.engines.selection import load_engine
    from zeroflow_ros.lidar.sweep import SweepPair
except ModuleNotFoundError:  # older revisions: the package was one flat folder
    from zeroflow_ros.engine import load_engine
    from zeroflow_ros.sweep import SweepPair


def main() -> None:
    """Serve requests until the input ends."""
    model, num_threads = sys.argv[1:]
    engine = load_engine(model, num_threads=int(num_threads))
    pipeline = FlowPipeline(engine, output_on='latest' if engine.card.direction == 'both' else 'previous')
    while line := sys.stdin.buffer.readline():
        about = json.loads(line)
        points1, points0 = (
            np.frombuffer(sys.stdin.buffer.read(12 * num_points), np.float32).reshape(-1, 3)
            for num_points in about['points']
        )
        start = time.perf_counter()
        stages_ms = pipeline.estimate(
            SweepPair(points0, points1, np.array(about['ego0_T_ego1']), about['dt'])
        ).stages_ms
        print(json.dumps({**stages_ms, 'total': (time.perf_counter() - start) * 1e3}), flush=True)


if __name__ == '__main__':
    main()
