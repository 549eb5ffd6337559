# SPDX-License-Identifier: Apache-2.0
"""Geometry of one camera against closed forms."""

import pytest

torch = pytest.importorskip('torch', reason='students need torch')

from training.students import mono_geometry as geometry  # noqa: E402

HEIGHT, WIDTH = 6, 10
INTRINSICS = torch.tensor([[[20.0, 0.0, 4.0], [0.0, 25.0, 3.0], [0.0, 0.0, 1.0]]])


def _plane(depth: float):
    """The disparity [fraction of the width] of a fronto-parallel plane."""
    return torch.full((1, 1, HEIGHT, WIDTH), (20 * 0.54 / depth - 1e-4) / WIDTH)


def test_depth_of_a_disparity_is_that_of_a_rig_of_54_cm_within_its_bounds():
    torch.testing.assert_close(geometry.depth_of(_plane(5), INTRINSICS), torch.full((1, 1, HEIGHT, WIDTH), 5.0))
    assert geometry.depth_of(torch.zeros(1, 1, 2, 2), INTRINSICS).unique().tolist() == [80]
    assert geometry.depth_of(torch.full((1, 1, 2, 2), 1e6), INTRINSICS).unique().tolist() == pytest.approx([1e-3])


def test_points_of_a_plane_lie_on_the_rays_of_their_pixels():
    points = geometry.points_of(_plane(5), INTRINSICS)
    assert points[0, :, 3, 4].tolist() == pytest.approx([0, 0, 5])
    assert points[0, :, 5, 8].tolist() == pytest.approx([(8 - 4) * 5 / 20, (5 - 3) * 5 / 25, 5])


def test_no_motion_projects_every_pixel_onto_itself():
    flow = geometry.optical_flow(torch.zeros(1, 3, HEIGHT, WIDTH), _plane(7), INTRINSICS)
    assert flow.abs().max() < 1e-5


def test_a_plane_that_moves_sideways_has_one_flow_and_one_that_comes_closer_expands_from_the_centre():
    motion = torch.tensor([0.5, -0.2, 0.0]).reshape(1, 3, 1, 1)
    flow = geometry.optical_flow(motion, _plane(5), INTRINSICS)
    assert flow[0, 0].unique().tolist() == pytest.approx([20 * 0.5 / 5] * len(flow[0, 0].unique()), abs=1e-5)
    assert flow[0, 1].unique().tolist() == pytest.approx([-25 * 0.2 / 5] * len(flow[0, 1].unique()), abs=1e-5)
    nearer = geometry.optical_flow(torch.tensor([0.0, 0.0, -1.0]).reshape(1, 3, 1, 1), _plane(5), INTRINSICS)
    assert nearer[0, :, 5, 8].tolist() == pytest.approx([(8 - 4) * (5 / 4 - 1), (5 - 3) * (5 / 4 - 1)], abs=1e-5)


def test_projected_pixels_stay_within_one_and_a_half_widths_in_both_axes():
    motion = torch.tensor([1e4, -1e4, 0.0]).reshape(1, 3, 1, 1)
    pixels = geometry.target_pixels(motion, _plane(5), INTRINSICS)
    assert pixels[0, 0].unique().tolist() == [15] and pixels[0, 1].unique().tolist() == [-15]


def test_intrinsics_scale_by_plain_ratios_and_flip_about_the_width():
    scaled = geometry.scaled_intrinsics(INTRINSICS + torch.eye(3)[None] * 0, (6, 10), (12, 5))[0]
    assert scaled.tolist() == [[10, 0, 2], [0, 50, 6], [0, 0, 1]]
    assert geometry.flipped_intrinsics(INTRINSICS, WIDTH)[0, 0].tolist() == [20, 0, 6]
    assert INTRINSICS[0, 0, 2] == 4


def test_a_warp_shifts_by_whole_pixels_and_is_0_where_a_neighbour_is_outside():
    image = torch.rand(2, 3, HEIGHT, WIDTH) + 1
    pixels = geometry.pixel_grid(HEIGHT, WIDTH, image).expand(2, -1, -1, -1)
    torch.testing.assert_close(geometry.warp(image, pixels), image)
    shift = torch.tensor([2.0, 0.5]).reshape(1, 2, 1, 1)
    moved = geometry.warp(image, pixels + shift)
    torch.testing.assert_close(moved[:, :, :-1, :-2], (image[:, :, :-1, 2:] + image[:, :, 1:, 2:]) / 2)
    assert (moved[:, :, -1] == 0).all() and (moved[..., -2:] == 0).all()


def test_resizing_keeps_the_corners():
    image = torch.rand(1, 2, 3, 5)
    larger = geometry.resize(image, 9, 17)
    torch.testing.assert_close(larger[:, :, ::4, ::4], image)
