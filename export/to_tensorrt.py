# SPDX-License-Identifier: Apache-2.0
"""Build the TensorRT engine of a model file for this computer's GPU, or check that TensorRT takes the file.

usage: python3 -m export.to_tensorrt model.onnx
       python3 -m export.to_tensorrt model.onnx --cache engines
       python3 -m export.to_tensorrt model.onnx --check

The node builds an engine itself when it has none (engine:=tensorrt). Ahead of time saves it the minutes, and the nvcc:
copy the folder that this writes to vehicles with the same GPU and TensorRT, and give them its parent as engine_cache.
Every engine is compared with ONNX Runtime before it is kept. --check parses and builds and keeps nothing; with
TensorRT-RTX it needs no GPU.
"""

import argparse
import sys
import time
from pathlib import Path

from zeroflow_ros.engines.selection import model_file
from zeroflow_ros.engines.tensorrt_library import TensorRt
from zeroflow_ros.errors import ZeroFlowError


def check(path: Path) -> str:
    """Parse and build a model file and return what came out, as a line.

    Raises: ModelError when TensorRT does not take it.
    """
    library, start = TensorRt(), time.perf_counter()
    plan = library.build(path.read_bytes(), path.name, progress=print)
    return f'{path}: {library} builds it in {time.perf_counter() - start:.1f} s, {len(plan) / 1e6:.1f} MB'


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'export.to_tensorrt', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('model', nargs='?', default='', help='.onnx file (default: the one in the package)')
    parser.add_argument('--cache', default='', help='folder of engines (default: where the node looks)')
    parser.add_argument('--check', action='store_true', help='parse and build only')
    options = parser.parse_args(arguments)
    try:
        path = model_file(options.model, engine='tensorrt')
        if options.check:
            print(check(path))
        else:
            from zeroflow_ros.engines.tensorrt_build import open_engine

            engine = open_engine(path, cache=options.cache)
            print(engine.runs_on)
    except ZeroFlowError as error:
        print(f'export.to_tensorrt: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
