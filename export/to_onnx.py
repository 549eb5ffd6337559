# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint as ONNX model files that contain the model card.

usage: python3 -m export.to_onnx runs/lite/last.pt --out model.onnx
       python3 -m export.to_onnx official_zeroflow.ckpt --out zeroflow.onnx --forms vehicle full

OUT is the form for the vehicle: dense (pillar images in, a hidden layer out) for students with a two-layer head,
otherwise gather (pillar images, cells and offsets of points in, flow of the points out). The full form (points in, flow
out) is the portable reference; its file name is OUT with `_full` before the suffix. Checkpoints of ZeroFlow and
OpenSceneFlow (FastFlow3D, DeFlow, SeFlow) are converted automatically.

Students for stereo cameras (dwarf, stereo_lite) have one form: images in, scene flow of each pixel out. For dwarf, the
checkpoint may be a .npz file of its TensorFlow variables, see docs/stereo_training.md:
       python3 -m export.to_onnx runs/stereo/last.pt --out stereo.onnx --size 640x192
       python3 -m export.to_onnx dwarf.npz --out dwarf.onnx --sigma-px 1.5 2 2

Students of one camera (multi_mono_sf, mono_lite) have one form, too: an image and the state in, scene flow of each
pixel and the next state out:
       python3 -m export.to_onnx runs/mono/last.pt --out mono.onnx --size 416x128 --sigma-relative 0.1 0.005
"""

import argparse
import sys
from pathlib import Path

from export.onnx_graph import export_onnx
from zeroflow_ros.errors import ConfigError, ZeroFlowError


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        prog='export.to_onnx', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('checkpoint', type=Path, help='checkpoint file, .pt, .ckpt or .npz')
    parser.add_argument('--out', type=Path, required=True, help='.onnx file to write')
    parser.add_argument(
        '--forms', nargs='+', choices=('vehicle', 'dense', 'gather', 'full'), default=['vehicle', 'full'],
        help='forms to write (default: vehicle full)',
    )  # fmt: skip
    parser.add_argument(
        '--precision',
        choices=('float32', 'float16'),
        default='float32',
        help='precision of the arithmetic (default: float32)',
    )
    parser.add_argument(
        '--student', help='student of a ZeroFlow or OpenSceneFlow checkpoint (default: from its keys and settings)'
    )
    parser.add_argument(
        '--show-keys', action='store_true', help='when the weights are not those of a student, list every key'
    )
    parser.add_argument(
        '--size', type=_size, metavar='WxH', help="size of a camera student's images in px (default: as trained)"
    )
    parser.add_argument(
        '--sigma-px', type=float, nargs=3, metavar='PX',
        help='standard deviations of the disparity in both frames and of the flow, for students that do not\n'
        'estimate them, in px of their images',
    )  # fmt: skip
    parser.add_argument(
        '--sigma-relative', type=float, nargs=2, metavar=('DEPTH', 'MOTION'),
        help='of students of one camera: standard deviation of the depth, relative, and of the motion in m per m of\n'
        'depth',
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        from training.learning.checkpoint import load_checkpoint
        from training.students import CAMERA_STUDENTS, MONO_STUDENTS, SCORED_STUDENTS

        checkpoint = load_checkpoint(options.checkpoint, student=options.student)
        if checkpoint.student in SCORED_STUDENTS:
            raise ConfigError(
                f'{options.checkpoint} is a {checkpoint.student}, which has no ONNX form: it is for training.evaluate '
                'and training.inspect_flow. Export multi_mono_sf or mono_lite.'
            )
        if checkpoint.student in MONO_STUDENTS:
            from export.mono_onnx import export_mono_onnx

            if options.precision != 'float32':
                raise ConfigError('Students for one camera are exported in float32; leave --precision out.')
            card = export_mono_onnx(checkpoint, options.out, size=options.size, sigma=options.sigma_relative)
            _say(options.out, card)
            return 0
        if checkpoint.student in CAMERA_STUDENTS:
            from export.stereo_onnx import export_stereo_onnx

            if options.precision != 'float32':
                raise ConfigError('Students for stereo cameras are exported in float32; leave --precision out.')

            card = export_stereo_onnx(checkpoint, options.out, size=options.size, sigma_px=options.sigma_px)
            _say(options.out, card)
            return 0
        for form in options.forms:
            beside = options.out.with_name(f'{options.out.stem}_full{options.out.suffix}')
            path = beside if form == 'full' else options.out
            card = export_onnx(checkpoint, path, form=form, precision=options.precision, name=options.out.stem)
            size = f'{path.stat().st_size / 1e6:.1f} MB'
            print(f'{path}: {card.student}, {card.form}, {size}, sha256 {card.checksum[:12]}')
    except ZeroFlowError as error:
        print(f'export.to_onnx: {error}', file=sys.stderr)
        if options.show_keys:
            print('\n'.join(getattr(error, 'details', [])), file=sys.stderr)
        return 1
    return 0


def _say(path: Path, card) -> None:
    size = f'{path.stat().st_size / 1e6:.1f} MB'
    print(f'{path}: {card.student}, images of {card.width} x {card.height} px, {size}, sha256 {card.checksum[:12]}')


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition('x')
    return int(width), int(height)


if __name__ == '__main__':
    sys.exit(main())
