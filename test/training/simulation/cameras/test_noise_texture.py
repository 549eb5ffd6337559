# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip('cv2', reason='textures need OpenCV')

from training.simulation.cameras.noise_texture import hash_cells, inside, lines, noise_texture


def test_no_sample_for_no_place():
    empty = np.zeros(0, np.float32)
    assert noise_texture().sample(empty, empty, empty, 1.0).shape == (0, 3)


def test_noise_repeats_without_a_seam_and_is_the_same_wherever_it_is_looked_up():
    u, v = np.random.default_rng(0).uniform(-3, 3, (2, 5000)).astype(np.float32)
    fine = np.full(5000, 1e-3, np.float32)
    values = noise_texture().sample(u, v, fine, 2.0)
    # 0.05 of the standard deviation: float32 coordinates, and weights of 1/32 texel
    np.testing.assert_allclose(noise_texture().sample(u + 4, v - 2, fine, 2.0), values, atol=0.05)
    np.testing.assert_allclose(values[:2500], noise_texture().sample(u[:2500], v[:2500], fine[:2500], 2.0), atol=1e-6)
    assert np.abs(values.mean(axis=0)).max() < 0.2 and values.std(axis=0) == pytest.approx(
        1, abs=0.3
    )  # interpolation smooths


def test_far_away_only_the_mean_is_left():
    u, v = np.random.default_rng(0).uniform(0, 3, (2, 2000)).astype(np.float32)
    spread = [noise_texture().sample(u, v, np.full(2000, f, np.float32), 2.0).std() for f in (0.004, 0.06, 0.5, 2.0)]
    assert spread == sorted(spread, reverse=True) and spread[-1] < 0.2


@pytest.mark.parametrize(
    ('x', 'footprint', 'expected'),
    [
        (0.0, 0.01, 1.0),  # on a line of 0.2 m, every 1 m
        (1.0, 0.01, 1.0),
        (-2.0, 0.01, 1.0),
        (0.5, 0.01, 0.0),
        (0.1, 0.02, 0.5),  # on its edge
        (0.0, 0.4, 0.5),  # a line of half the pixel, of which 30 % is the mean of all
        (0.37, 4.0, 0.2),  # much wider than the spacing: the mean
    ],
)
def test_lines_cover_the_share_of_a_pixel(x, footprint, expected):
    found = lines(np.float32([x]), 1.0, 0.2, np.float32([footprint]))
    if footprint == 0.4:
        expected = 0.7 * 0.5 + 0.3 * 0.2
    assert found[0] == pytest.approx(expected, abs=1e-3)


def test_edges_are_as_wide_as_a_pixel():
    np.testing.assert_allclose(inside(np.float32([-1, -0.05, 0, 0.05, 1]), np.float32(0.2)), [0, 0.25, 0.5, 0.75, 1])


def test_cells_have_values_of_their_own():
    i, j = (a.ravel() for a in np.meshgrid(np.arange(-50, 50), np.arange(-50, 50)))
    values = hash_cells(i, j)
    np.testing.assert_array_equal(values, hash_cells(i.astype(np.float32), j.astype(np.float32)))
    assert values.min() >= 0 and values.max() < 1 and values.mean() == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05 and len(np.unique(values)) > 9000
