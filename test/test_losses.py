# SPDX-License-Identifier: Apache-2.0
import pytest

torch = pytest.importorskip('torch', reason='losses need torch')

from training.losses import balanced_epe  # noqa: E402


@pytest.mark.parametrize(
    'label, speeds, errors, dt, expected',
    [
        # speeds in m/s; each group contributes its own mean EPE in metres
        ('one group', [0.0, 0.0], [0.1, 0.3], 0.1, 0.2),
        ('a mover among many static points counts as much as they', [0.0] * 99 + [5.0], [0.0] * 99 + [0.4], 0.1, 0.4),
        ('three groups', [0.1, 0.5, 3.0], [0.1, 0.2, 0.3], 0.1, 0.6),
        ('the same flow is slower over a longer dt', [0.5, 3.0], [0.2, 0.4], 0.2, 0.6),
    ],
)
def test_balanced_epe(label, speeds, errors, dt, expected):
    target = torch.tensor([[speed * dt, 0.0, 0.0] for speed in speeds])
    flow = target + torch.tensor([[0.0, error, 0.0] for error in errors])
    assert balanced_epe(flow, target, dt).item() == pytest.approx(expected, abs=1e-6)


def test_gradient_is_finite_at_a_perfect_prediction():
    flow = torch.zeros(4, 3, requires_grad=True)
    balanced_epe(flow, torch.zeros(4, 3), 0.1).backward()
    assert torch.isfinite(flow.grad).all()
