# SPDX-License-Identifier: Apache-2.0
"""The optimiser: what one step does, and that it gets somewhere."""

import math

import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from torch import nn  # noqa: E402

from training.learning.muon import Muon, orthogonalize  # noqa: E402


@pytest.mark.parametrize('rows, columns', [(32, 288), (128, 16), (64, 64), (1, 9)])
def test_a_matrix_becomes_nearly_orthogonal(rows, columns):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    matrix = left @ torch.diag(torch.logspace(0, -1, min(rows, columns))) @ right
    for scale in (1e-3, 1.0, 1e3):
        found = orthogonalize(scale * matrix)
        values = torch.linalg.svdvals(found)
        assert found.shape == matrix.shape and 0.6 < values.min() and values.max() < 1.25
        assert torch.trace(found @ (left @ right).T) > 0.6 * min(rows, columns)  # along the same directions
    assert not orthogonalize(torch.zeros(rows, columns)).any()


def test_convolutions_move_by_orthogonal_steps_and_the_rest_by_adam():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Linear(4, 2))
    twin = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    ours, adam = Muon(model, lr=0.1, weight_decay=0.5), torch.optim.AdamW(twin, lr=0.1, weight_decay=0.5)
    for step in range(3):
        for parameter, other in zip(model.parameters(), twin, strict=True):
            parameter.grad = other.grad = torch.randn_like(parameter)
        before = model[0].weight.detach().clone()
        ours.step()
        adam.step()
        if step == 0:
            moved = (before * (1 - 0.1 * 0.5) - model[0].weight).flatten(1)
            wanted = 0.1 * 0.2 * math.sqrt(2 * 3 * 3) * orthogonalize(model[0].weight.grad.flatten(1))
            torch.testing.assert_close(moved, wanted, atol=1e-5, rtol=1e-4)
    for (name, parameter), other in zip(model.named_parameters(), twin, strict=True):
        if name not in ('0.weight', '2.weight'):
            torch.testing.assert_close(parameter, other)


def test_it_learns_what_a_convolution_does():
    torch.manual_seed(2)
    wanted, model = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)
    optimizer = Muon(model, lr=0.03, weight_decay=0.0)

    def loss():
        images = torch.rand(8, 3, 6, 6) - 0.5
        optimizer.zero_grad()
        error = (model(images) - wanted(images).detach()).square().mean()
        error.backward()
        return error.item()

    losses = []
    for step in range(200):
        for group in optimizer.param_groups:
            group['lr'] = 0.03 * (1 - step / 200)
        losses.append(optimizer.step(loss))
    assert losses[-1] < 1e-3 * losses[0]
