# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint as ONNX model files with the model card inside.

usage: python3 -m export.to_onnx runs/lite/last.pt --out model.onnx
       python3 -m export.to_onnx official_zeroflow.ckpt --out zeroflow.onnx --forms dense full

OUT is the dense form (pillar images in, a hidden layer out), which the vehicle runs; the full form (points in, flow
out), the portable reference, is written beside it as OUT with `_full` before the suffix. A ZeroFlow Lightning
checkpoint is recognised.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

from export.model_file import write_model
from zeroflow_ros.errors import ZeroFlowError
from zeroflow_ros.model_card import ModelCard

OPSET = 20  # the first that has Gelu as one node
MAX_POINTS = 400_000  # upper bound of the dynamic axes


def export_onnx(
    checkpoint, path: Path, *, form: str = 'dense', precision: str = 'float32', name: str = ''
) -> ModelCard:
    """Write one model file atomically and return its card.

    checkpoint: training.checkpoint.Checkpoint. form: 'dense' or 'full'. precision: of the arithmetic; 'float16' is for
    dense files only, because raw coordinates do not fit in it (0.03 m steps at 50 m).
    """
    import torch

    if form == 'full' and precision != 'float32':
        raise ZeroFlowError('A full model computes cells from coordinates and must be float32; use --forms dense.')
    student = checkpoint.build()
    _fold_batch_norms(student)  # in float32, whatever comes after
    beside = _beside(student) if form == 'dense' else {}  # before the student becomes float16
    module, arguments, dynamic = _dense(student, precision) if form == 'dense' else _full(student)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        logging.getLogger('torch.onnx').setLevel(logging.ERROR)
        program = torch.onnx.export(
            module, tuple(arguments.values()), input_names=list(arguments),
            output_names=['hidden' if form == 'dense' else 'flow'], dynamic_shapes=dynamic, dynamo=True,
            opset_version=OPSET, external_data=False, verbose=False,
        )  # fmt: skip
    proto = program.model_proto
    card = _card(checkpoint, student, proto, form, precision, name or path.stem, beside)
    return write_model(proto, card, path)


def _fold_batch_norms(module) -> None:
    """Make one layer of each convolution and the batch norm behind it, in place; module is in eval mode."""
    import torch

    previous = ('', None)
    for name, child in list(module.named_children()):
        if isinstance(child, torch.nn.BatchNorm2d) and isinstance(previous[1], torch.nn.Conv2d):
            setattr(module, previous[0], torch.nn.utils.fuse_conv_bn_eval(previous[1], child))
            setattr(module, name, torch.nn.Identity())
        _fold_batch_norms(child)
        previous = name, child


def _dense(student, precision: str):
    """Return (module, example arguments, dynamic axes) of the dense form."""
    import torch

    dtype = torch.float16 if precision == 'float16' else torch.float32

    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.student = student

        def forward(self, images):
            maps = student.hidden(images.to(dtype))
            rows = student.hidden_rows(maps.flatten(0, 1))  # [0] would be a copy
            blocks, block = student.grid.cells // student.head_block, student.head_block
            return rows.reshape(blocks, blocks, block, block, -1).to(torch.float32)

    student.to(dtype)
    shape = (1, 2 * student.num_channels, student.grid.cells, student.grid.cells)
    return Dense().eval(), {'images': torch.zeros(shape)}, {'images': None}


def _full(student):
    """Return (module, example arguments, dynamic axes) of the full form."""
    import torch

    generator = torch.Generator().manual_seed(0)
    arguments = {name: torch.rand(num, 3, generator=generator) for name, num in (('points0', 1000), ('points1', 900))}
    dynamic = {name: {0: torch.export.Dim(f'num_{name}', min=1, max=MAX_POINTS)} for name in arguments}
    return student.eval(), arguments, dynamic


def _beside(student) -> dict:
    """Return what the vehicle computes itself, beside a dense model, as fields of the card."""
    encoder_weight, encoder_bias = student.embedder.feature_net.folded()
    offset_weight, last = student.head_layers()
    tensors = {
        'encoder_weight': encoder_weight, 'encoder_bias': encoder_bias,
        'head_offset_weight': offset_weight, 'head_weight': last.weight, 'head_bias': last.bias,
    }  # fmt: skip
    return {key: tensor.detach().float().numpy().copy() for key, tensor in tensors.items()} | {
        'head_activation': student.head_activation
    }


def _card(checkpoint, student, proto, form: str, precision: str, name: str, beside: dict) -> ModelCard:
    import onnx
    import torch

    def shapes(values) -> dict:
        return {
            value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in values
        }

    about = checkpoint.provenance
    return ModelCard(
        name=name,
        student=checkpoint.student,
        form=form,
        precision=precision,
        grid=student.grid,
        ground=about['ground'],
        z_origin=about['z_origin'],
        direction=about['direction'],
        nominal_dt=0.1,
        dt_range=(0.04, 0.25),
        num_sweeps=2,
        inputs=shapes(proto.graph.input),
        outputs=shapes(proto.graph.output),
        training={
            key: value for key, value in about.items() if key not in ('ground', 'z_origin', 'direction', 'licence')
        },
        licence=about['licence'],
        versions={'torch': str(torch.__version__), 'onnx': onnx.__version__, 'opset': OPSET},
        **beside,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        prog='export.to_onnx', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--forms', nargs='+', choices=('dense', 'full'), default=['dense', 'full'])
    parser.add_argument('--precision', choices=('float32', 'float16'), default='float32')
    parser.add_argument(
        '--student', help='of a ZeroFlow checkpoint: fastflow3d or fastflow3d_xl (default: by its entries)'
    )
    options = parser.parse_args(arguments)
    try:
        from training.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(options.checkpoint, student=options.student)
        for form in options.forms:
            path = (
                options.out
                if form == 'dense'
                else options.out.with_name(f'{options.out.stem}_full{options.out.suffix}')
            )
            card = export_onnx(checkpoint, path, form=form, precision=options.precision, name=options.out.stem)
            print(f'{path}: {card.student}, {form}, {path.stat().st_size / 1e6:.1f} MB, sha256 {card.checksum[:12]}')
    except ZeroFlowError as error:
        print(f'export.to_onnx: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
