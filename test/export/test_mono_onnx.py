# SPDX-License-Identifier: Apache-2.0
"""Students of one camera as model files: the state goes in and out, and the flow is that of torch."""

import numpy as np
import onnx
import pytest

torch = pytest.importorskip('torch', reason='export needs torch')
pytest.importorskip('onnxruntime')
pytest.importorskip('cv2', reason='camera images need OpenCV')

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from export import mono_onnx, to_onnx  # noqa: E402
from training.learning.checkpoint import Checkpoint  # noqa: E402
from training.students import build_student  # noqa: E402
from training.students.mono_geometry import depth_of, optical_flow, resize  # noqa: E402
from training.students.mono_state import Carrier, MonoState  # noqa: E402
from training.students.multi_mono_sf import MonoFlow, MultiMonoSf, normalised  # noqa: E402
from zeroflow_ros.camera.mono import MonoFrame  # noqa: E402
from zeroflow_ros.camera.stereo import StereoCamera  # noqa: E402
from zeroflow_ros.engines.mono_network import MonoNetworkFlow  # noqa: E402

ABOUT = {'licence': 'Apache-2.0', 'data': 'test', 'config': {'width': 64, 'height': 64}}
SIDE = 64
CAMERA = StereoCamera(SIDE, SIDE, 40.0, 40.0, 31.5, 31.5, 1.0)


class Tiny(MultiMonoSf):
    """The interface, the state and the splat of multi_mono_sf with few layers: the network itself takes minutes."""

    def __init__(self):
        nn.Module.__init__(self)
        self.corrected = False
        self.convs = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in mono_onnx.STRIDES)
        self.gate = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.gate.weight)
        nn.init.constant_(self.gate.bias, 2.0)

    def features(self, image):
        pairs = zip(self.convs, mono_onnx.STRIDES, strict=True)
        return (*(conv(functional.avg_pool2d(image, stride)) for conv, stride in pairs), image[:, :, ::2, ::2])

    def step(self, features0, features1, features2, intrinsics, state=None, *, continues=None):
        hidden = list(features1[:4])
        if state is not None:
            carrier = Carrier(state, normalised(features0[3]), normalised(features1[3]), self.gate, scaled=False)
            carried = hidden[3] + carrier.carry(state.forward_hidden[3]) / 2
            hidden[3] = carried if continues is None else torch.where(continues, carried, hidden[3])
        full, change = (resize(part, SIDE, SIDE) for part in (hidden[3], features2[3] - features0[3]))
        disparity, forward = 0.05 + 0.1 * torch.sigmoid(full[:, :1]), change[:, :3] + full[:, 1:] / 10
        motion = optical_flow(forward, disparity, intrinsics)
        state = MonoState(tuple(hidden), tuple(hidden), tuple((one, one) for one in hidden[1:]), motion, disparity)
        return MonoFlow((forward,), (-forward,), (disparity,)), state


