# SPDX-License-Identifier: Apache-2.0
"""Losses of students for stereo cameras, computed by hand."""

import math

import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from training.learning import stereo_losses  # noqa: E402
from training.students.camera_student import StereoPrediction  # noqa: E402


def constant(*values, size=(8, 8), batch=1):
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1).expand(batch, -1, *size).clone()


def test_values_of_the_network_are_a_twentieth_and_disparities_negative():
    assert stereo_losses.network_values(constant(20, 40, 10, -5))[0, :, 0, 0].tolist() == [-1, -2, 0.5, -0.25]


def test_loss_of_all_levels_is_the_sum_over_pixels_with_the_weights_of_the_levels():
    target = constant(20, 40, 10, -5)
    levels = {2: torch.zeros(1, 4, 2, 2), 3: torch.zeros(1, 4, 1, 1)}
    each = 1 + 2 + 0.5 * (0.5 + 0.25)  # per pixel; flow counts half
    expected = 0.005 * 4 * each + 0.01 * 1 * each
    assert stereo_losses.dwarf_levels_loss(levels, target).item() == pytest.approx(expected)
    right = {2: stereo_losses.network_values(target)[:, :, :2, :2]}
    assert stereo_losses.dwarf_levels_loss(right, target).item() == pytest.approx(0, abs=1e-6)


def test_target_of_a_level_is_the_mean_of_its_pixels_and_unknown_ones_count_as_zero():
    target = constant(0, 0, 0, 0)
    target[0, 0, :2, :2] = 80  # 4 of the 16 pixels of the first cell of level 2: mean 20 px
    target[0, 1] = torch.nan
    loss = stereo_losses.dwarf_levels_loss({2: torch.zeros(1, 4, 2, 2)}, target)
    assert loss.item() == pytest.approx(0.005 * 1)


def test_loss_is_averaged_over_the_batch():
    one = stereo_losses.dwarf_levels_loss({2: torch.zeros(1, 4, 2, 2)}, constant(20, 0, 0, 0))
    two = stereo_losses.dwarf_levels_loss({2: torch.zeros(2, 4, 2, 2)}, constant(20, 0, 0, 0, batch=2))
    assert one == two


def test_masked_loss_counts_known_pixels_only():
    target = torch.full((1, 4, 2, 2), torch.nan)
    target[0, 0, 0, 0], target[0, 2:, 1, 1] = 20, 40
    loss = stereo_losses.dwarf_masked_loss(torch.zeros(1, 4, 2, 2), target)
    assert loss.item() == pytest.approx(0.001 * (1 + 0.5 * (2 + 2)))
    assert stereo_losses.dwarf_masked_loss(torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), torch.nan)) == 0


def test_squared_weights_include_biases():
    layer = torch.nn.Linear(1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [2.0]]))
        layer.bias.copy_(torch.tensor([3.0, 0.0]))
    assert stereo_losses.squared_weights(layer.parameters()).item() == 14


def prediction(log_sigma):
    values = [torch.zeros(1, channels, 2, 2, requires_grad=True) for channels in (1, 1, 2)]
    return StereoPrediction(*values, constant(*log_sigma, size=(2, 2)).requires_grad_())


def test_laplace_loss_by_hand():
    target = constant(2, 4, 3, -1, size=(2, 2))
    target[0, 0, 0] = torch.nan  # half of the disparities
    loss = stereo_losses.laplace_loss(prediction((0, math.log(4), 1)), target)
    flow = (3 + 1) / 2
    assert loss.item() == pytest.approx((2 + 2 + 0) + (4 + 4 / 4 + math.log(4)) + (flow + flow / math.e + 1))


def test_half_of_the_errors_of_coarse_values_is_added():
    target = torch.full((1, 4, 2, 2), torch.nan)
    target[0, 0, 0, 0], target[0, 2:, 0, 0] = (
        3,
        5,
    )  # the pixel of the only coarse value; its second disparity is unknown
    target[0, :, 1, 1] = 0
    predicted = prediction((0, 0, 0))
    without = stereo_losses.laplace_loss(predicted, target)
    added = stereo_losses.laplace_loss(predicted._replace(coarse=torch.ones(1, 4, 1, 1)), target) - without
    assert added.item() == pytest.approx(0.5 * (2 + 0.5 * (4 + 4)))


def test_errors_are_not_excused_by_a_large_sigma_and_sigma_learns_the_error():
    for log_sigma in (0.0, 3.0):
        predicted = prediction((log_sigma,) * 3)
        stereo_losses.laplace_loss(predicted, constant(2, 4, 3, -1, size=(2, 2))).backward()
        assert torch.allclose(predicted.disparity.grad, torch.full((1, 1, 2, 2), -1 / 4))
    right = prediction((math.log(2), math.log(4), math.log(2)))
    stereo_losses.laplace_loss(right, constant(2, 4, 3, -1, size=(2, 2))).backward()
    assert right.log_sigma.grad.abs().max() < 1e-6


def test_large_errors_and_unknown_targets_have_no_gradient():
    predicted = prediction((0, 0, 0))
    target = constant(1000, 4, 3, -1, size=(2, 2))
    target[:, 1:] = torch.nan
    loss = stereo_losses.laplace_loss(predicted, target)
    loss.backward()
    assert loss.item() == 2 * 64 and not predicted.disparity.grad.any() and not predicted.flow.grad.any()
