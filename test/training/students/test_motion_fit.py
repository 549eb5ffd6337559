# SPDX-License-Identifier: Apache-2.0
"""The least-squares fit of ego motion and depth inside a network."""

import pytest

torch = pytest.importorskip('torch', reason='students need torch')

from training.students.mono_geometry import points_of, project  # noqa: E402
from training.students.motion_fit import (  # noqa: E402
    depth_step,
    fit_motion,
    inside,
    matchable,
    parallax,
    pixel_changes,
    soft_match,
    solved,
)
from training.students.stereo_layers import correlation_2d  # noqa: E402

_CAMERA = torch.tensor([[[23.0, 0, 20], [0, 23, 6], [0, 0, 1]]])
_TURN, _SHIFT = 0.05, 2.0


@pytest.fixture
def disparity():
    return 0.01 + 0.1 * torch.rand(1, 1, 12, 40, generator=torch.Generator().manual_seed(0))


def moved(points, ego):
    """Return how far points (1, 3, h, w) move by a rotation and a translation (6,), in the units of the fit."""
    skew = torch.zeros(3, 3)
    skew[2, 1], skew[0, 2], skew[1, 0] = _TURN * ego[:3]
    rotation = torch.linalg.matrix_exp(skew - skew.T)
    return (rotation @ points.flatten(2)).reshape(points.shape) + _SHIFT * ego[3:, None, None] - points


@pytest.mark.parametrize(
    'ego',
    [(0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, -0.4), (0.1, -0.2, 0.05, 0, 0, 0), (0.1, -0.2, 0.05, 0.05, 0, -0.4)],
    ids=['rest', 'forward', 'turn', 'both'],
)
def test_exact_matches_give_the_ego_motion(disparity, ego):
    points = points_of(disparity, _CAMERA)
    target = project(points + moved(points, torch.tensor(ego)), _CAMERA)
    found, weight = torch.zeros(6), torch.ones(1, 1, 12, 40)
    for _ in range(12):  # each step is damped
        motion = moved(points, found)
        changes = pixel_changes(points, motion, _CAMERA, _TURN, _SHIFT)
        found = found + fit_motion(changes, target - project(points + motion, _CAMERA), weight)[0]
    torch.testing.assert_close(found, torch.tensor(ego, dtype=found.dtype), atol=1e-3, rtol=0)


def test_cells_without_weight_have_no_say(disparity):
    points = points_of(disparity, _CAMERA)
    changes = pixel_changes(points, torch.zeros_like(points), _CAMERA, _TURN, _SHIFT)
    matches, weight = torch.zeros(1, 2, 12, 40), torch.ones(1, 1, 12, 40)
    matches[..., :10], weight[..., :10] = 3.0, 0.0
    assert float(fit_motion(changes, matches, weight).abs().max()) < 1e-6
    assert float(fit_motion(changes, matches, torch.ones_like(weight)).abs().max()) > 0.01
    assert not fit_motion(changes, matches, torch.zeros_like(weight)).any()  # nothing is known: no motion


def test_changes_of_pixels_are_the_derivatives_of_the_projection(disparity):
    points = points_of(disparity, _CAMERA)
    motion = moved(points, torch.tensor([0.1, -0.1, 0.2, 0.1, 0.1, -0.3]))
    changes = pixel_changes(points, motion, _CAMERA, 1.0, 1.0)
    for k in range(6):
        way = torch.zeros(3)
        way[k % 3] = 1e-3
        change = torch.linalg.cross(way[None, :, None, None].expand_as(points), points, dim=1)
        change = way[:, None, None].expand_as(points) if k >= 3 else change
        expected = project(points + motion + change, _CAMERA) - project(points + motion, _CAMERA)
        torch.testing.assert_close(changes[:, k] * 1e-3, expected, atol=2e-3, rtol=0.02)


def test_parallax_gives_the_depth_back(disparity):
    """Depths that are 10 % too large show in the residuals of a sideways motion, and not in those of a turn."""
    weight, way = torch.ones(1, 1, 12, 40), torch.tensor([[0.8, 0.0, 0.0]])
    points = points_of(disparity, _CAMERA)
    wrong = points * 1.1
    for ego, expected in (((0, 0, 0, 0.8, 0, 0), 0.095), ((0, 0.2, 0, 0, 0, 0), 0.0)):
        ego = torch.tensor(ego)
        residual = [
            project(points + moved(points, sign * ego), _CAMERA) - project(wrong + moved(wrong, sign * ego), _CAMERA)
            for sign in (1, -1)
        ]
        changes = pixel_changes(wrong, moved(wrong, ego), _CAMERA, _TURN, _SHIFT)
        ways = [parallax(changes, sign * way * bool(ego[3])) for sign in (1, -1)]
        step, worth = depth_step(ways, residual, [weight, weight])
        assert abs(float(step.median()) - expected) < 0.01
        assert bool((worth > 1).all()) == bool(ego[3])


def test_matches_are_where_the_correlation_is_highest():
    image = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    shifted = torch.roll(image, (1, -2), dims=(2, 3))
    volume = correlation_2d(matchable(image), matchable(shifted), 3)
    found, peak = soft_match(volume, 3, torch.tensor(20.0))
    torch.testing.assert_close(found[0, :, 3, 6], torch.tensor([-2.0, 1.0]), atol=0.1, rtol=0)
    assert 0.8 < float(peak[0, 0, 3, 6]) <= 1
    flat, peak = soft_match(torch.zeros_like(volume), 3, torch.tensor(20.0))
    assert float(flat.abs().max()) < 1e-6 and float(peak.max()) < 1e-6  # also at the border, where half is outside


def test_systems_are_solved():
    generator = torch.Generator().manual_seed(0)
    root, right = torch.randn(2, 6, 9, generator=generator), torch.randn(2, 6, 1, generator=generator)
    matrix = root @ root.transpose(1, 2)
    torch.testing.assert_close(matrix @ solved(matrix, right), right, atol=1e-3, rtol=0)


def test_pixels_inside():
    pixels = torch.tensor([[[[0.0, 3.1, 2.0]], [[0.0, 0.0, -0.1]]]]).expand(1, 2, 1, 3)
    assert inside(pixels, (1, 4)).flatten().tolist() == [1.0, 0.0, 0.0]
