# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint as ONNX model files with the model card inside.

usage: python3 -m export.to_onnx runs/lite/last.pt --out model.onnx
       python3 -m export.to_onnx official_zeroflow.ckpt --out zeroflow.onnx --forms vehicle full

OUT is the form that the vehicle runs: dense (pillar images in, a hidden layer out) where the student has a head of two
layers, otherwise gather (pillar images, cells and offsets of points in, their flow out). The full form (points in,
flow out), the portable reference, is written beside it as OUT with `_full` before the suffix. Checkpoints of ZeroFlow
and of OpenSceneFlow (FastFlow3D, DeFlow, SeFlow) are recognised.
"""

import argparse
import sys
from pathlib import Path

from export.onnx_graph import export_onnx
from zeroflow_ros.errors import ZeroFlowError


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        prog='export.to_onnx', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument(
        '--forms', nargs='+', choices=('vehicle', 'dense', 'gather', 'full'), default=['vehicle', 'full'],
        help='(default: vehicle full)',
    )  # fmt: skip
    parser.add_argument('--precision', choices=('float32', 'float16'), default='float32')
    parser.add_argument(
        '--student', help='of a checkpoint of ZeroFlow or OpenSceneFlow (default: by its entries and settings)'
    )
    options = parser.parse_args(arguments)
    try:
        from training.learning.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(options.checkpoint, student=options.student)
        for form in options.forms:
            beside = options.out.with_name(f'{options.out.stem}_full{options.out.suffix}')
            path = beside if form == 'full' else options.out
            card = export_onnx(checkpoint, path, form=form, precision=options.precision, name=options.out.stem)
            size = f'{path.stat().st_size / 1e6:.1f} MB'
            print(f'{path}: {card.student}, {card.form}, {size}, sha256 {card.checksum[:12]}')
    except ZeroFlowError as error:
        print(f'export.to_onnx: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
