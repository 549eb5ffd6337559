# SPDX-License-Identifier: Apache-2.0
"""SeFlow's terms on clouds small enough to work out by hand."""

import pytest

torch = pytest.importorskip('torch', reason='losses need torch')

from training.learning.seflow_losses import PredictedPair, chamfer, cluster_loss, seflow_terms  # noqa: E402
from training.teachers.nearest import nearest_by_distance  # noqa: E402

NOBODY = torch.zeros(0, 3)


def on_x(*values):
    """Return points on the x axis."""
    return torch.tensor([[float(value), 0.0, 0.0] for value in values]).reshape(-1, 3)


@pytest.mark.parametrize(
    'label, points0, points1, expected',
    [
        ('both empty', NOBODY, NOBODY, 0.0),
        ('one empty', on_x(1), NOBODY, 0.0),
        ('one point each: squared, both ways', on_x(0), on_x(0.5), 0.25 + 0.25),
        ('each way has its own mean', on_x(0, 1), on_x(0), (0 + 1) / 2 + 0),
        ('2 m, squared 4, still counts', on_x(0), on_x(2), 4.0 + 4.0),
        ('farther than that is left out of the mean', on_x(0, 2.1, 50), on_x(0), 0.0),
        ('nothing near', on_x(0), on_x(9), 0.0),
    ],
)
def test_chamfer(label, points0, points1, expected):
    assert chamfer(points0, points1).item() == pytest.approx(expected, abs=1e-6)


def test_chamfer_and_its_gradient_are_those_of_all_pairs_compared():
    generator = torch.Generator().manual_seed(0)
    points0, points1 = (torch.rand(n, 3, generator=generator) * 8 for n in (300, 250))
    for cloud in (points0, points1):
        cloud.requires_grad_()
    squared = torch.cdist(points0, points1, compute_mode='donot_use_mm_for_euclid_dist') ** 2
    plain = sum(near[near <= 1.0].mean() for near in (squared.amin(1), squared.amin(0)))
    fast = chamfer(points0, points1, truncation=1.0)
    assert fast.item() == pytest.approx(plain.item(), rel=1e-5)
    for one, other in zip(*(torch.autograd.grad(loss, (points0, points1)) for loss in (fast, plain)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert (nearest_by_distance(points0.detach(), points1.detach(), 9.0) == squared.argmin(1)).all()


@pytest.mark.parametrize(
    'label, points0, labels0, points1, labels1, flow0, expected',
    [
        ('the way of the farthest point is the target of all: errors 0.5 and 0.2',
         on_x(0, 1), [2, 2], on_x(1, 1.5), [1, 1], on_x(0.5, 0.8), (abs(0.5 - 1) + abs(0.8 - 1)) / 2),
        ('what lands on something that stands is passed over: the target is 0.2',
         on_x(0, 5), [2, 2], on_x(1, 5.2), [0, 1], on_x(0, 0), 0.2),
        ('two clusters, one mean over their points',
         on_x(0, 10, 10), [2, 3, 3], on_x(0.6, 10.3), [1, 1], on_x(0, 0, 0), (0.6 + 0.3 + 0.3) / 3),
        ('unclustered points have no target', on_x(0, 7), [2, 1], on_x(0.6, 7.9), [1, 1], on_x(0, 3), 0.6),
        ('ground is no partner', on_x(0), [2], on_x(0.1, 0.6), [-1, 1], on_x(0), 0.6),
        ('no clusters: the mean squared distance at rest, up to 4', on_x(0, 9), [1, 1], on_x(0.5), [1], on_x(1, 1),
         0.25),
        ('no cluster with a target: the same', on_x(0), [2], on_x(0.5), [0], on_x(1), 0.25),
        ('nothing on the other side', on_x(0), [2], NOBODY, [], on_x(1), 0.0),
        ('nothing at all', NOBODY, [], NOBODY, [], NOBODY, 0.0),
    ],
)  # fmt: skip
def test_cluster_loss(label, points0, labels0, points1, labels1, flow0, expected):
    labels0, labels1 = (torch.tensor(labels, dtype=torch.int32) for labels in (labels0, labels1))
    loss = cluster_loss(PredictedPair(points0, points1, flow0, labels0, labels1))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def crowd(num_dynamic, shift=0.0):
    """Return a wall of ten points and some that move, 0.1 m apart, with labels: 0, and one body."""
    moving = on_x(*(100 + 0.1 * k + shift for k in range(num_dynamic)))
    labels = torch.tensor([0] * 10 + [2] * num_dynamic, dtype=torch.int32)
    return torch.cat([on_x(*range(10)), moving]), labels


@pytest.mark.parametrize('num_dynamic, counts', [(256, False), (257, True)])
def test_dynamic_terms_need_more_than_256_points_of_both_clouds(num_dynamic, counts):
    (points0, labels0), (points1, labels1) = crowd(300), crowd(num_dynamic, 0.03)
    terms = seflow_terms(PredictedPair(points0, points1, torch.zeros_like(points0), labels0, labels1))
    assert (terms.dynamic_chamfer.item() > 0) == (terms.cluster.item() > 0) == counts
    assert terms.chamfer.item() > 0


def test_the_true_flow_costs_nothing_and_no_flow_costs_something():
    (points0, labels0), (points1, labels1) = crowd(300), crowd(300, 0.5)
    flow = torch.where(labels0[:, None] > 0, on_x(0.5), on_x(0))
    true = seflow_terms(PredictedPair(points0, points1, flow, labels0, labels1))
    assert max(term.item() for term in true) < 1e-4  # m, m^2: float32 at 130 m
    none = seflow_terms(PredictedPair(points0, points1, flow * 0, labels0, labels1))
    assert none.cluster.item() == pytest.approx(0.5, abs=1e-4) and none.chamfer.item() > 1e-3


def test_what_stands_costs_the_length_of_its_flow_and_ground_is_compared_with_nothing():
    points = torch.cat([on_x(0, 10), on_x(20)])
    labels = torch.tensor([0, -1, -2], dtype=torch.int32)  # stands, ground, not asked
    flow = on_x(0.3, 0.1, 0.5)
    terms = seflow_terms(PredictedPair(points, points, flow, labels, labels))
    assert terms.static.item() == pytest.approx((0.3 + 0.1) / 2)
    assert terms.chamfer.item() == pytest.approx(2 * (0.09 + 0.25) / 2, abs=1e-6)  # not the ground


@pytest.mark.parametrize('sizes', [(0, 0), (0, 3), (3, 0), (3, 3)])
@pytest.mark.parametrize('label', [-2, -1, 0, 1, 2])
def test_a_cloud_of_one_kind_has_a_finite_loss_and_gradient(sizes, label):
    """All ground, nothing asked, nothing moves, everything does; an empty cloud on either side."""
    clouds = [torch.rand(size, 3, generator=torch.Generator().manual_seed(size)) for size in sizes]
    labels = [torch.full((size,), label, dtype=torch.int32) for size in sizes]
    flow = torch.zeros(sizes[0], 3, requires_grad=True)
    loss = sum(seflow_terms(PredictedPair(*clouds, flow, *labels)))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(flow.grad).all()
