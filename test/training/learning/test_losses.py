# SPDX-License-Identifier: Apache-2.0
import pytest

torch = pytest.importorskip('torch', reason='losses need torch')

from training.learning.losses import balanced_epe, deflow_loss, fastflow3d_loss, speed_weight, zeroflow_loss  # noqa: E402


@pytest.mark.parametrize(
    'label, speeds, errors, still_weight, expected',
    [
        # speeds in m/s; each group contributes its own mean EPE in metres
        ('one group', [0.0, 0.3], [0.1, 0.3], 1.0, 0.2),
        ('a mover among many still points counts as much as they', [0.0] * 99 + [9.0], [0.0] * 99 + [0.4], 1.0, 0.4),
        ('four groups', [0.1, 1.5, 3.0, 6.0], [0.1, 0.2, 0.3, 0.4], 1.0, 1.0),
        ('limits belong to the faster group', [0.4, 2.0, 5.0], [0.1, 0.2, 0.3], 1.0, 0.6),
        ('still points weigh as told', [0.0, 9.0], [0.1, 0.4], 2.0, 0.6),
    ],
)
def test_balanced_epe(label, speeds, errors, still_weight, expected):
    target = torch.tensor([[speed * 0.1, 0.0, 0.0] for speed in speeds])
    flow = target + torch.tensor([[0.0, error, 0.0] for error in errors])
    loss = balanced_epe(flow, target, torch.tensor(speeds), still_weight=still_weight)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    'label, speeds, errors, expected',
    [
        ('no points', [], [], 0.0),
        ('one group: its mean', [0.0, 0.3], [0.1, 0.3], 0.2),
        ('three groups: the sum of their means', [0.1, 0.7, 3.0, 9.0], [0.1, 0.2, 0.3, 0.5], 0.1 + 0.2 + 0.4),
        ('0.4 and 1 m/s are slow', [0.4, 1.0], [0.1, 0.3], 0.2),
        ('a group without points counts 0', [0.0, 1.1], [0.1, 0.3], 0.4),
    ],
)
def test_deflow_loss(label, speeds, errors, expected):
    flow = torch.tensor([[0.0, error, 0.0] for error in errors]).reshape(-1, 3)
    loss = deflow_loss(flow, torch.zeros_like(flow), torch.tensor(speeds))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('loss', [balanced_epe, deflow_loss])
def test_gradient_is_finite_at_a_perfect_prediction(loss):
    flow = torch.zeros(4, 3, requires_grad=True)
    loss(flow, torch.zeros(4, 3), torch.zeros(4)).backward()
    assert torch.isfinite(flow.grad).all()


@pytest.mark.parametrize(
    'speed, expected',
    [(0.0, 0.1), (0.5, 0.1), (0.6, 0.28), (0.75, 0.55), (1.0, 1.0), (20.0, 1.0)],
)
def test_speed_weight(speed, expected):
    assert speed_weight(torch.tensor([speed])).item() == pytest.approx(expected, abs=1e-6)


FLOW = torch.tensor([[0.0, 0.2, 0.0], [0.1, 0.0, 0.3], [0.0, 0.0, 0.0], [1.0, 0.0, 0.4]])
TARGET = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.075, 0.0, 0.0], [1.0, 0.0, 0.0]])
SPEED = TARGET.norm(dim=1) / 0.1  # m/s: 0, 1, 0.75, 10; the errors are 0.2, 0.3, 0.075 and 0.4 m


@pytest.mark.parametrize(
    'label, cloud, constant_weight, expected',
    [
        ('one cloud', [0, 0, 0, 0], False, (0.1 * 0.2 + 0.3 + 0.55 * 0.075 + 0.4) / 4),
        ('each cloud counts the same', [0, 0, 0, 1], False, ((0.02 + 0.3 + 0.04125) / 3 + 0.4) / 2),
        ('a cloud without points does not count', [0, 0, 0, 3], False, ((0.02 + 0.3 + 0.04125) / 3 + 0.4) / 2),
        ('as in the released code', [0, 0, 0, 0], True, 0.1 * (0.2 + 0.3 + 0.075 + 0.4) / 4),
    ],
)
def test_zeroflow_loss(label, cloud, constant_weight, expected):
    loss = zeroflow_loss(FLOW, TARGET, SPEED, torch.tensor(cloud), constant_weight=constant_weight)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_fastflow3d_loss():
    is_foreground = torch.tensor([False, True, False, True])
    loss = fastflow3d_loss(FLOW, TARGET, is_foreground, torch.tensor([0, 0, 1, 1]))
    expected = ((0.1 * 0.2 + 0.3) / 2 + (0.1 * 0.075 + 0.4) / 2) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)
