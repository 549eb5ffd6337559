# SPDX-License-Identifier: Apache-2.0
"""Export of students as ONNX graphs, in each of their forms."""

import logging
import warnings
from pathlib import Path

from export.model_file import write_model
from zeroflow_ros.engines.model_card import POINTS_AXIS, ModelCard
from zeroflow_ros.errors import ZeroFlowError

OPSET = 20  # the first with Gelu as a single node
MAX_POINTS = 400_000  # upper bound of the dynamic axes


def export_onnx(
    checkpoint, path: Path, *, form: str = 'vehicle', precision: str = 'float32', name: str = ''
) -> ModelCard:
    """Write one model file atomically and return its card.

    checkpoint: training.learning.checkpoint.Checkpoint. form: 'dense', 'gather' or 'full'; 'vehicle' selects the
    student's own form, dense or gather. precision: of the arithmetic; 'float16' is not allowed for full files, because
    it cannot represent raw coordinates (0.03 m steps at 50 m).
    Raises: ZeroFlowError when the student has no such form.
    """
    import torch

    if form == 'full' and precision != 'float32':
        raise ZeroFlowError('A full model computes cells from coordinates and must be float32; use --forms vehicle.')
    student = checkpoint.build()
    form = student.form if form == 'vehicle' else form
    if form not in (student.form, 'full'):
        raise ZeroFlowError(f'{checkpoint.student} has the forms {student.form} and full, not {form}.')
    fold_batch_norms(student)  # in float32, also for float16 files
    student.merge_layers()
    beside = _vehicle_weights(student) if form != 'full' else {}  # before the student is converted to float16
    build = {'dense': _dense, 'gather': _gather, 'full': _full}[form]
    module, arguments, dynamic = build(student, torch.float16 if precision == 'float16' else torch.float32)
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


def dense_module(checkpoint, precision: str = 'float32'):
    """Return what a dense model file computes as a torch module: images (1, S * C, G, G) to the hidden layer, float32.

    checkpoint, precision: as in `export_onnx`.
    """
    import torch

    student = checkpoint.build()
    fold_batch_norms(student)
    student.merge_layers()
    return _dense(student, torch.float16 if precision == 'float16' else torch.float32)[0]


def fold_batch_norms(module) -> None:
    """Merge each convolution with the batch norm that follows it, in place; module is in eval mode."""
    import torch

    previous = ('', None)
    for name, child in list(module.named_children()):
        if isinstance(child, torch.nn.BatchNorm2d) and isinstance(previous[1], torch.nn.Conv2d):
            setattr(module, previous[0], torch.nn.utils.fuse_conv_bn_eval(previous[1], child))
            setattr(module, name, torch.nn.Identity())
        fold_batch_norms(child)
        previous = name, child


def _dense(student, dtype):
    """Return (module, example arguments, dynamic axes) of the dense form."""
    import torch

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
    return Dense().eval(), {'images': _images(student)}, {'images': None}


def _gather(student, dtype):
    """Return (module, example arguments, dynamic axes) of the gather form."""
    import torch

    class Gather(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.student = student

        def forward(self, images, cell_index, offsets):
            hidden = student.hidden(images.to(dtype)).flatten(0, 1)  # [0] would be a copy
            return student.head_flow(hidden, cell_index, offsets.to(dtype)).to(torch.float32)

    student.to(dtype)
    arguments = {
        'images': _images(student),
        'cell_index': torch.arange(1000, dtype=torch.int32),
        'offsets': torch.zeros(1000, 3),
    }
    axis = torch.export.Dim(POINTS_AXIS, min=1, max=MAX_POINTS)
    return Gather().eval(), arguments, {'images': None, 'cell_index': {0: axis}, 'offsets': {0: axis}}


def _images(student):
    import torch

    return torch.zeros(1, student.num_sweeps * student.num_channels, student.grid.cells, student.grid.cells)


def _full(student, dtype):
    """Return (module, example arguments, dynamic axes) of the full form."""
    import torch

    generator = torch.Generator().manual_seed(0)
    sizes = {f'points{k}': 1000 - 100 * k for k in range(student.num_sweeps)}
    arguments = {name: torch.rand(num, 3, generator=generator) for name, num in sizes.items()}
    axes = [{0: torch.export.Dim(f'num_{name}', min=1, max=MAX_POINTS)} for name in arguments]
    older = (tuple(axes[2:]),) if axes[2:] else ()  # as `forward` takes them: points0, points1, *older
    dynamic = (*axes[:2], *older)
    return student.eval(), arguments, dynamic  # as the arguments of `forward`: points0, points1, *older


def _vehicle_weights(student) -> dict:
    """Return the weights of the layers that the vehicle computes outside the network, as fields of the card."""
    encoder_weight, encoder_bias = student.embedder.feature_net.folded()
    tensors, activation = {'encoder_weight': encoder_weight, 'encoder_bias': encoder_bias}, {}
    if student.form == 'dense':
        offset_weight, last = student.head_layers()
        tensors |= {'head_offset_weight': offset_weight, 'head_weight': last.weight, 'head_bias': last.bias}
        activation = {'head_activation': student.head_activation}
    return {key: tensor.detach().float().numpy().copy() for key, tensor in tensors.items()} | activation


def _card(checkpoint, student, proto, form: str, precision: str, name: str, beside: dict) -> ModelCard:
    import onnx
    import torch

    def shapes(values) -> dict:
        return {
            value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in values
        }

    policies = checkpoint.policies
    return ModelCard(
        name=name,
        student=checkpoint.student,
        form=form,
        precision=precision,
        grid=student.grid,
        nominal_dt=0.1,
        dt_range=(0.04, 0.25),
        num_sweeps=student.num_sweeps,
        inputs=shapes(proto.graph.input),
        outputs=shapes(proto.graph.output),
        training={key: value for key, value in checkpoint.provenance.items() if key not in policies},
        versions={'torch': str(torch.__version__), 'onnx': onnx.__version__, 'opset': OPSET},
        **policies,
        **beside,
    )
