# SPDX-License-Identifier: Apache-2.0
"""The students: published layout, and physics that must hold for any weights."""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='students need torch')

from training.students import STUDENTS, build_student  # noqa: E402
from training.students.fastflow3d_lite import FastFlow3DLite  # noqa: E402
from training.students.pillar_net import PillarGridTensors  # noqa: E402
from zeroflow_ros.errors import ConfigError  # noqa: E402
from zeroflow_ros.lidar.pillars import PillarEncoder, PillarGrid  # noqa: E402

SMALL = PillarGrid(32, 0.4, -2.0, 4.0)


def cloud(num_points, grid=SMALL, seed=0):
    rng = np.random.default_rng(seed)
    reach = [grid.half_extent * 0.99, grid.half_extent * 0.99, 1.5]
    return torch.from_numpy((rng.uniform(-1, 1, (num_points, 3)) * reach).astype(np.float32))


@pytest.fixture(scope='module')
def lite():
    torch.manual_seed(0)
    return FastFlow3DLite(grid=SMALL).eval()


@pytest.mark.parametrize(
    'name, entries, parameters', [('fastflow3d', 148, 6_815_619), ('fastflow3d_xl', 198, 110_618_147)]
)
def test_published_size(name, entries, parameters):
    with torch.device('meta'):  # sizes alone: XL would take half a gigabyte
        student = build_student(name)
    assert len(student.state_dict()) == entries
    assert sum(parameter.numel() for parameter in student.parameters()) == parameters


@pytest.mark.parametrize('name', ['fastflow3d', 'fastflow3d_xl'])
def test_published_names_and_shapes(shared_data, name):
    with torch.device('meta'):
        found = {key: str(tuple(value.shape)) for key, value in build_student(name).state_dict().items()}
    lines = (shared_data.parent / f'{name}_state_dict.txt').read_text().splitlines()
    assert found == dict(line.split(' ', 1) for line in lines if line.strip())


def test_full_student_runs_and_is_local():
    """A point far from all change keeps its flow: receptive field, cell order and gather are right way round."""
    torch.manual_seed(0)
    student = build_student('fastflow3d').eval()
    student.grid = PillarGrid(128, 0.2, -3.0, 3.0)
    points = cloud(500, student.grid)
    with torch.no_grad():
        before = student(points, points)
        moved = points.clone()
        moved[0] = torch.tensor([0.05, 0.05, 0.0])
        after = student(points, moved)
    assert before.shape == (500, 3) and torch.isfinite(before).all()
    assert not torch.allclose(before, after)


def test_lite_is_small():
    assert sum(parameter.numel() for parameter in build_student('fastflow3d_lite').parameters()) < 800_000


@pytest.fixture(scope='module')
def lite_5():
    torch.manual_seed(0)
    return FastFlow3DLite(num_sweeps=5, grid=SMALL).eval()


def test_both_ends_of_a_window_see_it_from_their_side(lite_5):
    window, short = [cloud(100 + k, seed=k) for k in range(5)], [cloud(90, seed=8), cloud(80, seed=9)]
    rows = torch.arange(100), torch.arange(104)
    short_rows = torch.arange(90), torch.arange(80)
    with torch.no_grad():
        [(first, last), (short_first, _), (first_of_3, last_of_3)] = lite_5.forward_both(
            [window, short, window], [rows, short_rows, rows], [5, 2, 3]
        )
        close = dict(atol=1e-5, rtol=0)
        torch.testing.assert_close(first, lite_5(*window)[rows[0]], **close)
        torch.testing.assert_close(last, lite_5(*window[::-1])[rows[1]], **close)
        torch.testing.assert_close(short_first, lite_5(*short), **close)
        torch.testing.assert_close(first_of_3, lite_5(*window[:3])[rows[0]], **close)
        torch.testing.assert_close(last_of_3, lite_5(*window[:1:-1])[rows[1]], **close)
    assert not torch.allclose(first, first_of_3, atol=1e-3)  # the older sweeps count


def test_unknown_student_is_named():
    with pytest.raises(ConfigError, match='fastflow3d_lite'):
        build_student('fastflow4d')
    assert {'fastflow3d', 'fastflow3d_xl', 'fastflow3d_lite'} <= set(STUDENTS)


