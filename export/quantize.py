# SPDX-License-Identifier: Apache-2.0
"""Write the 8-bit form of a dense or gather model, which runs twice as fast on CPUs.

usage: python3 -m export.quantize model.onnx --out model_int8.onnx
       python3 -m export.quantize model.onnx --out model_int8.onnx --bag drive_1.mcap drive_2.mcap
       python3 -m export.quantize model.onnx --out model_int8_gpu.onnx --symmetric

Weights are quantised per channel, activations per tensor, with ranges calibrated on sweep pairs of --bag or of
simulated streets. The per-point layers of a gather model stay float. --symmetric makes the form for TensorRT: zero
point 0, float biases. Compare both files with `python3 -m training.evaluate`; the largest difference is not meaningful,
because single points may differ by 0.2 m.
"""

import argparse
import sys
from pathlib import Path

from export.camera_models import refuse_camera_model
from export.quantized_model import bag_images, quantize, simulated_images
from zeroflow_ros.engines.selection import load_engine
from zeroflow_ros.errors import ConfigError, ZeroFlowError

_CAMERAS = 'Camera models have no 8-bit form: use the file as it is.'


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'export.quantize', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('model', type=Path, help='dense or gather float32 .onnx file')
    parser.add_argument('--out', type=Path, required=True, help='8-bit .onnx file to write')
    parser.add_argument('--bag', type=Path, nargs='+', help='calibrate on these drives instead of simulated streets')
    parser.add_argument(
        '--clips', type=Path, default=Path('out/clips'), help='folder for simulated clips (default: %(default)s)'
    )
    parser.add_argument('--pairs', type=int, default=32, help='number of calibration pairs (default: %(default)s)')
    parser.add_argument('--symmetric', action='store_true', help='write the form for TensorRT')
    options = parser.parse_args(arguments)
    try:
        if options.pairs < 1:
            raise ConfigError(f'--pairs must be 1 or more, got {options.pairs}.')
        refuse_camera_model(Path(options.model), _CAMERAS)
        card = load_engine(options.model).card
        if options.bag:
            images = bag_images(card, options.bag, options.pairs)
            of = f'sweep pairs of {", ".join(path.name for path in options.bag)}'
        else:
            images, of = simulated_images(card, options.clips, options.pairs), 'simulated sweep pairs'
        card = quantize(options.model, images, options.out, of, symmetric=options.symmetric)
    except ZeroFlowError as error:
        print(f'export.quantize: {error}', file=sys.stderr)
        return 1
    megabytes = options.out.stat().st_size / 1e6
    print(f'{options.out}: {card.student}, int8, {megabytes:.1f} MB, {card.training["calibration"]}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
