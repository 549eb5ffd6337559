# SPDX-License-Identifier: Apache-2.0
"""mono_lite: geometry of its ego motion, sizes, and the state between steps."""

import pytest

torch = pytest.importorskip('torch', reason='students need torch')

from training.students import MONO_STUDENTS, build_student  # noqa: E402
from training.students.flip_averaging import flip_averaged  # noqa: E402
from training.students.mono_geometry import depth_of, optical_flow, points_of  # noqa: E402
from training.students.mono_lite import MonoLite, MonoLiteState  # noqa: E402

_WIDTH, _HEIGHT = 96, 64
_CAMERA = torch.tensor([[[58.0, 0, 47], [0, 58, 31], [0, 0, 1]]])


@pytest.fixture(scope='module')
def run():
    """A student whose heads are not 0, images (1, 5, 3, H, W), and the flows of a sequence."""
    torch.manual_seed(0)
    student = MonoLite().eval()
    for head in student.heads:
        torch.nn.init.normal_(head[-1].weight, std=0.01)
    images = torch.rand(1, 5, 3, _HEIGHT, _WIDTH)
    with torch.no_grad():
        return student, images, student.sequence(images, _CAMERA)


def test_a_new_student_sees_a_static_world_at_one_depth():
    assert MONO_STUDENTS['mono_lite']().name == 'mono_lite'
    student = build_student('mono_lite').eval()
    with torch.no_grad():
        flow, _ = student(*torch.rand(3, 2, 3, _HEIGHT, _WIDTH), _CAMERA.expand(2, 3, 3))
    for values, disparity in zip((*flow.forward, *flow.backward), (*flow.disparity,) * 2, strict=True):
        assert not values.any() and len(values) == 2
        assert disparity.shape == (2, 1, *values.shape[2:]) and float(disparity.std()) < 1e-7
    assert [tuple(values.shape[2:]) for values in flow.forward] == [(64, 96), (32, 48), (16, 24), (8, 12)]


@pytest.mark.parametrize(
    ('turn', 'shift'),
    [((0, 0, 0), (0, 0, -1.0)), ((0, 0.03, 0), (0, 0, 0)), ((0.01, -0.02, 0.005), (0.1, 0, -0.8))],
    ids=['forward', 'turn', 'both'],
)
def test_ego_motion_moves_a_static_scene_rigidly(turn, shift):
    student = MonoLite().eval()
    ego = torch.tensor([*(part / 0.05 for part in turn), *(part / 2 for part in shift)])
    student.heads[0][-1].bias.data[7:13], student.heads[0][-1].bias.data[13:19] = ego, -ego
    with torch.no_grad():
        flow, _ = student(*torch.rand(3, 1, 3, _HEIGHT, _WIDTH), _CAMERA)
    skew = torch.zeros(3, 3)
    skew[0, 1], skew[0, 2], skew[1, 2] = -turn[2], turn[1], -turn[0]
    rotation = torch.linalg.matrix_exp(skew - skew.T)
    points = points_of(flow.disparity[0], _CAMERA)
    shift = torch.tensor(shift)[:, None, None]
    moved = (rotation @ points.flatten(2)).reshape(points.shape) + shift
    difference = flow.forward[0] - (moved - points)
    assert float(difference.abs().max()) < 1e-3  # m; the third order of a turn of 0.03 rad is 0.1 mm at 20 m
    if not any(turn):
        assert float((flow.backward[0] + flow.forward[0]).abs().max()) < 1e-5
        u = torch.arange(_WIDTH) - 47.0
        expected = u / float(depth_of(flow.disparity[0], _CAMERA).mean() - 1)  # u' = f x / (z - 1 m)
        torch.testing.assert_close(
            optical_flow(flow.forward[0], flow.disparity[0], _CAMERA)[0, 0, 5], expected, atol=1e-3, rtol=0
        )


def test_streaming_equals_the_sequence_and_zeros_begin_anew(run):
    student, images, flows = run
    with torch.no_grad():
        features = [student.features(image) for image in images.unbind(1)]
        state = student.first_state(1, _HEIGHT, _WIDTH)
        for k, expected in enumerate(flows):
            flow, state = student.step(*features[k : k + 3], _CAMERA, state)
            torch.testing.assert_close(flow.forward[0], expected.forward[0], atol=1e-5, rtol=0)
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
