# SPDX-License-Identifier: Apache-2.0
"""Build the TensorRT engine of a model file for this computer's GPU, or check that TensorRT accepts the file.

usage: python3 -m export.to_tensorrt model.onnx
       python3 -m export.to_tensorrt model.onnx --cache engines
       python3 -m export.to_tensorrt model.onnx --check

With engine:=tensorrt the node builds a missing engine itself, which takes minutes and needs nvcc. To avoid this, copy
the folder that this program writes to vehicles with the same GPU and TensorRT, and set engine_cache to its parent
folder. Every engine is compared with ONNX Runtime before it is stored. --check parses and builds without storing
anything; with TensorRT-RTX it needs no GPU. Models for cameras are checked only: the camera node runs them with ONNX
Runtime.
"""

import argparse
import sys
import time
from pathlib import Path

from export.camera_models import refuse_camera_model
from zeroflow_ros.engines.selection import resolve_model_path
from zeroflow_ros.engines.tensorrt_library import TensorRt
from zeroflow_ros.errors import ZeroFlowError


def check(path: Path) -> str:
    """Parse and build a model file; return a one-line summary.

    Raises: ModelError when TensorRT rejects it.
    """
    library, start = TensorRt(), time.perf_counter()
    plan = library.build(path.read_bytes(), path.name, progress=print)
    return f'{path}: {library} builds it in {time.perf_counter() - start:.1f} s, {len(plan) / 1e6:.1f} MB'


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'export.to_tensorrt', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('model', nargs='?', default='', help='.onnx file (default: the bundled model)')
    parser.add_argument('--cache', default='', help='folder for engines (default: the cache of the node)')
    parser.add_argument('--check', action='store_true', help='parse and build only, without storing the engine')
    options = parser.parse_args(arguments)
    try:
        path = resolve_model_path(options.model, engine='tensorrt')
        if options.check:
            print(check(path))
        else:
            refuse_camera_model(path, 'The camera node runs it with ONNX Runtime. Add --check to only build it.')
            from zeroflow_ros.engines.tensorrt_build import open_engine

            engine = open_engine(path, cache=options.cache)
            print(engine.runs_on)
    except ZeroFlowError as error:
        print(f'export.to_tensorrt: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