def test_order_of_points_does_not_matter(lite):
    points0, points1 = cloud(300, seed=1), cloud(200, seed=2)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        flow, shuffled = lite(points0, points1), lite(points0[order], points1.flip(0))
    torch.testing.assert_close(shuffled, flow[order], atol=1e-5, rtol=0)


def test_both_directions_equal_two_single_runs(lite):
    points0, points1 = cloud(300, seed=1), cloud(200, seed=2)
    with torch.no_grad():
        rows = (torch.arange(0, 300, 2), torch.arange(200))
        [(flow0, flow1), _] = lite.forward_both([(points0, points1), (points1, points0)], [rows, rows[::-1]])
        torch.testing.assert_close(flow0, lite(points0, points1)[::2], atol=1e-5, rtol=0)
        torch.testing.assert_close(flow1, lite(points1, points0), atol=1e-5, rtol=0)


def test_cells_and_offsets_equal_numpy():
    points = np.random.default_rng(0).normal(0, 6, (5000, 3)).astype(np.float32)
    cells = SMALL.assign(points)
    tensors = PillarGridTensors(SMALL)
    found = tensors.assign(torch.from_numpy(points))
    np.testing.assert_array_equal(np.where(found.numpy() == tensors.num_cells, -1, found.numpy()), cells)
    inside = np.flatnonzero(cells >= 0)
    offsets = tensors.centre_offsets(torch.from_numpy(points[inside]), found[inside])
    np.testing.assert_allclose(offsets.numpy(), SMALL.centre_offsets(points[inside], cells[inside]), atol=1e-5)


def test_pseudo_image_equals_numpy_with_batch_norm_folded():
    torch.manual_seed(3)
    student = FastFlow3DLite(grid=SMALL)
    norm = student.embedder.feature_net.pfn_layers[0][1]
    torch.nn.init.uniform_(norm.running_mean, -1, 1)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    torch.nn.init.uniform_(norm.weight, -1, 1)
    torch.nn.init.uniform_(norm.bias, -1, 1)
    points = cloud(4000)
    with torch.no_grad():
        image, cells, _ = student.eval().pseudo_image(points)
    weight, bias = (tensor.numpy() for tensor in student.embedder.feature_net.folded())
    ours = PillarEncoder(SMALL, weight, bias).encode_plain(points.numpy(), cells.numpy())
    np.testing.assert_allclose(image.numpy(), ours, atol=1e-5)  # float32 sums of some ten values of order 1


def test_points_outside_reach_no_pillar(lite):
    inside = cloud(200)
    outside = torch.tensor([[100.0, 0, 0], [0, 0, 50.0]])
    with torch.no_grad():
        image, _, _ = lite.pseudo_image(inside)
        with_outside, cells, _ = lite.pseudo_image(torch.cat([inside, outside]))
    torch.testing.assert_close(image, with_outside, atol=1e-6, rtol=0)
    assert cells[-2:].tolist() == [SMALL.cells**2] * 2


@pytest.mark.parametrize('name', ['fastflow3d', 'deflow'])
def test_merged_layers_do_the_same(name):
    """Up to the edges, where convolutions see zeros: a bias moved through one of them would show there."""
    torch.manual_seed(5)
    student = build_student(name).eval()
    for parameter in student.parameters():
        torch.nn.init.uniform_(parameter, -0.1, 0.1)
    images = torch.rand(1, 64, 64, 64)
    num_layers = [sum(isinstance(module, torch.nn.Conv2d) for module in student.modules())]
    with torch.no_grad():
        before = student.hidden(images)
        student.merge_layers()
        after = student.hidden(images)
    num_layers.append(sum(isinstance(module, torch.nn.Conv2d) for module in student.modules()))
    assert num_layers[0] - num_layers[1] == 2
    assert before.std() > 0.01
    torch.testing.assert_close(after, before, atol=1e-5 * before.abs().max().item(), rtol=0)


def test_a_trained_encoder_sees_one_sweep_at_a_time():
    """As in the published training, for the statistics; otherwise both sweeps go through it as one batch."""
    torch.manual_seed(6)
    student = build_student('fastflow3d').train()
    images = torch.rand(2, 64, 64, 64)
    student.hidden(images)
    assert student.backbone.encoder_step_1[0].batchnorm.num_batches_tracked == 2
    with torch.no_grad():
        as_one = student.eval().hidden(images)
        student.backbone.training = True
        torch.testing.assert_close(student.hidden(images), as_one)
