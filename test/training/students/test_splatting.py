# SPDX-License-Identifier: Apache-2.0
"""Forward warps against what a loop over pixels gives."""

import math

import pytest

torch = pytest.importorskip('torch', reason='students need torch')

from training.students.splatting import splat_softmax, splat_sum  # noqa: E402


def _by_loop(image, flow):
    total = torch.zeros_like(image)
    height, width = image.shape[2:]
    for b in range(len(image)):
        for v in range(height):
            for u in range(width):
                x, y = u + float(flow[b, 0, v, u]), v + float(flow[b, 1, v, u])
                for i in (math.floor(x), math.floor(x) + 1):
                    for j in (math.floor(y), math.floor(y) + 1):
                        if 0 <= i < width and 0 <= j < height:
                            total[b, :, j, i] += image[b, :, v, u] * (1 - abs(x - i)) * (1 - abs(y - j))
    return total


def test_a_sum_adds_each_pixel_to_the_neighbours_that_are_inside():
    torch.manual_seed(0)
    image, flow = torch.rand(2, 3, 5, 7), torch.randn(2, 2, 5, 7) * 3
    flow[0, :, 0, 0] = torch.tensor([1e20, -1e20])
    flow[1, :, 0, 0] = torch.tensor([-0.25, 0.0])  # its left neighbour is outside, its right one is not
    torch.testing.assert_close(splat_sum(image, flow), _by_loop(image, flow))


def test_no_flow_changes_nothing_and_the_heavier_pixel_wins():
    image = torch.tensor([1.0, 5.0, 7.0]).reshape(1, 1, 1, 3)
    still = torch.zeros(1, 2, 1, 3)
    assert splat_sum(image, still).equal(image)
    torch.testing.assert_close(splat_softmax(image, still, torch.zeros(1, 1, 1, 3)), image)
    onto_last = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).reshape(1, 2, 1, 3)
    metric = torch.log(torch.tensor([1.0, 2.0, 1.0])).reshape(1, 1, 1, 3)
    found = splat_softmax(image, onto_last, metric)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 0.0, (1 + 2 * 5 + 7) / 4]))


def test_gradients_reach_image_flow_and_metric():
    torch.manual_seed(0)
    given = [torch.rand(1, channels, 3, 4, dtype=torch.float64) for channels in (2, 2, 1)]
    given[1] = given[1] * 0.6 + 0.2  # no whole pixels: there the derivative jumps
    assert torch.autograd.gradcheck(splat_softmax, [part.requires_grad_() for part in given])
