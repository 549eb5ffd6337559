# SPDX-License-Identifier: Apache-2.0
"""mono_lite: geometry of its ego motion, sizes, and the state between steps."""

import pytest

torch = pytest.importorskip('torch', reason='students need torch')
from torch.nn import functional  # noqa: E402

from training.students import MONO_STUDENTS, build_student  # noqa: E402
from training.students.flip_averaging import flip_averaged  # noqa: E402
from training.students.mono_geometry import depth_of, optical_flow  # noqa: E402
from training.students.mono_lite import MonoLite, MonoLiteState  # noqa: E402
from training.students.stereo_layers import pixel_grid, sample_at  # noqa: E402

_WIDTH, _HEIGHT = 96, 64
_CAMERA = torch.tensor([[[58.0, 0, 47], [0, 58, 31], [0, 0, 1]]])


@pytest.fixture(scope='module')
def run():
    """A student whose heads are not 0, images (1, 5, 3, H, W), and the flows of a sequence."""
    torch.manual_seed(0)
    student = MonoLite().eval()
    for last in (*(head[-1] for head in student.heads), *student.matches):
        torch.nn.init.normal_(last.weight, std=0.01)
    images = torch.rand(1, 5, 3, _HEIGHT, _WIDTH)
    with torch.no_grad():
        return student, images, student.sequence(images, _CAMERA)


def test_a_new_student_sees_one_depth_and_pixels_that_rest():
    """Three times the same image: the motion is 0 where matches are, and the depth stays near the first one."""
    assert MONO_STUDENTS['mono_lite']().name == 'mono_lite'
    torch.manual_seed(0)
    student = build_student('mono_lite').eval()
    image = torch.rand(2, 3, _HEIGHT, _WIDTH)
    with torch.no_grad():
        flow, _ = student(image, image, image, _CAMERA.expand(2, 3, 3))
    assert [tuple(values.shape[1:]) for values in flow.forward] == [(3, 64, 96), (3, 32, 48), (3, 16, 24), (3, 8, 12)]
    assert [tuple(values.shape[1:]) for values in flow.disparity] == [
        (1, 64, 96), (1, 32, 48), (1, 16, 24), (1, 8, 12),
    ]  # fmt: skip
    moved = optical_flow(flow.forward[0], flow.disparity[0], _CAMERA.expand(2, 3, 3))
    assert float(moved.abs().mean()) < 0.5  # px
    assert 8 < float(depth_of(flow.disparity[0], _CAMERA).mean()) < 32


def test_a_new_student_follows_its_features():
    """Features that are shifted are a turn of the camera, to first order: the fit finds it before it has learned."""
    torch.manual_seed(0)
    student, shift = build_student('mono_lite').eval(), 4.0  # px
    width, height, turned = 320, 96, ([], [], [])
    for stride, num in ((32, 96), (16, 64), (8, 48), (4, 32)):
        size = (height // stride, width // stride)
        noise = functional.avg_pool2d(torch.randn(1, num, size[0] + 2, size[1] + 2), 3, 1)
        for found, offset in zip(turned, (shift, 0, -shift), strict=True):
            moved = pixel_grid(*size, noise) + torch.tensor([offset / stride, 0])[:, None, None]
            found.append(sample_at(noise, moved))
    camera = torch.tensor([[[200.0, 0, 160], [0, 200, 48], [0, 0, 1]]])
    with torch.no_grad():
        flow, _ = student.step(*map(tuple, turned), camera)
    for motion, expected in ((flow.forward[0], shift), (flow.backward[0], -shift)):
        found = optical_flow(motion, flow.disparity[0], camera)[0, :, 16:-16, 32:-32]
        assert abs(float(found[0].mean()) - expected) < 0.5 and float(found[1].abs().mean()) < 0.5  # px


def test_streaming_equals_the_sequence_and_zeros_begin_anew(run):
    student, images, flows = run
    with torch.no_grad():
        features = [student.features(image) for image in images.unbind(1)]
        state = student.first_state(1, _HEIGHT, _WIDTH)
        for k, expected in enumerate(flows):
            flow, state = student.step(*features[k : k + 3], _CAMERA, state)
            torch.testing.assert_close(flow.forward[0], expected.forward[0], atol=1e-4, rtol=0)  # m, at 16 m
            torch.testing.assert_close(flow.disparity[0], expected.disparity[0], atol=1e-6, rtol=0)
        anew, _ = student(*images[:, 2:].unbind(1), _CAMERA)
    assert [tuple(part.shape) for part in state] == [(1, 64, 4, 6), (1, 64, 8, 12)]
    assert float((anew.disparity[0] - flows[2].disparity[0]).abs().max()) > 1e-5, 'the state has no effect'


def test_both_directions_of_time_are_told_apart(run):
    student, images, _ = run
    with torch.no_grad():
        flow, _ = student(*images[:, :3].unbind(1), _CAMERA)
        turned, _ = student(*images[:, [2, 1, 0]].unbind(1), _CAMERA)
    assert float((flow.forward[0] - turned.forward[0]).abs().max()) > 1e-4


def test_every_weight_learns(run):
    student, images, _ = run
    student.zero_grad()
    flows = student.sequence(images[:, :4], _CAMERA)
    sum(
        (flow.forward[0].square().mean() + flow.backward[0].mean() + flow.disparity[0].mean()) for flow in flows
    ).backward()
    assert [name for name, weight in student.named_parameters() if not weight.grad.any()] == []


def test_flip_averaging_takes_this_student_too(run):
    student, images, _ = run
    with torch.no_grad():
        [flow] = flip_averaged(student, images[:, :3], _CAMERA)
    assert flow.forward[0].shape == (1, 3, _HEIGHT, _WIDTH)


def test_wrong_sizes_are_errors(run):
    student, images, _ = run
    state = student.first_state(1, 2 * _HEIGHT, _WIDTH)
    with pytest.raises(ValueError, match='start anew without a state'):
        student(*images[:, :3].unbind(1), _CAMERA, state)
    with pytest.raises(ValueError, match='multiples of 32 px, not 96 x 60'):
        student(*images[:, :3, :, :60].unbind(1), _CAMERA)
    with pytest.raises(ValueError, match='expected intrinsics'):
        student(*images[:, :3].unbind(1), _CAMERA[0])
    with pytest.raises(ValueError, match='at least 3 images'):
        student.sequence(images[:, :2], _CAMERA)
    assert isinstance(student.first_state(2, 64, 96), MonoLiteState)
