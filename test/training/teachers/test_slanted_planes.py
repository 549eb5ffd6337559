# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from training.teachers.slanted_planes import SlantedPlaneConfig, fill_by_planes
from training.teachers.superpixels import SuperpixelConfig

CONFIG = SlantedPlaneConfig(SuperpixelConfig(side=10))
HEIGHT, WIDTH = 60, 100
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
UNSEEN = np.full((HEIGHT, WIDTH), -100, np.float32)  # the right image contradicts nothing: it shows everything behind
WALL, ROAD = 5 + 0 * ROWS, 0.3 * ROWS + 0.02 * COLUMNS


def colours(*masks):
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for number, mask in enumerate(masks):
        image[mask] = (40 + 90 * number, 128, 128)
    return image


def filled(disparity, image, right=None, road=None):
    right = np.full_like(UNSEEN, np.nan) if right is None else right
    return fill_by_planes(disparity.astype(np.float32), right, image, road, 64, CONFIG)[0]


def test_nothing_matched_gives_nothing():
    assert np.isnan(filled(np.full_like(WALL, np.nan), colours())).all()


def test_a_hole_gets_the_slanted_plane_around_it():
    disparity = ROAD.copy()
    disparity[20:40, 30:60] = np.nan
    np.testing.assert_allclose(filled(disparity, colours()), ROAD, atol=0.2)  # px


def test_single_wrong_matches_do_not_turn_a_plane_but_stay():
    disparity = ROAD.copy()
    disparity[::7, ::9] += 20
    result = filled(disparity, colours())
    wrong = disparity != ROAD
    np.testing.assert_allclose(result[~wrong], ROAD[~wrong], atol=0.2)
    np.testing.assert_array_equal(result[wrong], disparity[wrong].astype(np.float32))
    right = np.full_like(UNSEEN, np.nan)
    _, of_plane = fill_by_planes(disparity.astype(np.float32), right, colours(), None, 64, CONFIG)
    np.testing.assert_allclose(of_plane, ROAD, atol=0.2)


def test_borders_of_colour_are_borders_of_planes():
    near = (COLUMNS > 43) & (COLUMNS < 78) & (ROWS > 13) & (ROWS < 47)
    true = np.where(near, 20, WALL)
    disparity = np.where(np.random.default_rng(0).random(true.shape) < 0.4, true, np.nan)
    disparity[(COLUMNS > 38) & (COLUMNS < 50)] = np.nan  # nothing matched at the border itself
    wrong = np.abs(filled(disparity, colours(near)) - true) > 1
    assert wrong.mean() < 0.03


def test_overexposed_ground_takes_the_plane_of_the_road():
    disparity = np.where(ROWS > 30, ROAD, WALL)
    white = (ROWS > 30) & (COLUMNS > 20)
    disparity[white] = np.nan
    road = np.array([0.02, 0.3, 0.0])
    assert np.abs(filled(disparity, colours(white), road=road) - ROAD)[white].max() < 0.5  # px


@pytest.mark.parametrize('sees, expected', [(5.0, 5.0), (25.0, 25.0)])
def test_what_the_right_image_shows_decides_where_nothing_is_matched(sees, expected):
    """A hole between surfaces at 5 and 25 px of disparity: in front of what the right camera sees nothing can be."""
    disparity = np.where(COLUMNS < 50, 5.0, 25.0)
    disparity[:, 40:60] = np.nan
    result = filled(disparity, colours(), right=np.full_like(UNSEEN, sees))
    hole = result[:, 42:58]
    assert (np.abs(hole - expected) < 1).mean() > (0.9 if sees == 5.0 else 0.3)
