# SPDX-License-Identifier: Apache-2.0
"""Students for stereo cameras as model files: the same scene flow, operators that engines take, and the card."""

import numpy as np
import onnx
import pytest

torch = pytest.importorskip('torch', reason='export needs torch')

from export import stereo_onnx, to_onnx, to_tensorrt  # noqa: E402
from export.onnx_graph import OPSET  # noqa: E402
from training.learning.checkpoint import Checkpoint  # noqa: E402
from training.students.dwarf import Dwarf, _warped  # noqa: E402
from training.students.stereo_layers import legacy_upsample  # noqa: E402
from training.students.stereo_lite import StereoLite  # noqa: E402
from zeroflow_ros.camera.static_scene import pixel_motion  # noqa: E402
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame  # noqa: E402
from zeroflow_ros.engines.stereo_network import NetworkStereoFlow  # noqa: E402
from zeroflow_ros.transforms import yaw_translation  # noqa: E402

ABOUT = {'licence': 'Apache-2.0', 'data': 'test', 'step': 7}
# TensorRT takes all of them; none has a size that depends on data.
CORE = {'Add', 'And', 'AveragePool', 'Cast', 'Clip', 'Concat', 'Constant', 'Conv', 'DepthToSpace',
        'Div', 'Exp', 'Gather', 'GreaterOrEqual', 'GridSample', 'LeakyRelu', 'Less', 'MatMul', 'Mul', 'Neg', 'Pad',
        'ReduceSum', 'Relu', 'Reshape', 'Resize', 'Slice', 'Softmax', 'Split', 'Sub', 'Tile', 'Transpose',
        'Expand', 'Unsqueeze'}  # fmt: skip
CAMERA = StereoCamera(64, 64, 50.0, 50.0, 31.5, 31.5, 0.5)


def lively(student):
    """Return a student whose random weights give scene flow of some pixels."""
    torch.manual_seed(0)
    for name, parameter in student.named_parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)
        elif name.endswith('bias'):
            torch.nn.init.normal_(parameter, 0, 0.1)
    return student


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Return a student, its model file and the card of that."""
    student, path = lively(StereoLite((16, 16, 16, 16), 8)).eval(), tmp_path_factory.mktemp('model') / 'm.onnx'
    checkpoint = Checkpoint(student.name, student.state_dict(), ABOUT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, 'build', lambda self: student)
        return student, path, stereo_onnx.export_stereo_onnx(checkpoint, path, size=(64, 64))


def test_a_model_file_gives_the_scene_flow_of_its_student(exported):
    student, path, card = exported
    assert (card.width, card.height, card.resize, card.student) == (64, 64, student.resize, student.name)
    assert card.training == {'data': 'test', 'step': 7} and card.licence == 'Apache-2.0'
    assert {node.op_type for node in onnx.load(path).graph.node} <= CORE
    rng = np.random.default_rng(0)
    frames = [StereoFrame(*rng.integers(0, 256, (2, 64, 64, 3), np.uint8), CAMERA) for _ in range(2)]
    images = [torch.from_numpy(image).permute(2, 0, 1)[None] / 255 for f in frames for image in (f.left, f.right)]
    other_T_reference = yaw_translation(0.02, 0.1, 0.0, -0.4)
    with torch.no_grad():
        expected = student(*images, torch.from_numpy(pixel_motion(CAMERA, other_T_reference))[None])
    found = NetworkStereoFlow(path, num_threads=1).estimate(*frames, other_T_reference)
    assert expected.flow.abs().max() > 1  # px
    near = {'atol': 1e-3, 'rtol': 5e-5}  # px; flows go up to 60 px
    np.testing.assert_allclose(found.disparity, expected.disparity[0, 0], **near)
    for values, wanted in [
        (found.other_disparity, expected.other_disparity[0, 0]), (found.flow, expected.flow[0].permute(1, 2, 0)),
    ]:  # fmt: skip
        assert np.isclose(values, wanted, **near).mean() > 0.8  # the others agree with the static scene, and rest
    np.testing.assert_allclose(found.flow_sigma, expected.log_sigma[0, 2].exp() * np.sqrt(2), rtol=1e-3)


def test_tensorrt_takes_the_model_file(exported, capsys):
    pytest.importorskip('tensorrt_rtx_bindings', reason='TensorRT-RTX is not installed (Makefile: TENSORRT_GATE)')
    assert to_tensorrt.main([str(exported[1]), '--check']) == 0
    assert 'tensorrt_rtx 1.7.1.116 builds it in' in capsys.readouterr().out


class DwarfLayers(torch.nn.Module):
    """The layers of DWARF that other students do not have: warps and the legacy resize."""

    def forward(self, maps, values):
        return torch.cat([legacy_upsample(part, 4) for part in (*_warped(*maps.chunk(4), values), values)], dim=1)


def test_onnx_runtime_computes_the_layers_of_dwarf(tmp_path):
    """The whole network takes minutes to export."""
    onnxruntime = pytest.importorskip('onnxruntime')
    torch.manual_seed(0)
    arguments = torch.randn(4, 6, 8, 12) * 3, torch.randn(1, 4, 8, 12) * 3
    torch.onnx.export(
        DwarfLayers().eval(), arguments, str(tmp_path / 'm.onnx'), input_names=['maps', 'values'], dynamo=True,
        opset_version=OPSET, verbose=False,
    )  # fmt: skip
    assert {node.op_type for node in onnx.load(tmp_path / 'm.onnx').graph.node} <= CORE
    session = onnxruntime.InferenceSession(str(tmp_path / 'm.onnx'), providers=['CPUExecutionProvider'])
    [found] = session.run(None, dict(zip(('maps', 'values'), (part.numpy() for part in arguments), strict=True)))
    np.testing.assert_allclose(found, DwarfLayers()(*arguments), atol=1e-3)


def test_wrong_arguments_are_said(tmp_path, capsys):
    torch.manual_seed(0)
    path = tmp_path / 'c.pt'
    with torch.device('meta'):
        state = Dwarf().state_dict()
    Checkpoint('dwarf', {key: torch.zeros(1).expand(value.shape) for key, value in state.items()}, ABOUT).save(path)
    for options, said in [
        (['--size', '100x64'], 'multiples of 64 px, got 100 x 64'),
        ([], 'does not estimate its errors. Give their standard deviations'),
        (['--precision', 'float16'], 'exported in float32'),
    ]:
        assert to_onnx.main([str(path), '--out', str(tmp_path / 'm.onnx'), *options]) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / 'm.onnx').exists()