def images(num):
    """Return images (H, W, 3) uint8 of a pattern that moves."""
    pattern = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    return [np.ascontiguousarray(pattern[k : k + SIDE, 2 * k : 2 * k + SIDE]) for k in range(num)]


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Return (student, path, card)."""
    torch.manual_seed(0)
    student, path = Tiny().eval(), tmp_path_factory.mktemp('mono') / 'm.onnx'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, 'build', lambda self: student)
        card = mono_onnx.export_mono_onnx(Checkpoint('multi_mono_sf', {}, ABOUT), path, sigma=(0.1, 0.005))
    return student, path, card


def test_twenty_frames_have_the_flow_of_torch(exported):
    student, path, _ = exported
    estimator = MonoNetworkFlow(path, num_threads=2)
    frames = [MonoFrame(image, CAMERA, 1 + k * 10**8) for k, image in enumerate(images(22))]
    found = [estimator._feed(frame) for frame in frames][2:]
    with torch.no_grad():
        stacked = torch.from_numpy(np.stack([frame.image for frame in frames])).permute(0, 3, 1, 2)[None] / 255
        intrinsics = torch.tensor([[[40.0, 0, 31.5], [0, 40.0, 31.5], [0, 0, 1]]])
        expected = student.sequence(stacked, intrinsics)
        without_state = student.step(*(student.features(stacked[:, k]) for k in (19, 20, 21)), intrinsics)[0]
    assert len(found) == len(expected) == 20
    for values, flow in zip(found, expected, strict=True):
        np.testing.assert_allclose(values[:1], depth_of(flow.disparity[0], intrinsics)[0], rtol=1e-4)
        np.testing.assert_allclose(values[1:], flow.forward[0][0], atol=1e-4)  # m
    last = expected[-1].forward[0]
    assert (last - without_state.forward[0]).abs().mean() > 1e-3, 'the state makes no difference'


def test_the_card_says_what_the_vehicle_needs(exported):
    _, path, card = exported
    assert (card.sensor, card.refers_to, card.num_images, card.latency_intervals) == ('mono', 'previous', 3, 1)
    assert (card.width, card.height, card.resize, card.splat) == (SIDE, SIDE, 'scale', 'published')
    assert 'fx * 0.54 m / disparity' in card.scale and card.licence == 'Apache-2.0' and len(card.checksum) == 64
    assert card.training == {'data': 'test', 'config': {'width': 64, 'height': 64}} and card.sigma == (0.1, 0.005)
    assert card.state['newer_8'] == card.state['forward_8'] == [1, 4, 8, 8] and card.state['flow'] == [1, 2, 64, 64]
    assert 'backward_cell_4' not in card.state  # both directions share one
    nodes = onnx.load(path).graph.node
    # ONNX Runtime adds wrongly in ScatterND with two threads, and TensorRT refuses it.
    assert {'ScatterElements'} == {node.op_type for node in nodes if 'Scatter' in node.op_type}
    assert MonoNetworkFlow(path).card == card


@pytest.mark.parametrize('name', ['multi_mono_sf_corrected', 'mono_lite'])
def test_the_state_of_each_student_goes_through_its_names(name):
    torch.manual_seed(0)
    student = build_student(name).eval()
    for head in getattr(student, 'heads', ()):
        nn.init.normal_(head[-1].weight, 0, 0.02)
    network = mono_onnx.mono_network(student)
    intrinsics = torch.tensor([[[40.0, 0, 31.5], [0, 40.0, 31.5], [0, 0, 1]]])
    state = network.first_state(SIDE, SIDE)
    tensors = [torch.from_numpy(image)[None] for image in images(4)]
    with torch.no_grad():
        for image in tensors:
            scene, *after = network(image, intrinsics, *state.values())
            state = dict(zip(state, after, strict=True))
        stacked = torch.cat(tensors).permute(0, 3, 1, 2)[None] / 255
        expected = student.sequence(stacked, intrinsics)[-1]
    torch.testing.assert_close(scene[:, 1:], expected.forward[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scene[:, :1], depth_of(expected.disparity[0], intrinsics), atol=0, rtol=1e-4)
    assert float(state['num_images']) == 3 and network.splat == ('none' if name == 'mono_lite' else 'corrected')


def test_wrong_arguments_are_said(tmp_path, capsys):
    torch.manual_seed(0)
    path = tmp_path / 'c.pt'
    Checkpoint('mono_lite', build_student('mono_lite').state_dict(), ABOUT).save(path)
    for options, said in [
        (['--size', '100x64', '--sigma-relative', '0.1', '0.01'], 'multiples of 32 px, got 100 x 64'),
        ([], 'does not estimate its errors. Give their standard deviations'),
        (['--precision', 'float16'], 'exported in float32'),
    ]:
        assert to_onnx.main([str(path), '--out', str(tmp_path / 'm.onnx'), *options]) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / 'm.onnx').exists()


def test_a_state_of_another_size_is_refused(exported):
    _, path, _ = exported
    estimator = MonoNetworkFlow(path)
    estimator._state['forward_8'] = np.zeros((1, 4, 8, 4), np.float32)
    with pytest.raises(Exception, match='forward_8'):
        estimator._feed(MonoFrame(images(1)[0], CAMERA, 1))
