# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's own parser and builder take what we export: TensorRT-RTX does both without a GPU."""

import onnx
import pytest

pytest.importorskip('tensorrt_rtx_bindings', reason='TensorRT-RTX is not installed (Makefile: TENSORRT_GATE)')
torch = pytest.importorskip('torch', reason='export needs torch')

from export import to_tensorrt  # noqa: E402
from export.to_onnx import export_onnx  # noqa: E402
from training.learning.checkpoint import Checkpoint  # noqa: E402
from training.students import STUDENTS, build_student  # noqa: E402
from zeroflow_ros.engines.selection import DEFAULT_MODEL, DEFAULT_MODELS  # noqa: E402

ABOUT = {'direction': 'both', 'ground': 'keep', 'z_origin': 'ground', 'licence': 'Apache-2.0'}
# Convolutions, what shapes tensors, and elementwise arithmetic: all of it is core TensorRT, and none has a size that
# depends on data.
CORE = {'Add', 'Cast', 'Concat', 'Constant', 'Conv', 'Div', 'Erf', 'Floor', 'Gather', 'Gelu', 'Gemm', 'LeakyRelu',
        'MatMul', 'Mod', 'Mul', 'Relu', 'Reshape', 'Resize', 'Shape', 'Sigmoid', 'Slice', 'Split', 'Sub', 'Tanh',
        'Transpose', 'Unsqueeze'}  # fmt: skip


# fastflow3d_xl is a wider fastflow3d, and the slowest: its float16 form is enough.
@pytest.mark.parametrize('name, precision', [
    (name, precision) for name in STUDENTS for precision in ('float32', 'float16')
    if (name, precision) != ('fastflow3d_xl', 'float32')
])  # fmt: skip
def test_every_student_builds(name, precision, tmp_path, capsys):
    torch.manual_seed(0)
    checkpoint = Checkpoint(name, build_student(name).state_dict(), ABOUT)
    export_onnx(checkpoint, tmp_path / 'dense.onnx', precision=precision)
    assert {node.op_type for node in onnx.load(tmp_path / 'dense.onnx').graph.node} <= CORE
    assert to_tensorrt.main([str(tmp_path / 'dense.onnx'), '--check']) == 0
    assert 'tensorrt_rtx 1.7.1.116 builds it in' in capsys.readouterr().out


def test_the_model_in_the_package_builds(capsys):
    assert to_tensorrt.main(['--check']) == 0
    assert DEFAULT_MODELS['tensorrt'].name in capsys.readouterr().out


def test_what_it_does_not_take_is_said_with_the_node(capsys):
    assert to_tensorrt.main([str(DEFAULT_MODEL), '--check']) == 1
    said = capsys.readouterr().err
    assert 'DequantizeLinear' in said and 'export.quantize' in said
