# SPDX-License-Identifier: Apache-2.0
"""Losses of one camera at labelled pixels: 0 for the truth, hand-computed errors, no gradient from unknown pixels."""

import math

import pytest

torch = pytest.importorskip('torch', reason='training needs torch')
pytest.importorskip('cv2', reason='camera images need OpenCV')

from training.learning.mono_label_losses import finetuning_losses, label_loss  # noqa: E402
from training.learning.mono_samples import MonoBatch  # noqa: E402
from training.students.mono_geometry import BASELINE  # noqa: E402
from training.students.multi_mono_sf import MonoFlow  # noqa: E402

W, H, FOCAL = 64, 32, 40.0
NAN = float('nan')


def batch_of(rows, *, baseline=BASELINE, pixel_size=(1.0, 1.0)):
    """Return a batch of three frames whose one result has these forward labels, and none backward."""
    labels = torch.full((1, 1, 2, len(rows), 6), NAN)
    labels[0, 0, 0] = torch.tensor(rows)
    intrinsics = torch.tensor([[[FOCAL, 0, 31.5], [0, FOCAL, 15.5], [0, 0, 1]]])
    images = torch.zeros(1, 3, 3, H, W)
    return MonoBatch(images, images[:, :0], intrinsics, torch.tensor([baseline]), torch.tensor([pixel_size]), labels)


def flow_of(depth, motion):
    """Return a result: one depth [m] and one motion [m] of all pixels."""
    sizes = [(H >> k, W >> k) for k in range(4)]
    disparity = tuple(torch.full((1, 1, h, w), FOCAL * BASELINE / depth / W, requires_grad=True) for h, w in sizes)
    forward = tuple(torch.tensor(motion).reshape(1, 3, 1, 1).expand(1, 3, h, w).clone() for h, w in sizes)
    return MonoFlow(forward, tuple(-part for part in forward), disparity)


def label(u, v, depth, motion, baseline=BASELINE):
    """Return the label of a pixel at a depth [m] that moves [m]."""
    point = torch.tensor([(u - 31.5) / FOCAL * depth, (v - 15.5) / FOCAL * depth, depth])
    moved = point + torch.tensor(motion)
    flow = [float(moved[k] / moved[2] * FOCAL + centre) - at for k, centre, at in ((0, 31.5, u), (1, 15.5, v))]
    return [u, v, FOCAL * baseline / depth, FOCAL * baseline / float(moved[2]), *flow]


@pytest.mark.parametrize('baseline', [BASELINE, 0.2])
def test_the_truth_has_no_loss(baseline):
    motion = (0.3, -0.1, -1.0)
    rows = [label(u, v, 8.0, motion, baseline) for u, v in ((0.0, 0.0), (20.25, 11.5), (63.0, 31.0))]
    loss, parts = label_loss([flow_of(8.0, motion)], batch_of(rows, baseline=baseline), 20.0)
    assert float(parts['depth']) < 1e-4 and float(parts['other_depth']) < 1e-4 and float(parts['flow']) < 0.011
    assert float(loss) < 0.01


def test_errors_by_hand():
    """Depth 10 m for 8 m, and motion of 0.4 m along x where there is none: 1.6 px at 10 m."""
    loss, parts = label_loss(
        [flow_of(10.0, (0.4, 0.0, 0.0))], batch_of([label(31.5, 15.5, 8.0, (0.0, 0.0, 0.0))]), 20.0
    )
    assert float(parts['depth']) == pytest.approx(math.log(10 / 8), abs=1e-4)
    assert float(parts['other_depth']) == pytest.approx(math.log(10 / 8), abs=1e-4)
    assert float(parts['flow']) == pytest.approx(1.6, abs=1e-3)
    assert float(loss) == pytest.approx(2 * math.log(10 / 8) + 1.6 * 20 / W, abs=2e-3)


def test_unknown_pixels_count_nowhere_and_have_no_gradient():
    known = label(10.0, 10.0, 8.0, (0.0, 0.0, 0.0))
    rows = [known, [5.0, 5.0, 3.0, NAN, NAN, NAN], [NAN] * 6]
    flow = flow_of(8.0, (0.0, 0.0, 0.0))
    loss, parts = label_loss([flow], batch_of(rows), 20.0)
    loss.backward()
    assert all(torch.isfinite(part.grad).all() for part in flow.disparity)
    expected = math.log(FOCAL * BASELINE / 3 / 8) / 2  # depth of the second one alone, mean of two
    assert float(parts['depth']) == pytest.approx(abs(expected), abs=1e-4) and float(parts['flow']) < 0.011
    nothing, _ = label_loss([flow], batch_of([[NAN] * 6]), 20.0)
    assert float(nothing) == 0


def test_a_step_along_the_gradient_lowers_the_loss():
    """Also through pixels near the camera, and points that come to lie behind it."""
    rows = [label(10.0, 10.0, 2.0, (0.0, 0.0, -1.0)), label(40.0, 20.0, 30.0, (0.0, 0.0, -1.0))]
    batch, flow = batch_of(rows), flow_of(1.0, (0.0, 0.0, -2.0))
    loss, _ = label_loss([flow], batch, 20.0)
    loss.backward()
    stepped = flow._replace(disparity=tuple((part - 1e-4 * part.grad).detach() for part in flow.disparity))
    assert float(label_loss([stepped], batch, 20.0)[0]) < float(loss.detach())


def test_fine_tuning_by_hand():
    """Errors are in pixels of the camera, twice as many: 2.7 px for 2.16 px of one baseline, 1.6 px of flow."""
    batch = batch_of([label(31.5, 15.5, 10.0, (0.0, 0.0, 0.0), 0.2)], baseline=0.2, pixel_size=(2.0, 2.0))
    disparities, flow = finetuning_losses(flow_of(8.0, (0.32, 0.0, 0.0)), batch)
    assert float(disparities) == pytest.approx(8 * 2 * 2 * (2.7 - 2.16), abs=0.01)
    assert float(flow) == pytest.approx(8 * (3.2 + 0.01) ** 0.4, abs=0.01)
    assert [float(part) for part in finetuning_losses(flow_of(8.0, (0.0, 0.0, 0.0)), batch_of([[NAN] * 6]))] == [0, 0]
